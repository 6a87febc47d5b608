/* handlerun.c: asyncio.Handle._run in C, with a clock reading behind each callback.
 *
 * While a monitor is open, the class attribute `Handle._run` is a method
 * written in C that does what the Python one does: runs the callback in the
 * handle's context, lets SystemExit and KeyboardInterrupt through, and hands
 * any other exception to the loop's exception handler with the same words.
 * That last part is Python (loopwatch.monitor.callbacks), as it is rare and its
 * wording differs between releases.  What one sees of it: a callback's
 * traceback has no line of asyncio/events.py.
 *
 * The class attribute is exchanged only while it is a plain function of
 * asyncio's own, and put back only while it is ours: whoever wrapped it
 * keeps what he made.  Subclasses that call super()._run() come through here.
 *
 * A callback's time is from the end of the one before it (or of the wait) to
 * its own end, so times of an iteration add up to its span.  A task's step or wake-up is
 * also counted for its coroutine (taskstats.h).
 *
 * Cost: less than the function it replaces, with the clock and the histogram. */
#include "../core/clock.h"
#include "layout.h"
#include "loopstats.h"
#include "taskstats.h"

static struct {
    size_t context, callback, args, loop; /* slots of Handle */
    int needed;
    PyObject *type;     /* owned: asyncio.events.Handle */
    PyObject *original; /* owned while ours stands in its place */
    PyObject *method;   /* owned: ours */
    PyObject *report;   /* owned: what an exception is handed to */
    PyObject *names;    /* owned: the dict of asyncio.events, which its own functions have as their globals */
} state;

static inline PyObject *
slot(PyObject *handle, size_t offset)
{
    return *(PyObject **)((char *)handle + offset);
}

/* Hand an exception of the callback on as asyncio does, with it as the one being handled. */
static PyObject *
report(PyObject *handle)
{
    PyObject *type, *value, *traceback, *before, *result;
    if (PyErr_ExceptionMatches(PyExc_SystemExit) || PyErr_ExceptionMatches(PyExc_KeyboardInterrupt)) {
        return NULL;
    }
    PyErr_Fetch(&type, &value, &traceback);
    PyErr_NormalizeException(&type, &value, &traceback);
    if (traceback != NULL) {
        PyException_SetTraceback(value, traceback);
    }
    before = PyErr_GetHandledException();
    PyErr_SetHandledException(value);
    result = PyObject_CallFunctionObjArgs(state.report, handle, value, NULL);
    PyErr_SetHandledException(before);
    Py_XDECREF(before);
    Py_XDECREF(type);
    Py_XDECREF(value);
    Py_XDECREF(traceback);
    return result;
}

static PyObject *
handle_run(PyObject *handle, PyObject *Py_UNUSED(unused))
{
    PyObject *context = Py_XNewRef(slot(handle, state.context)), *callback = Py_XNewRef(slot(handle, state.callback));
    PyObject *args = Py_XNewRef(slot(handle, state.args)), *result = NULL;
    lw_loopstats *stats;

    if (context == NULL || !PyContext_CheckExact(context) || callback == NULL || args == NULL
        || !PyTuple_CheckExact(args)) { /* something unusual: asyncio's own function knows what to say */
        result = PyObject_CallOneArg(state.original, handle);
        goto done;
    }
    stats = (lw_loopstats *)Py_XNewRef(lw_loopstats_of(slot(handle, state.loop)));
    if (stats != NULL && !stats->marked) {
        stats->mark_ns = lw_now_ns();
    }
    if (PyContext_Enter(context) == 0) {
        result = PyObject_Vectorcall(callback, ((PyTupleObject *)args)->ob_item, (size_t)PyTuple_GET_SIZE(args), NULL);
        if (PyContext_Exit(context) < 0) {
            Py_CLEAR(result);
        }
    }
    if (result == NULL) {
        result = report(handle);
    }
    if (stats != NULL) {
        uint64_t now = lw_now_ns(), begun = stats->mark_ns;
        if (now >= begun && begun != 0) {
            lw_hist_add(&stats->callbacks, now - begun);
            lw_taskstats_step(callback, now - begun);
        }
        stats->mark_ns = now;
        Py_DECREF(stats);
    }
done:
    Py_XDECREF(args);
    Py_XDECREF(callback);
    Py_XDECREF(context);
    if (result == NULL) {
        return NULL;
    }
    Py_DECREF(result);
    Py_RETURN_NONE;
}

static PyMethodDef run_method = {"_run", handle_run, METH_NOARGS, "Run the callback in its context."};

static int
prepare(void)
{
    PyObject *events = PyImport_ImportModule("asyncio.events"), *callbacks = NULL;
    int status = -1;
    if (events == NULL) {
        return -1;
    }
    Py_XSETREF(state.type, PyObject_GetAttrString(events, "Handle"));
    if (state.type == NULL || !PyType_Check(state.type)) {
        goto done;
    }
    state.context = lw_slot_offset(state.type, "_context");
    state.callback = lw_slot_offset(state.type, "_callback");
    state.args = lw_slot_offset(state.type, "_args");
    state.loop = lw_slot_offset(state.type, "_loop");
    callbacks = PyImport_ImportModule("loopwatch.monitor.callbacks");
    Py_XSETREF(state.report, callbacks ? PyObject_GetAttrString(callbacks, "report_exception") : NULL);
    Py_XSETREF(state.names, Py_NewRef(PyModule_GetDict(events)));
    Py_XSETREF(state.method, PyDescr_NewMethod((PyTypeObject *)state.type, &run_method));
    if (state.report != NULL && state.method != NULL) {
        status = 0;
    }
done:
    Py_XDECREF(callbacks);
    Py_DECREF(events);
    return status;
}

int
lw_handlerun_need(int delta)
{
    PyObject *now = NULL;
    int status = 0;

    state.needed += delta;
    if (state.needed == 1 && delta > 0) {
        if (state.original == NULL && prepare() < 0) {
            state.needed--;
            return -1;
        }
        now = PyObject_GetAttrString(state.type, "_run");
        if (now != NULL && PyFunction_Check(now) && PyFunction_GET_GLOBALS(now) == state.names && state.context
            && state.callback && state.args && state.loop) {
            status = PyObject_SetAttrString(state.type, "_run", state.method);
            if (status == 0) {
                Py_XSETREF(state.original, Py_NewRef(now));
            }
        } /* else another tool stands there: over ours, or callback times stay unknown */
    }
    else if (state.needed == 0 && state.original != NULL) {
        now = PyObject_GetAttrString(state.type, "_run");
        if (now == state.method) {
            status = PyObject_SetAttrString(state.type, "_run", state.original);
            Py_CLEAR(state.original);
        } /* else somebody wrapped ours: it stays, and only passes on */
    }
    Py_XDECREF(now);
    if (PyErr_Occurred() && status == 0) {
        PyErr_Clear();
    }
    return status;
}

static PyObject *
handle_run_active(PyObject *Py_UNUSED(module), PyObject *Py_UNUSED(unused))
{
    return PyBool_FromLong(state.original != NULL);
}

static PyMethodDef functions[] = {
    {"handle_run_active", handle_run_active, METH_NOARGS, "Whether Handle._run is ours now."},
    {NULL, NULL, 0, NULL},
};

int
lw_handlerun_init(PyObject *module)
{
    return PyModule_AddFunctions(module, functions);
}
