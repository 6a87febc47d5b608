/* threadscope.c: the type ThreadScope, see threads.h.
 *
 * A scope that nobody closes closes when its handle is freed.  The context that
 * it was opened in may hold the rest of it longer than that; so whoever reads
 * the context variable steps over closed scopes to the first open one around
 * them. */
#include "threads.h"

typedef struct {
    PyObject_HEAD lw_thread_scope *scope; /* owned; NULL only while it is made */
} ThreadScope;

static PyTypeObject *scope_type, *handle_type; /* owned by the module, process-wide */
static PyObject *context_var;    /* owned: the innermost scope of this context, or None */
static int open_scopes;

static PyThreadState *
newest(void)
{
    return PyInterpreterState_ThreadHead(PyInterpreterState_Get());
}

static lw_thread_scope *
first_open(lw_thread_scope *scope)
{
    while (scope != NULL && !scope->open) {
        scope = scope->parent;
    }
    return scope;
}

/* The innermost open scope here: of this context, else of this thread.  Borrowed; clears errors. */
lw_thread_scope *
lw_thread_scope_here(void)
{
    PyObject *value = NULL;
    lw_thread_scope *scope = NULL;
    if (PyContextVar_Get(context_var, NULL, &value) < 0) {
        PyErr_Clear();
    }
    if (value != NULL && Py_IS_TYPE(value, scope_type)) {
        scope = first_open((lw_thread_scope *)value); /* the context holds it, it holds its parents */
    }
    Py_XDECREF(value);
    if (scope == NULL) {
        PyObject *own = lw_thread_record(PyThreadState_Get());
        scope = own ? first_open(((ThreadRecord *)own)->scope) : NULL;
        PyErr_Clear();
    }
    return scope;
}

static PyObject *
handle_new(PyTypeObject *type, PyObject *args, PyObject *kwargs)
{
    static char *names[] = {NULL};
    if (!PyArg_ParseTupleAndKeywords(args, kwargs, ":ThreadScope", names)) {
        return NULL;
    }
    ThreadScope *self = (ThreadScope *)type->tp_alloc(type, 0);
    lw_thread_scope *scope = self ? (lw_thread_scope *)scope_type->tp_alloc(scope_type, 0) : NULL;
    if (scope == NULL) {
        Py_XDECREF(self);
        return NULL;
    }
    self->scope = scope;
    scope->parent = (lw_thread_scope *)Py_XNewRef((PyObject *)lw_thread_scope_here());
    PyObject *token = PyContextVar_Set(context_var, (PyObject *)scope);
    if (token == NULL || (open_scopes == 0 && lw_threads_hook() < 0)) {
        Py_XDECREF(token);
        Py_DECREF(self);
        return NULL;
    }
    Py_DECREF(token);
    open_scopes++;
    scope->open = 1;
    scope->mark = PyThreadState_GetID(newest());
    return (PyObject *)self;
}

static void
scope_shut(lw_thread_scope *scope)
{
    if (scope != NULL && scope->open) {
        scope->open = 0;
        if (--open_scopes == 0) {
            lw_threads_unhook();
        }
    }
}

static PyObject *
handle_close(ThreadScope *self, PyObject *Py_UNUSED(unused))
{
    PyObject *value = NULL, *token = NULL;
    lw_thread_scope *scope = self->scope;
    if (scope->open && PyContextVar_Get(context_var, NULL, &value) == 0 && value == (PyObject *)scope) {
        lw_thread_scope *outer = first_open(scope->parent);
        token = PyContextVar_Set(context_var, outer ? (PyObject *)outer : Py_None);
    }
    scope_shut(scope);
    Py_XDECREF(token);
    Py_XDECREF(value);
    PyErr_Clear();
    Py_RETURN_NONE;
}

static void
handle_dealloc(ThreadScope *self)
{
    PyTypeObject *type = Py_TYPE(self);
    PyObject *etype, *value, *trace;
    PyErr_Fetch(&etype, &value, &trace);
    scope_shut(self->scope);
    Py_XDECREF(self->scope);
    type->tp_free(self);
    Py_DECREF(type);
    PyErr_Restore(etype, value, trace);
}

static void
scope_dealloc(lw_thread_scope *self)
{
    PyTypeObject *type = Py_TYPE(self);
    Py_XDECREF(self->parent);
    type->tp_free(self);
    Py_DECREF(type);
}

/* Whether it was begun inside scopes of which SELF is none. */
static int
foreign(lw_thread_scope *self, PyObject *record)
{
    lw_thread_scope *scope = record ? ((ThreadRecord *)record)->scope : NULL;
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
handle_threads(ThreadScope *self, PyObject *Py_UNUSED(unused))
{
    PyObject *list = PyList_New(0);
    PyThreadState *mine = PyThreadState_Get();
    for (PyThreadState *ts = newest(); list != NULL && ts != NULL && PyThreadState_GetID(ts) > self->scope->mark;
         ts = PyThreadState_Next(ts)) {
        PyObject *record = ts == mine ? NULL : lw_thread_record(ts), *row = NULL;
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
                                foreign(self->scope, record));
        }
        if (row == NULL || PyList_Append(list, row) < 0) {
            Py_CLEAR(list);
        }
        Py_XDECREF(row);
    }
    return list;
}

static PyObject *
handle_open(ThreadScope *self, void *Py_UNUSED(closure))
{
    return PyBool_FromLong(self->scope->open);
}

static PyMethodDef handle_methods[] = {
    {"close", (PyCFunction)(void (*)(void))handle_close, METH_NOARGS, "Take the hooks away if this is the last one."},
    {"threads", (PyCFunction)(void (*)(void))handle_threads, METH_NOARGS, "Threads begun since, newest first."},
    {NULL, NULL, 0, NULL},
};
static PyGetSetDef handle_getset[] = {
    {"open", (getter)(void (*)(void))handle_open, NULL, NULL, NULL},
    {NULL, NULL, NULL, NULL, NULL},
};
static PyType_Slot handle_slots[] = {
    {Py_tp_new, handle_new},
    {Py_tp_dealloc, handle_dealloc},
    {Py_tp_methods, handle_methods},
    {Py_tp_getset, handle_getset},
    {0, NULL},
};
static PyType_Spec handle_spec = {"loopwatch._core.ThreadScope", sizeof(ThreadScope), 0,
                                  Py_TPFLAGS_DEFAULT | Py_TPFLAGS_IMMUTABLETYPE, handle_slots};

static PyType_Slot scope_slots[] = {
    {Py_tp_dealloc, scope_dealloc},
    {0, NULL},
};
static PyType_Spec scope_spec = {"loopwatch._core._ThreadScopeState", sizeof(lw_thread_scope), 0,
                                 Py_TPFLAGS_DEFAULT | Py_TPFLAGS_IMMUTABLETYPE | Py_TPFLAGS_DISALLOW_INSTANTIATION,
                                 scope_slots};

int
lw_threadscope_init(PyObject *module)
{
    context_var = PyContextVar_New("loopwatch_threads", NULL);
    scope_type = context_var ? (PyTypeObject *)PyType_FromModuleAndSpec(module, &scope_spec, NULL) : NULL;
    handle_type = scope_type ? (PyTypeObject *)PyType_FromModuleAndSpec(module, &handle_spec, NULL) : NULL;
    return handle_type ? PyModule_AddType(module, handle_type) : -1;
}
