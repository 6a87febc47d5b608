/* layout.c: fills and proves the table of offsets (see layout.h).
 *
 * asyncio's own objects have no published offsets before 3.14, and Task is a
 * struct private to _asyncio.  So we look into one: make a Task whose name and
 * coroutine we know on a loop that does nothing, and find the two pointers in
 * its memory.  That holds on every version, C Task or not, and when it does
 * not, names are simply missing.  The Task is never run; its coroutine is
 * closed and its "destroyed but pending" message is switched off. */
#define LW_COMPAT_INTERNALS
#include "layout.h"

#include <stdlib.h>

#include "../core/saferead.h"
#include "frames.h"

lw_layout lw_lay;
lw_asyncio_layout lw_alay;

static char layout_text[160] = "fallback: not initialised";
static int layout_good;

/* Whoever imports holds the GIL: it must be seen to. */
static int
gil_is_ours(uintptr_t tstate)
{
    uintptr_t interp, gil = lw_lay.gil_fixed, holder;
    int locked, collecting;
    if (lw_read_ptr(tstate + lw_lay.ts_interp, &interp) < 0
        || (gil == 0 && lw_read_ptr(interp + lw_lay.in_gil, &gil) < 0)
        || lw_read_ptr(gil + lw_lay.gil_holder, &holder) < 0
        || lw_mem_read((const void *)(gil + lw_lay.gil_locked), &locked, sizeof(locked)) < 0
        || lw_mem_read((const void *)(interp + lw_lay.in_gc_collecting), &collecting, sizeof(collecting)) < 0) {
        return 0;
    }
    return holder == tstate && locked == 1 && collecting == 0;
}

/* Compare a safe walk of the calling thread with sys._getframe(); NULL or why not. */
static const char *
self_test(void)
{
    const char *why = NULL;
    static lw_walk walk;
    static lw_frame out[LW_MAX_FRAMES];
    lw_textbuf text = {0};
    char buf[8192];
    PyFrameObject *frame = NULL;
    PyCodeObject *code = NULL;

    lw_textbuf_init(&text, buf, sizeof(buf));
    frame = PyEval_GetFrame(); /* borrowed */
    if (frame == NULL) {
        return NULL; /* no Python code runs: nothing to compare with */
    }
    if (lw_walk_stack((uintptr_t)PyThreadState_Get(), &walk) < 0 || walk.n == 0) {
        return "layout self-test: the stack could not be read";
    }
    if (!gil_is_ours((uintptr_t)PyThreadState_Get())) {
        return "layout self-test: the GIL's holder is another one";
    }
    code = PyFrame_GetCode(frame);
    if (lw_untag(walk.raw[0].code) != (uintptr_t)code) {
        why = "layout self-test: the newest frame is another one";
        goto done;
    }
    if (lw_decode_frame(&walk.raw[0], &out[0], &text) < 0) {
        why = "layout self-test: the code object could not be decoded";
        goto done;
    }
    if (out[0].line != PyFrame_GetLineNumber(frame)) {
        why = "layout self-test: a wrong line number";
        goto done;
    }
    const char *qualname = PyUnicode_AsUTF8(code->co_qualname);
    const char *filename = PyUnicode_AsUTF8(code->co_filename);
    if (qualname == NULL || filename == NULL || strncmp(qualname, text.base + out[0].name, LW_MAX_TEXT - 4) != 0
        || strncmp(filename, text.base + out[0].file, LW_MAX_TEXT - 4) != 0) {
        PyErr_Clear();
        why = "layout self-test: a wrong name";
    }
done:
    Py_XDECREF(code);
    return why;
}

int
lw_layout_init(void)
{
    const char *why = lw_compat_layout(&lw_lay);
    if (why == NULL && lw_mem_init() < 0) {
        why = "neither process_vm_readv nor /proc/self/mem is allowed";
    }
    if (why == NULL && (lw_lay.fr_size > LW_FRAME_HEAD || lw_lay.co_size > LW_CODE_HEAD)) {
        why = "frames or code objects are larger than expected";
    }
    if (why == NULL) {
        why = self_test();
    }
    const char *wanted = getenv("LOOPWATCH_LAYOUT"); /* for tests: what a process sees whose memory cannot be read */
    if (why == NULL && wanted != NULL && strcmp(wanted, "fallback") == 0) {
        why = "LOOPWATCH_LAYOUT=fallback asks for it";
    }
    layout_good = why == NULL;
    snprintf(layout_text, sizeof(layout_text), "%s%s", why ? "fallback: " : "exact", why ? why : "");
    return 0;
}

int
lw_layout_ok(void)
{
    return layout_good;
}

const char *
lw_layout_text(void)
{
    return layout_text;
}

/* The offset in OWNER's own memory of a pointer to TARGET, or 0. */
static size_t
find_pointer(PyObject *owner, PyObject *target)
{
    Py_ssize_t size = Py_TYPE(owner)->tp_basicsize;
    for (Py_ssize_t at = sizeof(PyObject); at + (Py_ssize_t)sizeof(void *) <= size; at += sizeof(void *)) {
        uintptr_t word;
        if (lw_mem_read((char *)owner + at, &word, sizeof(word)) == 0 && word == (uintptr_t)target) {
            return (size_t)at;
        }
    }
    return 0;
}

static const char probe_source[] =
    "import asyncio\n"
    "from asyncio import base_events\n" LW_PROBE_LOOP "co = c()\n"
    "name = ''.join(['loopwatch', '-layout'])\n"
    "import contextvars\n"
    "context = contextvars.Context()\n"
    "task = asyncio.Task(co, loop=L(), name=name, context=context)\n"
    "task._log_destroy_pending = False\n"
    "qualname = co.__qualname__ = ''.join(['loopwatch', '.layout'])\n" /* not also its name */
    "run_once = base_events.BaseEventLoop._run_once.__code__\n"
    "names = run_once.co_varnames\n"
    "slots = [names.index(n) if n in names else -1 for n in ('ntodo', 'i', 'handle')]\n";

void
lw_layout_asyncio(void)
{
    static int done;
    PyObject *ns = NULL, *result = NULL, *closed = NULL;

    if (done || !layout_good) {
        return;
    }
    done = 1;
    ns = PyDict_New();
    if (ns == NULL || PyDict_SetItemString(ns, "__builtins__", PyEval_GetBuiltins()) < 0) {
        goto end;
    }
    result = PyRun_String(probe_source, Py_file_input, ns, ns);
    if (result == NULL) {
        goto end;
    }
    PyObject *task = PyDict_GetItemString(ns, "task"); /* all borrowed from ns */
    PyObject *co = PyDict_GetItemString(ns, "co");
    PyObject *run_once = PyDict_GetItemString(ns, "run_once");
    PyObject *slots = PyDict_GetItemString(ns, "slots");
    PyObject *asyncio = PyDict_GetItemString(ns, "asyncio");
    lw_alay.task_name = find_pointer(task, PyDict_GetItemString(ns, "name"));
    lw_alay.task_coro = find_pointer(task, co);
    lw_alay.task_context = find_pointer(task, PyDict_GetItemString(ns, "context"));
    lw_alay.task_type = (uintptr_t)Py_TYPE(task);
    lw_alay.coro_qualname = find_pointer(co, PyDict_GetItemString(ns, "qualname"));
    Py_INCREF(run_once); /* kept for good: compared by address */
    lw_alay.run_once_code = (uintptr_t)run_once;
    lw_alay.local_ntodo = (int)PyLong_AsLong(PyList_GET_ITEM(slots, 0));
    lw_alay.local_i = (int)PyLong_AsLong(PyList_GET_ITEM(slots, 1));
    lw_alay.local_handle = (int)PyLong_AsLong(PyList_GET_ITEM(slots, 2));
    PyObject *handle_type = PyObject_GetAttrString(asyncio, "Handle");
    if (handle_type != NULL) {
        lw_alay.handle_callback = lw_slot_offset(handle_type, "_callback");
        Py_DECREF(handle_type);
    }
    closed = PyObject_CallMethod(co, "close", NULL);
end:
    if (ns != NULL) {
        PyDict_Clear(ns); /* its functions refer to it: without this the task would wait for the garbage collector */
    }
    Py_XDECREF(closed);
    Py_XDECREF(result);
    Py_XDECREF(ns);
    PyErr_Clear();
}

/* Where a thread state keeps the loop that runs and, after it, the task (3.14 and later): found by looking for both. */
static size_t
find_in_thread_state(PyObject *loop, PyObject *task)
{
    uintptr_t at = (uintptr_t)PyThreadState_Get(), words[2];
    for (size_t offset = lw_lay.ts_size; offset < lw_lay.ts_size + 4096; offset += sizeof(words[0])) {
        if (lw_mem_read((const void *)(at + offset), words, sizeof(words)) < 0) {
            return 0;
        }
        if (words[0] == (uintptr_t)loop && words[1] == (uintptr_t)task) {
            return offset + sizeof(words[0]);
        }
    }
    return 0;
}

/* The same where no task runs: asyncio is told for a moment that one does, which nobody else can see under the GIL. */
static size_t
find_by_entering(PyObject *tasks, PyObject *loop)
{
    PyObject *mark = PyObject_CallNoArgs((PyObject *)&PyBaseObject_Type), *left = NULL;
    PyObject *entered = mark ? PyObject_CallMethod(tasks, "_enter_task", "OO", loop, mark) : NULL;
    size_t found = 0;
    if (entered != NULL) {
        found = find_in_thread_state(loop, mark);
        left = PyObject_CallMethod(tasks, "_leave_task", "OO", loop, mark);
    }
    Py_XDECREF(left);
    Py_XDECREF(entered);
    Py_XDECREF(mark);
    return found;
}

void
lw_layout_running_task(PyObject *loop)
{
    PyObject *asyncio = NULL, *tasks = NULL, *all = NULL, *task = NULL;

    if (!layout_good || lw_alay.current_tasks != 0 || lw_alay.ts_task != 0) {
        return;
    }
    asyncio = PyImport_ImportModule("asyncio");
    tasks = asyncio != NULL ? PyObject_GetAttrString(asyncio, "tasks") : NULL;
    if (tasks == NULL) {
        goto end;
    }
    if (lw_lay.dk_entries != 0) {
        all = PyObject_GetAttrString(tasks, "_current_tasks");
        if (all != NULL && PyDict_CheckExact(all)) {
            lw_alay.current_tasks = (uintptr_t)Py_NewRef(all); /* kept for good */
        }
        goto end;
    }
    task = PyObject_CallMethod(asyncio, "current_task", "O", loop);
    if (task == Py_None) {
        lw_alay.ts_task = find_by_entering(tasks, loop);
    }
    else if (task != NULL) {
        lw_alay.ts_task = find_in_thread_state(loop, task);
    }
end:
    Py_XDECREF(task);
    Py_XDECREF(all);
    Py_XDECREF(tasks);
    Py_XDECREF(asyncio);
    PyErr_Clear();
}

static const char trio_source[] = "import trio._core._run as run\n"
                                  "code = run.unrolled_run.__code__\n"
                                  "free = 'task' in code.co_varnames and 'task' not in code.co_cellvars\n"
                                  "slot = code.co_varnames.index('task') if free else -1\n"
                                  "task = run.Task\n";

void
lw_layout_trio(void)
{
    static int done;
    PyObject *ns = NULL, *result = NULL;

    if (done || !layout_good) {
        return;
    }
    done = 1;
    ns = PyDict_New();
    if (ns == NULL || PyDict_SetItemString(ns, "__builtins__", PyEval_GetBuiltins()) < 0) {
        goto end;
    }
    result = PyRun_String(trio_source, Py_file_input, ns, ns);
    if (result == NULL) {
        goto end;
    }
    PyObject *code = PyDict_GetItemString(ns, "code"), *type = PyDict_GetItemString(ns, "task"); /* borrowed from ns */
    lw_alay.trio_task = (int)PyLong_AsLong(PyDict_GetItemString(ns, "slot"));
    lw_alay.trio_name = lw_slot_offset(type, "name");
    lw_alay.trio_coro = lw_slot_offset(type, "coro");
    lw_alay.trio_code = (uintptr_t)Py_NewRef(code); /* kept for good: compared by address */
end:
    Py_XDECREF(result);
    Py_XDECREF(ns);
    PyErr_Clear();
}
