/* callbacks.c: see callbacks.h. */
#include "callbacks.h"

#include <sys/syscall.h>
#include <unistd.h>

/* Whether Ctrl-C came, which was sent once more. */
static int
passed_on(void)
{
    if (!PyErr_ExceptionMatches(PyExc_KeyboardInterrupt) || syscall(SYS_gettid) != getpid()) {
        return 0;
    }
    PyErr_Clear();
    PyErr_SetInterrupt();
    return 1;
}

void
lw_callback_failed(PyObject *callback)
{
    if (!passed_on()) {
        PyErr_WriteUnraisable(callback);
    }
}

static PyObject *
call_guarded(PyObject *Py_UNUSED(module), PyObject *args)
{
    PyObject *callback, *info;
    if (!PyArg_ParseTuple(args, "OO:call_guarded", &callback, &info)) {
        return NULL;
    }
    PyObject *result = PyObject_CallOneArg(callback, info);
    if (result == NULL) {
        lw_callback_failed(callback);
    }
    Py_XDECREF(result);
    Py_RETURN_NONE;
}

/* FIRST(argument), whatever becomes of it, and then what SECOND(argument) gives. */
static PyObject *
call_both(PyObject *both, PyObject *argument)
{
    PyObject *first = PyObject_CallOneArg(PyTuple_GET_ITEM(both, 0), argument);
    if (first == NULL && !passed_on()) {
        PyErr_Clear();
    }
    Py_XDECREF(first);
    return PyObject_CallOneArg(PyTuple_GET_ITEM(both, 1), argument);
}

static PyMethodDef both_def = {"call_both", call_both, METH_O, NULL};

static PyObject *
calling_both(PyObject *Py_UNUSED(module), PyObject *args)
{
    if (PyTuple_GET_SIZE(args) != 2 || !PyCallable_Check(PyTuple_GET_ITEM(args, 0))
        || !PyCallable_Check(PyTuple_GET_ITEM(args, 1))) {
        PyErr_SetString(PyExc_TypeError, "calling_both() takes two callables");
        return NULL;
    }
    return PyCFunction_New(&both_def, args);
}

static PyMethodDef methods[] = {
    {"call_guarded", call_guarded, METH_VARARGS, "call_guarded(callback, info): its exceptions go to unraisablehook"},
    {"calling_both", calling_both, METH_VARARGS, "calling_both(first, second) -> a function of one argument"},
    {NULL, NULL, 0, NULL},
};

int
lw_callbacks_init(PyObject *module)
{
    return PyModule_AddFunctions(module, methods);
}
