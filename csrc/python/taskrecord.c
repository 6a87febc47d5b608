/* taskrecord.c: what Python sees of the records of tasks (see tasks.h): the type, and the questions about a task. */
#include "layout.h"
#include "tasks.h"

PyTypeObject *lw_task_record_type;
PyObject *lw_scope_var;

/* The value of VAR in the context that TASK runs in: None where there is none. */
static PyObject *
value_in_context(PyObject *task, PyObject *var)
{
    PyObject *value = NULL, *context = NULL;
    if (lw_alay.task_context != 0 && PyObject_TypeCheck(task, (PyTypeObject *)lw_alay.task_type)) {
        context = Py_XNewRef(*(PyObject **)((char *)task + lw_alay.task_context));
    }
    else {
        context = PyObject_CallMethod(task, "get_context", NULL);
    }
    if (context != NULL && PyContext_CheckExact(context)) {
        value = PyObject_CallMethod(context, "get", "O", var);
    }
    Py_XDECREF(context);
    PyErr_Clear(); /* a stranger's task-like object */
    return value ? value : Py_NewRef(Py_None);
}

static PyObject *
task_token(PyObject *Py_UNUSED(module), PyObject *task)
{
    return value_in_context(task, lw_scope_var);
}

static PyObject *
task_value(PyObject *Py_UNUSED(module), PyObject *args)
{
    PyObject *task, *var;
    if (!PyArg_ParseTuple(args, "OO!:task_value", &task, &PyContextVar_Type, &var)) {
        return NULL;
    }
    return value_in_context(task, var);
}

static int
ends_with(PyObject *text, const char *end)
{
    Py_ssize_t size, length = (Py_ssize_t)strlen(end);
    const char *bytes = PyUnicode_AsUTF8AndSize(text, &size);
    if (bytes == NULL) {
        PyErr_Clear();
        return 0;
    }
    return size >= length && memcmp(bytes + size - length, end, (size_t)length) == 0;
}

static int
is_create_task(PyCodeObject *code)
{
    return PyUnicode_CompareWithASCIIString(code->co_name, "create_task") == 0
           && (ends_with(code->co_filename, "/asyncio/base_events.py")
               || ends_with(code->co_filename, "/asyncio/tasks.py")
               || ends_with(code->co_filename, "/asyncio/taskgroups.py"));
}

/* How many of the innermost frames belong to asyncio's create_task() and to what it calls, such as a factory: the rest
 * ends with whoever called it. */
static int
frames_of_create_task(const lw_creation *creation)
{
    int cut = 0;
    PyCodeObject *code;
    for (int i = 0; i < 8 && (code = lw_creation_code(creation, i)) != NULL; i++) {
        if (code->co_flags & (CO_COROUTINE | CO_ITERABLE_COROUTINE | CO_ASYNC_GENERATOR)) {
            break; /* a coroutine that runs: what is further out did not make this task */
        }
        if (is_create_task(code)) {
            cut = i + 1;
        }
        else if (cut > 0) {
            break;
        }
    }
    return cut;
}

static PyObject *
frames_of(lw_creation *creation)
{
    if (creation == NULL) {
        Py_RETURN_NONE;
    }
    lw_creation_incref(creation);
    PyObject *frames = lw_creation_frames_from(creation, frames_of_create_task(creation));
    lw_creation_decref(creation);
    return frames;
}

static PyObject *
record_frames(PyObject *self, PyObject *Py_UNUSED(unused))
{
    return frames_of(((lw_task_record *)self)->creation);
}

static PyObject *
task_frames(PyObject *Py_UNUSED(module), PyObject *task)
{
    return frames_of(lw_tasks_creation_of(task));
}

static PyObject *
record_parent(PyObject *self, void *Py_UNUSED(unused))
{
    PyObject *name = ((lw_task_record *)self)->parent_name;
    if (name == NULL) {
        Py_RETURN_NONE;
    }
    return PyUnicode_Check(name) ? Py_NewRef(name) : PyUnicode_FromFormat("Task-%S", name);
}

static PyObject *
record_adopted(PyObject *self, void *Py_UNUSED(unused))
{
    return PyBool_FromLong(((lw_task_record *)self)->flags & LW_TASK_ADOPTED);
}

static PyObject *
record_past(PyObject *self, void *Py_UNUSED(unused))
{
    return PyBool_FromLong(((lw_task_record *)self)->flags & LW_TASK_PAST);
}

static PyObject *
record_omitted(PyObject *self, void *Py_UNUSED(unused))
{
    return PyLong_FromLong(lw_creation_omitted(((lw_task_record *)self)->creation));
}

static void
record_dealloc(PyObject *self)
{
    lw_task_record *record = (lw_task_record *)self;
    PyTypeObject *type = Py_TYPE(self);
    lw_creation *creation = record->creation;
    PyObject *parent_name = record->parent_name;
    _PyWeakref_RefType.tp_dealloc(self);
    lw_creation_decref(creation);
    Py_XDECREF(parent_name);
    Py_DECREF(type);
}

static PyGetSetDef record_getset[] = {
    {"parent", record_parent, NULL, NULL, NULL},
    {"adopted", record_adopted, NULL, NULL, NULL},
    {"past_factory", record_past, NULL, NULL, NULL},
    {"omitted", record_omitted, NULL, NULL, NULL},
    {NULL},
};

static PyMemberDef record_members[] = {
    {"seq", T_ULONGLONG, offsetof(lw_task_record, seq), READONLY, NULL},
    {"order", T_ULONGLONG, offsetof(lw_task_record, order), READONLY, NULL},
    {"parent_seq", T_ULONGLONG, offsetof(lw_task_record, parent_seq), READONLY, NULL},
    {"born_ns", T_ULONGLONG, offsetof(lw_task_record, born_ns), READONLY, NULL},
    {NULL},
};

static PyMethodDef record_methods[] = {
    {"frames", record_frames, METH_NOARGS, "The creation stack as a list of RawFrame, or None."},
    {NULL},
};

static PyObject *
record_new(PyTypeObject *Py_UNUSED(type), PyObject *Py_UNUSED(args), PyObject *Py_UNUSED(kwargs))
{
    PyErr_SetString(PyExc_TypeError, "task records are made by loopwatch only");
    return NULL;
}

static PyType_Slot record_slots[] = {
    {Py_tp_dealloc, record_dealloc}, {Py_tp_getset, record_getset}, {Py_tp_members, record_members},
    {Py_tp_methods, record_methods}, {Py_tp_new, record_new},       {0, NULL},
};
static PyType_Spec record_spec = {
    "loopwatch._core.TaskRecord", sizeof(lw_task_record), 0, Py_TPFLAGS_DEFAULT, record_slots,
};

/* ---- for Python ---- */

static PyObject *
task_record(PyObject *Py_UNUSED(module), PyObject *task)
{
    lw_task_record *record = lw_task_record_of(task);
    return Py_NewRef(record ? (PyObject *)record : Py_None);
}

static PyObject *
task_mark(PyObject *Py_UNUSED(module), PyObject *Py_UNUSED(unused))
{
    return PyLong_FromUnsignedLongLong(lw_tasks_mark());
}

typedef struct {
    PyObject *list, *done; /* owned; borrowed */
    int pending;
} gathering;

static int
gather(lw_task_record *record, PyObject *task, void *arg)
{
    gathering *g = arg;
    if (g->pending) {
        PyObject *done = PyObject_CallMethodNoArgs(task, g->done);
        int is_done = done ? PyObject_IsTrue(done) : -1;
        Py_XDECREF(done);
        if (is_done < 0) {
            PyErr_Clear(); /* a stranger's task-like object: let whoever asks look at it */
        }
        else if (is_done) {
            return 0;
        }
    }
    PyObject *pair = PyTuple_Pack(2, task, record);
    int status = pair ? PyList_Append(g->list, pair) : -1;
    Py_XDECREF(pair);
    return status;
}

static PyObject *
task_records(PyObject *Py_UNUSED(module), PyObject *args)
{
    PyObject *home;
    unsigned long long since;
    gathering g = {NULL, NULL, 0};
    if (!PyArg_ParseTuple(args, "OKp:task_records", &home, &since, &g.pending)) {
        return NULL;
    }
    if (home != Py_None && !Py_IS_TYPE(home, lw_task_factory_type)) {
        return PyErr_Format(PyExc_TypeError, "task_records() takes a TaskFactory or None, got %R", home);
    }
    g.done = PyUnicode_InternFromString("done");
    g.list = g.done ? PyList_New(0) : NULL;
    if (g.list != NULL && lw_tasks_visit(home == Py_None ? NULL : (lw_task_loop *)home, since, gather, &g) != 0) {
        Py_CLEAR(g.list);
    }
    Py_XDECREF(g.done);
    if (g.list != NULL && PyList_Reverse(g.list) < 0) {
        Py_CLEAR(g.list);
    }
    return g.list;
}

static PyMethodDef methods[] = {
    {"task_record", task_record, METH_O, "task_record(task) -> TaskRecord or None"},
    {"task_frames", task_frames, METH_O, "task_frames(task) -> its creation stack, also while it is being destroyed"},
    {"task_token", task_token, METH_O, "task_token(task) -> the value of SCOPE in its context, or None"},
    {"task_value", task_value, METH_VARARGS,
     "task_value(task, var) -> the value of a ContextVar in its context, or None"},
    {"task_mark", task_mark, METH_NOARGS, "The order of the newest record."},
    {"task_records", task_records, METH_VARARGS, "task_records(factory or None, since, pending_only)"},
    {NULL, NULL, 0, NULL},
};

int
lw_taskrecord_init(PyObject *module)
{
    PyObject *base = (PyObject *)&_PyWeakref_RefType;
    lw_task_record_type = (PyTypeObject *)PyType_FromSpecWithBases(&record_spec, base);
    lw_scope_var = PyContextVar_New("loopwatch_scope", NULL);
    if (lw_task_record_type == NULL || lw_scope_var == NULL
        || PyModule_AddObjectRef(module, "TaskRecord", (PyObject *)lw_task_record_type) < 0
        || PyModule_AddObjectRef(module, "SCOPE", lw_scope_var) < 0) {
        return -1;
    }
    return PyModule_AddFunctions(module, methods);
}
