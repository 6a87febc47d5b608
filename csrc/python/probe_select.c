/* probe_select.c: the probe of asyncio's selector loops.
 *
 * A loop calls `self._selector.select(timeout)` once an iteration.  An
 * instance attribute `select` on the selector, a C callable, stands before the
 * method of the class: it ends the span, waits, and begins the next.  For an
 * EpollSelector it calls epoll_wait itself and builds the same list of
 * (key, events), which makes a watched loop no slower than a bare one, as it
 * replaces a Python function; for every other selector, or one that somebody
 * wrapped before us, it calls what stood there.
 *
 * The span begins before the GIL is taken back after the wait, so time spent
 * waiting for the GIL counts as busy.  With a timeout of zero the poll counts
 * as part of the next span: one clock reading an iteration.
 *
 * What is kept: timeouts rounded up to milliseconds, signals handled in the
 * wait and the wait resumed for the rest (PEP 475), a handler's exception
 * raised, the class's own method asked for anything unusual (a timeout that is
 * no number, a closed epoll) so that its very error comes.  When the probe is
 * taken away it removes its attribute, or leaves it, passing through for ever,
 * if somebody wrapped it meanwhile. */
#include "watch.h"

#include <errno.h>
#include <limits.h>
#include <math.h>
#include <stdlib.h>
#include <sys/epoll.h>

#include "../core/clock.h"
#include "loopstats.h"

#define STACK_EVENTS 128

typedef struct {
    PyObject_HEAD vectorcallfunc vectorcall;
    Watch *watch;         /* owned; NULL once detached */
    PyObject *original;   /* owned: the callable that stood there */
    PyObject *fd_to_key;  /* owned dict; NULL: not epoll */
    int epfd;
    struct epoll_event *events; /* owned, for loops with many descriptors */
    int capacity;
} SelectProbe;

static PyTypeObject *probe_type;

static PyObject *
call_original(SelectProbe *self, PyObject *const *args, size_t nargsf, PyObject *kwnames)
{
    return PyObject_Vectorcall(self->original, args, nargsf, kwnames);
}

/* The list a selector returns for N events; looks keys up by descriptor. */
static PyObject *
ready_list(SelectProbe *self, const struct epoll_event *events, int n)
{
    PyObject *list = PyList_New(0), *fd = NULL, *key = NULL, *mask = NULL, *pair = NULL;
    for (int i = 0; list != NULL && i < n; i++) {
        long wanted,
            got = (events[i].events & ~(uint32_t)EPOLLIN ? 2 : 0) | (events[i].events & ~(uint32_t)EPOLLOUT ? 1 : 0);
        fd = PyLong_FromLong(events[i].data.fd);
        if (fd == NULL) {
            goto fail;
        }
        key = Py_XNewRef(PyDict_GetItemWithError(self->fd_to_key, fd));
        Py_CLEAR(fd);
        if (key == NULL) {
            if (PyErr_Occurred()) {
                goto fail;
            }
            continue;
        }
        PyObject *key_events = PyTuple_Check(key) && PyTuple_GET_SIZE(key) > 2 ? PyTuple_GET_ITEM(key, 2) : NULL;
        wanted = key_events ? PyLong_AsLong(key_events) : 3;
        if (wanted == -1 && PyErr_Occurred()) {
            goto fail;
        }
        mask = PyLong_FromLong(got & wanted);
        pair = mask ? PyTuple_New(2) : NULL;
        if (pair == NULL) {
            goto fail;
        }
        PyTuple_SET_ITEM(pair, 0, key);
        PyTuple_SET_ITEM(pair, 1, mask);
        key = mask = NULL;
        if (PyList_Append(list, pair) < 0) {
            goto fail;
        }
        Py_CLEAR(pair);
    }
    return list;
fail:
    Py_XDECREF(pair);
    Py_XDECREF(mask);
    Py_XDECREF(key);
    Py_DECREF(list);
    return NULL;
}

/* Milliseconds for epoll_wait, -1 for ever, -2 for something unusual. */
static int
timeout_ms(PyObject *timeout)
{
    double seconds;
    if (timeout == Py_None) {
        return -1;
    }
    if (PyFloat_CheckExact(timeout)) {
        seconds = PyFloat_AS_DOUBLE(timeout);
    }
    else if (PyLong_CheckExact(timeout)) {
        seconds = PyLong_AsDouble(timeout);
        if (seconds == -1.0 && PyErr_Occurred()) {
            PyErr_Clear();
            return -2;
        }
    }
    else {
        return -2;
    }
    if (seconds <= 0) {
        return 0;
    }
    seconds = ceil(seconds * 1e3);
    return seconds < (double)INT_MAX ? (int)seconds : -2; /* NaN compares false: unusual */
}

static PyObject *
probe_epoll(SelectProbe *self, lw_watch *w, int ms, PyObject *const *args, size_t nargsf, PyObject *kwnames)
{
    struct epoll_event on_stack[STACK_EVENTS], *events = on_stack;
    Py_ssize_t known = PyDict_GET_SIZE(self->fd_to_key);
    int max = known > 1 ? (known < INT_MAX / 64 ? (int)known : INT_MAX / 64) : 1, n, err;
    uint64_t deadline = ms > 0 ? lw_now_ns() + (uint64_t)ms * 1000000u : 0;

    if (max > STACK_EVENTS) {
        if (max > self->capacity) {
            struct epoll_event *more = realloc(self->events, (size_t)max * 2 * sizeof(*more));
            if (more == NULL) {
                return PyErr_NoMemory();
            }
            self->events = more;
            self->capacity = max * 2;
        }
        events = self->events;
    }
    for (;;) {
        uint64_t awake = 0;
        Py_BEGIN_ALLOW_THREADS n = epoll_wait(self->epfd, events, max, ms);
        err = errno;
        if (ms != 0) {
            awake = lw_now_ns();
            lw_mark_busy(w, awake);
        }
        Py_END_ALLOW_THREADS if (ms != 0)
        {
            w->gil_ns = lw_now_ns() - awake;
        }
        if (n >= 0) {
            return ready_list(self, events, n);
        }
        if (err != EINTR) {
            return call_original(self, args, nargsf, kwnames); /* its own error, in its own words */
        }
        if (PyErr_CheckSignals() < 0) {
            return NULL;
        }
        if (ms > 0) {
            uint64_t now = lw_now_ns();
            ms = now >= deadline ? 0 : (int)((deadline - now + 999999) / 1000000);
        }
        if (ms != 0) {
            atomic_store_explicit(&w->busy, 0, memory_order_release);
        }
    }
}

static PyObject *
probe_vectorcall(PyObject *callable, PyObject *const *args, size_t nargsf, PyObject *kwnames)
{
    SelectProbe *self = (SelectProbe *)callable;
    Watch *watch = self->watch;
    Py_ssize_t nargs = PyVectorcall_NARGS(nargsf);
    PyObject *result;
    int ms = -2;

    if (watch == NULL) {
        return call_original(self, args, nargsf, kwnames);
    }
    lw_watch *w = &watch->w;
    uint64_t now = lw_now_ns(), busy = atomic_load_explicit(&w->busy, memory_order_relaxed);
    if (self->fd_to_key != NULL && nargs <= 1 && (kwnames == NULL || PyTuple_GET_SIZE(kwnames) == 0)) {
        ms = nargs == 1 ? timeout_ms(args[0]) : -1;
    }
    if (w->stats != NULL) {
        lw_loopstats_span(w->stats, busy, now);
    }
    if (lw_span_is_long(w, busy, now)) {
        Py_INCREF(watch); /* who is told may take the probe away */
        lw_adopt_thread(w);
        lw_span_end(watch, busy, now);
        now = lw_now_ns();
        int gone = self->watch != watch;
        Py_DECREF(watch);
        if (gone) {
            return call_original(self, args, nargsf, kwnames);
        }
    }
    if (ms == 0) {
        lw_mark_busy(w, now);
        w->gil_ns = 0;
        if (w->stats != NULL) {
            w->stats->mark_ns = now;
            w->stats->marked = 1;
        }
        return probe_epoll(self, w, ms, args, nargsf, kwnames);
    }
    atomic_store_explicit(&w->busy, 0, memory_order_release);
    Py_INCREF(watch); /* a signal handler may take the probe away */
    if (ms != -2) {
        result = probe_epoll(self, w, ms, args, nargsf, kwnames);
    }
    else {
        result = call_original(self, args, nargsf, kwnames);
        w->gil_ns = 0;
        lw_mark_busy(w, lw_now_ns());
    }
    lw_adopt_thread(w);
    if (w->stats != NULL) {
        w->stats->mark_ns = atomic_load_explicit(&w->busy, memory_order_relaxed);
        w->stats->marked = 1;
    }
    Py_DECREF(watch);
    return result;
}

static int
probe_traverse(SelectProbe *self, visitproc visit, void *arg)
{
    Py_VISIT(Py_TYPE(self));
    Py_VISIT(self->watch);
    Py_VISIT(self->original);
    Py_VISIT(self->fd_to_key);
    return 0;
}

static int
probe_clear(SelectProbe *self)
{
    Py_CLEAR(self->watch);
    return 0;
}

static void
probe_dealloc(SelectProbe *self)
{
    PyTypeObject *type = Py_TYPE(self);
    PyObject_GC_UnTrack(self);
    Py_XDECREF(self->watch);
    Py_XDECREF(self->original);
    Py_XDECREF(self->fd_to_key);
    free(self->events);
    type->tp_free(self);
    Py_DECREF(type);
}

static PyMemberDef probe_members[] = {
    {"__vectorcalloffset__", T_PYSSIZET, offsetof(SelectProbe, vectorcall), READONLY, NULL},
    {"__wrapped__", T_OBJECT, offsetof(SelectProbe, original), READONLY, "What stood here before."},
    {NULL, 0, 0, 0, NULL},
};
static PyType_Slot probe_slots[] = {
    {Py_tp_doc, "Stands before a selector's select() and measures the time between two calls."},
    {Py_tp_call, PyVectorcall_Call},
    {Py_tp_traverse, probe_traverse},
    {Py_tp_clear, probe_clear},
    {Py_tp_dealloc, probe_dealloc},
    {Py_tp_members, probe_members},
    {0, NULL},
};
static PyType_Spec probe_spec = {"loopwatch._core.SelectProbe", sizeof(SelectProbe), 0,
                                 Py_TPFLAGS_DEFAULT | Py_TPFLAGS_HAVE_GC | Py_TPFLAGS_HAVE_VECTORCALL
                                     | Py_TPFLAGS_IMMUTABLETYPE | Py_TPFLAGS_DISALLOW_INSTANTIATION,
                                 probe_slots};

int
lw_probe_select_init(PyObject *module)
{
    if (probe_type == NULL) {
        probe_type = (PyTypeObject *)PyType_FromModuleAndSpec(module, &probe_spec, NULL);
    }
    return probe_type == NULL ? -1 : 0;
}

/* What stands in the selector's own __dict__ under "select": borrowed, or NULL. */
static PyObject *
own_select(PyObject *selector)
{
    PyObject *dict = PyObject_GenericGetDict(selector, NULL), *found = NULL;
    if (dict != NULL) {
        found = PyDict_GetItemString(dict, "select");
        Py_DECREF(dict);
    }
    PyErr_Clear();
    return found;
}

int
lw_probe_select_attach(Watch *self)
{
    PyObject *fileno = NULL;
    SelectProbe *probe = PyObject_GC_New(SelectProbe, probe_type);
    if (probe == NULL) {
        return -1;
    }
    probe->vectorcall = probe_vectorcall;
    probe->watch = (Watch *)Py_NewRef(self);
    probe->original = PyObject_GetAttrString(self->selector, "select");
    probe->fd_to_key = NULL;
    probe->epfd = -1;
    probe->events = NULL;
    probe->capacity = 0;
    PyObject_GC_Track(probe);
    if (probe->original == NULL) {
        goto fail;
    }
    Py_XSETREF(self->before, Py_XNewRef(own_select(self->selector)));
    if (self->w.kind == LW_EPOLL && self->before == NULL) {
        probe->fd_to_key = PyObject_GetAttrString(self->selector, "_fd_to_key");
        fileno = PyObject_CallMethod(self->selector, "fileno", NULL);
        if (fileno == NULL || probe->fd_to_key == NULL || !PyDict_CheckExact(probe->fd_to_key)) {
            if (fileno == NULL && PyErr_ExceptionMatches(PyExc_ValueError)) {
                goto fail; /* closed */
            }
            PyErr_Clear();
            Py_CLEAR(probe->fd_to_key);
        }
        else {
            probe->epfd = (int)PyLong_AsLong(fileno);
        }
    }
    if (PyObject_SetAttrString(self->selector, "select", (PyObject *)probe) < 0) {
        goto fail;
    }
    Py_XDECREF(fileno);
    Py_XSETREF(self->probe, (PyObject *)probe);
    return 0;
fail:
    Py_XDECREF(fileno);
    Py_DECREF(probe);
    return -1;
}

void
lw_probe_select_detach(Watch *self)
{
    PyObject *type, *value, *traceback;
    SelectProbe *probe = (SelectProbe *)self->probe;
    if (probe == NULL) {
        return;
    }
    PyErr_Fetch(&type, &value, &traceback);
    if (own_select(self->selector) == (PyObject *)probe
        && PyObject_SetAttrString(self->selector, "select", self->before) < 0) { /* NULL deletes */
        PyErr_Clear();
    }
    Py_CLEAR(probe->watch); /* someone who wrapped us keeps a probe that passes through */
    Py_CLEAR(self->probe);
    Py_CLEAR(self->before);
    PyErr_Restore(type, value, traceback);
}
