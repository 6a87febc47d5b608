/* origins.c: see origins.h. */
#include "origins.h"

#include <stdlib.h>

static PyTypeObject *origin_type;
static PyObject *scope_var; /* owned: the ContextVar */
static uint64_t newest;

uint64_t
lw_origin_serial(void)
{
    return newest;
}

PyObject *
lw_origin_here(int skip)
{
    Origin *self = PyObject_New(Origin, origin_type);
    if (self == NULL) {
        return NULL;
    }
    self->where = lw_creation_here(skip);
    self->serial = ++newest;
    self->thread = PyThread_get_thread_ident();
    self->scope = NULL;
    if (PyContextVar_Get(scope_var, NULL, &self->scope) < 0) {
        PyErr_Clear();
    }
    return (PyObject *)self;
}

static void
origin_dealloc(Origin *self)
{
    PyTypeObject *type = Py_TYPE(self);
    lw_creation *where = self->where;
    PyObject *scope = self->scope;
    PyObject_Free(self);
    Py_DECREF(type);
    Py_XDECREF(scope);
    lw_creation_decref(where);
}

static PyObject *
origin_frames(Origin *self, PyObject *Py_UNUSED(unused))
{
    return lw_creation_frames(self->where);
}

static PyMethodDef origin_methods[] = {
    {"frames", (PyCFunction)origin_frames, METH_NOARGS, "frames() -> list[RawFrame]"},
    {NULL, NULL, 0, NULL},
};
static PyMemberDef origin_members[] = {
    {"serial", T_ULONGLONG, offsetof(Origin, serial), READONLY, "Grows by one a making."},
    {"scope", T_OBJECT, offsetof(Origin, scope), READONLY, "What RESOURCE_SCOPE was there, or None."},
    {"thread", T_ULONG, offsetof(Origin, thread), READONLY, "Ident of the thread that made it."},
    {NULL, 0, 0, 0, NULL},
};
static PyType_Slot origin_slots[] = {
    {Py_tp_doc, "Where something was made."},
    {Py_tp_dealloc, origin_dealloc},
    {Py_tp_methods, origin_methods},
    {Py_tp_members, origin_members},
    {0, NULL},
};
static PyType_Spec origin_spec = {"loopwatch._core.Origin", sizeof(Origin), 0,
                                  Py_TPFLAGS_DEFAULT | Py_TPFLAGS_IMMUTABLETYPE | Py_TPFLAGS_DISALLOW_INSTANTIATION,
                                  origin_slots};

static inline size_t
slot_of(uintptr_t key, size_t cap)
{
    return (size_t)((key * 0x9E3779B97F4A7C15ull) >> 20) & (cap - 1);
}

static int
alive(const lw_birth *b)
{
    PyObject *object = lw_weakref_get(b->ref);
    Py_XDECREF(object);
    return object != NULL;
}

static void
insert(lw_births *t, lw_birth b)
{
    size_t at = slot_of(b.key, t->cap);
    while (t->slots[at].key != 0) {
        at = (at + 1) & (t->cap - 1);
    }
    t->slots[at] = b;
    t->used++;
}

/* Make room: the living move to a new array, the dead are dropped. */
static int
renew(lw_births *t)
{
    size_t living = 0, cap = 64, old_cap = t->cap;
    lw_birth *old = t->slots;
    for (size_t i = 0; i < old_cap; i++) {
        living += old[i].key != 0 && alive(&old[i]);
    }
    while (cap < living * 4) {
        cap *= 2;
    }
    lw_births fresh = {calloc(cap, sizeof(lw_birth)), cap, 0};
    if (fresh.slots == NULL) {
        PyErr_NoMemory();
        return -1;
    }
    size_t dead = 0;
    for (size_t i = 0; i < old_cap; i++) {
        if (old[i].key != 0 && alive(&old[i])) {
            insert(&fresh, old[i]);
        }
        else if (old[i].key != 0) {
            old[dead++] = old[i];
        }
    }
    *t = fresh;
    for (size_t i = 0; i < dead; i++) {
        Py_DECREF(old[i].ref);
        Py_DECREF(old[i].origin);
    }
    free(old);
    return 0;
}

lw_birth *
lw_births_entry(const lw_births *t, uintptr_t key)
{
    for (size_t at = t->cap ? slot_of(key, t->cap) : 0; t->cap != 0 && t->slots[at].key != 0;
         at = (at + 1) & (t->cap - 1)) {
        if (t->slots[at].key == key) {
            return &t->slots[at];
        }
    }
    return NULL;
}

lw_birth *
lw_births_find(const lw_births *t, uintptr_t key)
{
    lw_birth *b = lw_births_entry(t, key);
    return b != NULL && alive(b) ? b : NULL;
}

int
lw_births_put(lw_births *t, uintptr_t key, PyObject *object, PyObject *origin, uint64_t count)
{
    lw_birth b = {key, PyWeakref_NewRef(object, NULL), NULL, count};
    if (b.ref == NULL) {
        return -1;
    }
    if ((t->used + 1) * 2 > t->cap && renew(t) < 0) {
        Py_DECREF(b.ref);
        return -1;
    }
    b.origin = Py_NewRef(origin);
    lw_birth *there = lw_births_entry(t, key);
    if (there == NULL) {
        insert(t, b);
        return 0;
    }
    lw_birth old = *there;
    *there = b;
    Py_DECREF(old.ref);
    Py_DECREF(old.origin);
    return 0;
}

void
lw_births_clear(lw_births *t)
{
    lw_births old = *t;
    *t = (lw_births){NULL, 0, 0};
    for (size_t i = 0; i < old.cap; i++) {
        if (old.slots[i].key != 0) {
            Py_DECREF(old.slots[i].ref);
            Py_DECREF(old.slots[i].origin);
        }
    }
    free(old.slots);
}

PyObject *
lw_births_list(const lw_births *t, uint64_t since)
{
    PyObject *list = PyList_New(0), *item;
    for (size_t i = 0; list != NULL && i < t->cap; i++) {
        const lw_birth *b = &t->slots[i];
        if (b->key == 0 || ((Origin *)b->origin)->serial <= since) {
            continue;
        }
        PyObject *object = lw_weakref_get(b->ref);
        if (object == NULL) {
            continue;
        }
        item = Py_BuildValue("(NOK)", object, b->origin, (unsigned long long)b->count);
        if (item == NULL || PyList_Append(list, item) < 0) {
            Py_CLEAR(list);
        }
        Py_XDECREF(item);
    }
    return list;
}

static PyObject *
origin_serial(PyObject *Py_UNUSED(module), PyObject *Py_UNUSED(unused))
{
    return PyLong_FromUnsignedLongLong(newest);
}

static PyMethodDef functions[] = {
    {"origin_serial", origin_serial, METH_NOARGS, "origin_serial() -> int: of the newest Origin"},
    {NULL, NULL, 0, NULL},
};

int
lw_origins_init(PyObject *module)
{
    if (origin_type == NULL) {
        origin_type = (PyTypeObject *)PyType_FromModuleAndSpec(module, &origin_spec, NULL);
    }
    if (scope_var == NULL) {
        scope_var = PyContextVar_New("loopwatch_resource_scope", NULL);
    }
    if (origin_type == NULL || scope_var == NULL || PyModule_AddType(module, origin_type) < 0
        || PyModule_AddObjectRef(module, "RESOURCE_SCOPE", scope_var) < 0) {
        return -1;
    }
    return PyModule_AddFunctions(module, functions);
}
