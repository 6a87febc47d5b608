/* heldby.c: see heldby.h. */
#include "heldby.h"

#include "../core/saferead.h"
#include "links.h"
#include "graph.h"
#include "layout.h"
#include "linknames.h"

enum { SEEN = 1, SKIPPED = 2, MODULE = 4, FROM_C = 8 };
enum { ASIDE, FIRST, ASKERS };
#define FRAME_BIT (1u << 31) /* in a parent's number: the number of a frame */

typedef struct {
    lw_running_frame at;
    int tier; /* ASIDE, FIRST or ASKERS */
} frame_root;

typedef struct {
    lw_graph g; /* `extra`: the parent, LW_NO_NODE for a root */
    uint32_t *queue; /* owned */
    uint32_t head, tail, room;
    frame_root *frames; /* owned */
    uint32_t nframes, frames_room;
    PyObject *target; /* borrowed */
    int into_untracked; /* the target is not tracked: containers of it may not be either */
    int own_frames; /* of loopwatch */
    int asker;      /* visiting the asker's variables: not the target itself */
    int found, failed;
    uint32_t current, last; /* LAST: the target's parent */
} search;

static void
enqueue(search *s, uint32_t at, uint32_t parent, uint32_t flags)
{
    if (s->tail == s->room) {
        uint32_t room = s->room * 2;
        uint32_t *queue = PyMem_RawRealloc(s->queue, room * sizeof(*queue));
        if (queue == NULL) {
            s->failed = 1;
            return;
        }
        s->queue = queue;
        s->room = room;
    }
    s->g.nodes[at].flags |= SEEN | flags;
    s->g.nodes[at].extra = parent;
    s->queue[s->tail++] = at;
}

static int
hop(PyObject *object, void *arg)
{
    search *s = arg;
    if (object == NULL) {
        return 0;
    }
    if (object == s->target) {
        if (s->asker && s->current & FRAME_BIT) {
            return 0;
        }
        s->last = s->current;
        s->found = 1;
        return 1;
    }
    uint32_t at = lw_graph_find(&s->g, object);
    if (at == LW_NO_NODE) {
        if (!s->into_untracked || s->current & FRAME_BIT || !PyObject_IS_GC(object)) {
            return 0;
        }
        at = lw_graph_add(&s->g, object);
        if (at == LW_NO_NODE) {
            s->failed = 1;
            return 1;
        }
    }
    if (!(s->g.nodes[at].flags & SEEN) && !(s->asker && PyCell_Check(object) && PyCell_GET(object) == s->target)) {
        enqueue(s, at, s->current, 0);
    }
    return s->failed;
}

static void
drain(search *s)
{
    while (s->head < s->tail && !s->found && !s->failed) {
        uint32_t at = s->queue[s->head++];
        PyObject *object = s->g.nodes[at].object;
        traverseproc traverse = Py_TYPE(object)->tp_traverse;
        s->current = at;
        if (traverse != NULL && !(s->g.nodes[at].flags & (SKIPPED | LW_NODE_RUNNING))) {
            (void)traverse(object, hop, s);
        }
    }
}

/* ---- frames ----------------------------------------------------------------------------------------------------- */

/* INDEX: of a variable, or of a value in use beyond them; negative in the head */
typedef void (*slot_visit)(search *s, const lw_running_frame *at, uintptr_t slot, int index);

/* Visit the words of a frame that may be references: its head (function, globals), variables, and from 3.14 on the
 * values in use.  Only an address that the table knows is ever looked into. */
static int
frame_words(search *s, const lw_running_frame *at, slot_visit visit)
{
    uintptr_t words[64], start = at->frame, top = 0, locals = at->frame + lw_lay.fr_locals;
    uintptr_t end = locals + (size_t)at->code->co_nlocalsplus * sizeof(uintptr_t);
    if (lw_lay.fr_stack_top != 0 && lw_mem_read((const void *)(at->frame + lw_lay.fr_stack_top), &top, sizeof(top)) == 0
        && top > end && top <= end + (size_t)at->code->co_stacksize * sizeof(uintptr_t)) {
        end = top;
    }
    while (start < end && !s->found && !s->failed) {
        size_t n = (end - start) / sizeof(uintptr_t);
        n = n > 64 ? 64 : n;
        if (lw_mem_read((const void *)start, words, n * sizeof(uintptr_t)) < 0) {
            return -1;
        }
        for (size_t i = 0; i < n && !s->found && !s->failed; i++) {
            intptr_t offset = (intptr_t)(start + i * sizeof(uintptr_t)) - (intptr_t)locals;
            visit(s, at, words[i], (int)(offset / (intptr_t)sizeof(uintptr_t)));
        }
        start += n * sizeof(uintptr_t);
    }
    return 0;
}

/* What a running frame owns is held by something known. */
static void
known_word(search *s, const lw_running_frame *Py_UNUSED(at), uintptr_t slot, int index)
{
    uint32_t number = lw_slot_owns(slot) ? lw_graph_find(&s->g, (PyObject *)lw_untag(slot)) : LW_NO_NODE;
    if (number != LW_NO_NODE
        && (index >= 0 || PyFunction_Check(s->g.nodes[number].object) || PyFrame_Check(s->g.nodes[number].object))) {
        s->g.nodes[number].outside--;
    }
}

/* A variable or value in use, or the function itself. */
static void
root_word(search *s, const lw_running_frame *at, uintptr_t slot, int index)
{
    PyObject *object = (PyObject *)lw_untag(slot);
    if (!lw_slot_owns(slot) && !lw_slot_borrows(slot)) {
        return;
    }
    if (index < 0) {
        uint32_t number = lw_graph_find(&s->g, object);
        if (number == LW_NO_NODE || !PyFunction_Check(object)) {
            return;
        }
    }
    if (at->own && (uintptr_t)at->code == lw_alay.run_once_code
        && (index == lw_alay.local_handle || index >= at->code->co_nlocalsplus)) {
        return; /* the callback that runs here and now */
    }
    (void)hop(object, s);
}

/* The namespace of a frame whose code no module runs. */
static void
globals_word(search *s, const lw_running_frame *Py_UNUSED(at), uintptr_t slot, int index)
{
    PyObject *object = (PyObject *)lw_untag(slot);
    if (index < 0 && object != NULL && lw_graph_find(&s->g, object) != LW_NO_NODE && PyDict_CheckExact(object)) {
        (void)hop(object, s);
    }
}

/* Is it asyncio's Handle._run, whose handle goes when the callback that asks is over? */
static int
runs_a_handle(PyCodeObject *code)
{
    const char *name = PyUnicode_AsUTF8(code->co_qualname), *file = PyUnicode_AsUTF8(code->co_filename);
    PyErr_Clear();
    size_t length = file == NULL ? 0 : strlen(file);
    return name != NULL && strcmp(name, "Handle._run") == 0 && length > 17
           && strcmp(file + length - 17, "asyncio/events.py") == 0;
}

static int
note_frame(const lw_running_frame *at, void *arg)
{
    search *s = arg;
    if (s->nframes == s->frames_room) {
        uint32_t room = s->frames_room ? s->frames_room * 2 : 256;
        frame_root *frames = PyMem_RawRealloc(s->frames, room * sizeof(*frames));
        if (frames == NULL) {
            s->failed = 1;
            return 1;
        }
        s->frames = frames;
        s->frames_room = room;
    }
    int tier = !at->own ? FIRST : at->depth < s->own_frames ? ASIDE : at->depth == s->own_frames ? ASKERS : FIRST;
    if (at->own && runs_a_handle(at->code)) {
        tier = ASKERS;
    }
    s->frames[s->nframes].at = *at;
    s->frames[s->nframes++].tier = tier;
    return 0;
}

static void
frame_roots(search *s, int tier, slot_visit visit)
{
    s->asker = tier == ASKERS;
    for (uint32_t i = 0; i < s->nframes && !s->found && !s->failed; i++) {
        if (s->frames[i].tier == tier) {
            s->current = FRAME_BIT | i;
            (void)frame_words(s, &s->frames[i].at, visit);
        }
    }
    s->asker = 0;
}

/* ---- the other roots -------------------------------------------------------------------------------------------- */

static int
is_ours(PyObject *name)
{
    const char *text = PyUnicode_Check(name) ? PyUnicode_AsUTF8(name) : NULL;
    PyErr_Clear();
    return text != NULL && strncmp(text, "loopwatch", 9) == 0 && (text[9] == 0 || text[9] == '.');
}

static void
module_roots(search *s)
{
    PyObject *modules = PyImport_GetModuleDict(), *name, *module;
    Py_ssize_t at = 0;
    while (modules != NULL && PyDict_Next(modules, &at, &name, &module) && !s->failed) {
        uint32_t number = lw_graph_find(&s->g, module);
        if (number == LW_NO_NODE || is_ours(name)) {
            continue;
        }
        if (module == s->target) {
            s->found = 1;
            s->last = LW_NO_NODE;
            s->g.nodes[number].flags |= MODULE;
            return;
        }
        if (!(s->g.nodes[number].flags & SEEN)) {
            enqueue(s, number, LW_NO_NODE, MODULE);
        }
    }
}

static void
c_roots(search *s)
{
    uint32_t at = lw_graph_find(&s->g, s->target);
    if (at != LW_NO_NODE && s->g.nodes[at].outside > 0 && !lw_is_immortal(s->target)) {
        s->found = 1;
        s->last = LW_NO_NODE;
        return;
    }
    for (uint32_t i = 0; i < s->g.n && !s->failed; i++) {
        const lw_node *x = &s->g.nodes[i];
        if (x->outside > 0 && !(x->flags & (SEEN | SKIPPED | LW_NODE_RUNNING)) && !lw_is_immortal(x->object)) {
            enqueue(s, i, LW_NO_NODE, FROM_C);
        }
    }
}

static int
look(search *s)
{
    lw_graph_count(&s->g);
    (void)lw_graph_frames(note_frame, s);
    for (uint32_t i = 0; i < s->nframes; i++) {
        (void)frame_words(s, &s->frames[i].at, known_word);
    }
    module_roots(s);
    frame_roots(s, FIRST, root_word);
    drain(s);
    frame_roots(s, ASKERS, root_word);
    drain(s);
    frame_roots(s, ASKERS, globals_word);
    frame_roots(s, FIRST, globals_word);
    drain(s);
    if (!s->found && !s->failed) {
        c_roots(s);
        drain(s);
    }
    return s->failed ? -1 : s->found;
}

/* ---- for Python ------------------------------------------------------------------------------------------------- */

static PyObject *
module_name(PyObject *module)
{
    PyObject *modules = PyImport_GetModuleDict(), *name, *entry;
    Py_ssize_t at = 0;
    while (modules != NULL && PyDict_Next(modules, &at, &name, &entry)) {
        if (entry == module) {
            return name;
        }
    }
    return Py_None;
}

static PyObject *
frame_link(const lw_running_frame *at, PyObject *to)
{
    PyObject *name = lw_frame_variable_name(at->frame, at->code, to);
    const char *kind = name != NULL            ? "local"
                       : PyFunction_Check(to)  ? "function"
                       : PyDict_CheckExact(to) ? "globals"
                                               : "stack";
    return Py_BuildValue("(sOO)", kind, name ? name : Py_None, Py_None);
}

static int
append_link(PyObject *links, PyObject *link_steal, PyObject *to)
{
    PyObject *entry = link_steal == NULL ? NULL : Py_BuildValue("(OO)", link_steal, to);
    int status = entry == NULL ? -1 : PyList_Append(links, entry);
    Py_XDECREF(entry);
    Py_XDECREF(link_steal);
    return status;
}

/* (root kind, detail, thread ident or None, root object or None, [(link, object)]) */
static PyObject *
chain_of(search *s)
{
    PyObject *links = PyList_New(0), *root = NULL, *from = NULL, *result = NULL, *ident = NULL, *detail = NULL;
    uint32_t *path = PyMem_RawMalloc(((size_t)s->tail + 1) * sizeof(*path)), at = s->last;
    size_t n = 0;
    const char *kind = "c";

    if (links == NULL || path == NULL) {
        PyErr_NoMemory();
        goto end;
    }
    while (at != LW_NO_NODE && !(at & FRAME_BIT)) {
        path[n++] = at;
        at = s->g.nodes[at].extra;
    }
    PyObject *first = n > 0 ? s->g.nodes[path[n - 1]].object : s->target;
    uint32_t first_number = lw_graph_find(&s->g, first);
    int is_module = first_number != LW_NO_NODE && s->g.nodes[first_number].flags & MODULE;
    if (at != LW_NO_NODE) {
        const lw_running_frame *frame = &s->frames[at & ~FRAME_BIT].at;
        kind = "frame";
        detail = lw_frame_place(frame->frame, frame->code);
        ident = PyLong_FromUnsignedLong(frame->ident);
        if (detail == NULL || ident == NULL || append_link(links, frame_link(frame, first), first) < 0) {
            goto end;
        }
        from = first;
    }
    else if (is_module) {
        kind = "module";
        detail = Py_NewRef(module_name(first));
        from = root = first;
        if (n == 0 && append_link(links, Py_BuildValue("(sOO)", "entry", Py_None, Py_None), first) < 0) {
            goto end;
        }
    }
    else {
        if (append_link(links, Py_BuildValue("(sOO)", "held", Py_None, Py_None), first) < 0) {
            goto end;
        }
        from = first;
    }
    for (size_t i = n; i > 0; i--) { /* from path[i - 1] to what comes after it */
        PyObject *to = i > 1 ? s->g.nodes[path[i - 2]].object : s->target;
        from = s->g.nodes[path[i - 1]].object;
        if (append_link(links, lw_link_name(from, to), to) < 0) {
            goto end;
        }
    }
    result = Py_BuildValue("(sOOOO)", kind, detail ? detail : Py_None, ident ? ident : Py_None, root ? root : Py_None,
                           links);
end:
    PyMem_RawFree(path);
    Py_XDECREF(links);
    Py_XDECREF(detail);
    Py_XDECREF(ident);
    return result;
}

static PyObject *
held_by(PyObject *Py_UNUSED(module), PyObject *args)
{
    search s = {0};
    PyObject *box, *skip, *result = NULL;
    int own_frames, unused;

    if (!PyArg_ParseTuple(args, "O!iO!:held_by", &PyList_Type, &box, &own_frames, &PyTuple_Type, &skip)) {
        return NULL;
    }
    if (PyList_GET_SIZE(box) != 1) {
        PyErr_SetString(PyExc_ValueError, "held_by() needs a list of one object");
        return NULL;
    }
    lw_layout_asyncio();
    if (!lw_layout_ok() || lw_frame_state(Py_None, &unused, &unused) < 0) {
        return PyErr_Format(PyExc_RuntimeError, "what holds an object cannot be told on this interpreter: %s",
                            lw_layout_text());
    }
    int was_enabled = PyGC_Disable();
    s.target = PyList_GET_ITEM(box, 0);
    s.own_frames = own_frames;
    s.room = 1 << 14;
    s.queue = PyMem_RawMalloc(s.room * sizeof(*s.queue));
    if (s.queue == NULL) {
        PyErr_NoMemory();
        goto end;
    }
    if (lw_graph_take(&s.g, 0) < 0) {
        goto end;
    }
    s.into_untracked = lw_graph_find(&s.g, s.target) == LW_NO_NODE;
    for (Py_ssize_t i = -3; i < PyTuple_GET_SIZE(skip); i++) {
        PyObject *ours = i == -3 ? box : i == -2 ? args : i == -1 ? skip : PyTuple_GET_ITEM(skip, i);
        uint32_t at = lw_graph_find(&s.g, ours);
        if (at != LW_NO_NODE) {
            s.g.nodes[at].flags |= SKIPPED | SEEN;
        }
    }
    switch (look(&s)) {
    case -1:
        PyErr_NoMemory();
        break;
    case 0:
        result = Py_NewRef(Py_None);
        break;
    default:
        result = chain_of(&s);
    }
end:
    PyMem_RawFree(s.frames);
    PyMem_RawFree(s.queue);
    lw_graph_free(&s.g);
    if (was_enabled) {
        PyGC_Enable();
    }
    return result;
}

static PyMethodDef functions[] = {
    {"held_by", held_by, METH_VARARGS,
     "held_by([object], frames of our own, lists to skip) -> (root, detail, thread, object, links) or None"},
    {NULL, NULL, 0, NULL},
};

int
lw_heldby_init(PyObject *module)
{
    return PyModule_AddFunctions(module, functions);
}
