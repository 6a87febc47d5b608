/* module.c: the module loopwatch._core, by multi-phase initialisation.
 *
 * What is process-wide by nature (the watchdog, the layout tables, the two
 * types) lives in statics and serves the main interpreter; a second
 * interpreter is refused.  The watchdog is joined by an atexit hook, before
 * the interpreter is finalized, and started again after a fork if the child
 * still has watched loops. */
#include "watch.h"

#include "../core/saferead.h"
#include "capture.h"
#include "creation.h"
#include "allocs.h"
#include "awaits.h"
#include "asyncgens.h"
#include "callbacks.h"
#include "calls.h"
#include "layout.h"
#include "reach.h"
#include "openings.h"
#include "origins.h"
#include "tables.h"
#include "timers.h"
#include "requests.h"
#include "futurestate.h"
#include "loopqueue.h"
#include "loopstats.h"
#include "heldby.h"
#include "holders.h"
#include "retained.h"
#include "objects.h"
#include "ownfiles.h"
#include "taskstats.h"
#include "tasklist.h"
#include "tasks.h"
#include "threads.h"

static PyObject *
set_hang_report(PyObject *Py_UNUSED(module), PyObject *args)
{
    long long after;
    int fd;
    if (!PyArg_ParseTuple(args, "Li:set_hang_report", &after, &fd)) {
        return NULL;
    }
    if (after < 0) {
        PyErr_Format(PyExc_ValueError, "after_ns must not be negative, got %lld", after);
        return NULL;
    }
    lw_watchdog_hang((uint64_t)after, fd);
    Py_RETURN_NONE;
}

static PyObject *
watchdog_info(PyObject *Py_UNUSED(module), PyObject *Py_UNUSED(unused))
{
    lw_watchdog_numbers n;
    lw_watchdog_read(&n);
    return Py_BuildValue("{s:K,s:K,s:K,s:K,s:K,s:K}", "samples", (unsigned long long)n.samples, "ticks",
                         (unsigned long long)n.ticks, "cpu_ns", (unsigned long long)n.cpu_ns, "watches",
                         (unsigned long long)n.watches, "failed_reads", (unsigned long long)n.failed_reads, "running",
                         (unsigned long long)n.running);
}

/* The thread state with that ident (or native id), walking the interpreter's list; GIL held. */
static PyThreadState *
find_thread(unsigned long id, int native, int *tid)
{
    PyThreadState *ts = PyInterpreterState_ThreadHead(PyInterpreterState_Get());
    for (; ts != NULL; ts = PyThreadState_Next(ts)) {
        if (native ? ts->native_thread_id == id : ts->thread_id == id) {
            *tid = (int)ts->native_thread_id;
            return ts;
        }
    }
    return NULL;
}

static PyObject *
stress_sampling(PyObject *Py_UNUSED(module), PyObject *args)
{
    unsigned long ident;
    long long interval;
    int tid = 0;
    if (!PyArg_ParseTuple(args, "kL:stress_sampling", &ident, &interval)) {
        return NULL;
    }
    PyThreadState *ts = interval > 0 ? find_thread(ident, 0, &tid) : NULL;
    if (interval > 0 && ts == NULL) {
        return PyErr_Format(PyExc_ValueError, "no thread of this interpreter has the ident %lu", ident);
    }
    lw_watchdog_stress((uintptr_t)ts, tid, interval > 0 ? (uint64_t)interval : 0);
    Py_RETURN_NONE;
}

static PyObject *
stack_of(PyObject *Py_UNUSED(module), PyObject *arg)
{
    static lw_walk walk;
    static lw_frame frames[LW_MAX_FRAMES];
    static char space[64 * 1024];
    static lw_textbuf text;
    int tid = 0, n = 0;
    unsigned long native = PyLong_AsUnsignedLong(arg);
    if (PyErr_Occurred()) {
        return NULL;
    }
    PyThreadState *ts = find_thread(native, 1, &tid);
    if (ts == NULL) {
        return PyErr_Format(PyExc_ValueError, "no thread of this interpreter has the native id %lu", native);
    }
    if (!lw_layout_ok()) {
        return PyErr_Format(PyExc_RuntimeError, "stacks cannot be read: %s", lw_layout_text());
    }
    lw_textbuf_init(&text, space, sizeof(space));
    lw_lock(); /* the decoder's buffer */
    if (lw_walk_stack((uintptr_t)ts, &walk) == 0) {
        for (int i = 0; i < walk.n; i++) {
            n += lw_decode_frame(&walk.raw[i], &frames[n], &text) == 0;
        }
    }
    lw_unlock();
    return lw_frames_list(frames, n, &text);
}

static PyObject *
shutdown(PyObject *Py_UNUSED(module), PyObject *Py_UNUSED(unused))
{
    lw_allocs_pause();
    Py_BEGIN_ALLOW_THREADS lw_watchdog_stop();
    lw_capture_stop();
    Py_END_ALLOW_THREADS Py_RETURN_NONE;
}

static PyObject *
after_fork(PyObject *Py_UNUSED(module), PyObject *Py_UNUSED(unused))
{
    (void)lw_watchdog_after_fork();
    Py_RETURN_NONE;
}

static PyMethodDef methods[] = {
    {"set_hang_report", set_hang_report, METH_VARARGS, "set_hang_report(after_ns, fd)"},
    {"watchdog_info", watchdog_info, METH_NOARGS, "Numbers about the watchdog."},
    {"stress_sampling", stress_sampling, METH_VARARGS, "stress_sampling(thread_ident, interval_ns)"},
    {"stack_of", stack_of, METH_O, "stack_of(native_id) -> list of RawFrame"},
    {"_shutdown", shutdown, METH_NOARGS, "Join the watchdog."},
    {"_after_fork", after_fork, METH_NOARGS, "Start it again in a child that needs it."},
    {NULL, NULL, 0, NULL},
};

/* Call MODULE.NAME(self.OWN), or with it as keyword KEYWORD. */
static int
hook(PyObject *self, const char *module_name, const char *name, const char *keyword, const char *own)
{
    PyObject *module = PyImport_ImportModule(module_name), *function = NULL, *target = NULL, *args = NULL,
             *kwargs = NULL, *result = NULL;
    if (module != NULL) {
        function = PyObject_GetAttrString(module, name);
        target = PyObject_GetAttrString(self, own);
    }
    if (function != NULL && target != NULL) {
        args = keyword ? PyTuple_New(0) : PyTuple_Pack(1, target);
        kwargs = keyword ? Py_BuildValue("{s:O}", keyword, target) : NULL;
        result = args ? PyObject_Call(function, args, kwargs) : NULL;
    }
    int status = result == NULL ? -1 : 0;
    Py_XDECREF(result);
    Py_XDECREF(kwargs);
    Py_XDECREF(args);
    Py_XDECREF(target);
    Py_XDECREF(function);
    Py_XDECREF(module);
    return status;
}

static int
layout_init(PyObject *Py_UNUSED(module))
{
    return lw_layout_init();
}

/* What each concept adds to the module, in order. */
/* clang-format off */
static int (*const concepts[])(PyObject *) = {
    layout_init, /* first: all others may ask it */
    lw_watch_init,
    lw_scope_init,
    lw_probe_select_init,
    lw_creation_init,
    lw_objects_init,
    lw_heldby_init,
    lw_retained_init,
    lw_links_init,
    lw_awaits_init,
    lw_ownfiles_init,
    lw_reach_init,
    lw_holders_init,
    lw_tasks_init,
    lw_taskrecord_init,
    lw_taskfactory_init,
    lw_tasklist_init,
    lw_threads_init,
    lw_allocs_init,
    lw_loopqueue_init,
    lw_loopstats_init,
    lw_handlerun_init,
    lw_futurestate_init,
    lw_taskstats_init,
    lw_tasksampler_init,
    lw_origins_init,
    lw_openings_init,
    lw_tables_init,
    lw_asyncgens_init,
    lw_timers_init,
    lw_requests_init,
    lw_callbacks_init,
    lw_calls_init,
};
/* clang-format on */

static int
core_exec(PyObject *module)
{
    static int loaded;
    PyObject *causes = NULL;

    if (PyInterpreterState_Get() != PyInterpreterState_Main()) {
        PyErr_SetString(PyExc_ImportError, "loopwatch serves the main interpreter only");
        return -1;
    }
    if (loaded) {
        PyErr_SetString(PyExc_ImportError, "loopwatch._core is loaded already and cannot be loaded twice in a process");
        return -1;
    }
    for (size_t i = 0; i < sizeof(concepts) / sizeof(concepts[0]); i++) {
        if (concepts[i](module) < 0) {
            return -1;
        }
    }
    causes = PyTuple_New(LW_CAUSES);
    for (int i = 0; causes != NULL && i < LW_CAUSES; i++) {
        PyObject *name = PyUnicode_FromString(lw_cause_names[i]);
        if (name == NULL) {
            Py_CLEAR(causes);
            break;
        }
        PyTuple_SET_ITEM(causes, i, name);
    }
    if (causes == NULL || PyModule_AddObjectRef(module, "CAUSES", causes) < 0
        || PyModule_AddStringConstant(module, "LAYOUT", lw_layout_text()) < 0
        || hook(module, "atexit", "register", NULL, "_shutdown") < 0
        || hook(module, "os", "register_at_fork", "after_in_child", "_after_fork") < 0) {
        Py_XDECREF(causes);
        return -1;
    }
    Py_DECREF(causes);
    loaded = 1;
    return 0;
}

static PyModuleDef_Slot slots[] = {
    {Py_mod_exec, core_exec},
#ifdef Py_mod_multiple_interpreters
    {Py_mod_multiple_interpreters, Py_MOD_MULTIPLE_INTERPRETERS_NOT_SUPPORTED},
#endif
    {0, NULL},
};
static struct PyModuleDef definition = {
    PyModuleDef_HEAD_INIT, "loopwatch._core", "The C core of loopwatch.", 0, methods, slots, NULL, NULL, NULL,
};

PyMODINIT_FUNC
PyInit__core(void)
{
    return PyModuleDef_Init(&definition);
}
