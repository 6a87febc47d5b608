/* asyncgens.c: see asyncgens.h. */
#include "asyncgens.h"

#define MAX_DROPPED 10000 /* more are counted only */

enum { FINALISED = 1 }; /* lw_birth.count */

typedef struct AsyncgenHook {
    PyObject_HEAD vectorcallfunc vectorcall;
    PyObject *original;        /* owned; NULL: there was none */
    struct AsyncgenHook *pair; /* owned by the firstiter hook: its finalizer; NULL otherwise */
    int users;                 /* guards that want it; the firstiter hook's only */
    unsigned long thread;
} AsyncgenHook;

static PyTypeObject *hook_type;
static lw_births generators;
static PyObject *dropped; /* owned list of (Origin, qualname, filename, line) */
static Py_ssize_t dropped_more;
static int users;

/* sys.get_asyncgen_hooks(): a new reference, a pair. */
static PyObject *
current_hooks(void)
{
    PyObject *get = PySys_GetObject("get_asyncgen_hooks"); /* borrowed */
    PyObject *pair = get != NULL ? PyObject_CallNoArgs(get) : NULL;
    if (pair != NULL && (!PyTuple_Check(pair) || PyTuple_GET_SIZE(pair) < 2)) {
        Py_CLEAR(pair);
    }
    if (pair == NULL && !PyErr_Occurred()) {
        PyErr_SetString(PyExc_RuntimeError, "sys.get_asyncgen_hooks() is missing or not the interpreter's own");
    }
    return pair;
}

/* Set what is not NULL. */
static int
set_hooks(PyObject *firstiter, PyObject *finalizer)
{
    PyObject *set = PySys_GetObject("set_asyncgen_hooks"), *args = PyTuple_New(0), *names = PyDict_New(), *done = NULL;
    if (set != NULL && args != NULL && names != NULL
        && (firstiter == NULL || PyDict_SetItemString(names, "firstiter", firstiter) == 0)
        && (finalizer == NULL || PyDict_SetItemString(names, "finalizer", finalizer) == 0)) {
        done = PyObject_Call(set, args, names);
    }
    Py_XDECREF(args);
    Py_XDECREF(names);
    Py_XDECREF(done);
    return done == NULL ? -1 : 0;
}

/* Put back what stood there, where ours still stands; errors pass. */
static void
take_away(AsyncgenHook *first)
{
    PyObject *now = current_hooks();
    if (now != NULL) {
        int mine = PyTuple_GET_ITEM(now, 0) == (PyObject *)first;
        int mine_too = first->pair != NULL && PyTuple_GET_ITEM(now, 1) == (PyObject *)first->pair;
        if (mine || mine_too) {
            (void)set_hooks(mine ? (first->original ? first->original : Py_None) : NULL,
                            mine_too ? first->pair->original : NULL);
        }
        Py_DECREF(now);
    }
    PyErr_Clear();
}

static PyObject *
pass_through(AsyncgenHook *self, PyObject *const *args, size_t nargsf, PyObject *names)
{
    if (self->original == NULL) {
        Py_RETURN_NONE;
    }
    PyObject *original = Py_NewRef(self->original);
    PyObject *result = PyObject_Vectorcall(original, args, nargsf, names);
    Py_DECREF(original);
    return result;
}

static PyObject *
first_iteration(PyObject *callable, PyObject *const *args, size_t nargsf, PyObject *names)
{
    AsyncgenHook *self = (AsyncgenHook *)callable;
    if (self->users == 0) {
        Py_INCREF(self);
        take_away(self);
        PyObject *result = pass_through(self, args, nargsf, names);
        Py_DECREF(self);
        return result;
    }
    if (PyVectorcall_NARGS(nargsf) == 1 && PyAsyncGen_CheckExact(args[0])) {
        PyObject *origin = lw_origin_here(0);
        if (origin == NULL || lw_births_put(&generators, (uintptr_t)args[0], args[0], origin, 0) < 0) {
            PyErr_Clear();
        }
        Py_XDECREF(origin);
    }
    return pass_through(self, args, nargsf, names);
}

/* The line a suspended generator stands at, 0 when unknown. */
static int
line_of(PyObject *generator)
{
    PyObject *frame = PyObject_GetAttrString(generator, "ag_frame");
    int line = frame != NULL && PyFrame_Check(frame) ? PyFrame_GetLineNumber((PyFrameObject *)frame) : 0;
    Py_XDECREF(frame);
    return line > 0 ? line : 0;
}

static void
note_dropped(PyObject *generator)
{
    lw_birth *birth = lw_births_entry(&generators, (uintptr_t)generator);
    if (users == 0 || birth == NULL || birth->count == FINALISED) {
        return;
    }
    birth->count = FINALISED;
    if (dropped == NULL && (dropped = PyList_New(0)) == NULL) {
        return;
    }
    if (PyList_GET_SIZE(dropped) >= MAX_DROPPED) {
        dropped_more++;
        return;
    }
    PyObject *origin = Py_NewRef(birth->origin), *item = NULL;
    PyObject *code = PyObject_GetAttrString(generator, "ag_code"), *name = NULL, *file = NULL;
    if (code != NULL) {
        name = PyObject_GetAttrString(generator, "__qualname__");
        file = PyObject_GetAttrString(code, "co_filename");
    }
    if (name != NULL && file != NULL) {
        item = Py_BuildValue("(OOOi)", origin, name, file, line_of(generator));
    }
    if (item != NULL && dropped != NULL) {
        (void)PyList_Append(dropped, item);
    }
    Py_XDECREF(item);
    Py_XDECREF(file);
    Py_XDECREF(name);
    Py_XDECREF(code);
    Py_DECREF(origin);
}

static PyObject *
finalisation(PyObject *callable, PyObject *const *args, size_t nargsf, PyObject *names)
{
    if (PyVectorcall_NARGS(nargsf) == 1 && PyAsyncGen_CheckExact(args[0])) {
        note_dropped(args[0]);
        PyErr_Clear();
    }
    return pass_through((AsyncgenHook *)callable, args, nargsf, names);
}

static int
hook_traverse(AsyncgenHook *self, visitproc visit, void *arg)
{
    Py_VISIT(Py_TYPE(self));
    Py_VISIT(self->original);
    Py_VISIT(self->pair);
    return 0;
}

static int
hook_clear(AsyncgenHook *self)
{
    Py_CLEAR(self->original);
    Py_CLEAR(self->pair);
    return 0;
}

static void
hook_dealloc(AsyncgenHook *self)
{
    PyTypeObject *type = Py_TYPE(self);
    PyObject_GC_UnTrack(self);
    (void)hook_clear(self);
    PyObject_GC_Del(self);
    Py_DECREF(type);
}

static PyMemberDef hook_members[] = {
    {"__vectorcalloffset__", T_PYSSIZET, offsetof(AsyncgenHook, vectorcall), READONLY, NULL},
    {"__wrapped__", T_OBJECT, offsetof(AsyncgenHook, original), READONLY, "What stood here before."},
    {NULL, 0, 0, 0, NULL},
};
static PyType_Slot hook_slots[] = {
    {Py_tp_doc, "Stands before a hook of sys.set_asyncgen_hooks() and calls it."},
    {Py_tp_call, PyVectorcall_Call},
    {Py_tp_traverse, hook_traverse},
    {Py_tp_clear, hook_clear},
    {Py_tp_dealloc, hook_dealloc},
    {Py_tp_members, hook_members},
    {0, NULL},
};
static PyType_Spec hook_spec = {"loopwatch._core.AsyncgenHook", sizeof(AsyncgenHook), 0,
                                Py_TPFLAGS_DEFAULT | Py_TPFLAGS_HAVE_GC | Py_TPFLAGS_HAVE_VECTORCALL
                                    | Py_TPFLAGS_IMMUTABLETYPE | Py_TPFLAGS_DISALLOW_INSTANTIATION,
                                hook_slots};

static AsyncgenHook *
new_hook(vectorcallfunc call, PyObject *original)
{
    AsyncgenHook *hook = PyObject_GC_New(AsyncgenHook, hook_type);
    if (hook != NULL) {
        hook->vectorcall = call;
        hook->original = original != Py_None ? Py_NewRef(original) : NULL;
        hook->pair = NULL;
        hook->users = 0;
        hook->thread = PyThread_get_thread_ident();
        PyObject_GC_Track(hook);
    }
    return hook;
}

static PyObject *
asyncgens_begin(PyObject *Py_UNUSED(module), PyObject *Py_UNUSED(unused))
{
    AsyncgenHook *first = NULL;
    PyObject *now = current_hooks();
    if (now == NULL) {
        return NULL;
    }
    PyObject *firstiter = PyTuple_GET_ITEM(now, 0), *finalizer = PyTuple_GET_ITEM(now, 1);
    if (Py_IS_TYPE(firstiter, hook_type)) {
        first = (AsyncgenHook *)Py_NewRef(firstiter);
    }
    else {
        first = new_hook(first_iteration, firstiter);
        if (first == NULL || (finalizer != Py_None && (first->pair = new_hook(finalisation, finalizer)) == NULL)
            || set_hooks((PyObject *)first, (PyObject *)first->pair) < 0) {
            Py_CLEAR(first);
        }
    }
    Py_DECREF(now);
    if (first != NULL) {
        first->users++;
        users++;
    }
    return (PyObject *)first;
}

static PyObject *
asyncgens_end(PyObject *Py_UNUSED(module), PyObject *arg)
{
    if (!Py_IS_TYPE(arg, hook_type)) {
        return PyErr_Format(PyExc_TypeError, "expected what asyncgens_begin() returned, got %R", arg);
    }
    AsyncgenHook *first = (AsyncgenHook *)arg;
    if (first->users > 0) {
        first->users--;
        users--;
        if (first->users == 0 && first->thread == PyThread_get_thread_ident()) {
            take_away(first);
        }
    }
    if (users == 0) {
        lw_births_clear(&generators);
        Py_CLEAR(dropped);
        dropped_more = 0;
    }
    Py_RETURN_NONE;
}

static PyObject *
asyncgens_since(PyObject *Py_UNUSED(module), PyObject *arg)
{
    unsigned long long since = PyLong_AsUnsignedLongLong(arg);
    if (since == (unsigned long long)-1 && PyErr_Occurred()) {
        return NULL;
    }
    return lw_births_list(&generators, since);
}

static PyObject *
asyncgens_dropped(PyObject *Py_UNUSED(module), PyObject *arg)
{
    unsigned long long since = PyLong_AsUnsignedLongLong(arg);
    PyObject *list = NULL;
    if ((since == (unsigned long long)-1 && PyErr_Occurred()) || (list = PyList_New(0)) == NULL) {
        return NULL;
    }
    for (Py_ssize_t i = 0; dropped != NULL && i < PyList_GET_SIZE(dropped); i++) {
        PyObject *item = PyList_GET_ITEM(dropped, i);
        if (((Origin *)PyTuple_GET_ITEM(item, 0))->serial > since && PyList_Append(list, item) < 0) {
            Py_DECREF(list);
            return NULL;
        }
    }
    return Py_BuildValue("(Nn)", list, dropped_more);
}

static PyMethodDef functions[] = {
    {"asyncgens_begin", asyncgens_begin, METH_NOARGS, "asyncgens_begin() -> AsyncgenHook: of this thread"},
    {"asyncgens_end", asyncgens_end, METH_O, "asyncgens_end(hook): once for each asyncgens_begin()"},
    {"asyncgens_since", asyncgens_since, METH_O, "asyncgens_since(serial) -> list[(generator, Origin, finalised)]"},
    {"asyncgens_dropped", asyncgens_dropped, METH_O, "asyncgens_dropped(serial) -> (list, how many more)"},
    {NULL, NULL, 0, NULL},
};

int
lw_asyncgens_init(PyObject *module)
{
    if (hook_type == NULL) {
        hook_type = (PyTypeObject *)PyType_FromModuleAndSpec(module, &hook_spec, NULL);
    }
    return hook_type == NULL ? -1 : PyModule_AddFunctions(module, functions);
}
