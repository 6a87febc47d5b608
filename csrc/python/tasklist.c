/* tasklist.c: see tasklist.h.
 *
 * The WeakSet's add() is our own rendering of three lines of the standard
 * library that have not changed since 3.4 (weakref to the item with the set's
 * _remove as callback, into .data); where the set looks different, or somebody
 * else has overridden add(), that one is called.
 *
 * The linked list is the calling thread's own, read under the GIL, which all
 * who change it hold.  Pointers into it are not kept while anything is
 * allocated: first references to the tasks are taken, then records made. */
#include "tasklist.h"

#include "../core/saferead.h"
#include "frames.h"
#include "layout.h"
#include "tasks.h"

#define MARKED 64          /* how many of the last tasks a mark gives a record */
#define LOOKED 100000      /* how far a look goes back at most */
#define FAR (1 << 16)      /* the list's head is a field of the thread's state, of less than that size */

static struct {
    PyObject *set, *data, *remove, *pending, *before; /* owned while installed; before: who stood there, or NULL */
    int watchers;
} registry;

/* The set that holds records of ours, and its fields; owned, kept for good. */
static struct {
    PyObject *set, *data, *remove, *pending, *iterating;
} listed;
static PyObject *add_callable, *add_str, *get_loop_str; /* owned */

static struct {
    int tried;
    size_t node; /* of a Task; 0: not known */
    size_t head; /* of the thread's state */
} list;

/* The loop of a task where it is tracked: an owned reference, or NULL. */
static lw_task_loop *
home_of(PyObject *task)
{
    PyObject *loop = PyObject_CallMethodNoArgs(task, get_loop_str);
    lw_task_loop *home = loop ? lw_task_loop_of(loop) : NULL;
    PyErr_Clear();
    Py_XINCREF(home);
    Py_XDECREF(loop);
    return home;
}

/* A record for a task that has none, if its loop is tracked. */
static void
record_registered(PyObject *task, uint32_t flags)
{
    lw_task_loop *home = lw_task_record_of(task) == NULL ? home_of(task) : NULL;
    if (home != NULL) {
        (void)lw_task_record_new(home, task, lw_tasks_next_seq(), flags);
        Py_DECREF(home);
    }
}

/* ---- 3.11 to 3.13: the WeakSet ---- */

/* WeakSet.add(), with the task's record in place of a plain weak reference where its loop is tracked. */
static PyObject *
plain_add(PyObject *task)
{
    PyObject *ref = NULL;
    lw_task_loop *home = NULL;
    int status = -1;
    if (registry.pending != NULL && PyList_GET_SIZE(registry.pending) > 0) {
        return PyObject_CallMethod((PyObject *)Py_TYPE(registry.set), "add", "OO", registry.set, task);
    }
    if (registry.set == listed.set && lw_task_record_of(task) == NULL && (home = home_of(task)) != NULL) {
        ref = Py_XNewRef(lw_task_record_new(home, task, lw_tasks_next_seq(), LW_TASK_LISTED));
        Py_DECREF(home);
    }
    if (ref == NULL) {
        ref = PyWeakref_NewRef(task, registry.remove);
    }
    if (ref != NULL) {
        status = PySet_Add(registry.data, ref);
        Py_DECREF(ref);
    }
    return status < 0 ? NULL : Py_NewRef(Py_None);
}

/* WeakSet._remove() */
void
lw_tasklist_left(PyObject *record)
{
    int status = PySet_GET_SIZE(listed.iterating) > 0 ? PyList_Append(listed.pending, record)
                                                      : PySet_Discard(listed.data, record);
    if (status < 0) {
        PyErr_WriteUnraisable(record);
    }
}

static PyObject *
task_registered(PyObject *Py_UNUSED(self), PyObject *task)
{
    PyObject *before = Py_XNewRef(registry.before);
    PyObject *result = before ? PyObject_CallOneArg(before, task) : plain_add(task);
    Py_XDECREF(before);
    if (result != NULL && registry.watchers > 0 && lw_task_record_of(task) == NULL) {
        record_registered(task, 0);
    }
    return result;
}

static PyMethodDef add_method = {"add", task_registered, METH_O, NULL};

/* Remembers the set as one that records can stand in, if it is made as WeakSet was from 3.4 to 3.13. */
static void
remember_set(void)
{
    PyObject *iterating = registry.before == NULL ? PyObject_GetAttrString(registry.set, "_iterating") : NULL;
    if (listed.set == NULL && iterating != NULL && PySet_CheckExact(iterating) && registry.pending != NULL) {
        listed.set = Py_NewRef(registry.set);
        listed.data = Py_NewRef(registry.data);
        listed.remove = Py_NewRef(registry.remove);
        listed.pending = Py_NewRef(registry.pending);
        listed.iterating = Py_NewRef(iterating);
    }
    Py_XDECREF(iterating);
    PyErr_Clear();
}

/* The same where we stood before, and nobody else stands now.  Whether it could. */
static int
put_hook_again(PyObject *tasks)
{
    PyObject *dict = tasks ? PyModule_GetDict(tasks) : NULL, *own = NULL;
    int done = 0;
    if (listed.set != NULL && dict != NULL
        && (PyDict_GetItemString(dict, "_scheduled_tasks") == listed.set
            || (PyDict_GetItemString(dict, "_scheduled_tasks") == NULL
                && PyDict_GetItemString(dict, "_all_tasks") == listed.set))) {
        own = PyObject_GenericGetDict(listed.set, NULL);
        if (own != NULL && PyDict_GetItem(own, add_str) == NULL && PyDict_SetItem(own, add_str, add_callable) == 0) {
            registry.set = Py_NewRef(listed.set);
            registry.data = Py_NewRef(listed.data);
            registry.remove = Py_NewRef(listed.remove);
            registry.pending = Py_NewRef(listed.pending);
            done = 1;
        }
        Py_XDECREF(own);
    }
    PyErr_Clear();
    return done;
}

/* Steps in for the set's add(); where it cannot, direct tasks go unseen. */
static void
put_hook(void)
{
    PyObject *tasks = PyImport_ImportModule("asyncio.tasks"), *own = NULL;
    const char *names[] = {"_scheduled_tasks", "_all_tasks"};
    if (registry.set != NULL) { /* still there from last time, below another's */
        goto done;
    }
    if (put_hook_again(tasks)) {
        goto done;
    }
    for (int i = 0; i < 2 && tasks != NULL && registry.set == NULL; i++) {
        registry.set = PyObject_GetAttrString(tasks, names[i]);
        PyErr_Clear();
    }
    if (registry.set == NULL) {
        goto done;
    }
    own = PyObject_GenericGetDict(registry.set, NULL);
    registry.before = own ? Py_XNewRef(PyDict_GetItem(own, add_str)) : NULL;
    registry.data = PyObject_GetAttrString(registry.set, "data");
    registry.remove = PyObject_GetAttrString(registry.set, "_remove");
    PyErr_Clear();
    registry.pending = PyObject_GetAttrString(registry.set, "_pending_removals");
    PyErr_Clear();
    if (registry.pending != NULL && !PyList_CheckExact(registry.pending)) {
        Py_CLEAR(registry.data);
    }
    if (registry.before == NULL
        && (registry.data == NULL || !PySet_CheckExact(registry.data) || registry.remove == NULL)) {
        registry.before = PyObject_GetAttr(registry.set, add_str);
    }
    if (own == NULL || PyDict_SetItem(own, add_str, add_callable) < 0) {
        Py_CLEAR(registry.set);
        goto done;
    }
    remember_set();
done:
    PyErr_Clear();
    Py_XDECREF(own);
    Py_XDECREF(tasks);
}

static void
take_hook(void)
{
    PyObject *own = registry.set ? PyObject_GenericGetDict(registry.set, NULL) : NULL;
    if (own == NULL || PyDict_GetItem(own, add_str) != add_callable) {
        PyErr_Clear(); /* somebody stands on top of us: stay, and pass on */
        Py_XDECREF(own);
        return;
    }
    PyObject *bound = registry.before;
    if (bound == NULL || PyDict_SetItem(own, add_str, bound) < 0) {
        (void)PyDict_DelItem(own, add_str);
    }
    PyErr_Clear();
    Py_DECREF(own);
    Py_CLEAR(registry.before);
    Py_CLEAR(registry.pending);
    Py_CLEAR(registry.remove);
    Py_CLEAR(registry.data);
    Py_CLEAR(registry.set);
}

/* ---- 3.14 and later: the thread's linked list ---- */

static const char two_tasks[] =
    "import asyncio\n" LW_PROBE_LOOP "co, co2 = c(), c()\n"
    "loop = L()\n"
    "task, task2 = asyncio.Task(co, loop=loop, name='loopwatch-1'), asyncio.Task(co2, loop=loop, name='loopwatch-2')\n"
    "task._log_destroy_pending = task2._log_destroy_pending = False\n"
    "co.close(); co2.close()\n";

/* Where a Task keeps its place in the list, and where a thread's state keeps the head: two tasks made one after the
 * other must point to each other, the later one to the head and the head back to it. */
static void
find_list(void)
{
    PyObject *ns = PyDict_New(), *done = NULL;
    uintptr_t thread = (uintptr_t)PyThreadState_Get();
    list.tried = 1;
    if (ns == NULL || PyDict_SetItemString(ns, "__builtins__", PyEval_GetBuiltins()) < 0
        || (done = PyRun_String(two_tasks, Py_file_input, ns, ns)) == NULL) {
        goto end;
    }
    PyObject *task = PyDict_GetItemString(ns, "task"); /* both borrowed from ns */
    uintptr_t a = (uintptr_t)task, b = (uintptr_t)PyDict_GetItemString(ns, "task2");
    for (Py_ssize_t at = sizeof(PyObject); at + 16 <= Py_TYPE(task)->tp_basicsize; at += 8) {
        uintptr_t next, back, head, last;
        if (lw_read_ptr(a + at, &next) == 0 && next == b + at && lw_read_ptr(b + at + 8, &back) == 0 && back == a + at
            && lw_read_ptr(b + at, &head) == 0 && head > thread && head - thread < FAR
            && lw_read_ptr(head + 8, &last) == 0 && last == b + at) {
            list.node = (size_t)at;
            list.head = head - thread;
            break;
        }
    }
end:
    if (ns != NULL) {
        PyDict_Clear(ns); /* its functions refer to it */
    }
    PyErr_Clear();
    Py_XDECREF(done);
    Py_XDECREF(ns);
}

static void
drop(PyObject **tasks, size_t n)
{
    for (size_t i = 0; i < n; i++) {
        Py_DECREF(tasks[i]);
    }
}

/* task_list_mark(factory): give the last tasks a record, so that whatever comes later is told from them.  Returns
 * whether every task of the list now has one. */
static PyObject *
task_list_mark(PyObject *Py_UNUSED(module), PyObject *home)
{
    PyObject *tasks[MARKED];
    size_t n = 0, seen = 0;
    uintptr_t head, node = 0;
    if (list.node == 0) {
        Py_RETURN_TRUE;
    }
    head = (uintptr_t)PyThreadState_Get() + list.head;
    for (node = ((uintptr_t *)head)[1]; node != head && seen < MARKED; node = ((uintptr_t *)node)[1], seen++) {
        PyObject *task = (PyObject *)(node - list.node);
        if (lw_task_record_of(task) != NULL) {
            continue;
        }
        if (Py_REFCNT(task) > 0) {
            tasks[n++] = Py_NewRef(task);
        }
    }
    int all = node == head;
    while (n > 0) { /* oldest first, so that orders follow births */
        n--;
        if (lw_task_record_of(tasks[n]) == NULL) {
            lw_task_record_new((lw_task_loop *)home, tasks[n], lw_tasks_next_seq(), LW_TASK_UNSEEN | LW_TASK_ADOPTED);
        }
        Py_DECREF(tasks[n]);
    }
    return PyBool_FromLong(all);
}

/* task_list_look(since, all): records for what was registered after the mark and has none.  Returns whether it could
 * tell. */
static PyObject *
task_list_look(PyObject *Py_UNUSED(module), PyObject *args)
{
    unsigned long long since;
    int all, bounded = 0;
    size_t n = 0, room = 0, seen = 0;
    PyObject **tasks = NULL;
    if (!PyArg_ParseTuple(args, "Kp:task_list_look", &since, &all)) {
        return NULL;
    }
    if (list.node == 0) {
        Py_RETURN_TRUE;
    }
    uintptr_t head = (uintptr_t)PyThreadState_Get() + list.head, node;
    for (node = ((uintptr_t *)head)[1]; node != head && seen < LOOKED; node = ((uintptr_t *)node)[1], seen++) {
        PyObject *task = (PyObject *)(node - list.node);
        lw_task_record *record = lw_task_record_of(task);
        if (record != NULL && record->order <= since) {
            bounded = 1;
            break;
        }
        if (record == NULL && Py_REFCNT(task) > 0) {
            if (n == room) {
                PyObject **more = PyMem_Realloc(tasks, (room = room ? room * 2 : 64) * sizeof(*tasks));
                if (more == NULL) {
                    break;
                }
                tasks = more;
            }
            tasks[n++] = Py_NewRef(task);
        }
    }
    bounded |= all && node == head;
    for (size_t i = n; bounded && i-- > 0;) {
        record_registered(tasks[i], LW_TASK_PAST | LW_TASK_UNSEEN);
    }
    drop(tasks, n);
    PyMem_Free(tasks);
    return PyBool_FromLong(bounded);
}

int
lw_tasklist_sees(void)
{
    return !lw_tasks_in_linked_list() && registry.set != NULL && registry.watchers > 0;
}

const char *
lw_tasklist_why(void)
{
    if (lw_tasks_in_linked_list()) {
        return list.node ? NULL : "asyncio's list of tasks could not be found in memory";
    }
    return registry.set ? NULL : "asyncio has no set of all tasks";
}

void
lw_tasklist_watch(int delta)
{
    registry.watchers += delta;
    if (registry.watchers == 1 && delta > 0) {
        put_hook(); /* on 3.14 and later only tasks of a foreign make come this way */
        if (lw_tasks_in_linked_list() && !list.tried && lw_layout_ok()) {
            find_list();
        }
    }
    if (registry.watchers == 0) {
        take_hook();
    }
}

static PyObject *
task_list_why(PyObject *Py_UNUSED(module), PyObject *Py_UNUSED(unused))
{
    return Py_BuildValue("z", lw_tasklist_why());
}

static PyObject *
task_list_hooked(PyObject *Py_UNUSED(module), PyObject *Py_UNUSED(unused))
{
    return PyBool_FromLong(lw_tasklist_sees());
}

static PyMethodDef methods[] = {
    {"task_list_why", task_list_why, METH_NOARGS, "None, or why tasks that come past a factory cannot be seen."},
    {"task_list_hooked", task_list_hooked, METH_NOARGS, "Whether every registration of a task is seen."},
    {"task_list_mark", task_list_mark, METH_O, "task_list_mark(factory) -> bool"},
    {"task_list_look", task_list_look, METH_VARARGS, "task_list_look(since, all) -> bool"},
    {NULL, NULL, 0, NULL},
};

int
lw_tasklist_init(PyObject *module)
{
    add_callable = PyCFunction_New(&add_method, NULL);
    add_str = PyUnicode_InternFromString("add");
    get_loop_str = PyUnicode_InternFromString("get_loop");
    if (!add_callable || !add_str || !get_loop_str) {
        return -1;
    }
    return PyModule_AddFunctions(module, methods);
}
