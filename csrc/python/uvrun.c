/* uvrun.c: see uvrun.h. */
#include "uvrun.h"

/* The list that stands for the attributes: ours, what the instance had there before them, or None, and whether a call of
 * ours goes on, as True or None. */
enum { CLOSE, RUN, CLOSE_BEFORE, RUN_BEFORE, CLOSING, RUNNING, SIZE };
static const char *const names[] = {"close", "run_forever"};

/* New reference to the list, or NULL once the probe is gone. */
static PyObject *
attributes_of(const Watch *watch)
{
    return watch->uv == NULL || watch->probe == NULL ? NULL : Py_NewRef(PyTuple_GET_ITEM(watch->probe, 0));
}

/* Call what the program had put there.  Where it had nothing, or comes back to us from there, the class' own method. */
static PyObject *
call_theirs(PyObject *loop, PyObject *attributes, int which)
{
    PyObject *theirs = NULL, *result;
    if (attributes != NULL && PyList_GET_ITEM(attributes, CLOSING + which) == Py_None) {
        theirs = PyList_GET_ITEM(attributes, CLOSE_BEFORE + which);
    }
    if (theirs == NULL || theirs == Py_None) {
        PyObject *method = PyObject_GetAttrString((PyObject *)Py_TYPE(loop), names[which]);
        result = method ? PyObject_CallOneArg(method, loop) : NULL;
        Py_XDECREF(method);
        return result;
    }
    Py_INCREF(theirs);
    (void)PyList_SetItem(attributes, CLOSING + which, Py_NewRef(Py_True));
    result = PyObject_CallNoArgs(theirs);
    (void)PyList_SetItem(attributes, CLOSING + which, Py_NewRef(Py_None));
    Py_DECREF(theirs);
    return result;
}

static PyObject *
close_loop(PyObject *self, PyObject *Py_UNUSED(unused))
{
    Watch *watch = (Watch *)PyCapsule_GetPointer(self, "loopwatch.watch");
    if (watch == NULL) {
        return NULL;
    }
    PyObject *loop = Py_NewRef(watch->loop), *attributes = attributes_of(watch), *theirs = NULL, *result;
    if (attributes != NULL) {
        theirs = Py_NewRef(PyList_GET_ITEM(attributes, CLOSE_BEFORE));
    }
    lw_probe_uv_detach(watch); /* which puts theirs back */
    if (attributes != NULL) {
        (void)PyList_SetItem(attributes, CLOSE_BEFORE, theirs);
    }
    result = call_theirs(loop, attributes, CLOSE);
    Py_XDECREF(attributes);
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
    PyObject *loop = Py_NewRef(watch->loop), *attributes = attributes_of(watch), *result = NULL;
    PyObject *running = PyObject_CallMethod(loop, "is_running", NULL);
    int again = attributes != NULL && PyList_GET_ITEM(attributes, RUNNING) != Py_None;
    int begins = running == Py_False && !again;
    Py_INCREF(watch);
    if (begins) {
        lw_probe_uv_begin_run(watch);
    }
    result = running ? call_theirs(loop, attributes, RUN) : NULL;
    if (begins) {
        lw_probe_uv_end_run(watch);
    }
    Py_XDECREF(running);
    Py_XDECREF(attributes);
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
    PyObject *attributes = closer && runner ? PyList_New(SIZE) : NULL;
    if (capsule == NULL) {
        Py_DECREF(watch);
    }
    for (int i = 0; attributes != NULL && i < SIZE; i++) {
        PyList_SET_ITEM(attributes, i, Py_NewRef(i == CLOSE ? closer : i == RUN ? runner : Py_None));
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
