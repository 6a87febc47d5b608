/* objects.c: see objects.h. */
#include "objects.h"

typedef struct {
    PyTypeObject *type; /* owned once the pass is over, borrowed during it; NULL: free */
    size_t count, bytes;
} type_count;

typedef struct {
    type_count *at; /* owned, PyMem_Raw; open addressing */
    size_t cap, used, objects, bytes;
    PyObject *self; /* borrowed: not counted, it is ours */
    int failed;
} type_table;

/* owned, process-wide: unbound __sizeof__ of the builtin types */
static PyObject *sizeof_dict, *sizeof_set, *sizeof_frozenset;

static size_t
sizeof_by(PyObject *method, PyObject *op)
{
    PyObject *size = method == NULL ? NULL : PyObject_CallOneArg(method, op);
    size_t bytes = size == NULL ? 0 : PyLong_AsSize_t(size);
    Py_XDECREF(size);
    if (PyErr_Occurred()) {
        PyErr_Clear();
        return (size_t)Py_TYPE(op)->tp_basicsize;
    }
    return bytes;
}

size_t
lw_object_bytes(PyObject *op)
{
    PyTypeObject *type = Py_TYPE(op);
    size_t bytes = lw_gc_header_size(op);
    if (PyDict_CheckExact(op)) {
        return bytes + sizeof_by(sizeof_dict, op);
    }
    if (PyAnySet_CheckExact(op)) {
        return bytes + sizeof_by(PyFrozenSet_CheckExact(op) ? sizeof_frozenset : sizeof_set, op);
    }
    bytes += (size_t)type->tp_basicsize;
    if (PyList_Check(op)) {
        return bytes + (size_t)((PyListObject *)op)->allocated * sizeof(PyObject *);
    }
    if (PyCoro_CheckExact(op) || PyGen_CheckExact(op) || PyAsyncGen_CheckExact(op)) {
        return bytes; /* its items are the frame's, and it has no ob_size to count them by */
    }
    if (type->tp_itemsize > 0 && !PyLong_Check(op)) {
        Py_ssize_t items = Py_SIZE(op);
        bytes += (size_t)(items < 0 ? -items : items) * (size_t)type->tp_itemsize;
    }
    return bytes;
}

static size_t
slot_of(const type_table *table, PyTypeObject *type)
{
    size_t i = ((uintptr_t)type >> 4) * 0x9E3779B97F4A7C15u >> 20 & (table->cap - 1);
    while (table->at[i].type != NULL && table->at[i].type != type) {
        i = (i + 1) & (table->cap - 1);
    }
    return i;
}

static int
grow(type_table *table)
{
    type_table bigger = *table;
    bigger.cap = table->cap ? table->cap * 2 : 1024;
    bigger.at = PyMem_RawCalloc(bigger.cap, sizeof(type_count));
    if (bigger.at == NULL) {
        return -1;
    }
    for (size_t i = 0; i < table->cap; i++) {
        if (table->at[i].type != NULL) {
            bigger.at[slot_of(&bigger, table->at[i].type)] = table->at[i];
        }
    }
    PyMem_RawFree(table->at);
    *table = bigger;
    return 0;
}

static int
count_one(PyObject *op, void *arg)
{
    type_table *table = arg;
    if (op == table->self) {
        return 1;
    }
    if ((table->used + 1) * 2 > table->cap && grow(table) < 0) {
        table->failed = 1;
        return 0;
    }
    type_count *entry = &table->at[slot_of(table, Py_TYPE(op))];
    if (entry->type == NULL) {
        entry->type = Py_TYPE(op);
        table->used++;
    }
    size_t bytes = lw_object_bytes(op);
    entry->count++;
    entry->bytes += bytes;
    table->objects++;
    table->bytes += bytes;
    return 1;
}

static PyObject *
count_objects(PyObject *Py_UNUSED(module), PyObject *Py_UNUSED(unused))
{
    type_table table = {0};
    PyObject *result = NULL, *numbers = NULL;

    if (lw_visit_gc_objects(count_one, &table, &table.self) < 0) {
        goto done;
    }
    for (size_t i = 0; i < table.cap;
         i++) { /* from here on the collector may run, and a type may lose its last owner */
        Py_XINCREF(table.at[i].type);
    }
    if (table.failed) {
        PyErr_NoMemory();
        goto done;
    }
    result = PyDict_New();
    for (size_t i = 0; result != NULL && i < table.cap; i++) {
        if (table.at[i].type == NULL) {
            continue;
        }
        numbers = Py_BuildValue("(nn)", (Py_ssize_t)table.at[i].count, (Py_ssize_t)table.at[i].bytes);
        if (numbers == NULL || PyDict_SetItem(result, (PyObject *)table.at[i].type, numbers) < 0) {
            Py_CLEAR(result);
        }
        Py_CLEAR(numbers);
    }
    for (size_t i = 0; i < table.cap; i++) {
        Py_XDECREF(table.at[i].type);
    }
done:
    PyMem_RawFree(table.at);
    return result;
}

static PyMethodDef functions[] = {
    {"count_objects", count_objects, METH_NOARGS,
     "count_objects() -> {type: (count, bytes)} of what the collector tracks"},
    {NULL, NULL, 0, NULL},
};

int
lw_objects_init(PyObject *module)
{
    if (sizeof_dict == NULL) {
        sizeof_dict = PyObject_GetAttrString((PyObject *)&PyDict_Type, "__sizeof__");
        sizeof_set = PyObject_GetAttrString((PyObject *)&PySet_Type, "__sizeof__");
        sizeof_frozenset = PyObject_GetAttrString((PyObject *)&PyFrozenSet_Type, "__sizeof__");
    }
    if (sizeof_dict == NULL || sizeof_set == NULL || sizeof_frozenset == NULL) {
        return -1;
    }
    return PyModule_AddFunctions(module, functions);
}
