/* threads.c: see threads.h. */
#include "threads.h"

#include "../core/clock.h"
#include "creation.h"

typedef struct ThreadScope {
    PyObject_HEAD uint64_t mark; /* the newest thread state's number when it opened */
    struct ThreadScope *parent;  /* owned: the scope it was opened in, or NULL */
    int open;
} ThreadScope;

typedef struct {
    PyObject_HEAD lw_creation *creation; /* owned, or NULL */
    PyObject *thread;                    /* owned weak reference to a threading.Thread, or NULL */
    PyObject *target, *module;           /* owned str or NULL: what runs in it */
    ThreadScope *scope;                  /* owned: the innermost scope open where it was begun, or NULL */
    unsigned long ident;
    uint64_t born_ns;
} ThreadRecord;

static PyTypeObject *scope_type, *record_type; /* owned by the module, process-wide */
static PyObject *thread_class;                 /* owned: threading.Thread */
static PyObject *context_var;                  /* owned: the innermost scope of this context, or None */
static PyObject *records;                      /* owned dict: thread state number -> ThreadRecord */
static Py_ssize_t purge_at;
static int open_scopes;
static _Thread_local int inside; /* this thread is in a hook: another one below it does not record again */

/* --- the interpreter's list ----------------------------------------------- */

static PyThreadState *
newest(void)
{
    return PyInterpreterState_ThreadHead(PyInterpreterState_Get());
}

static PyObject *
record_of(PyThreadState *ts)
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

static ThreadScope *
first_open(ThreadScope *scope)
{
    while (scope != NULL && !scope->open) {
        scope = scope->parent;
    }
    return scope;
}

/* The innermost open scope here: of this context, else of this thread.  Borrowed; clears errors. */
static ThreadScope *
scope_here(void)
{
    PyObject *value = NULL;
    ThreadScope *scope = NULL;
    if (PyContextVar_Get(context_var, NULL, &value) < 0) {
        PyErr_Clear();
    }
    if (value != NULL && Py_IS_TYPE(value, scope_type)) {
        scope = first_open((ThreadScope *)value); /* the context holds it, it holds its parents */
    }
    Py_XDECREF(value);
    if (scope == NULL) {
        PyObject *own = record_of(PyThreadState_Get());
        scope = own ? first_open(((ThreadRecord *)own)->scope) : NULL;
        PyErr_Clear();
    }
    return scope;
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
        record->scope = (ThreadScope *)Py_XNewRef((PyObject *)scope_here());
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
        PyObject *record = record_of(ts);
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
    purge_at = 2 * PyDict_GET_SIZE(kept) + 64;
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
    if (ts == NULL || open_scopes == 0 || (records == NULL && (records = PyDict_New()) == NULL)) {
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
    if (open_scopes == 0 || inside) {
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
static PyMethodDef start_new = HOOK("start_new_thread"), start_joinable = HOOK("start_joinable_thread");

static struct {
    const char *module, *name;
    PyMethodDef *def;
    PyObject *in;   /* owned: the module */
    PyObject *key;  /* owned str */
    PyObject *hook; /* owned: the last one made for this place, or NULL */
} places[] = {
    {"_thread", "start_new_thread", &start_new, NULL, NULL, NULL},
    {"_thread", "start_new", &start_new, NULL, NULL, NULL},
    {"_thread", "start_joinable_thread", &start_joinable, NULL, NULL, NULL},
    {"threading", "_start_new_thread", &start_new, NULL, NULL, NULL},
    {"threading", "_start_joinable_thread", &start_joinable, NULL, NULL, NULL},
};
#define PLACES (sizeof(places) / sizeof(places[0]))

static int
is_hook(PyObject *value)
{
    return PyCFunction_CheckExact(value)
           && ((PyCFunctionObject *)value)->m_ml->ml_meth == (PyCFunction)(void (*)(void))start;
}

static void
unhook(void)
{
    for (size_t i = 0; i < PLACES; i++) {
        PyObject *now = PyObject_GetAttr(places[i].in, places[i].key);
        if (now != NULL && is_hook(now)) {
            (void)PyObject_SetAttr(places[i].in, places[i].key, PyCFunction_GET_SELF(now));
        }
        Py_XDECREF(now);
        PyErr_Clear();
    }
}

static int
hook_all(void)
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
            unhook();
            return -1;
        }
    }
    return 0;
}

/* --- scopes --------------------------------------------------------------- */

static PyObject *
scope_new(PyTypeObject *type, PyObject *args, PyObject *kwargs)
{
    static char *names[] = {NULL};
    if (!PyArg_ParseTupleAndKeywords(args, kwargs, ":ThreadScope", names)) {
        return NULL;
    }
    ThreadScope *self = (ThreadScope *)type->tp_alloc(type, 0);
    if (self == NULL) {
        return NULL;
    }
    self->parent = (ThreadScope *)Py_XNewRef((PyObject *)scope_here());
    PyObject *token = PyContextVar_Set(context_var, (PyObject *)self);
    if (token == NULL || (open_scopes == 0 && hook_all() < 0)) {
        Py_XDECREF(token);
        Py_DECREF(self);
        return NULL;
    }
    Py_DECREF(token);
    open_scopes++;
    self->open = 1;
    self->mark = PyThreadState_GetID(newest());
    return (PyObject *)self;
}

static void
scope_shut(ThreadScope *self)
{
    if (!self->open) {
        return;
    }
    self->open = 0;
    if (--open_scopes == 0) {
        PyObject *old = records;
        unhook();
        records = NULL;
        purge_at = 64;
        Py_XDECREF(old);
    }
}

static PyObject *
scope_close(ThreadScope *self, PyObject *Py_UNUSED(unused))
{
    PyObject *value = NULL, *token = NULL;
    if (self->open && PyContextVar_Get(context_var, NULL, &value) == 0 && value == (PyObject *)self) {
        ThreadScope *outer = first_open(self->parent);
        token = PyContextVar_Set(context_var, outer ? (PyObject *)outer : Py_None);
    }
    scope_shut(self);
    Py_XDECREF(token);
    Py_XDECREF(value);
    PyErr_Clear();
    Py_RETURN_NONE;
}

static void
scope_dealloc(ThreadScope *self)
{
    PyTypeObject *type = Py_TYPE(self);
    PyObject *etype, *value, *trace;
    PyErr_Fetch(&etype, &value, &trace);
    scope_shut(self);
    Py_XDECREF(self->parent);
    type->tp_free(self);
    Py_DECREF(type);
    PyErr_Restore(etype, value, trace);
}

/* Whether it was begun inside scopes of which SELF is none. */
static int
foreign(ThreadScope *self, PyObject *record)
{
    ThreadScope *scope = record ? ((ThreadRecord *)record)->scope : NULL;
    int others = scope != NULL;
    for (; scope != NULL; scope = scope->parent) {
        if (scope == self) {
            return 0;
        }
    }
    return others;
}

/* A thread that did not come to run yet has no ident, or before 3.12 its starter's. */
static int
has_run(PyThreadState *ts, PyObject *record)
{
    if (record != NULL) {
        return ts->thread_id == ((ThreadRecord *)record)->ident;
    }
    for (PyThreadState *other = PyThreadState_Next(ts); other != NULL; other = PyThreadState_Next(other)) {
        if (other->thread_id == ts->thread_id) {
            return 0;
        }
    }
    return ts->thread_id != 0;
}

static PyObject *
scope_threads(ThreadScope *self, PyObject *Py_UNUSED(unused))
{
    PyObject *list = PyList_New(0);
    PyThreadState *mine = PyThreadState_Get();
    for (PyThreadState *ts = newest(); list != NULL && ts != NULL && PyThreadState_GetID(ts) > self->mark;
         ts = PyThreadState_Next(ts)) {
        PyObject *record = ts == mine ? NULL : record_of(ts), *row = NULL;
        if (ts == mine) {
            continue;
        }
        int run = has_run(ts, record);
        if (!PyErr_Occurred()) {
            row = Py_BuildValue("(KkkiOi)", (unsigned long long)PyThreadState_GetID(ts),
                                record ? ((ThreadRecord *)record)->ident
                                : run  ? ts->thread_id
                                       : 0UL,
                                run ? ts->native_thread_id : 0UL, lw_begun_by_python(ts), record ? record : Py_None,
                                foreign(self, record));
        }
        if (row == NULL || PyList_Append(list, row) < 0) {
            Py_CLEAR(list);
        }
        Py_XDECREF(row);
    }
    return list;
}

/* --- the module ----------------------------------------------------------- */

static PyMethodDef scope_methods[] = {
    {"close", (PyCFunction)(void (*)(void))scope_close, METH_NOARGS, "Take the hooks away if this is the last one."},
    {"threads", (PyCFunction)(void (*)(void))scope_threads, METH_NOARGS, "Threads begun since, newest first."},
    {NULL, NULL, 0, NULL},
};
static PyMemberDef scope_members[] = {
    {"open", T_INT, offsetof(ThreadScope, open), READONLY, NULL},
    {NULL, 0, 0, 0, NULL},
};
static PyType_Slot scope_slots[] = {
    {Py_tp_new, scope_new},
    {Py_tp_dealloc, scope_dealloc},
    {Py_tp_methods, scope_methods},
    {Py_tp_members, scope_members},
    {0, NULL},
};
static PyType_Spec scope_spec = {"loopwatch._core.ThreadScope", sizeof(ThreadScope), 0,
                                 Py_TPFLAGS_DEFAULT | Py_TPFLAGS_IMMUTABLETYPE, scope_slots};

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
    context_var = thread_class ? PyContextVar_New("loopwatch_threads", NULL) : NULL;
    if (context_var == NULL) {
        return -1;
    }
    for (size_t i = 0; i < PLACES; i++) {
        places[i].in = PyImport_ImportModule(places[i].module);
        places[i].key = PyUnicode_InternFromString(places[i].name);
        if (places[i].in == NULL || places[i].key == NULL) {
            return -1;
        }
    }
    purge_at = 64;
    scope_type = (PyTypeObject *)PyType_FromModuleAndSpec(module, &scope_spec, NULL);
    record_type = (PyTypeObject *)PyType_FromModuleAndSpec(module, &record_spec, NULL);
    if (scope_type == NULL || record_type == NULL || PyModule_AddType(module, scope_type) < 0) {
        return -1;
    }
    return lw_threadlook_init(module);
}
