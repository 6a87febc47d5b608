/* threads.c: see threads.h. */
#include "threads.h"

#include "../core/clock.h"
#include "creation.h"

#define FEW 64

static PyTypeObject *record_type;              /* owned by the module, process-wide */
static PyObject *thread_class;                 /* owned: threading.Thread */
static PyObject *records;                      /* owned dict: thread state number -> ThreadRecord */
static Py_ssize_t purge_at;                    /* so many records are too many */
static int hooked;
static _Thread_local int inside; /* this thread is in a hook: another one below it does not record again */

/* --- the interpreter's list ----------------------------------------------- */

static PyThreadState *
newest(void)
{
    return PyInterpreterState_ThreadHead(PyInterpreterState_Get());
}

PyObject *
lw_thread_record(PyThreadState *ts)
{
    PyObject *key = records ? PyLong_FromUnsignedLongLong(PyThreadState_GetID(ts)) : NULL;
    PyObject *record = key ? PyDict_GetItemWithError(records, key) : NULL; /* borrowed */
    Py_XDECREF(key);
    return record;
}

/* --- records -------------------------------------------------------------- */

static void
record_dealloc(ThreadRecord *self)
{
    PyTypeObject *type = Py_TYPE(self);
    lw_creation_decref(self->creation);
    Py_XDECREF(self->thread);
    Py_XDECREF(self->target);
    Py_XDECREF(self->module);
    Py_XDECREF(self->scope);
    type->tp_free(self);
    Py_DECREF(type);
}

static PyObject *
record_creation(ThreadRecord *self, PyObject *Py_UNUSED(unused))
{
    return lw_creation_frames(self->creation);
}

static PyObject *
record_thread(ThreadRecord *self, void *Py_UNUSED(closure))
{
    return self->thread ? PyObject_CallNoArgs(self->thread) : Py_NewRef(Py_None);
}

static PyObject *
record_threading(ThreadRecord *self, void *Py_UNUSED(closure))
{
    return PyBool_FromLong(self->thread != NULL);
}

/* Take the names of what will run, as far as that runs no code of the program. */
static void
name_target(ThreadRecord *record, PyObject *function)
{
    PyObject *plain = function;
    if (PyMethod_Check(plain)) {
        PyObject *self = PyMethod_GET_SELF(plain);
        if (PyObject_TypeCheck(self, (PyTypeObject *)thread_class)) {
            record->thread = PyWeakref_NewRef(self, NULL);
            return;
        }
        plain = PyMethod_GET_FUNCTION(plain);
    }
    if (PyFunction_Check(plain) || PyCFunction_Check(plain)) {
        record->target = PyObject_GetAttrString(plain, "__qualname__");
        record->module = record->target ? PyObject_GetAttrString(plain, "__module__") : NULL;
    }
    else {
        record->target = PyUnicode_FromString(Py_TYPE(plain)->tp_name);
    }
}

static ThreadRecord *
new_record(PyObject *function)
{
    ThreadRecord *record = (ThreadRecord *)record_type->tp_alloc(record_type, 0);
    if (record != NULL) {
        record->born_ns = lw_now_ns();
        record->creation = lw_creation_here(0);
        record->scope = (lw_thread_scope *)Py_XNewRef((PyObject *)lw_thread_scope_here());
        if (function != NULL) {
            name_target(record, function);
        }
    }
    PyErr_Clear();
    return record;
}

/* Forget the records of threads that are gone. */
static int
purge(void)
{
    PyObject *kept = PyDict_New(), *old = records;
    for (PyThreadState *ts = newest(); kept != NULL && ts != NULL; ts = PyThreadState_Next(ts)) {
        PyObject *record = lw_thread_record(ts);
        PyObject *key = record ? PyLong_FromUnsignedLongLong(PyThreadState_GetID(ts)) : NULL;
        if (PyErr_Occurred() || (key != NULL && PyDict_SetItem(kept, key, record) < 0)) {
            Py_CLEAR(kept);
        }
        Py_XDECREF(key);
    }
    if (kept == NULL) {
        return -1;
    }
    records = kept;
    purge_at = 2 * PyDict_GET_SIZE(kept) + FEW;
    Py_DECREF(old); /* may run code of the program: everything is in its place */
    return 0;
}

/* The thread state begun since BEFORE whose thread has that ident.  A thread that has not run yet has none, or before
 * 3.12 its starter's; there is one such at most, as starting a thread keeps the GIL. */
static PyThreadState *
begun_since(uint64_t before, unsigned long ident)
{
    PyThreadState *mine = PyThreadState_Get(), *waiting = NULL;
    for (PyThreadState *ts = newest(); ts != NULL && PyThreadState_GetID(ts) > before; ts = PyThreadState_Next(ts)) {
        if (ts->thread_id == ident) {
            return ts;
        }
        if (waiting == NULL && ts != mine && (ts->thread_id == 0 || ts->thread_id == mine->thread_id)) {
            waiting = ts;
        }
    }
    return waiting;
}

static void
keep(ThreadRecord *record, PyObject *result, uint64_t before)
{
    PyObject *ident = PyLong_Check(result) ? Py_NewRef(result) : PyObject_GetAttrString(result, "ident"), *key = NULL;
    record->ident = ident && PyLong_Check(ident) ? PyLong_AsUnsignedLong(ident) : 0;
    Py_XDECREF(ident);
    if (PyErr_Occurred()) {
        PyErr_Clear(); /* not a thread of the system: another patcher's */
        return;
    }
    PyThreadState *ts = begun_since(before, record->ident);
    if (ts == NULL || !hooked || (records == NULL && (records = PyDict_New()) == NULL)) {
        PyErr_Clear();
        return;
    }
    key = PyLong_FromUnsignedLongLong(PyThreadState_GetID(ts));
    if (key == NULL || PyDict_SetItem(records, key, (PyObject *)record) < 0
        || (PyDict_GET_SIZE(records) >= purge_at && purge() < 0)) {
        PyErr_Clear();
    }
    Py_XDECREF(key);
}

/* --- the hooks ------------------------------------------------------------ */

static PyObject *
start(PyObject *original, PyObject *const *args, Py_ssize_t nargs, PyObject *kwnames)
{
    PyObject *function = nargs > 0 ? args[0] : NULL;
    if (!hooked || inside) {
        return PyObject_Vectorcall(original, args, (size_t)nargs, kwnames);
    }
    for (Py_ssize_t i = 0; kwnames != NULL && i < PyTuple_GET_SIZE(kwnames); i++) {
        if (PyUnicode_CompareWithASCIIString(PyTuple_GET_ITEM(kwnames, i), "function") == 0) {
            function = args[nargs + i];
        }
    }
    ThreadRecord *record = new_record(function);
    uint64_t before = PyThreadState_GetID(newest());
    inside = 1;
    PyObject *result = PyObject_Vectorcall(original, args, (size_t)nargs, kwnames);
    inside = 0;
    if (record != NULL && result != NULL) {
        keep(record, result, before);
    }
    if (record != NULL) {
        PyObject *type, *value, *trace;
        PyErr_Fetch(&type, &value, &trace); /* the original's; freeing may run code */
        Py_DECREF(record);
        PyErr_Restore(type, value, trace);
    }
    return result;
}

#define HOOK(name)                                                                                                     \
    {                                                                                                                  \
        name, (PyCFunction)(void (*)(void))start, METH_FASTCALL | METH_KEYWORDS,                                       \
            "Starts a thread as __self__ does; loopwatch notes where, while a guard for threads is open."              \
    }
static PyMethodDef start_new_thread = HOOK("start_new_thread"), start_new = HOOK("start_new"),
                   start_joinable_thread = HOOK("start_joinable_thread");

static struct {
    const char *module, *name;
    PyMethodDef *def;
    PyObject *in;   /* owned: the module */
    PyObject *key;  /* owned str */
    PyObject *hook; /* owned: the last one made for this place, or NULL */
} places[] = {
    {"_thread", "start_new_thread", &start_new_thread, NULL, NULL, NULL},
    {"_thread", "start_new", &start_new, NULL, NULL, NULL},
    {"_thread", "start_joinable_thread", &start_joinable_thread, NULL, NULL, NULL},
    {"threading", "_start_new_thread", &start_new_thread, NULL, NULL, NULL},
    {"threading", "_start_joinable_thread", &start_joinable_thread, NULL, NULL, NULL},
};
#define PLACES (sizeof(places) / sizeof(places[0]))

static int
is_hook(PyObject *value)
{
    return PyCFunction_CheckExact(value)
           && ((PyCFunctionObject *)value)->m_ml->ml_meth == (PyCFunction)(void (*)(void))start;
}

void
lw_threads_unhook(void)
{
    PyObject *old = records;
    hooked = 0;
    for (size_t i = 0; i < PLACES; i++) {
        PyObject *now = PyObject_GetAttr(places[i].in, places[i].key);
        if (now != NULL && is_hook(now)) {
            (void)PyObject_SetAttr(places[i].in, places[i].key, PyCFunction_GET_SELF(now));
        }
        Py_XDECREF(now);
        PyErr_Clear();
    }
    records = NULL;
    purge_at = FEW;
    Py_XDECREF(old); /* may run code of the program */
}

int
lw_threads_hook(void)
{
    for (size_t i = 0; i < PLACES; i++) {
        PyObject *now = PyObject_GetAttr(places[i].in, places[i].key);
        if (now == NULL) {
            PyErr_Clear(); /* this version has no such function */
            continue;
        }
        int status = 0;
        if (!is_hook(now)) {
            if (places[i].hook == NULL || PyCFunction_GET_SELF(places[i].hook) != now) {
                PyObject *hook = PyCFunction_NewEx(places[i].def, now, NULL);
                Py_XSETREF(places[i].hook, hook);
            }
            status = places[i].hook ? PyObject_SetAttr(places[i].in, places[i].key, places[i].hook) : -1;
        }
        Py_DECREF(now);
        if (status < 0) {
            lw_threads_unhook();
            return -1;
        }
    }
    hooked = 1;
    return 0;
}

/* --- the module ----------------------------------------------------------- */

static PyMethodDef record_methods[] = {
    {"creation", (PyCFunction)(void (*)(void))record_creation, METH_NOARGS, "The creation stack."},
    {NULL, NULL, 0, NULL},
};
static PyMemberDef record_members[] = {
    {"target", T_OBJECT, offsetof(ThreadRecord, target), READONLY, NULL},
    {"module", T_OBJECT, offsetof(ThreadRecord, module), READONLY, NULL},
    {"born_ns", T_ULONGLONG, offsetof(ThreadRecord, born_ns), READONLY, NULL},
    {NULL, 0, 0, 0, NULL},
};
static PyGetSetDef record_getset[] = {
    {"thread", (getter)(void (*)(void))record_thread, NULL, NULL, NULL},
    {"threading", (getter)(void (*)(void))record_threading, NULL, NULL, NULL},
    {NULL, NULL, NULL, NULL, NULL},
};
static PyType_Slot record_slots[] = {
    {Py_tp_dealloc, record_dealloc},
    {Py_tp_methods, record_methods},
    {Py_tp_members, record_members},
    {Py_tp_getset, record_getset},
    {0, NULL},
};
static PyType_Spec record_spec = {"loopwatch._core.ThreadRecord", sizeof(ThreadRecord), 0,
                                  Py_TPFLAGS_DEFAULT | Py_TPFLAGS_IMMUTABLETYPE | Py_TPFLAGS_DISALLOW_INSTANTIATION,
                                  record_slots};

int
lw_threads_init(PyObject *module)
{
    PyObject *threading = PyImport_ImportModule("threading");
    thread_class = threading ? PyObject_GetAttrString(threading, "Thread") : NULL;
    Py_XDECREF(threading);
    if (thread_class == NULL) {
        return -1;
    }
    for (size_t i = 0; i < PLACES; i++) {
        places[i].in = PyImport_ImportModule(places[i].module);
        places[i].key = PyUnicode_InternFromString(places[i].name);
        if (places[i].in == NULL || places[i].key == NULL) {
            return -1;
        }
    }
    purge_at = FEW;
    record_type = (PyTypeObject *)PyType_FromModuleAndSpec(module, &record_spec, NULL);
    if (record_type == NULL || lw_threadscope_init(module) < 0) {
        return -1;
    }
    return lw_threadlook_init(module);
}
