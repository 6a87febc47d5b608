/* retained.c: see retained.h. */
#include "retained.h"

#include "links.h"
#include "graph.h"
#include "layout.h"
#include "objects.h"

enum { START = 1, STAYS = 2 };

typedef struct {
    lw_graph g; /* in the order in which they were found, which is the queue, too */
    uint32_t limit;
    PyTypeObject *loop_type; /* owned */
    PyObject *globals, *builtins; /* borrowed: of the function that is visited */
    Py_ssize_t visited;
    int cut, running, failed;
} gathering;

static int
is_common(const gathering *s, PyObject *object)
{
    return PyType_Check(object) || PyModule_Check(object) || PyObject_TypeCheck(object, s->loop_type)
           || object == s->globals || object == s->builtins;
}

static int
gather(PyObject *object, void *arg)
{
    gathering *s = arg;
    s->visited++;
    if (object == NULL || is_common(s, object)) {
        return 0;
    }
    uint32_t at = lw_graph_find(&s->g, object);
    if (at == LW_NO_NODE && s->g.n >= s->limit) {
        s->cut = 1;
        return 0;
    }
    if (at == LW_NO_NODE) {
        at = lw_graph_add(&s->g, object);
        if (at == LW_NO_NODE) {
            s->failed = 1;
            return 1;
        }
    }
    s->g.nodes[at].outside--;
    return 0;
}

static int
give_back(PyObject *object, void *arg)
{
    gathering *s = arg;
    uint32_t at = lw_graph_find(&s->g, object);
    if (at != LW_NO_NODE) {
        s->g.nodes[at].outside++;
    }
    return 0;
}

static int
stays(PyObject *object, void *arg)
{
    gathering *s = arg;
    uint32_t at = object == NULL ? LW_NO_NODE : lw_graph_find(&s->g, object);
    if (at != LW_NO_NODE && !(s->g.nodes[at].flags & (START | STAYS))) {
        s->g.nodes[at].flags |= STAYS;
        s->g.nodes[s->visited++].extra = at; /* the queue of this pass */
    }
    return 0;
}

/* Visit what an object owns: by its traversal, and the str keys that a dict's traversal leaves out. */
static void
visit_owned(gathering *s, PyObject *object, visitproc visit)
{
    traverseproc traverse = Py_TYPE(object)->tp_traverse;
    if (traverse == NULL) {
        return;
    }
    s->globals = PyFunction_Check(object) ? PyFunction_GET_GLOBALS(object) : NULL;
    s->builtins = PyFunction_Check(object) ? ((PyFunctionObject *)object)->func_builtins : NULL;
    (void)traverse(object, visit, s);
}

static void
gather_from(gathering *s, uint32_t number)
{
    PyObject *object = s->g.nodes[number].object, *key, *value;
    if (s->g.nodes[number].flags & LW_NODE_RUNNING) {
        s->running = 1;
        return;
    }
    s->visited = 0;
    visit_owned(s, object, gather);
    if (lw_is_frame_owner(object)) {
        lw_graph_borrowed(object, give_back, s);
    }
    if (PyDict_CheckExact(object) && lw_dict_owns_keys(object) && s->visited == PyDict_GET_SIZE(object)) {
        Py_ssize_t at = 0;
        while (PyDict_Next(object, &at, &key, &value) && !s->failed) {
            (void)gather(key, s);
        }
    }
}

static void
keep_what_is_held_elsewhere(gathering *s)
{
    s->visited = 0;
    for (uint32_t i = 0; i < s->g.n; i++) {
        if (s->g.nodes[i].outside != 0) {
            (void)stays(s->g.nodes[i].object, s);
        }
    }
    for (Py_ssize_t head = 0; head < s->visited; head++) {
        const lw_node *x = &s->g.nodes[s->g.nodes[head].extra];
        if (!(x->flags & LW_NODE_RUNNING) && Py_TYPE(x->object)->tp_traverse != NULL) {
            (void)Py_TYPE(x->object)->tp_traverse(x->object, stays, s);
        }
        if (PyDict_CheckExact(x->object)) {
            PyObject *key, *value;
            Py_ssize_t at = 0;
            while (PyDict_Next(x->object, &at, &key, &value)) {
                (void)stays(key, s);
            }
        }
    }
}

static size_t
bytes_of(PyObject *object)
{
    PyObject *method = lw_type_lookup(Py_TYPE(object), "__sizeof__"), *size = NULL;
    size_t bytes;
    if (method == NULL || !Py_IS_TYPE(method, &PyMethodDescr_Type)) {
        return lw_object_bytes(object);
    }
    size = PyObject_CallOneArg(method, object);
    bytes = size == NULL ? (size_t)-1 : PyLong_AsSize_t(size);
    Py_XDECREF(size);
    if (PyErr_Occurred()) {
        PyErr_Clear();
        return lw_object_bytes(object);
    }
    return bytes + lw_gc_header_size(object);
}

/* {type: (count, bytes)} of what would go. */
static PyObject *
by_type(const gathering *s)
{
    PyObject *result = PyDict_New();
    for (uint32_t i = 0; result != NULL && i < s->g.n; i++) {
        PyObject *object = s->g.nodes[i].object, *type = (PyObject *)Py_TYPE(object), *before, *now;
        if (s->g.nodes[i].flags & STAYS) {
            continue;
        }
        before = PyDict_GetItemWithError(result, type);
        size_t count = before ? PyLong_AsSize_t(PyTuple_GET_ITEM(before, 0)) : 0;
        size_t bytes = before ? PyLong_AsSize_t(PyTuple_GET_ITEM(before, 1)) : 0;
        now = Py_BuildValue("(nn)", (Py_ssize_t)count + 1, (Py_ssize_t)(bytes + bytes_of(object)));
        if (now == NULL || PyDict_SetItem(result, type, now) < 0) {
            Py_CLEAR(result);
        }
        Py_XDECREF(now);
    }
    return result;
}

static PyObject *
retained(PyObject *Py_UNUSED(module), PyObject *args)
{
    gathering s = {0};
    PyObject *starts, *events = NULL, *loop_type = NULL, *types = NULL, *result = NULL;
    Py_ssize_t limit;
    int unused, was_enabled = 0;

    if (!PyArg_ParseTuple(args, "O!n:retained", &PyList_Type, &starts, &limit)) {
        return NULL;
    }
    if (limit < 1 || limit >= (Py_ssize_t)LW_NO_NODE / 4) {
        return PyErr_Format(PyExc_ValueError, "limit must be a number of objects from 1 to 10**9, got %zd", limit);
    }
    lw_layout_asyncio();
    if (!lw_layout_ok() || lw_frame_state(Py_None, &unused, &unused) < 0) {
        return PyErr_Format(PyExc_RuntimeError, "what an object retains cannot be told on this interpreter: %s",
                            lw_layout_text());
    }
    events = PyImport_ImportModule("asyncio.events");
    loop_type = events ? PyObject_GetAttrString(events, "AbstractEventLoop") : NULL;
    if (loop_type == NULL || !PyType_Check(loop_type)) {
        goto end;
    }
    s.loop_type = (PyTypeObject *)loop_type;
    s.limit = (uint32_t)limit;
    was_enabled = PyGC_Disable();
    if (lw_graph_init(&s.g, 4096) < 0) {
        PyErr_NoMemory();
        goto end;
    }
    for (Py_ssize_t i = 0; i < PyList_GET_SIZE(starts); i++) {
        uint32_t at = lw_graph_add(&s.g, PyList_GET_ITEM(starts, i));
        if (at == LW_NO_NODE) {
            s.failed = 1;
            break;
        }
        s.g.nodes[at].flags |= START;
    }
    for (uint32_t i = 0; i < s.g.n && !s.failed; i++) {
        gather_from(&s, i);
    }
    if (s.failed) {
        PyErr_NoMemory();
        goto end;
    }
    keep_what_is_held_elsewhere(&s);
    types = by_type(&s);
    result = types == NULL ? NULL
                           : Py_BuildValue("(OOO)", types, s.cut ? Py_True : Py_False, s.running ? Py_True : Py_False);
end:
    lw_graph_free(&s.g);
    if (was_enabled) {
        PyGC_Enable();
    }
    Py_XDECREF(types);
    Py_XDECREF(loop_type);
    Py_XDECREF(events);
    return result;
}

static PyMethodDef functions[] = {
    {"retained", retained, METH_VARARGS,
     "retained([object, ...], limit) -> ({type: (count, bytes)}, cut, a frame of it runs now)"},
    {NULL, NULL, 0, NULL},
};

int
lw_retained_init(PyObject *module)
{
    return PyModule_AddFunctions(module, functions);
}
