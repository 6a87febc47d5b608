/* requests.c: see requests.h.
 *
 * The trie's nodes, as CPython has had them since 3.7: five bits of the hash
 * choose a child.  A bitmap node has a word of bits, then for each set bit a
 * pair (key, value), or (NULL, node); an array node has 32 pointers to nodes.
 * A node of keys whose whole hashes collide is of a third type: not followed. */
#include "requests.h"

#include <stdatomic.h>

#include "../core/saferead.h"
#include "frames.h"
#include "layout.h"

#define MANY 64 /* variables in a context whose root is an array node: they begin at 17 */
#define LEVELS 7

typedef struct {
    size_t ts_context, context_vars;
    uintptr_t var, type, bitmap_node, array_node; /* var and type: owned for good */
    uint32_t hash;
    size_t number; /* slot of the value */
} reader;

static reader known;
static _Atomic int ready;

typedef struct {
    PyObject_VAR_HEAD uint32_t bitmap;
    uintptr_t pairs[2 * 32];
} bitmap_copy;

/* The value of the variable in the trie at NODE, or 0. */
static uintptr_t
look_up(const reader *r, uintptr_t node)
{
    for (int shift = 0; node != 0 && shift < 5 * LEVELS; shift += 5) {
        uint32_t at = (r->hash >> shift) & 31;
        uintptr_t type;
        bitmap_copy copy;
        if (lw_read_ptr(node + offsetof(PyObject, ob_type), &type) < 0) {
            return 0;
        }
        if (type == r->array_node) {
            if (lw_read_ptr(node + sizeof(PyObject) + at * sizeof(uintptr_t), &node) < 0) {
                return 0;
            }
            continue;
        }
        if (type != r->bitmap_node || lw_mem_read((const void *)node, &copy, offsetof(bitmap_copy, pairs)) < 0
            || !(copy.bitmap >> at & 1)) {
            return 0;
        }
        uintptr_t pair = node + offsetof(bitmap_copy, pairs)
                         + 2 * sizeof(uintptr_t) * (size_t)__builtin_popcount(copy.bitmap & ((1u << at) - 1));
        if (lw_mem_read((const void *)pair, copy.pairs, 2 * sizeof(uintptr_t)) < 0) {
            return 0;
        }
        if (copy.pairs[0] != 0) {
            return copy.pairs[0] == r->var ? copy.pairs[1] : 0;
        }
        node = copy.pairs[1];
    }
    return 0;
}

static long
number_of(const reader *r, uintptr_t value)
{
    uintptr_t type, number;
    PyLongObject copy;
    if (value == 0 || lw_read_ptr(value + offsetof(PyObject, ob_type), &type) < 0 || type != r->type
        || lw_read_ptr(value + r->number, &number) < 0 || number == 0
        || lw_mem_read((const void *)number, &copy, sizeof(copy)) < 0 || Py_TYPE((PyObject *)&copy) != &PyLong_Type) {
        return 0;
    }
    long found = lw_small_int(&copy);
    return found > 0 ? found : 0;
}

static long
read_number(const reader *r, uintptr_t tstate)
{
    uintptr_t context, vars, root;
    if (lw_read_ptr(tstate + r->ts_context, &context) < 0 || context == 0
        || lw_read_ptr(context + r->context_vars, &vars) < 0 || vars == 0
        || lw_read_ptr(vars + sizeof(PyObject), &root) < 0) {
        return 0;
    }
    return number_of(r, look_up(r, root));
}

long
lw_request_of(uintptr_t tstate)
{
    return atomic_load_explicit(&ready, memory_order_acquire) ? read_number(&known, tstate) : 0;
}

/* The offset of a pointer to TARGET in the public part of this thread's state, or 0. */
static size_t
find_in_state(PyObject *target)
{
    uintptr_t state = (uintptr_t)PyThreadState_Get(), word;
    for (size_t at = 0; at + sizeof(word) <= lw_lay.ts_size; at += sizeof(word)) {
        if (lw_read_ptr(state + at, &word) == 0 && word == (uintptr_t)target) {
            return at;
        }
    }
    return 0;
}

/* The offset of a context's trie, told by the name of its type; 0 unknown. */
static size_t
find_vars(PyObject *context)
{
    for (size_t at = sizeof(PyObject); at + sizeof(void *) <= (size_t)Py_TYPE(context)->tp_basicsize;
         at += sizeof(void *)) {
        uintptr_t word, type;
        if (lw_read_ptr((uintptr_t)context + at, &word) == 0 && word > 4096
            && lw_read_ptr(word + offsetof(PyObject, ob_type), &type) == 0 && type > 4096) {
            const char *name;
            char text[5] = {0};
            if (lw_read_ptr(type + offsetof(PyTypeObject, tp_name), (uintptr_t *)&name) == 0
                && lw_mem_read(name, text, sizeof(text)) == 0 && memcmp(text, "hamt", 5) == 0) {
                return at;
            }
        }
    }
    return 0;
}

static uintptr_t
root_type(const reader *r, PyObject *context)
{
    uintptr_t vars, root, type = 0;
    if (lw_read_ptr((uintptr_t)context + r->context_vars, &vars) == 0
        && lw_read_ptr(vars + sizeof(PyObject), &root) == 0) {
        (void)lw_read_ptr(root + offsetof(PyObject, ob_type), &type);
    }
    return type;
}

/* Inside a context that holds HOW_MANY other variables too: fill in what is not known yet, and read VALUE's number.
 * 1 as it should be, 0 not, -1 with an exception. */
static int
prove(reader *r, PyObject *var, PyObject *value, long number, int how_many)
{
    PyObject *context = PyContext_New(), *token = NULL, *other = NULL;
    int status = -1, entered = 0;
    if (context == NULL || PyContext_Enter(context) < 0) {
        goto end;
    }
    entered = 1;
    for (int i = 0; i <= how_many; i++) {
        char name[32];
        snprintf(name, sizeof(name), "loopwatch_probe_%d", i);
        other = i == how_many ? Py_NewRef(var) : PyContextVar_New(name, NULL);
        token = other != NULL ? PyContextVar_Set(other, value) : NULL;
        Py_XDECREF(other);
        if (token == NULL) {
            goto end;
        }
        Py_CLEAR(token);
    }
    size_t ts_context = find_in_state(context);
    if (r->ts_context == 0) {
        r->ts_context = ts_context;
        r->context_vars = find_vars(context);
    }
    status = 0;
    if (ts_context == 0 || ts_context != r->ts_context || r->context_vars == 0) {
        goto end;
    }
    if (how_many == 0) {
        r->bitmap_node = root_type(r, context);
    }
    else if (how_many == MANY) {
        r->array_node = root_type(r, context);
    }
    status = read_number(r, (uintptr_t)PyThreadState_Get()) == number;
end:
    if (entered && PyContext_Exit(context) < 0) {
        status = -1;
    }
    Py_XDECREF(context);
    return status;
}

static PyObject *
requests_watch(PyObject *Py_UNUSED(module), PyObject *args)
{
    PyObject *var, *value, *number = NULL;
    reader r = {0};
    if (!PyArg_ParseTuple(args, "O!O:requests_watch", &PyContextVar_Type, &var, &value)) {
        return NULL;
    }
    if (atomic_load(&ready) || !lw_layout_ok()) {
        return PyBool_FromLong(atomic_load(&ready) && known.var == (uintptr_t)var);
    }
    number = PyObject_GetAttrString(value, "number");
    Py_hash_t hash = PyObject_Hash(var);
    if (number == NULL || hash == -1) {
        goto fail;
    }
    r.number = lw_slot_offset((PyObject *)Py_TYPE(value), "number");
    r.var = (uintptr_t)var;
    r.type = (uintptr_t)Py_TYPE(value);
    r.hash = (uint32_t)((uint64_t)hash ^ (uint64_t)hash >> 32);
    r.hash = r.hash == UINT32_MAX ? UINT32_MAX - 1 : r.hash; /* -1 is an error there, so it stands for -2 */
    long expected = PyLong_AsLong(number);
    if (expected == -1 && PyErr_Occurred()) {
        goto fail;
    }
    int good = r.number != 0 && expected > 0;
    const int sizes[] = {0, MANY, 3, 20};
    for (size_t i = 0; good > 0 && i < sizeof(sizes) / sizeof(sizes[0]); i++) {
        good = prove(&r, var, value, expected, sizes[i]);
    }
    if (good < 0) {
        goto fail;
    }
    if (good) {
        Py_INCREF(var); /* both for good: compared by address */
        Py_INCREF(Py_TYPE(value));
        known = r;
        atomic_store_explicit(&ready, 1, memory_order_release);
    }
    Py_DECREF(number);
    return PyBool_FromLong(good);
fail:
    Py_XDECREF(number);
    return NULL;
}

static PyObject *
request_here(PyObject *Py_UNUSED(module), PyObject *Py_UNUSED(unused))
{
    return PyLong_FromLong(lw_request_of((uintptr_t)PyThreadState_Get()));
}

static PyMethodDef methods[] = {
    {"requests_watch", requests_watch, METH_VARARGS,
     "requests_watch(var, value): samples read value.number from now on"},
    {"request_here", request_here, METH_NOARGS, "The number that a sample of this thread would read; 0 none."},
    {NULL, NULL, 0, NULL},
};

int
lw_requests_init(PyObject *module)
{
    return PyModule_AddFunctions(module, methods);
}
