/* holders.c: see holders.h. */
#include "holders.h"

#include "../core/clock.h"

enum {
    MOST = 100, /* referrers of one target */
    OBJECTS_A_LOOK = 256, /* at the clock */
    REFERENCES_A_LOOK = 65536,
};

typedef struct {
    const void *address; /* borrowed: an object or a type; NULL: free */
    Py_ssize_t number;
    size_t seen;
} target;

typedef struct {
    PyObject *object; /* owned */
    Py_ssize_t target;
} hit;

typedef struct {
    target *table; /* owned */
    size_t mask;
    hit *hits; /* owned */
    size_t nhits, room, looked, references;
    uint64_t deadline; /* of the CPU time of this thread: what others take is not what this costs */
    PyObject *current; /* borrowed */
    PyObject *skip;    /* borrowed: before 3.12 the list of all objects */
    int cut;           /* it ended before it had seen everything */
    int failed;        /* memory */
} pass;

static target *
slot_of(const pass *p, const void *address)
{
    size_t i = (size_t)(((uintptr_t)address >> 4) * 0x9E3779B97F4A7C15ull >> 20) & p->mask;
    while (p->table[i].address != NULL && p->table[i].address != address) {
        i = (i + 1) & p->mask;
    }
    return &p->table[i];
}

/* Puts the items of a tuple into the table. 0, or -1 with an exception. */
static int
begin(pass *p, PyObject *wanted, long long nanoseconds)
{
    size_t size = 16, n = (size_t)PyTuple_GET_SIZE(wanted);
    while (size < n * 4) {
        size *= 2;
    }
    p->mask = size - 1;
    p->table = PyMem_RawCalloc(size, sizeof(*p->table));
    if (p->table == NULL) {
        PyErr_NoMemory();
        return -1;
    }
    for (size_t i = 0; i < n; i++) {
        target *slot = slot_of(p, PyTuple_GET_ITEM(wanted, (Py_ssize_t)i));
        if (slot->address == NULL) {
            slot->address = PyTuple_GET_ITEM(wanted, (Py_ssize_t)i);
            slot->number = (Py_ssize_t)i;
        }
    }
    p->deadline = lw_clock_ns(CLOCK_THREAD_CPUTIME_ID) + (nanoseconds > 0 ? (uint64_t)nanoseconds : 0);
    return 0;
}

static int
keep(pass *p, PyObject *object, const target *found)
{
    if (p->nhits == p->room) {
        size_t room = p->room ? p->room * 2 : 64;
        hit *bigger = PyMem_RawRealloc(p->hits, room * sizeof(*bigger));
        if (bigger == NULL) {
            p->failed = p->cut = 1;
            return 1;
        }
        p->hits = bigger;
        p->room = room;
    }
    p->hits[p->nhits].object = Py_NewRef(object);
    p->hits[p->nhits++].target = found->number;
    return 0;
}

/* Whether time is over, asked before each object. */
static int
is_over(pass *p)
{
    if (!p->cut && p->looked++ % OBJECTS_A_LOOK == 0 && lw_clock_ns(CLOCK_THREAD_CPUTIME_ID) >= p->deadline) {
        p->cut = 1;
    }
    return p->cut;
}

static int
see_reference(PyObject *referent, void *arg)
{
    pass *p = arg;
    if (++p->references % REFERENCES_A_LOOK == 0 && lw_clock_ns(CLOCK_THREAD_CPUTIME_ID) > p->deadline) {
        p->cut = 1;
        return 1;
    }
    target *found = slot_of(p, referent);
    return found->address != NULL && found->seen++ < MOST ? keep(p, p->current, found) : 0;
}

/* lw_visit_gc_objects goes on while these give 1. */
static int
see_referrer(PyObject *object, void *arg)
{
    pass *p = arg;
    if (object == p->skip) {
        return 1;
    }
    if (is_over(p)) {
        return 0;
    }
    p->current = object;
    traverseproc traverse = Py_TYPE(object)->tp_traverse;
    if (traverse != NULL) {
        (void)traverse(object, see_reference, p);
    }
    return !p->cut;
}

static int
see_type(PyObject *object, void *arg)
{
    pass *p = arg;
    if (is_over(p)) {
        return 0;
    }
    const target *found = slot_of(p, Py_TYPE(object));
    return found->address == NULL || keep(p, object, found) == 0;
}

static PyObject *
run(PyObject *args, const char *format, int (*see)(PyObject *, void *))
{
    PyObject *wanted, *list = NULL, *result = NULL;
    long long nanoseconds;
    pass p = {0};

    if (!PyArg_ParseTuple(args, format, &PyTuple_Type, &wanted, &nanoseconds)) {
        return NULL;
    }
    if (begin(&p, wanted, nanoseconds) < 0 || lw_visit_gc_objects(see, &p, &p.skip) < 0) {
        goto done;
    }
    if (p.failed) {
        PyErr_NoMemory();
        goto done;
    }
    list = PyList_New(0);
    for (size_t i = 0; list != NULL && i < p.nhits; i++) {
        PyObject *pair = Py_BuildValue("(nO)", p.hits[i].target, p.hits[i].object);
        if (pair == NULL || PyList_Append(list, pair) < 0) {
            Py_CLEAR(list);
        }
        Py_XDECREF(pair);
    }
    if (list != NULL) {
        result = Py_BuildValue("(OO)", list, p.cut ? Py_False : Py_True);
    }
done:
    Py_XDECREF(list);
    for (size_t i = 0; i < p.nhits; i++) {
        Py_DECREF(p.hits[i].object);
    }
    PyMem_RawFree(p.hits);
    PyMem_RawFree(p.table);
    return result;
}

static PyObject *
referrers(PyObject *Py_UNUSED(module), PyObject *args)
{
    return run(args, "O!L:referrers", see_referrer);
}

static PyObject *
objects_of(PyObject *Py_UNUSED(module), PyObject *args)
{
    return run(args, "O!L:objects_of", see_type);
}

static PyMethodDef functions[] = {
    {"referrers", referrers, METH_VARARGS, "referrers(targets, nanoseconds) -> ([(index, object)], saw everything)"},
    {"objects_of", objects_of, METH_VARARGS, "objects_of(types, nanoseconds) -> ([(index, object)], saw everything)"},
    {NULL, NULL, 0, NULL},
};

int
lw_holders_init(PyObject *module)
{
    return PyModule_AddFunctions(module, functions);
}
