/* awaits.c: see awaits.h. */
#include "awaits.h"

#include "creation.h"

#include "layout.h"
#include "ownfiles.h"

enum link_kind {
    END = 0,     /* awaits nothing that we can see */
    CORO,        /* coroutine */
    GEN,         /* generator, also one made a coroutine by types.coroutine */
    AGEN,        /* async generator */
    WRAPPER,     /* shows what it wraps to the garbage collector as its first referent */
    PY_WRAPPER,  /* types._GeneratorWrapper */
    FOREIGN,     /* answers to cr_await or gi_yieldfrom by a descriptor, such as Cython's */
};

static struct {
    getter cr_await, gi_yieldfrom, ag_await; /* of CPython's own types */
    getter fut_waiter;                       /* of asyncio's C Task */
    PyObject *str_fut_waiter, *str_get_coro;
    int fast; /* frames' places are read at proved offsets */
    int ready;
} aw;

/* Types met before.  Owned, so that an address names one type for good; full means: classify again each time. */
#define KNOWN 64
static struct {
    PyTypeObject *type;
    enum link_kind kind;
} known[KNOWN];
static int nknown;

static getter
type_getter(PyTypeObject *type, const char *name)
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
static PyObject *
c_attribute(PyObject *object, const char *name)
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

static enum link_kind
classify(PyTypeObject *type)
{
    static const char *const wrappers[] = {"coroutine_wrapper", "async_generator_asend", "async_generator_athrow",
                                           "anext_awaitable", "_asyncio.FutureIter"};
    if (type == &PyCoro_Type) {
        return CORO;
    }
    if (type == &PyGen_Type) {
        return GEN;
    }
    if (type == &PyAsyncGen_Type) {
        return AGEN;
    }
    for (int i = 0; i < nknown; i++) {
        if (known[i].type == type) {
            return known[i].kind;
        }
    }
    enum link_kind kind = END;
    for (size_t i = 0; i < sizeof(wrappers) / sizeof(wrappers[0]); i++) {
        if (strcmp(type->tp_name, wrappers[i]) == 0 && !(type->tp_flags & Py_TPFLAGS_BASETYPE)
            && type->tp_traverse != NULL) {
            kind = WRAPPER;
        }
    }
    if (kind == END && strcmp(type->tp_name, "_GeneratorWrapper") == 0) {
        kind = PY_WRAPPER;
    }
    else if (kind == END
             && (lw_type_lookup(type, "cr_await") != NULL || lw_type_lookup(type, "gi_yieldfrom") != NULL
                 || lw_type_lookup(type, "ag_await") != NULL)) {
        kind = FOREIGN;
    }
    if (nknown < KNOWN) {
        known[nknown].type = (PyTypeObject *)Py_NewRef((PyObject *)type);
        known[nknown++].kind = kind;
    }
    return kind;
}

/* What a link awaits: a new reference, NULL at the chain's end. */
static PyObject *
next_link(PyObject *link, enum link_kind kind)
{
    PyObject *next = NULL;
    switch (kind) {
    case CORO:
        next = aw.cr_await(link, NULL);
        break;
    case GEN:
        next = aw.gi_yieldfrom(link, NULL);
        break;
    case AGEN:
        next = aw.ag_await(link, NULL);
        break;
    case WRAPPER:
        (void)Py_TYPE(link)->tp_traverse(link, first_referent, &next);
        Py_XINCREF(next);
        break;
    case PY_WRAPPER: {
        PyObject **dict = _PyObject_GetDictPtr(link); /* NULL where values are inline; then its attribute is plain */
        next = dict != NULL && *dict != NULL
                   ? Py_XNewRef(PyDict_GetItemString(*dict, "_GeneratorWrapper__wrapped"))
                   : PyObject_GenericGetAttr(link, PyUnicode_InternFromString("_GeneratorWrapper__wrapped"));
        break;
    }
    case FOREIGN:
        next = c_attribute(link, "cr_await");
        if (next == NULL) {
            next = c_attribute(link, "gi_yieldfrom");
        }
        if (next == NULL) {
            next = c_attribute(link, "ag_await");
        }
        break;
    case END:
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
    if (!aw.fast) {
        return -1;
    }
    signed char state = *((const signed char *)object + lw_lay.gen_state);
    *suspended = lw_gen_suspended(state);
    *running = lw_gen_running(state);
    return 0;
}

/* The frame object of a link: a new reference or NULL. */
static PyObject *
frame_object(PyObject *link, enum link_kind kind)
{
    static const char *const names[] = {"cr_frame", "gi_frame", "ag_frame"};
    PyObject *frame = NULL;
    for (int i = 0; frame == NULL && i < 3; i++) {
        if (kind == FOREIGN || i == (int)kind - (int)CORO) {
            frame = c_attribute(link, names[i]);
        }
    }
    if (frame != NULL && !PyFrame_Check(frame)) {
        Py_CLEAR(frame);
    }
    return frame;
}

/* Where inside LINK; code stays NULL for what has no Python code, or is not suspended. */
static void
place_of(PyObject *link, enum link_kind kind, lw_await_place *out)
{
    out->link = link;
    out->code = NULL;
    out->lasti = -1;
    if (kind != CORO && kind != GEN && kind != AGEN) {
        return;
    }
    if (aw.fast) {
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

/* The next link borrowed from its holder; NULL where the holder made it just for us. */
static inline PyObject *
next_borrowed(PyObject *link, enum link_kind kind)
{
    PyObject *next = next_link(link, kind);
    if (next == NULL) {
        return NULL;
    }
    if (Py_REFCNT(next) == 1) {
        Py_DECREF(next);
        return NULL;
    }
    Py_DECREF(next);
    return next;
}

int
lw_await_links(PyObject *coro, lw_await_place *places, int room, PyObject **awaited)
{
    int n = 0;
    PyObject *link = coro;
    for (int hops = 0; link != NULL && hops < LW_MAX_LINKS; hops++) {
        enum link_kind kind = classify(Py_TYPE(link));
        if (kind == END) {
            break;
        }
        if (kind != WRAPPER && kind != PY_WRAPPER && n < room) {
            place_of(link, kind, &places[n++]);
        }
        link = next_borrowed(link, kind);
    }
    *awaited = link;
    return n;
}

static inline int
is_c_task(PyObject *task)
{
    return (uintptr_t)Py_TYPE(task) == lw_alay.task_type && lw_alay.task_coro != 0;
}

PyObject *
lw_await_coro(PyObject *task)
{
    PyObject *coro = NULL;
    if (is_c_task(task)) {
        return Py_XNewRef((PyObject *)load((uintptr_t)task + lw_alay.task_coro));
    }
    coro = PyObject_CallMethodNoArgs(task, aw.str_get_coro);
    if (coro == NULL) {
        PyErr_Clear();
    }
    return coro;
}

/* The future a task is blocked on: a new reference; NULL for none, without exception. */
static PyObject *
blocked_on(PyObject *task)
{
    PyObject *future = NULL;
    if (is_c_task(task)) {
        if (aw.fut_waiter == NULL) {
            aw.fut_waiter = type_getter(Py_TYPE(task), "_fut_waiter");
        }
        if (aw.fut_waiter != NULL) {
            future = aw.fut_waiter(task, NULL);
        }
    }
    else {
        future = PyObject_GetAttr(task, aw.str_fut_waiter);
    }
    if (future == NULL) {
        PyErr_Clear();
    }
    else if (future == Py_None) {
        Py_CLEAR(future);
    }
    return future;
}

int
lw_await_site(PyObject *task, lw_await_site_info *out)
{
    lw_await_place places[LW_MAX_LINKS];
    PyObject *coro = lw_await_coro(task), *future = NULL;
    uint64_t hash = 0;
    int best = 3;

    memset(out, 0, sizeof(*out));
    if (coro == NULL) {
        return -1;
    }
    int n = lw_await_links(coro, places, LW_MAX_LINKS, &out->awaited);
    Py_DECREF(coro); /* the task holds it */
    future = blocked_on(task);
    if (future != NULL) {
        out->awaited = future;
        Py_DECREF(future); /* so does it this */
    }
    for (int i = 0; i < n; i++) {
        hash = ((hash ^ (uintptr_t)places[i].code) + (uint64_t)places[i].lasti) * 0x9E3779B97F4A7C15ull;
    }
    for (int i = n - 1; i >= 0 && best > 0; i--) {
        if (places[i].code == NULL) {
            continue;
        }
        if (out->innermost.code == NULL) {
            out->innermost = places[i];
        }
        int kind = lw_file_kind(places[i].code->co_filename);
        if (kind < best) {
            best = kind;
            out->user = places[i];
        }
    }
    out->depth = n;
    out->hash = hash ^ (hash >> 32);
    return out->innermost.code == NULL ? -1 : 0;
}

/* ---- for Python ----------------------------------------------------------------------------------------------- */

static PyObject *
raw_frame(const lw_await_place *place, enum link_kind kind)
{
    int line = 0;
    PyObject *name = NULL, *code = NULL, *file = NULL, *result = NULL;
    if (place->code != NULL) {
        return lw_code_frame(place->code, place->lasti);
    }
    /* foreign, or not begun: its name, and the first line of its code if it has one */
    name = c_attribute(place->link, "__qualname__");
    code = c_attribute(place->link, kind == GEN ? "gi_code" : kind == AGEN ? "ag_code" : "cr_code");
    if (code == NULL) {
        code = c_attribute(place->link, "gi_code");
    }
    if (code != NULL && PyCode_Check(code)) {
        file = Py_NewRef(((PyCodeObject *)code)->co_filename);
        line = ((PyCodeObject *)code)->co_firstlineno;
    }
    if (file == NULL) {
        file = PyUnicode_FromFormat("<%s>", Py_TYPE(place->link)->tp_name);
    }
    if (name == NULL || !PyUnicode_Check(name)) {
        Py_XSETREF(name, PyUnicode_FromString(Py_TYPE(place->link)->tp_name));
    }
    if (file != NULL && name != NULL) {
        result = Py_BuildValue("(OOiiii)", file, name, line > 0 ? line : 0, 0, -1, -1);
    }
    Py_XDECREF(file);
    Py_XDECREF(code);
    Py_XDECREF(name);
    return result;
}

/* The coroutine to start from: of a task, or the object itself if it is a link. */
static PyObject *
start_of(PyObject *object)
{
    lw_layout_asyncio();
    if (classify(Py_TYPE(object)) != END) {
        return Py_NewRef(object);
    }
    return lw_await_coro(object);
}

static PyObject *
await_chain(PyObject *Py_UNUSED(module), PyObject *object)
{
    lw_await_place *places = NULL;
    PyObject *start = start_of(object), *awaited = NULL, *frames = NULL, *links = NULL, *future = NULL, *result = NULL;
    int n = 0;

    if (start == NULL) {
        return PyErr_Format(PyExc_TypeError, "expected a task, a coroutine or a generator, got %.200s",
                            Py_TYPE(object)->tp_name);
    }
    places = PyMem_Malloc(LW_MAX_LINKS * sizeof(*places));
    if (places == NULL) {
        PyErr_NoMemory();
        goto end;
    }
    n = lw_await_links(start, places, LW_MAX_LINKS, &awaited);
    Py_XINCREF(awaited);
    for (int i = 0; i < n; i++) {
        Py_INCREF(places[i].link); /* building lists may collect garbage */
        Py_XINCREF(places[i].code);
    }
    if (start != object) {
        future = blocked_on(object);
        if (future != NULL) {
            Py_XSETREF(awaited, future);
        }
    }
    frames = PyList_New(n);
    links = PyList_New(n);
    for (int i = 0; frames != NULL && links != NULL && i < n; i++) {
        PyObject *frame = raw_frame(&places[i], classify(Py_TYPE(places[i].link)));
        if (frame == NULL) {
            goto end;
        }
        PyList_SET_ITEM(frames, i, frame);
        PyList_SET_ITEM(links, i, Py_NewRef(places[i].link));
    }
    if (frames != NULL && links != NULL) {
        result = PyTuple_Pack(3, frames, awaited ? awaited : Py_None, links);
    }
end:
    for (int i = 0; places != NULL && i < n; i++) {
        Py_DECREF(places[i].link);
        Py_XDECREF(places[i].code);
    }
    PyMem_Free(places);
    Py_XDECREF(links);
    Py_XDECREF(frames);
    Py_XDECREF(awaited);
    Py_DECREF(start);
    return result;
}

static PyObject *
await_site(PyObject *Py_UNUSED(module), PyObject *task)
{
    lw_await_site_info site;
    PyObject *frame = NULL, *result = NULL;
    lw_layout_asyncio();
    if (lw_await_site(task, &site) < 0) {
        Py_RETURN_NONE;
    }
    Py_XINCREF(site.awaited);
    frame = raw_frame(&site.user, CORO);
    if (frame != NULL) {
        result = Py_BuildValue("(OOKi)", frame, site.awaited ? site.awaited : Py_None, (unsigned long long)site.hash,
                               site.depth);
    }
    Py_XDECREF(frame);
    Py_XDECREF(site.awaited);
    return result;
}

/* The value of a suspended frame's variable: new reference; NULL without exception when it has none. */
static PyObject *
local_of(PyObject *link, PyObject *name)
{
    lw_await_place place;
    place_of(link, classify(Py_TYPE(link)), &place);
    if (place.code == NULL) {
        return NULL;
    }
    if (!aw.fast) {
        PyObject *frame = frame_object(link, classify(Py_TYPE(link)));
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
await_hashes(PyObject *Py_UNUSED(module), PyObject *tasks)
{
    lw_await_site_info site;
    PyObject *result = NULL;
    if (!PyList_Check(tasks)) {
        return PyErr_Format(PyExc_TypeError, "expected a list of tasks, got %.200s", Py_TYPE(tasks)->tp_name);
    }
    lw_layout_asyncio();
    result = PyList_New(PyList_GET_SIZE(tasks));
    for (Py_ssize_t i = 0; result != NULL && i < PyList_GET_SIZE(result); i++) {
        PyObject *hash = i < PyList_GET_SIZE(tasks) && lw_await_site(PyList_GET_ITEM(tasks, i), &site) == 0
                             ? PyLong_FromUnsignedLongLong(site.hash)
                             : PyLong_FromLong(0);
        if (hash == NULL) {
            Py_CLEAR(result);
            break;
        }
        PyList_SET_ITEM(result, i, hash);
    }
    return result;
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
        PyObject *frame = frame_object(link, classify(Py_TYPE(link))); /* of a finished one: None */
        int created = frame != NULL;
        Py_XDECREF(frame);
        return PyUnicode_FromString(created ? "created" : "finished");
    }
    return PyUnicode_FromString(suspended ? "suspended" : "running");
}

static PyMethodDef functions[] = {
    {"await_chain", await_chain, METH_O, "await_chain(task) -> (frames, awaited, links)"},
    {"await_site", await_site, METH_O, "await_site(task) -> (frame, awaited, hash, depth) or None"},
    {"await_hashes", await_hashes, METH_O, "await_hashes(list of tasks) -> list of int, 0 for one that does not wait"},
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
    aw.fast = 1;
    place_of(probe, GEN, &place);
    good = lw_frame_state(PyDict_GetItemString(ns, "fresh"), &suspended, &running) == 0 && !suspended && !running
           && (PyObject *)place.code == PyDict_GetItemString(ns, "code")
           && place.lasti == (int)PyLong_AsLong(PyDict_GetItemString(ns, "lasti"));
    value = good ? local_of(probe, name) : NULL;
    good = value == PyDict_GetItemString(ns, "value");
end:
    aw.fast = good;
    Py_XDECREF(value);
    Py_XDECREF(name);
    Py_XDECREF(result);
    Py_XDECREF(ns);
    PyErr_Clear();
    return good;
}

int
lw_awaits_init(PyObject *module)
{
    aw.cr_await = type_getter(&PyCoro_Type, "cr_await");
    aw.gi_yieldfrom = type_getter(&PyGen_Type, "gi_yieldfrom");
    aw.ag_await = type_getter(&PyAsyncGen_Type, "ag_await");
    aw.str_fut_waiter = PyUnicode_InternFromString("_fut_waiter");
    aw.str_get_coro = PyUnicode_InternFromString("get_coro");
    if (aw.cr_await == NULL || aw.gi_yieldfrom == NULL || aw.ag_await == NULL) {
        PyErr_SetString(PyExc_ImportError, "coroutines of this interpreter have no cr_await, gi_yieldfrom or ag_await");
        return -1;
    }
    if (lw_layout_ok()) {
        prove_offsets();
    }
    if (aw.str_fut_waiter == NULL || aw.str_get_coro == NULL || PyModule_AddFunctions(module, functions) < 0) {
        return -1;
    }
    return 0;
}
