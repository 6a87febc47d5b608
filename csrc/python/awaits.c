/* awaits.c: see awaits.h. */
#include "awaits.h"

#include "ownstack.h"
#include "layout.h"
#include "ownfiles.h"

static getter fut_waiter;                        /* of asyncio's C Task */
static PyObject *fut_waiter_str, *get_coro_str, *own_coro_str; /* owned */

/* The next link borrowed from its holder; NULL where the holder made it just for us. */
static inline PyObject *
next_borrowed(PyObject *link, enum lw_link_kind kind)
{
    PyObject *next = lw_link_next(link, kind);
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
        enum lw_link_kind kind = lw_link_kind_of(Py_TYPE(link));
        if (kind == LW_LINK_END) {
            break;
        }
        if (kind != LW_LINK_WRAPPER && kind != LW_LINK_PY_WRAPPER && n < room) {
            lw_link_place(link, kind, &places[n++]);
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
        return Py_XNewRef(*(PyObject **)((char *)task + lw_alay.task_coro));
    }
    if (lw_alay.task_type != 0 && PyObject_TypeCheck(task, (PyTypeObject *)lw_alay.task_type)) {
        coro = PyObject_GetAttr(task, own_coro_str); /* 3.12's get_coro() crashes where an eager task gave it up */
    }
    else {
        coro = PyObject_CallMethodNoArgs(task, get_coro_str);
    }
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
        if (fut_waiter == NULL) {
            fut_waiter = lw_type_getter(Py_TYPE(task), "_fut_waiter");
        }
        if (fut_waiter != NULL) {
            future = fut_waiter(task, NULL);
        }
    }
    else {
        future = PyObject_GetAttr(task, fut_waiter_str);
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
raw_frame(const lw_await_place *place, enum lw_link_kind kind)
{
    int line = 0;
    PyObject *name = NULL, *code = NULL, *file = NULL, *result = NULL;
    if (place->code != NULL) {
        return lw_code_frame(place->code, place->lasti);
    }
    /* foreign, or not begun: its name, and the first line of its code if it has one */
    name = lw_link_attribute(place->link, "__qualname__");
    code = lw_link_attribute(place->link, kind == LW_LINK_GEN    ? "gi_code"
                                          : kind == LW_LINK_AGEN ? "ag_code"
                                                                 : "cr_code");
    if (code == NULL) {
        code = lw_link_attribute(place->link, "gi_code");
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
    if (lw_link_kind_of(Py_TYPE(object)) != LW_LINK_END) {
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
        PyObject *frame = raw_frame(&places[i], lw_link_kind_of(Py_TYPE(places[i].link)));
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
    frame = raw_frame(&site.user, LW_LINK_CORO);
    if (frame != NULL) {
        result = Py_BuildValue("(OOKi)", frame, site.awaited ? site.awaited : Py_None, (unsigned long long)site.hash,
                               site.depth);
    }
    Py_XDECREF(frame);
    Py_XDECREF(site.awaited);
    return result;
}

static PyObject *
task_coroutine(PyObject *Py_UNUSED(module), PyObject *task)
{
    lw_layout_asyncio();
    PyObject *coro = lw_await_coro(task);
    return coro != NULL ? coro : Py_NewRef(Py_None);
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

static PyMethodDef functions[] = {
    {"task_coroutine", task_coroutine, METH_O, "task_coroutine(task) -> what it runs, or None"},
    {"await_chain", await_chain, METH_O, "await_chain(task) -> (frames, awaited, links)"},
    {"await_site", await_site, METH_O, "await_site(task) -> (frame, awaited, hash, depth) or None"},
    {"await_hashes", await_hashes, METH_O, "await_hashes(list of tasks) -> list of int, 0 for one that does not wait"},
    {NULL, NULL, 0, NULL},
};

int
lw_awaits_init(PyObject *module)
{
    fut_waiter_str = PyUnicode_InternFromString("_fut_waiter");
    get_coro_str = PyUnicode_InternFromString("get_coro");
    own_coro_str = PyUnicode_InternFromString("_coro");
    if (fut_waiter_str == NULL || get_coro_str == NULL || own_coro_str == NULL) {
        return -1;
    }
    return PyModule_AddFunctions(module, functions);
}
