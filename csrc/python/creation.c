/* creation.c: see creation.h.
 *
 * The table is an array of chains, doubled when there are more stacks than
 * chains.  Most often a stack is the one that was met the last time from the
 * same innermost places: that one is tried first, frame by frame, which needs
 * neither a hash nor a copy.  Everything that can run Python code (dropping a code object) happens
 * after the entry has left the table, so a weakref callback that creates a task
 * finds it consistent. */
#include "creation.h"

#include "frames.h"
#include "layout.h"

#define FIRST_CHAINS 256
#define RECENT 64 /* the top six bits of a hash */
#define MIX 0x9E3779B97F4A7C15ull

typedef struct {
    PyObject *code;  /* borrowed while on the stack, owned once interned */
    uintptr_t instr; /* its address, or the plain byte offset where the layout is not known */
} place;

struct lw_creation {
    struct lw_creation *next; /* borrowed: in its chain */
    uint64_t hash;
    uint32_t refs;
    int n, omitted;
    place at[]; /* newest first */
};

static struct {
    lw_creation **chains; /* owned array of borrowed entries */
    size_t nchains;
    Py_ssize_t count;
    size_t bytes;
    lw_creation *recent[RECENT]; /* owned; by the innermost places */
    int keepers;
} table;

/* Takes one frame after the other, newest first, into LW_MAX_FRAMES places: the inner part stays, the rest goes round in
 * a ring until the outer part is left. */
typedef struct {
    place at[LW_MAX_FRAMES];
    int seen;
} collector;

static inline void
collect(collector *c, PyObject *code, uintptr_t instr)
{
    int i = c->seen < LW_KEEP_INNER ? c->seen : LW_KEEP_INNER + (c->seen - LW_KEEP_INNER) % LW_KEEP_OUTER;
    c->at[i].code = code;
    c->at[i].instr = instr;
    c->seen++;
}

/* Brings the ring of the outer part into order; how many places are filled. */
static int
collected(collector *c)
{
    if (c->seen <= LW_MAX_FRAMES) {
        return c->seen;
    }
    place outer[LW_KEEP_OUTER];
    for (int i = 0; i < LW_KEEP_OUTER; i++) {
        outer[i] = c->at[LW_KEEP_INNER + (c->seen - LW_KEEP_INNER + i) % LW_KEEP_OUTER];
    }
    memcpy(&c->at[LW_KEEP_INNER], outer, sizeof(outer));
    return LW_MAX_FRAMES;
}

static inline uintptr_t
load(uintptr_t at)
{
    return *(const uintptr_t *)at;
}

static inline uint64_t
mix(uint64_t hash, uintptr_t word)
{
    return (hash ^ word) * MIX;
}

#define INNERMOST 3 /* a caller's, asyncio.create_task()'s and the like */

/* Where a stack with these innermost places is remembered. */
static inline lw_creation **
recent_of(const place *at, int n)
{
    uint64_t hash = 0;
    for (int i = 0; i < INNERMOST && i < n; i++) {
        hash = mix(hash, at[i].instr);
    }
    return &table.recent[hash >> 58];
}

/* The stack of this thread if it is the one remembered, else NULL.  Borrowed. */
static inline lw_creation *
met_again(int skip)
{
    uintptr_t frame = load((uintptr_t)PyThreadState_Get() + lw_lay.ts_frame);
    const size_t previous = lw_lay.fr_previous, instr = lw_lay.fr_instr, owner = lw_lay.fr_owner;
    const signed char foreign = (signed char)lw_lay.fr_first_foreign_owner;
    const lw_creation *c = NULL;
    place inner[INNERMOST];
    int n = 0;
    if (lw_lay.ts_frame_indirect) {
        frame = load(frame + lw_lay.cf_frame);
    }
    for (; frame != 0 && n < INNERMOST; frame = load(frame + previous)) {
        if (*(const signed char *)(frame + owner) < foreign && skip-- <= 0) {
            inner[n++].instr = load(frame + instr);
        }
    }
    c = *recent_of(inner, n);
    if (c == NULL || c->n < n || c->omitted != 0) {
        return NULL;
    }
    for (int i = 0; i < n; i++) {
        if (c->at[i].instr != inner[i].instr) {
            return NULL;
        }
    }
    for (; frame != 0; frame = load(frame + previous)) {
        if (*(const signed char *)(frame + owner) < foreign) {
            if (n >= c->n || c->at[n].instr != load(frame + instr)) {
                return NULL;
            }
            n++;
        }
    }
    return n == c->n ? (lw_creation *)c : NULL;
}

/* For each task that is made: what does not fit is collected in the general way, from where this one stopped. */
static void
walk_own_frames(collector *c, int skip, uint64_t *hash_out)
{
    uintptr_t frame = load((uintptr_t)PyThreadState_Get() + lw_lay.ts_frame);
    const size_t previous = lw_lay.fr_previous, code = lw_lay.fr_code, instr = lw_lay.fr_instr, owner = lw_lay.fr_owner;
    const signed char foreign = (signed char)lw_lay.fr_first_foreign_owner;
    uint64_t hash = 0;
    int n = 0;
    if (lw_lay.ts_frame_indirect) {
        frame = load(frame + lw_lay.cf_frame);
    }
    for (; frame != 0 && n < LW_MAX_FRAMES; frame = load(frame + previous)) {
        if (*(const signed char *)(frame + owner) >= foreign || skip-- > 0) {
            continue;
        }
        c->at[n].code = (PyObject *)lw_untag(load(frame + code));
        c->at[n].instr = load(frame + instr);
        hash = mix(hash, c->at[n++].instr);
    }
    c->seen = n;
    *hash_out = hash;
    for (; frame != 0; frame = load(frame + previous)) {
        if (*(const signed char *)(frame + owner) < foreign) {
            collect(c, (PyObject *)lw_untag(load(frame + code)), load(frame + instr));
        }
    }
}

/* The same by the public API: makes a frame object of each frame. */
static void
walk_frame_objects(collector *c, int skip)
{
    PyFrameObject *frame = PyThreadState_GetFrame(PyThreadState_Get()), *back; /* owned, both */
    for (; frame != NULL; frame = back) {
        if (skip-- <= 0) {
            PyCodeObject *code = PyFrame_GetCode(frame);
            collect(c, (PyObject *)code, (uintptr_t)PyFrame_GetLasti(frame));
            Py_DECREF(code); /* the frame, which is on the stack, holds it */
        }
        back = PyFrame_GetBack(frame);
        Py_DECREF(frame);
    }
}

static int
grow(void)
{
    size_t n = table.nchains ? table.nchains * 2 : FIRST_CHAINS;
    lw_creation **chains = PyMem_RawCalloc(n, sizeof(*chains));
    if (chains == NULL) {
        return -1;
    }
    for (size_t i = 0; i < table.nchains; i++) {
        lw_creation *next;
        for (lw_creation *c = table.chains[i]; c != NULL; c = next) {
            next = c->next;
            c->next = chains[c->hash & (n - 1)];
            chains[c->hash & (n - 1)] = c;
        }
    }
    PyMem_RawFree(table.chains);
    table.chains = chains;
    table.nchains = n;
    return 0;
}

static inline int
same(const lw_creation *c, uint64_t hash, const collector *found, int n)
{
    return c->hash == hash && c->n == n && c->omitted == found->seen - n
           && memcmp(c->at, found->at, (size_t)n * sizeof(place)) == 0;
}

static lw_creation *
intern(const collector *found, int n, uint64_t hash)
{
    lw_creation *c = NULL;
    for (c = table.nchains ? table.chains[hash & (table.nchains - 1)] : NULL; c != NULL; c = c->next) {
        if (same(c, hash, found, n)) {
            c->refs++;
            return c;
        }
    }
    for (int i = 0; i < n; i++) {
        if (!PyCode_Check(found->at[i].code)) {
            return NULL;
        }
    }
    if ((size_t)table.count >= table.nchains && grow() < 0 && table.nchains == 0) {
        return NULL;
    }
    size_t size = sizeof(*c) + (size_t)n * sizeof(place);
    c = PyMem_RawMalloc(size);
    if (c == NULL) {
        return NULL;
    }
    c->hash = hash;
    c->refs = 1;
    c->n = n;
    c->omitted = found->seen - n;
    for (int i = 0; i < n; i++) {
        c->at[i].code = Py_NewRef(found->at[i].code);
        c->at[i].instr = found->at[i].instr;
    }
    c->next = table.chains[hash & (table.nchains - 1)];
    table.chains[hash & (table.nchains - 1)] = c;
    table.count++;
    table.bytes += size;
    return c;
}

/* The calling thread's stack: how many places, 0 for none. */
static int
gather(collector *found, int skip, uint64_t *hash_out)
{
    uint64_t hash = 0;
    int exact = lw_layout_ok();

    found->seen = 0;
    if (exact) {
        walk_own_frames(found, skip, &hash);
    }
    else {
        walk_frame_objects(found, skip);
    }
    int n = collected(found);
    if (found->seen > n || !exact) {
        hash = 0;
        for (int i = 0; i < n; i++) { /* offsets alone say little */
            hash = mix(exact ? hash : mix(hash, (uintptr_t)found->at[i].code), found->at[i].instr);
        }
    }
    *hash_out = hash ^ hash >> 32;
    return n;
}

lw_creation *
lw_creation_here_quiet(int skip)
{
    collector found;
    uint64_t hash;
    int n = lw_layout_ok() ? gather(&found, skip, &hash) : 0;
    return n == 0 ? NULL : intern(&found, n, hash);
}

lw_creation *
lw_creation_here(int skip)
{
    collector found;
    uint64_t hash;
    lw_creation *c = NULL, *old = NULL, **recent;
    int cached = table.keepers > 0 && lw_layout_ok();
    if (cached && (c = met_again(skip)) != NULL) {
        c->refs++;
        return c;
    }
    int n = gather(&found, skip, &hash);
    if (n == 0) {
        return NULL;
    }
    c = intern(&found, n, hash);
    if (cached && c != NULL) {
        c->refs++;
        recent = recent_of(c->at, n);
        old = *recent;
        *recent = c;
    }
    lw_creation_decref(old);
    return c;
}

void
lw_creation_incref(lw_creation *c)
{
    if (c != NULL) {
        c->refs++;
    }
}

void
lw_creation_decref(lw_creation *c)
{
    if (c == NULL || --c->refs > 0) {
        return;
    }
    lw_creation **link = &table.chains[c->hash & (table.nchains - 1)];
    while (*link != c) {
        link = &(*link)->next;
    }
    *link = c->next;
    table.count--;
    table.bytes -= sizeof(*c) + (size_t)c->n * sizeof(place);
    for (int i = 0; i < c->n; i++) {
        Py_DECREF(c->at[i].code);
    }
    PyMem_RawFree(c);
}

int
lw_creation_decref_shared(lw_creation *c)
{
    if (c != NULL && c->refs <= 1) {
        return 0;
    }
    if (c != NULL) {
        c->refs--;
    }
    return 1;
}

void
lw_creation_keep(int delta)
{
    table.keepers += delta;
    for (int i = 0; table.keepers == 0 && i < RECENT; i++) {
        lw_creation *c = table.recent[i];
        table.recent[i] = NULL;
        lw_creation_decref(c);
    }
}

int
lw_creation_omitted(const lw_creation *c)
{
    return c ? c->omitted : 0;
}

Py_ssize_t
lw_creation_count(void)
{
    return table.count;
}

size_t
lw_creation_bytes(void)
{
    return table.bytes + table.nchains * sizeof(*table.chains);
}

PyObject *
lw_code_frame(PyCodeObject *code, int offset)
{
    int line = 0, col = -1, end_line = 0, end_col = -1;
    if (offset < 0 || !PyCode_Addr2Location(code, offset, &line, &col, &end_line, &end_col)) {
        line = code->co_firstlineno;
        end_line = col = end_col = -1;
    }
    return Py_BuildValue("(OOiiii)", code->co_filename, code->co_qualname, line > 0 ? line : 0,
                         end_line > 0 ? end_line : 0, col, end_col);
}

static PyObject *
raw_frame(const place *at)
{
    intptr_t offset = (intptr_t)at->instr;
    if (lw_layout_ok()) {
        offset -= (intptr_t)at->code + (intptr_t)lw_lay.co_code;
    }
    return lw_code_frame((PyCodeObject *)at->code, offset < 0 || offset > INT_MAX ? -1 : (int)offset);
}

PyCodeObject *
lw_creation_code(const lw_creation *c, int i)
{
    return c != NULL && i < c->n ? (PyCodeObject *)c->at[i].code : NULL;
}

PyObject *
lw_creation_frames(const lw_creation *c)
{
    return lw_creation_frames_from(c, 0);
}

/* Whether a frame is what the interpreter puts between a class and its __init__ (3.13 and later). */
static int
is_shim(const place *at)
{
    PyCodeObject *code = (PyCodeObject *)at->code;
    return code->co_filename == code->co_name && PyUnicode_CompareWithASCIIString(code->co_name, "__init__") == 0;
}

PyObject *
lw_creation_frames_from(const lw_creation *c, int skip)
{
    PyObject *list = PyList_New(0);
    for (int i = c ? c->n - 1 : -1; list != NULL && i >= skip; i--) {
        if (is_shim(&c->at[i])) {
            continue;
        }
        PyObject *frame = raw_frame(&c->at[i]);
        if (frame == NULL || PyList_Append(list, frame) < 0) {
            Py_CLEAR(list);
        }
        Py_XDECREF(frame);
    }
    return list;
}

static PyObject *
creation_here(PyObject *Py_UNUSED(module), PyObject *arg)
{
    int skip = (int)PyLong_AsLong(arg);
    if (PyErr_Occurred()) {
        return NULL;
    }
    lw_creation *c = lw_creation_here(skip);
    PyObject *frames = lw_creation_frames(c);
    lw_creation_decref(c);
    return frames;
}

static PyObject *
creation_info(PyObject *Py_UNUSED(module), PyObject *Py_UNUSED(unused))
{
    return Py_BuildValue("{s:n,s:n}", "stacks", table.count, "bytes", (Py_ssize_t)lw_creation_bytes());
}

static PyMethodDef methods[] = {
    {"creation_here", creation_here, METH_O, "creation_here(skip) -> list of RawFrame"},
    {"creation_info", creation_info, METH_NOARGS, "How many creation stacks are remembered, in how many bytes."},
    {NULL, NULL, 0, NULL},
};

int
lw_creation_init(PyObject *module)
{
    return PyModule_AddFunctions(module, methods);
}
