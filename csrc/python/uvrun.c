/* uvrun.c: see uvrun.h. */
#include "uvrun.h"

static PyObject *
close_loop(PyObject *self, PyObject *Py_UNUSED(unused))
{
    Watch *watch = (Watch *)PyCapsule_GetPointer(self, "loopwatch.watch");
    if (watch == NULL) {
        return NULL;
    }
    PyObject *loop = Py_NewRef(watch->loop), *result;
    lw_probe_uv_detach(watch);
    result = PyObject_CallMethod(loop, "close", NULL);
    Py_DECREF(loop);
    return result;
}

static PyObject *
run_loop(PyObject *self, PyObject *Py_UNUSED(unused))
{
    Watch *watch = (Watch *)PyCapsule_GetPointer(self, "loopwatch.watch");
    if (watch == NULL) {
        return NULL;
    }
    PyObject *loop = Py_NewRef(watch->loop), *result = NULL;
    PyObject *method = PyObject_GetAttrString((PyObject *)Py_TYPE(loop), "run_forever");
    PyObject *running = method ? PyObject_CallMethod(loop, "is_running", NULL) : NULL;
    int begins = running == Py_False;
    Py_INCREF(watch);
    if (begins) {
        lw_probe_uv_begin_run(watch);
    }
    result = running ? PyObject_CallOneArg(method, loop) : NULL;
    if (begins) {
        lw_probe_uv_end_run(watch);
    }
    Py_XDECREF(running);
    Py_XDECREF(method);
    Py_DECREF(loop);
    Py_DECREF(watch);
    return result;
}

static PyMethodDef close_def = {"close", (PyCFunction)close_loop, METH_NOARGS, "Close the event loop."};
static PyMethodDef run_def = {"run_forever", (PyCFunction)run_loop, METH_NOARGS, "Run the event loop until stop()."};

static void
drop_watch(PyObject *capsule)
{
    Py_XDECREF((PyObject *)PyCapsule_GetPointer(capsule, "loopwatch.watch"));
}

PyObject *
lw_uvrun_new(Watch *watch)
{
    PyObject *capsule = PyCapsule_New(Py_NewRef(watch), "loopwatch.watch", drop_watch);
    PyObject *closer = capsule ? PyCFunction_New(&close_def, capsule) : NULL;
    PyObject *runner = capsule ? PyCFunction_New(&run_def, capsule) : NULL;
    PyObject *attributes = closer && runner ? PyTuple_Pack(2, closer, runner) : NULL;
    if (capsule == NULL) {
        Py_DECREF(watch);
    }
    Py_XDECREF(runner);
    Py_XDECREF(closer);
    Py_XDECREF(capsule);
    return attributes;
}

static void
set_attribute(PyObject *loop, const char *name, PyObject *ours, int stand)
{
    PyObject *dict = NULL;
    if (stand) {
        (void)PyObject_SetAttrString(loop, name, ours);
    }
    else {
        dict = PyObject_GenericGetDict(loop, NULL);
        if (dict != NULL && PyDict_GetItemString(dict, name) == ours) {
            (void)PyObject_SetAttrString(loop, name, NULL);
        }
    }
    PyErr_Clear();
    Py_XDECREF(dict);
}

void
lw_uvrun_set(PyObject *loop, PyObject *attributes, int stand)
{
    Py_INCREF(loop);
    Py_INCREF(attributes);
    set_attribute(loop, "close", PyTuple_GET_ITEM(attributes, 0), stand);
    set_attribute(loop, "run_forever", PyTuple_GET_ITEM(attributes, 1), stand);
    Py_DECREF(attributes);
    Py_DECREF(loop);
}
