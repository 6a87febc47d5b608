/* calls.c: see calls.h. */
#include "calls.h"

/* Call CALLBACK(info).  The program that is being watched never sees its exceptions. */
static PyObject *
call_guarded(PyObject *Py_UNUSED(module), PyObject *args)
{
    PyObject *callback, *info;
    if (!PyArg_ParseTuple(args, "OO:call_guarded", &callback, &info)) {
        return NULL;
    }
    PyObject *result = PyObject_CallOneArg(callback, info);
    if (result == NULL) {
        PyErr_WriteUnraisable(callback);
    }
    Py_XDECREF(result);
    Py_RETURN_NONE;
}

static PyMethodDef methods[] = {
    {"call_guarded", call_guarded, METH_VARARGS, "call_guarded(callback, info)"},
    {NULL, NULL, 0, NULL},
};

int
lw_calls_init(PyObject *module)
{
    return PyModule_AddFunctions(module, methods);
}
