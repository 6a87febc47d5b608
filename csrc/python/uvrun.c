/* uvrun.c: see uvrun.h. */
#include "uvrun.h"

/* The list that stands for the attributes: ours, then what the instance had there before them, or None. */
enum { CLOSE, RUN, CLOSE_BEFORE, RUN_BEFORE };
static const char *const names[] = {"close", "run_forever"};

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
    PyObject *loop = Py_NewRef(watch->loop), *result = NULL, *parts = watch->probe;
    PyObject *theirs = parts ? PyList_GET_ITEM(PyTuple_GET_ITEM(parts, 0), RUN_BEFORE) : Py_None;
    PyObject *method =
        theirs != Py_None ? Py_NewRef(theirs) : PyObject_GetAttrString((PyObject *)Py_TYPE(loop), names[RUN]);
    PyObject *running = method ? PyObject_CallMethod(loop, "is_running", NULL) : NULL;
    int begins = running == Py_False;
    Py_INCREF(watch);
    if (begins) {
        lw_probe_uv_begin_run(watch);
    }
    if (running != NULL) {
        result = theirs != Py_None ? PyObject_CallNoArgs(method) : PyObject_CallOneArg(method, loop);
    }
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
    PyObject *attributes = closer && runner ? Py_BuildValue("[OOOO]", closer, runner, Py_None, Py_None) : NULL;
    if (capsule == NULL) {
        Py_DECREF(watch);
    }
    Py_XDECREF(runner);
    Py_XDECREF(closer);
    Py_XDECREF(capsule);
    return attributes;
}

static void
set_attribute(PyObject *loop, PyObject *attributes, int which, int stand)
{
    PyObject *name = PyUnicode_InternFromString(names[which]), *dict = PyObject_GenericGetDict(loop, NULL);
    PyObject *ours = PyList_GET_ITEM(attributes, which), *before = PyList_GET_ITEM(attributes, CLOSE_BEFORE + which);
    PyObject *there = name && dict ? Py_XNewRef(PyDict_GetItemWithError(dict, name)) : NULL;
    if (name == NULL || PyErr_Occurred()) {
        goto done;
    }
    if (stand && there != ours) {
        if (PyObject_SetAttr(loop, name, ours) == 0) {
            (void)PyList_SetItem(attributes, CLOSE_BEFORE + which, Py_NewRef(there ? there : Py_None));
        }
    }
    else if (!stand && there == ours) { /* else somebody put his own over it since */
        (void)PyObject_SetAttr(loop, name, before != Py_None ? before : NULL);
        (void)PyList_SetItem(attributes, CLOSE_BEFORE + which, Py_NewRef(Py_None));
    }
done:
    PyErr_Clear();
    Py_XDECREF(there);
    Py_XDECREF(dict);
    Py_XDECREF(name);
}

void
lw_uvrun_set(PyObject *loop, PyObject *attributes, int stand)
{
    Py_INCREF(loop);
    Py_INCREF(attributes);
    set_attribute(loop, attributes, CLOSE, stand);
    set_attribute(loop, attributes, RUN, stand);
    Py_DECREF(attributes);
    Py_DECREF(loop);
}
