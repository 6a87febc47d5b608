/* links.c: see links.h. */
#include "links.h"

#include "layout.h"

static struct {
    getter cr_await, gi_yieldfrom, ag_await; /* of CPython's own types */
    PyObject *str_wrapped;                   /* owned: where types._GeneratorWrapper keeps what it wraps */
    int fast;                                /* frames' places are read at proved offsets */
} own;

/* Types met before.  Owned, so that an address names one type for good; full means: classified again each time. */
#define KNOWN 64
static struct {
    PyTypeObject *type;
    enum lw_link_kind kind;
} known[KNOWN];
static int nknown;

getter
lw_type_getter(PyTypeObject *type, const char *name)
{
    PyObject *descr = PyObject_GetAttrString((PyObject *)type, name);
    getter get = NULL;
    if (descr != NULL && Py_IS_TYPE(descr, &PyGetSetDescr_Type)) {
        get = ((PyGetSetDescrObject *)descr)->d_getset->get;
    }
    Py_XDECREF(descr);
    PyErr_Clear();
    return get;
}

/* An attribute that is served by C code: a new reference, or NULL without exception.  Never runs Python code. */
PyObject *
lw_link_attribute(PyObject *object, const char *name)
{
    PyObject *value = NULL, *descr = lw_type_lookup(Py_TYPE(object), name); /* borrowed */
    if (descr != NULL && (Py_IS_TYPE(descr, &PyGetSetDescr_Type) || Py_IS_TYPE(descr, &PyMemberDescr_Type))) {
        value = Py_TYPE(descr)->tp_descr_get(descr, object, (PyObject *)Py_TYPE(object));
    }
    PyErr_Clear();
    return value;
}

static int
first_referent(PyObject *object, void *found)
{
    if (PyType_Check(object)) {
        return 0; /* a heap type's instance shows its type first */
    }
    *(PyObject **)found = object;
    return 1;
}

enum lw_link_kind
lw_link_kind_of(PyTypeObject *type)
{
    static const char *const wrappers[] = {"coroutine_wrapper", "async_generator_asend", "async_generator_athrow",
                                           "anext_awaitable", "_asyncio.FutureIter"};
    if (type == &PyCoro_Type) {
        return LW_LINK_CORO;
    }
    if (type == &PyGen_Type) {
        return LW_LINK_GEN;
    }
    if (type == &PyAsyncGen_Type) {
        return LW_LINK_AGEN;
    }
    for (int i = 0; i < nknown; i++) {
        if (known[i].type == type) {
            return known[i].kind;
        }
    }
    enum lw_link_kind kind = LW_LINK_END;
    for (size_t i = 0; i < sizeof(wrappers) / sizeof(wrappers[0]); i++) {
        if (strcmp(type->tp_name, wrappers[i]) == 0 && !(type->tp_flags & Py_TPFLAGS_BASETYPE)
            && type->tp_traverse != NULL) {
            kind = LW_LINK_WRAPPER;
        }
    }
    if (kind == LW_LINK_END && strcmp(type->tp_name, "_GeneratorWrapper") == 0) {
        kind = LW_LINK_PY_WRAPPER;
    }
    else if (kind == LW_LINK_END
             && (lw_type_lookup(type, "cr_await") != NULL || lw_type_lookup(type, "gi_yieldfrom") != NULL
                 || lw_type_lookup(type, "ag_await") != NULL)) {
        kind = LW_LINK_FOREIGN;
    }
    if (nknown < KNOWN) {
        known[nknown].type = (PyTypeObject *)Py_NewRef((PyObject *)type);
        known[nknown++].kind = kind;
    }
    return kind;
}

/* What a link awaits: a new reference, NULL at the chain's end. */
PyObject *
lw_link_next(PyObject *link, enum lw_link_kind kind)
{
    PyObject *next = NULL;
    switch (kind) {
    case LW_LINK_CORO:
        next = own.cr_await(link, NULL);
        break;
    case LW_LINK_GEN:
        next = own.gi_yieldfrom(link, NULL);
        break;
    case LW_LINK_AGEN:
        next = own.ag_await(link, NULL);
        break;
    case LW_LINK_WRAPPER:
        (void)Py_TYPE(link)->tp_traverse(link, first_referent, &next);
        Py_XINCREF(next);
        break;
    case LW_LINK_PY_WRAPPER: {
        PyObject **dict = _PyObject_GetDictPtr(link); /* NULL where values are inline; then its attribute is plain */
        next = dict != NULL && *dict != NULL ? Py_XNewRef(PyDict_GetItemWithError(*dict, own.str_wrapped))
                                             : PyObject_GenericGetAttr(link, own.str_wrapped);
        break;
    }
    case LW_LINK_FOREIGN:
        next = lw_link_attribute(link, "cr_await");
        if (next == NULL) {
            next = lw_link_attribute(link, "gi_yieldfrom");
        }
        if (next == NULL) {
            next = lw_link_attribute(link, "ag_await");
        }
        break;
    case LW_LINK_END:
        break;
    }
    if (next == NULL) {
        PyErr_Clear();
    }
    else if (next == Py_None) {
        Py_CLEAR(next);
    }
    return next;
}

int
lw_is_frame_owner(PyObject *object)
{
    PyTypeObject *type = Py_TYPE(object);
    return type == &PyCoro_Type || type == &PyGen_Type || type == &PyAsyncGen_Type;
}

static inline uintptr_t
load(uintptr_t at)
{
    return *(const uintptr_t *)at;
}

int
lw_frame_state(PyObject *object, int *suspended, int *running)
{
    if (!own.fast) {
        return -1;
    }
    signed char state = *((const signed char *)object + lw_lay.gen_state);
    *suspended = lw_gen_suspended(state);
    *running = lw_gen_running(state);
    return 0;
}

/* The frame object of a link: a new reference or NULL. */
static PyObject *
frame_object(PyObject *link, enum lw_link_kind kind)
{
    static const char *const names[] = {"cr_frame", "gi_frame", "ag_frame"};
    PyObject *frame = NULL;
    for (int i = 0; frame == NULL && i < 3; i++) {
        if (kind == LW_LINK_FOREIGN || i == (int)kind - (int)LW_LINK_CORO) {
            frame = lw_link_attribute(link, names[i]);
        }
    }
    if (frame != NULL && !PyFrame_Check(frame)) {
        Py_CLEAR(frame);
    }
    return frame;
}

/* Where inside LINK; code stays NULL for what has no Python code, or is not suspended. */
void
lw_link_place(PyObject *link, enum lw_link_kind kind, lw_await_place *out)
{
    out->link = link;
    out->code = NULL;
    out->lasti = -1;
    if (kind != LW_LINK_CORO && kind != LW_LINK_GEN && kind != LW_LINK_AGEN) {
        return;
    }
    if (own.fast) {
        uintptr_t frame = (uintptr_t)link + lw_lay.gen_frame;
        int suspended = 0, running = 0;
        (void)lw_frame_state(link, &suspended, &running);
        if (!suspended && !running) {
            return; /* its frame may be cleared */
        }
        PyObject *code = (PyObject *)lw_untag(load(frame + lw_lay.fr_code));
        if (PyCode_Check(code)) {
            out->code = (PyCodeObject *)code;
            out->lasti = (int)(load(frame + lw_lay.fr_instr) - (uintptr_t)code - lw_lay.co_code);
        }
        return;
    }
    PyObject *frame = frame_object(link, kind);
    if (frame != NULL) {
        PyCodeObject *code = PyFrame_GetCode((PyFrameObject *)frame);
        out->code = code;
        out->lasti = PyFrame_GetLasti((PyFrameObject *)frame);
        Py_DECREF(code); /* its frame holds it */
        Py_DECREF(frame);
    }
}

/* The value of a suspended frame's variable: new reference; NULL without exception when it has none. */
static PyObject *
local_of(PyObject *link, PyObject *name)
{
    lw_await_place place;
    lw_link_place(link, lw_link_kind_of(Py_TYPE(link)), &place);
    if (place.code == NULL) {
        return NULL;
    }
    if (!own.fast) {
        PyObject *frame = frame_object(link, lw_link_kind_of(Py_TYPE(link)));
        PyObject *value = frame ? lw_frame_variable(frame, name) : NULL;
        Py_XDECREF(frame);
        PyErr_Clear();
        return value;
    }
    PyObject *names = place.code->co_localsplusnames;
    for (Py_ssize_t i = 0; i < PyTuple_GET_SIZE(names); i++) {
        if (PyUnicode_Compare(PyTuple_GET_ITEM(names, i), name) != 0) {
            continue;
        }
        uintptr_t slot = load((uintptr_t)link + lw_lay.gen_frame + lw_lay.fr_locals + (size_t)i * sizeof(void *));
        PyObject *value = (PyObject *)lw_untag(slot);
        if (value != NULL && PyCell_Check(value)
            && (((unsigned char *)PyBytes_AS_STRING(place.code->co_localspluskinds))[i] & 0xC0)) {
            value = PyCell_GET(value); /* a variable that an inner function shares */
        }
        return Py_XNewRef(value);
    }
    return NULL;
}

static PyObject *
frame_local(PyObject *Py_UNUSED(module), PyObject *args)
{
    PyObject *link, *name, *otherwise = Py_None;
    if (!PyArg_ParseTuple(args, "OU|O:frame_local", &link, &name, &otherwise)) {
        return NULL;
    }
    PyObject *value = lw_is_frame_owner(link) ? local_of(link, name) : NULL;
    return value ? value : Py_NewRef(otherwise);
}

static PyObject *
frame_state(PyObject *Py_UNUSED(module), PyObject *link)
{
    int suspended = 0, running = 0;
    if (!lw_is_frame_owner(link) || lw_frame_state(link, &suspended, &running) < 0) {
        return PyUnicode_FromString("unknown");
    }
    if (!suspended && !running) {
        PyObject *frame = frame_object(link, lw_link_kind_of(Py_TYPE(link))); /* of a finished one: None */
        int created = frame != NULL;
        Py_XDECREF(frame);
        return PyUnicode_FromString(created ? "created" : "finished");
    }
    return PyUnicode_FromString(suspended ? "suspended" : "running");
}

static PyMethodDef functions[] = {
    {"frame_local", frame_local, METH_VARARGS, "frame_local(link, name, default=None)"},
    {"frame_state", frame_state, METH_O, "frame_state(link) -> created, suspended, running, finished, unknown"},
    {NULL, NULL, 0, NULL},
};

static const char probe_source[] = "def g(a):\n"
                                   "    b = a\n"
                                   "    yield b\n"
                                   "probe = g('loopwatch')\n"
                                   "fresh = g('x')\n"
                                   "next(probe)\n"
                                   "code, lasti, value = probe.gi_code, probe.gi_frame.f_lasti, 'loopwatch'\n";

/* Is a suspended generator where the offsets say? */
static int
prove_offsets(void)
{
    int good = 0, suspended = 0, running = 0;
    PyObject *ns = PyDict_New(), *result = NULL, *name = NULL, *value = NULL;
    if (ns == NULL || PyDict_SetItemString(ns, "__builtins__", PyEval_GetBuiltins()) < 0) {
        goto end;
    }
    result = PyRun_String(probe_source, Py_file_input, ns, ns);
    name = PyUnicode_FromString("b");
    if (result == NULL || name == NULL) {
        goto end;
    }
    PyObject *probe = PyDict_GetItemString(ns, "probe"); /* all borrowed from ns */
    lw_await_place place = {0};
    own.fast = 1;
    lw_link_place(probe, LW_LINK_GEN, &place);
    good = lw_frame_state(PyDict_GetItemString(ns, "fresh"), &suspended, &running) == 0 && !suspended && !running
           && (PyObject *)place.code == PyDict_GetItemString(ns, "code")
           && place.lasti == (int)PyLong_AsLong(PyDict_GetItemString(ns, "lasti"));
    value = good ? local_of(probe, name) : NULL;
    good = value == PyDict_GetItemString(ns, "value");
end:
    own.fast = good;
    Py_XDECREF(value);
    Py_XDECREF(name);
    Py_XDECREF(result);
    Py_XDECREF(ns);
    PyErr_Clear();
    return good;
}

int
lw_links_init(PyObject *module)
{
    own.cr_await = lw_type_getter(&PyCoro_Type, "cr_await");
    own.gi_yieldfrom = lw_type_getter(&PyGen_Type, "gi_yieldfrom");
    own.ag_await = lw_type_getter(&PyAsyncGen_Type, "ag_await");
    own.str_wrapped = PyUnicode_InternFromString("_GeneratorWrapper__wrapped");
    if (own.cr_await == NULL || own.gi_yieldfrom == NULL || own.ag_await == NULL) {
        PyErr_SetString(PyExc_ImportError, "coroutines of this interpreter have no cr_await, gi_yieldfrom or ag_await");
        return -1;
    }
    if (lw_layout_ok()) {
        prove_offsets();
    }
    return own.str_wrapped == NULL ? -1 : PyModule_AddFunctions(module, functions);
}
