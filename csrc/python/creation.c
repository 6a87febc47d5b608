/* creation.c: see creation.h.
 *
 * The table is an array of chains, doubled when there are more stacks than
 * chains.  Most often a stack is the one that was met the last time from the
 * same innermost places: that one is tried first, frame by frame, which needs
 * neither a hash nor a copy.  Everything that can run Python code (dropping a
 * code object) happens after the entry has left the table, so a weakref callback
 * that creates a task finds it consistent. */
#include "creation.h"

#include "ownstack.h"

#define FIRST_CHAINS 256
#define RECENT 64 /* the top six bits of a hash */
#define INNERMOST 3 /* a caller's, asyncio.create_task()'s and the like */

struct lw_creation {
    struct lw_creation *next; /* borrowed: in its chain */
    uint64_t hash;
    uint32_t refs;
    int n, omitted;
    lw_place at[]; /* newest first */
};

static struct {
    lw_creation **chains; /* owned array of borrowed entries */
    size_t nchains;
    Py_ssize_t count;
    size_t bytes;
    lw_creation *recent[RECENT]; /* owned; by the innermost places */
    int keepers;
} table;

/* Where a stack with these innermost places is remembered. */
static inline lw_creation **
recent_of(const lw_place *at, int n)
{
    uint64_t hash = 0;
    for (int i = 0; i < INNERMOST && i < n; i++) {
        hash = lw_own_mix(hash, at[i].instr);
    }
    return &table.recent[hash >> 58];
}

/* The stack of this thread if it is the one remembered, else NULL.  Borrowed. */
static inline lw_creation *
met_again(int skip)
{
    lw_own_walk w = lw_own_begin(skip);
    const size_t instr = lw_lay.fr_instr;
    const lw_creation *c = NULL;
    lw_place inner[INNERMOST];
    int n = 0;
    for (; n < INNERMOST && lw_own_any(&w); lw_own_step(&w)) {
        inner[n++].instr = lw_own_load(w.frame + instr);
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
    for (; lw_own_any(&w); lw_own_step(&w), n++) {
        if (n >= c->n || c->at[n].instr != lw_own_load(w.frame + instr)) {
            return NULL;
        }
    }
    return n == c->n ? (lw_creation *)c : NULL;
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
same(const lw_creation *c, const lw_own_stack *found)
{
    return c->hash == found->hash && c->n == found->n && c->omitted == found->omitted
           && memcmp(c->at, found->at, (size_t)found->n * sizeof(lw_place)) == 0;
}

static lw_creation *
intern(const lw_own_stack *found)
{
    lw_creation *c = NULL;
    for (c = table.nchains ? table.chains[found->hash & (table.nchains - 1)] : NULL; c != NULL; c = c->next) {
        if (same(c, found)) {
            c->refs++;
            return c;
        }
    }
    for (int i = 0; i < found->n; i++) {
        if (!PyCode_Check(found->at[i].code)) {
            return NULL;
        }
    }
    if ((size_t)table.count >= table.nchains && grow() < 0 && table.nchains == 0) {
        return NULL;
    }
    size_t size = sizeof(*c) + (size_t)found->n * sizeof(lw_place);
    c = PyMem_RawMalloc(size);
    if (c == NULL) {
        return NULL;
    }
    c->hash = found->hash;
    c->refs = 1;
    c->n = found->n;
    c->omitted = found->omitted;
    for (int i = 0; i < found->n; i++) {
        c->at[i].code = Py_NewRef(found->at[i].code);
        c->at[i].instr = found->at[i].instr;
    }
    c->next = table.chains[c->hash & (table.nchains - 1)];
    table.chains[c->hash & (table.nchains - 1)] = c;
    table.count++;
    table.bytes += size;
    return c;
}

lw_creation *
lw_creation_here_quiet(int skip)
{
    lw_own_stack found;
    return lw_layout_ok() && lw_own_gather(&found, skip) > 0 ? intern(&found) : NULL;
}

lw_creation *
lw_creation_here(int skip)
{
    lw_own_stack found;
    lw_creation *c = NULL, *old = NULL, **recent;
    int cached = table.keepers > 0 && lw_layout_ok();
    if (cached && (c = met_again(skip)) != NULL) {
        c->refs++;
        return c;
    }
    if (lw_own_gather(&found, skip) == 0) {
        return NULL;
    }
    c = intern(&found);
    if (cached && c != NULL) {
        c->refs++;
        recent = recent_of(c->at, c->n);
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
    table.bytes -= sizeof(*c) + (size_t)c->n * sizeof(lw_place);
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

PyObject *
lw_creation_frames_from(const lw_creation *c, int skip)
{
    PyObject *list = PyList_New(0);
    for (int i = c ? c->n - 1 : -1; list != NULL && i >= skip; i--) {
        if (lw_place_is_shim(&c->at[i])) {
            continue;
        }
        PyObject *frame = lw_place_frame(&c->at[i]);
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
