/* timers.c: see timers.h. */
#include "timers.h"

#define MAX_NAMES 2

typedef struct Timers Timers;

typedef struct {
    PyObject_HEAD vectorcallfunc vectorcall;
    Timers *owner;      /* owned; NULL once taken away */
    PyObject *original; /* owned */
} TimerHook;

/* What is known of one loop; all guards on it share it. */
struct Timers {
    PyObject_HEAD PyObject *loop; /* owned */
    PyObject *names;              /* owned tuple: the attributes */
    PyObject *hooks[MAX_NAMES];   /* owned */
    PyObject *before[MAX_NAMES];  /* owned: what stood in the loop's own dict; NULL: nothing */
    PyObject *passing;            /* owned tuple of functions that only wake a task */
    lw_births handles;            /* by handle */
    lw_births callbacks;          /* by callback: its last handle, and how often */
    int users;
};

static PyTypeObject *hook_type, *timers_type;

static PyObject *
callback_of(PyObject *const *args, Py_ssize_t n, PyObject *names)
{
    if (n >= 2) {
        return args[1];
    }
    for (Py_ssize_t i = 0; names != NULL && i < PyTuple_GET_SIZE(names); i++) {
        if (PyUnicode_CompareWithASCIIString(PyTuple_GET_ITEM(names, i), "callback") == 0) {
            return args[n + i];
        }
    }
    return NULL;
}

static void
note(Timers *self, PyObject *handle, PyObject *callback)
{
    uintptr_t key = (uintptr_t)callback;
    uint64_t count = 1;
    if (lw_births_find(&self->handles, (uintptr_t)handle) != NULL) {
        return; /* call_at noted it, on behalf of call_later */
    }
    if (PyMethod_Check(callback)) { /* a new object each time it is read */
        key = (uintptr_t)PyMethod_GET_FUNCTION(callback) ^ ((uintptr_t)PyMethod_GET_SELF(callback) * 31);
    }
    lw_birth *last = lw_births_find(&self->callbacks, key);
    if (last != NULL) {
        count = last->count + 1;
    }
    PyObject *origin = lw_origin_here(0);
    if (origin == NULL || lw_births_put(&self->handles, (uintptr_t)handle, handle, origin, count) < 0
        || lw_births_put(&self->callbacks, key, handle, origin, count) < 0) {
        PyErr_Clear();
    }
    Py_XDECREF(origin);
}

static PyObject *
schedule(PyObject *callable, PyObject *const *args, size_t nargsf, PyObject *names)
{
    TimerHook *self = (TimerHook *)callable;
    PyObject *original = Py_NewRef(self->original);
    PyObject *handle = PyObject_Vectorcall(original, args, nargsf, names);
    Py_DECREF(original);
    Timers *owner = self->owner;
    PyObject *callback = callback_of(args, PyVectorcall_NARGS(nargsf), names);
    if (handle == NULL || owner == NULL || callback == NULL || handle == Py_None) {
        return handle;
    }
    PyObject *function = PyMethod_Check(callback) ? PyMethod_GET_FUNCTION(callback) : callback;
    for (Py_ssize_t i = 0; i < PyTuple_GET_SIZE(owner->passing); i++) {
        if (PyTuple_GET_ITEM(owner->passing, i) == function) {
            return handle;
        }
    }
    Py_INCREF(owner);
    note(owner, handle, callback);
    Py_DECREF(owner);
    return handle;
}

static int
hook_traverse(TimerHook *self, visitproc visit, void *arg)
{
    Py_VISIT(Py_TYPE(self));
    Py_VISIT(self->owner);
    Py_VISIT(self->original);
    return 0;
}

static int
hook_clear(TimerHook *self)
{
    Py_CLEAR(self->owner); /* the original stays: it may be called as long as this lives */
    return 0;
}

static void
hook_dealloc(TimerHook *self)
{
    PyTypeObject *type = Py_TYPE(self);
    PyObject_GC_UnTrack(self);
    Py_CLEAR(self->owner);
    Py_CLEAR(self->original);
    PyObject_GC_Del(self);
    Py_DECREF(type);
}

static PyMemberDef hook_members[] = {
    {"__vectorcalloffset__", T_PYSSIZET, offsetof(TimerHook, vectorcall), READONLY, NULL},
    {"__wrapped__", T_OBJECT, offsetof(TimerHook, original), READONLY, "What stood here before."},
    {NULL, 0, 0, 0, NULL},
};
static PyType_Slot hook_slots[] = {
    {Py_tp_doc, "Stands before a loop's call_at() or call_later() and notes who called."},
    {Py_tp_call, PyVectorcall_Call},
    {Py_tp_traverse, hook_traverse},
    {Py_tp_clear, hook_clear},
    {Py_tp_dealloc, hook_dealloc},
    {Py_tp_members, hook_members},
    {0, NULL},
};
static PyType_Spec hook_spec = {"loopwatch._core.TimerHook", sizeof(TimerHook), 0,
                                Py_TPFLAGS_DEFAULT | Py_TPFLAGS_HAVE_GC | Py_TPFLAGS_HAVE_VECTORCALL
                                    | Py_TPFLAGS_IMMUTABLETYPE | Py_TPFLAGS_DISALLOW_INSTANTIATION,
                                hook_slots};

/* What stands in the loop's own __dict__: borrowed, or NULL. */
static PyObject *
own_attribute(PyObject *loop, PyObject *name)
{
    PyObject *dict = PyObject_GenericGetDict(loop, NULL), *found = NULL;
    if (dict != NULL) {
        found = PyDict_GetItemWithError(dict, name);
        Py_DECREF(dict);
    }
    PyErr_Clear();
    return found;
}

static void
take_away(Timers *self)
{
    PyObject *type, *value, *traceback;
    PyErr_Fetch(&type, &value, &traceback);
    for (int i = 0; i < MAX_NAMES; i++) {
        TimerHook *hook = (TimerHook *)self->hooks[i];
        if (hook == NULL) {
            continue;
        }
        PyObject *name = PyTuple_GET_ITEM(self->names, i);
        if (own_attribute(self->loop, name) == (PyObject *)hook
            && PyObject_SetAttr(self->loop, name, self->before[i]) < 0) { /* NULL deletes */
            PyErr_Clear();
        }
        Py_CLEAR(hook->owner);
        Py_CLEAR(self->hooks[i]);
        Py_CLEAR(self->before[i]);
    }
    lw_births_clear(&self->handles);
    lw_births_clear(&self->callbacks);
    PyErr_Restore(type, value, traceback);
}

static PyObject *
timers_end(Timers *self, PyObject *Py_UNUSED(unused))
{
    if (self->users > 0 && --self->users == 0) {
        take_away(self);
    }
    Py_RETURN_NONE;
}

static PyObject *
timers_since(Timers *self, PyObject *arg)
{
    unsigned long long since = PyLong_AsUnsignedLongLong(arg);
    if (since == (unsigned long long)-1 && PyErr_Occurred()) {
        return NULL;
    }
    return lw_births_list(&self->handles, since);
}

static int
timers_traverse(Timers *self, visitproc visit, void *arg)
{
    Py_VISIT(Py_TYPE(self));
    Py_VISIT(self->loop);
    Py_VISIT(self->names);
    Py_VISIT(self->passing);
    for (int i = 0; i < MAX_NAMES; i++) {
        Py_VISIT(self->hooks[i]);
        Py_VISIT(self->before[i]);
    }
    return 0;
}

static int
timers_clear(Timers *self)
{
    for (int i = 0; i < MAX_NAMES; i++) {
        Py_CLEAR(self->hooks[i]);
        Py_CLEAR(self->before[i]);
    }
    return 0;
}

static void
timers_dealloc(Timers *self)
{
    PyTypeObject *type = Py_TYPE(self);
    PyObject_GC_UnTrack(self);
    (void)timers_clear(self);
    lw_births_clear(&self->handles);
    lw_births_clear(&self->callbacks);
    Py_CLEAR(self->loop);
    Py_CLEAR(self->names);
    Py_CLEAR(self->passing);
    PyObject_GC_Del(self);
    Py_DECREF(type);
}

static PyMethodDef timers_methods[] = {
    {"end", (PyCFunction)timers_end, METH_NOARGS, "end(): once for each timers_begin()"},
    {"since", (PyCFunction)timers_since, METH_O, "since(serial) -> list[(handle, Origin, count)]"},
    {NULL, NULL, 0, NULL},
};
static PyType_Slot timers_slots[] = {
    {Py_tp_doc, "The timers of one loop."}, {Py_tp_methods, timers_methods},
    {Py_tp_traverse, timers_traverse},      {Py_tp_clear, timers_clear},
    {Py_tp_dealloc, timers_dealloc},        {0, NULL},
};
static PyType_Spec timers_spec = {"loopwatch._core.Timers", sizeof(Timers), 0,
                                  Py_TPFLAGS_DEFAULT | Py_TPFLAGS_HAVE_GC | Py_TPFLAGS_IMMUTABLETYPE
                                      | Py_TPFLAGS_DISALLOW_INSTANTIATION,
                                  timers_slots};

static int
attach(Timers *self, int i)
{
    PyObject *name = PyTuple_GET_ITEM(self->names, i);
    TimerHook *hook = PyObject_GC_New(TimerHook, hook_type);
    if (hook == NULL) {
        return -1;
    }
    hook->vectorcall = schedule;
    hook->owner = (Timers *)Py_NewRef(self);
    PyObject *before = Py_XNewRef(own_attribute(self->loop, name)); /* clears errors: first */
    hook->original = PyObject_GetAttr(self->loop, name);
    PyObject_GC_Track(hook);
    if (hook->original == NULL || PyObject_SetAttr(self->loop, name, (PyObject *)hook) < 0) {
        Py_XDECREF(before);
        Py_DECREF(hook);
        return -1;
    }
    self->hooks[i] = (PyObject *)hook;
    self->before[i] = before;
    return 0;
}

static PyObject *
timers_begin(PyObject *Py_UNUSED(module), PyObject *args)
{
    PyObject *loop, *names, *passing;
    if (!PyArg_ParseTuple(args, "OO!O!:timers_begin", &loop, &PyTuple_Type, &names, &PyTuple_Type, &passing)) {
        return NULL;
    }
    if (PyTuple_GET_SIZE(names) < 1 || PyTuple_GET_SIZE(names) > MAX_NAMES) {
        return PyErr_Format(PyExc_ValueError, "expected 1 to %d names, got %R", MAX_NAMES, names);
    }
    PyObject *there = own_attribute(loop, PyTuple_GET_ITEM(names, 0));
    if (there != NULL && Py_IS_TYPE(there, hook_type) && ((TimerHook *)there)->owner != NULL) {
        Timers *shared = ((TimerHook *)there)->owner;
        shared->users++;
        return Py_NewRef(shared);
    }
    Timers *self = PyObject_GC_New(Timers, timers_type);
    if (self == NULL) {
        return NULL;
    }
    memset((char *)self + sizeof(PyObject), 0, sizeof(*self) - sizeof(PyObject));
    self->loop = Py_NewRef(loop);
    self->names = Py_NewRef(names);
    self->passing = Py_NewRef(passing);
    PyObject_GC_Track(self);
    for (int i = 0; i < PyTuple_GET_SIZE(names); i++) {
        if (attach(self, i) < 0) {
            take_away(self);
            Py_DECREF(self);
            return NULL;
        }
    }
    self->users = 1;
    return (PyObject *)self;
}

static PyMethodDef functions[] = {
    {"timers_begin", timers_begin, METH_VARARGS,
     "timers_begin(loop, names, passing) -> Timers: shared by the loop's guards"},
    {NULL, NULL, 0, NULL},
};

int
lw_timers_init(PyObject *module)
{
    if (hook_type == NULL) {
        hook_type = (PyTypeObject *)PyType_FromModuleAndSpec(module, &hook_spec, NULL);
    }
    if (timers_type == NULL) {
        timers_type = (PyTypeObject *)PyType_FromModuleAndSpec(module, &timers_spec, NULL);
    }
    return hook_type == NULL || timers_type == NULL ? -1 : PyModule_AddFunctions(module, functions);
}
