/* taskfactory.c: the task factory that records, and who installs it when (see tasks.h).
 *
 * One TaskFactory a tracked loop.  While it is the loop's factory, every create_task() comes through call_factory():
 * it hands all arguments on to the factory below (or to asyncio.tasks.Task, looked up anew each time as asyncio does),
 * and records the result.  A factory below that raises, or returns something that cannot be referenced weakly, behaves
 * as without us.  Attributes it does not have itself are those of the factory below, as libraries look at them to tell
 * an eager one.
 *
 * Where the last tracker closes and the loop's factory is no longer ours (somebody put one on top, which may call us),
 * we stay below it and only pass through: `trackers` is 0 then, and nothing is recorded.
 *
 * References: the loop owns the factory, the factory owns the loop only while trackers are open (each tracker's owner
 * runs on it anyway), and the one below for good. */
#include "tasks.h"

#include "createtask.h"
#include "layout.h"
#include "tasklist.h"

PyTypeObject *lw_task_factory_type;

static lw_task_loop *loops; /* borrowed: those with trackers */
static PyObject *set_factory_str, *get_factory_str, *source_str, *base_events_str; /* owned */

lw_task_loop *
lw_task_loops(void)
{
    return loops;
}

lw_task_loop *
lw_task_loop_of(PyObject *loop)
{
    lw_task_loop *l = loops;
    while (l != NULL && l->loop != loop) {
        l = l->next;
    }
    return l;
}

/* In debug mode a task remembers its stack.  Without a factory, asyncio's create_task() takes its own frame off that. */
static void
forget_create_task(PyObject *task)
{
    PyObject *stack = PyObject_GetAttr(task, source_str), *last = NULL, *name = NULL, *file = NULL;
    Py_ssize_t n = stack != NULL && PyList_Check(stack) ? PyList_GET_SIZE(stack) : 0;
    if (n > 0) {
        last = Py_NewRef(PyList_GET_ITEM(stack, n - 1));
        name = PyObject_GetAttrString(last, "name");
        file = PyObject_GetAttrString(last, "filename");
        if (name != NULL && file != NULL && PyUnicode_Check(name) && PyUnicode_Check(file)
            && PyUnicode_CompareWithASCIIString(name, "create_task") == 0
            && PyUnicode_Tailmatch(file, base_events_str, 0, PY_SSIZE_T_MAX, 1) == 1) {
            (void)PyList_SetSlice(stack, n - 1, n, NULL);
        }
    }
    PyErr_Clear(); /* a stranger's task-like object */
    Py_XDECREF(file);
    Py_XDECREF(name);
    Py_XDECREF(last);
    Py_XDECREF(stack);
}

/* What the loop would do without us. */
static PyObject *
make(lw_task_loop *self, PyObject *const *args, size_t nargsf, PyObject *kwnames)
{
    if (self->below != NULL) {
        return PyObject_Vectorcall(self->below, args, nargsf, kwnames);
    }
    PyObject *task = lw_task_make(args[0], args[1], args + 2, kwnames);
    if (task != NULL) {
        forget_create_task(task);
    }
    return task;
}

static PyObject *
call_factory(PyObject *callable, PyObject *const *args, size_t nargsf, PyObject *kwnames)
{
    lw_task_loop *self = (lw_task_loop *)callable;
    PyObject *task = NULL;

    if (PyVectorcall_NARGS(nargsf) != 2 && self->below == NULL) {
        return PyErr_Format(PyExc_TypeError, "a task factory takes a loop and a coroutine, got %zd arguments",
                            PyVectorcall_NARGS(nargsf));
    }
    if (self->trackers == 0) {
        return make(self, args, nargsf, kwnames);
    }
    Py_INCREF(self); /* whoever is below may take us away */
    uint64_t seq = lw_tasks_next_seq();
    task = make(self, args, nargsf, kwnames);
    if (task != NULL && self->trackers > 0 && lw_task_record_of(task) == NULL) {
        (void)lw_task_record_new(self, task, seq, 0);
    }
    Py_DECREF(self);
    return task;
}

/* ---- trackers ---- */

static lw_task_loop *
new_factory(PyObject *loop)
{
    lw_task_loop *self = PyObject_GC_New(lw_task_loop, lw_task_factory_type);
    if (self != NULL) {
        memset((char *)self + sizeof(PyObject), 0, sizeof(*self) - sizeof(PyObject));
        self->call = call_factory;
        self->loop = Py_NewRef(loop);
        PyObject_GC_Track(self);
    }
    return self;
}

static void
withdraw(lw_task_loop *self)
{
    for (lw_task_loop **link = &loops; *link != NULL; link = &(*link)->next) {
        if (*link == self) {
            *link = self->next;
            break;
        }
    }
    self->next = NULL;
}

static void
take_create_task(lw_task_loop *self)
{
    PyObject *installed = self->create_task;
    self->create_task = NULL;
    if (installed != NULL) {
        lw_createtask_remove(installed);
        Py_DECREF(installed);
    }
}

/* The factory that LOOP has, or NULL; an exception where it cannot tell. */
static PyObject *
factory_in_place(PyObject *loop)
{
    PyObject *factory = PyObject_CallMethodNoArgs(loop, get_factory_str);
    if (factory == Py_None) {
        Py_CLEAR(factory);
    }
    return factory;
}

static int
not_supported(void)
{
    return PyErr_ExceptionMatches(PyExc_AttributeError) || PyErr_ExceptionMatches(PyExc_NotImplementedError);
}

/* The TaskFactory for LOOP, in its place where one is needed.  A new reference. */
static lw_task_loop *
installed(PyObject *loop)
{
    lw_task_loop *self = NULL;
    PyObject *below = NULL, *result = NULL;

    below = factory_in_place(loop);
    if (below == NULL && PyErr_Occurred()) {
        if (!not_supported()) {
            return NULL;
        }
        PyErr_Clear(); /* a loop without task factories */
        return new_factory(loop);
    }
    if ((below == NULL || !LW_EAGER_TASKS) && lw_tasklist_sees()) {
        Py_XDECREF(below);
        return new_factory(loop);
    }
    if (below != NULL && Py_IS_TYPE(below, lw_task_factory_type)) { /* ours, on its way out or left over */
        self = (lw_task_loop *)below;
        if (self->trackers == 0) {
            Py_XSETREF(self->loop, Py_NewRef(loop));
            return self;
        }
        PyObject *theirs = Py_XNewRef(self->below); /* another loop's, which the program has set here too */
        Py_SETREF(below, theirs);
    }
    self = new_factory(loop);
    if (self != NULL) {
        self->below = Py_XNewRef(below);
        result = PyObject_CallMethodOneArg(loop, set_factory_str, (PyObject *)self);
        self->installed = result != NULL;
        if (result == NULL && not_supported()) {
            PyErr_Clear();
        }
        else if (result == NULL) {
            Py_CLEAR(self);
        }
    }
    Py_XDECREF(result);
    Py_XDECREF(below);
    return self;
}

static PyObject *
tasks_open(PyObject *Py_UNUSED(module), PyObject *loop)
{
    lw_task_loop *self = lw_task_loop_of(loop);
    if (self != NULL) {
        self->trackers++;
        return Py_NewRef(self);
    }
    lw_layout_asyncio();
    lw_layout_running_task(loop);
    lw_tasklist_watch(1);
    self = installed(loop);
    if (self == NULL) {
        lw_tasklist_watch(-1);
        return NULL;
    }
    lw_creation_keep(1);
    self->trackers = 1;
    self->next = loops;
    loops = self;
    self->create_task = lw_createtask_install(self);
    return (PyObject *)self;
}

/* Tasks of a loop that were there before it was tracked have records from now on. */
static PyObject *
tasks_adopt(PyObject *Py_UNUSED(module), PyObject *args)
{
    PyObject *factory, *tasks, *fast, *result = NULL;
    long n = 0;
    if (!PyArg_ParseTuple(args, "OO:tasks_adopt", &factory, &tasks)) {
        return NULL;
    }
    if (!Py_IS_TYPE(factory, lw_task_factory_type) || ((lw_task_loop *)factory)->trackers <= 0) {
        return PyErr_Format(PyExc_ValueError, "tasks_adopt() takes a TaskFactory with an open tracker, got %R",
                            factory);
    }
    fast = PySequence_Fast(tasks, "tasks_adopt() takes a sequence of tasks");
    if (fast == NULL) {
        return NULL;
    }
    for (Py_ssize_t i = 0; i < PySequence_Fast_GET_SIZE(fast); i++) {
        PyObject *task = PySequence_Fast_GET_ITEM(fast, i);
        if (lw_task_record_of(task) == NULL) {
            n +=
                lw_task_record_new((lw_task_loop *)factory, task, lw_tasks_next_seq(), LW_TASK_ADOPTED | LW_TASK_UNSEEN)
                != NULL;
        }
    }
    result = PyLong_FromLong(n);
    Py_DECREF(fast);
    return result;
}

static PyObject *
tasks_close(PyObject *Py_UNUSED(module), PyObject *arg)
{
    lw_task_loop *self = (lw_task_loop *)arg;
    if (!Py_IS_TYPE(arg, lw_task_factory_type) || self->trackers <= 0) {
        return PyErr_Format(PyExc_ValueError, "tasks_close() takes a TaskFactory with an open tracker, got %R", arg);
    }
    if (--self->trackers > 0) {
        Py_RETURN_NONE;
    }
    PyObject *loop = self->loop, *now = NULL, *result = NULL;
    Py_INCREF(self);
    Py_INCREF(loop);
    withdraw(self);
    take_create_task(self);
    lw_tasks_forget(self);
    if (loops == NULL) {
        lw_tasks_forget_dead();
    }
    lw_tasklist_watch(-1);
    lw_creation_keep(-1);
    now = self->installed && self->trackers == 0 ? factory_in_place(loop) : NULL;
    if (now == (PyObject *)self) {
        result = PyObject_CallMethodOneArg(loop, set_factory_str, self->below ? self->below : Py_None);
        Py_XDECREF(result);
    }
    PyErr_Clear();
    if (self->trackers == 0) {
        Py_CLEAR(self->loop);
    }
    Py_XDECREF(now);
    Py_DECREF(loop);
    Py_DECREF(self);
    Py_RETURN_NONE;
}

/* ---- the type ---- */

static int
factory_traverse(PyObject *op, visitproc visit, void *arg)
{
    lw_task_loop *self = (lw_task_loop *)op;
    Py_VISIT(Py_TYPE(op));
    Py_VISIT(self->loop);
    Py_VISIT(self->below);
    Py_VISIT(self->create_task);
    return 0;
}

static int
factory_clear(PyObject *op)
{
    lw_task_loop *self = (lw_task_loop *)op;
    withdraw(self);
    take_create_task(self);
    Py_CLEAR(self->loop);
    Py_CLEAR(self->below);
    return 0;
}

static void
factory_dealloc(PyObject *op)
{
    lw_task_loop *self = (lw_task_loop *)op;
    PyTypeObject *type = Py_TYPE(op);
    PyObject_GC_UnTrack(op);
    int open = self->trackers > 0;
    self->trackers = 0;
    withdraw(self);
    take_create_task(self);
    lw_tasks_forget(self);
    if (open) { /* its owner forgot to close */
        lw_tasklist_watch(-1);
        lw_creation_keep(-1);
    }
    Py_CLEAR(self->loop);
    Py_CLEAR(self->below);
    PyObject_GC_Del(op);
    Py_DECREF(type);
}

static PyObject *
factory_getattro(PyObject *op, PyObject *name)
{
    lw_task_loop *self = (lw_task_loop *)op;
    PyObject *value = PyObject_GenericGetAttr(op, name);
    if (value == NULL && self->below != NULL && PyErr_ExceptionMatches(PyExc_AttributeError)) {
        PyErr_Clear();
        value = PyObject_GetAttr(self->below, name);
    }
    return value;
}

static PyObject *
factory_in_place_now(PyObject *op, void *Py_UNUSED(unused))
{
    lw_task_loop *self = (lw_task_loop *)op;
    PyObject *now = self->loop ? factory_in_place(self->loop) : NULL;
    int ours = now == op;
    Py_XDECREF(now);
    PyErr_Clear();
    return PyBool_FromLong(ours);
}

static PyGetSetDef factory_getset[] = {
    {"in_place", factory_in_place_now, NULL, NULL, NULL},
    {NULL},
};

static PyMemberDef factory_members[] = {
    {"__vectorcalloffset__", T_PYSSIZET, offsetof(lw_task_loop, call), READONLY, NULL},
    {"below", T_OBJECT, offsetof(lw_task_loop, below), READONLY, NULL},
    {"installed", T_INT, offsetof(lw_task_loop, installed), READONLY, NULL},
    {"trackers", T_PYSSIZET, offsetof(lw_task_loop, trackers), READONLY, NULL},
    {"alive", T_PYSSIZET, offsetof(lw_task_loop, alive), READONLY, NULL},
    {"born", T_ULONGLONG, offsetof(lw_task_loop, born), READONLY, NULL},
    {NULL},
};

static PyType_Slot factory_slots[] = {
    {Py_tp_dealloc, factory_dealloc}, {Py_tp_traverse, factory_traverse},
    {Py_tp_clear, factory_clear},     {Py_tp_getattro, factory_getattro},
    {Py_tp_getset, factory_getset},   {Py_tp_members, factory_members},
    {Py_tp_call, PyVectorcall_Call},  {0, NULL},
};
static PyType_Spec factory_spec = {
    "loopwatch._core.TaskFactory",
    sizeof(lw_task_loop),
    0,
    Py_TPFLAGS_DEFAULT | Py_TPFLAGS_HAVE_GC | Py_TPFLAGS_HAVE_VECTORCALL | Py_TPFLAGS_DISALLOW_INSTANTIATION,
    factory_slots,
};

static PyMethodDef methods[] = {
    {"tasks_open", tasks_open, METH_O, "tasks_open(loop) -> TaskFactory"},
    {"tasks_adopt", tasks_adopt, METH_VARARGS, "tasks_adopt(factory, tasks) -> how many had no record yet"},
    {"tasks_close", tasks_close, METH_O, "tasks_close(factory)"},
    {NULL, NULL, 0, NULL},
};

int
lw_taskfactory_init(PyObject *module)
{
    set_factory_str = PyUnicode_InternFromString("set_task_factory");
    get_factory_str = PyUnicode_InternFromString("get_task_factory");
    source_str = PyUnicode_InternFromString("_source_traceback");
    base_events_str = PyUnicode_InternFromString("/asyncio/base_events.py");
    lw_task_factory_type = (PyTypeObject *)PyType_FromSpec(&factory_spec);
    if (lw_createtask_init(module) < 0 || !set_factory_str || !get_factory_str || !source_str || !base_events_str
        || !lw_task_factory_type
        || PyModule_AddObjectRef(module, "TaskFactory", (PyObject *)lw_task_factory_type) < 0) {
        return -1;
    }
    return PyModule_AddFunctions(module, methods);
}
