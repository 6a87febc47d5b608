/* watch.c: Watch: attaches a probe to a loop and takes it away (see watch.h). */
#include "watch.h"

#include <sys/syscall.h>
#include <unistd.h>

#include "../core/clock.h"
#include "loopstats.h"
#include "layout.h"

PyTypeObject *lw_watch_type;

static const char *const kind_names[] = {"selector-epoll", "selector", "uv", "trio", "generic"};
#define MAX_GENERIC 4096
static Watch *generic_list[MAX_GENERIC]; /* borrowed: attached generic watches, for the drain */
static int generic_count;

void
lw_adopt_thread(lw_watch *w)
{
    uintptr_t tstate = (uintptr_t)PyThreadState_Get();
    if (atomic_load_explicit(&w->tstate, memory_order_relaxed) != tstate) {
        atomic_store(&w->tid, (int)syscall(SYS_gettid));
        lw_watch_lock(w);
        w->ident = PyThread_get_thread_ident();
        lw_watch_unlock(w);
        atomic_store(&w->tstate, tstate);
    }
}

void
lw_watch_drain(Watch *self)
{
    uint64_t end = atomic_load(&self->w.pending_end);
    if (end != 0) {
        Py_INCREF(self); /* who is told may close its last scope */
        lw_span_end(self, atomic_load(&self->w.pending_start), end);
        atomic_store(&self->w.pending_end, 0);
        Py_DECREF(self);
    }
}

int
lw_drain_generic(void *unused)
{
    (void)unused;
    for (int i = 0; i < generic_count; i++) {
        lw_watch_drain(generic_list[i]);
    }
    return 0;
}

static int
attach(Watch *self)
{
    lw_layout_asyncio();
    self->w.sampler.loop = 0;
    if (self->w.kind == LW_TRIO) {
        lw_layout_trio();
    }
    else if (self->w.kind == LW_UV || self->w.kind == LW_GENERIC) {
        lw_layout_running_task(self->loop);
        self->w.sampler.loop = (uintptr_t)self->loop;
    }
    lw_adopt_thread(&self->w);
    atomic_store(&self->w.busy, lw_now_ns()); /* whoever opens a scope in a loop's thread is working */
    if (lw_watchdog_add(&self->w) < 0) {
        PyErr_SetString(PyExc_RuntimeError, "loopwatch could not start its watchdog thread or has no room for another "
                                            "loop (memory, or 65536 at once); close guards that are no longer needed");
        return -1;
    }
    int status = 0;
    switch (self->w.kind) {
    case LW_EPOLL:
    case LW_SELECTOR:
        status = lw_probe_select_attach(self);
        break;
    case LW_UV:
        status = lw_probe_uv_attach(self);
        break;
    case LW_GENERIC:
        if (generic_count == MAX_GENERIC) {
            PyErr_SetString(PyExc_RuntimeError, "at most 4096 loops without a probe can be watched at once");
            status = -1;
        }
        else {
            generic_list[generic_count++] = self;
        }
        break;
    case LW_TRIO:
        break;
    }
    if (status < 0) {
        lw_watchdog_remove(&self->w);
        return -1;
    }
    self->attached = 1;
    return 0;
}

void
lw_watch_detach(Watch *self)
{
    if (!self->attached) {
        return;
    }
    self->attached = 0;
    if (self->w.kind == LW_EPOLL || self->w.kind == LW_SELECTOR) {
        lw_probe_select_detach(self);
    }
    else if (self->w.kind == LW_UV) {
        lw_probe_uv_detach(self);
    }
    else if (self->w.kind == LW_GENERIC) {
        for (int i = 0; i < generic_count; i++) {
            if (generic_list[i] == self) {
                generic_list[i] = generic_list[--generic_count];
                break;
            }
        }
    }
    lw_watchdog_remove(&self->w);
    atomic_store(&self->w.busy, 0);
}

/* --- Watch --- */

static int
watch_tp_init(Watch *self, PyObject *args, PyObject *kwargs)
{
    static char *names[] = {"loop", "kind", NULL};
    PyObject *loop;
    const char *kind;
    char why[200];

    if (self->loop != NULL) {
        PyErr_SetString(PyExc_RuntimeError, "a Watch is bound to its loop once");
        return -1;
    }
    if (!PyArg_ParseTupleAndKeywords(args, kwargs, "Os:Watch", names, &loop, &kind)) {
        return -1;
    }
    int found = -1;
    for (int i = 0; i < (int)(sizeof(kind_names) / sizeof(kind_names[0])); i++) {
        found = strcmp(kind, kind_names[i]) == 0 ? i : found;
    }
    if (found < 0) {
        PyErr_Format(PyExc_ValueError, "kind must be selector-epoll, selector, uv, trio or generic, not '%s'", kind);
        return -1;
    }
    if (found == LW_UV && lw_probe_uv_find(loop, why, sizeof(why)) < 0) {
        PyErr_Format(PyExc_RuntimeError, "this loop's libuv cannot be reached: %s; use kind 'generic'", why);
        return -1;
    }
    if (found == LW_EPOLL || found == LW_SELECTOR) {
        self->selector = PyObject_GetAttrString(loop, "_selector");
        if (self->selector == NULL || self->selector == Py_None) {
            Py_CLEAR(self->selector);
            PyErr_Clear();
            PyErr_SetString(PyExc_RuntimeError, "this loop has no selector: it is closed, or not a selector loop");
            return -1;
        }
    }
    self->loop = Py_NewRef(loop);
    self->w.kind = (enum lw_kind)found;
    lw_scope_bounds(self);
    return 0;
}

static void stats_drop(Watch *self);

static int
watch_traverse(Watch *self, visitproc visit, void *arg)
{
    Py_VISIT(Py_TYPE(self));
    Py_VISIT(self->loop);
    Py_VISIT(self->selector);
    Py_VISIT(self->probe);
    Py_VISIT(self->before);
    Py_VISIT(self->stats);
    return 0;
}

static int
watch_clear(Watch *self)
{
    lw_watch_detach(self);
    stats_drop(self);
    Py_CLEAR(self->loop);
    Py_CLEAR(self->selector);
    Py_CLEAR(self->probe);
    Py_CLEAR(self->before);
    return 0;
}

static void
watch_dealloc(Watch *self)
{
    PyTypeObject *type = Py_TYPE(self);
    PyObject_GC_UnTrack(self);
    watch_clear(self);
    type->tp_free(self);
    Py_DECREF(type);
}

static PyObject *
watch_open_scope(Watch *self, PyObject *args, PyObject *kwargs)
{
    static char *names[] = {"threshold_ns", "interval_ns", "on_block", NULL};
    long long threshold, interval;
    PyObject *on_block = Py_None;

    if (!PyArg_ParseTupleAndKeywords(args, kwargs, "LL|O:open_scope", names, &threshold, &interval, &on_block)) {
        return NULL;
    }
    if (self->loop == NULL) {
        PyErr_SetString(PyExc_RuntimeError, "this Watch has no loop");
        return NULL;
    }
    if (threshold <= 0 || interval <= 0) {
        PyErr_Format(PyExc_ValueError, "threshold_ns and interval_ns must be positive, not %lld and %lld", threshold,
                     interval);
        return NULL;
    }
    if (on_block != Py_None && !PyCallable_Check(on_block)) {
        PyErr_Format(PyExc_TypeError, "on_block must be callable or None, not %.100s", Py_TYPE(on_block)->tp_name);
        return NULL;
    }
    if (!self->attached && attach(self) < 0) {
        return NULL;
    }
    PyObject *scope =
        lw_scope_open(self, (uint64_t)threshold, (uint64_t)interval, on_block == Py_None ? NULL : on_block);
    if (scope == NULL && self->nscopes == 0) {
        lw_watch_detach(self);
    }
    return scope;
}

static PyObject *
watch_busy(Watch *self, PyObject *Py_UNUSED(unused))
{
    lw_adopt_thread(&self->w);
    lw_mark_busy(&self->w, lw_now_ns());
    Py_RETURN_NONE;
}

static PyObject *
watch_idle(Watch *self, PyObject *Py_UNUSED(unused))
{
    uint64_t now = lw_now_ns(), busy = atomic_load(&self->w.busy);
    if (self->w.stats != NULL) {
        lw_loopstats_span(self->w.stats, busy, now);
    }
    if (self->attached && lw_span_is_long(&self->w, busy, now)) {
        lw_span_end(self, busy, now);
    }
    atomic_store(&self->w.busy, 0);
    Py_RETURN_NONE;
}

static PyObject *
watch_stats_open(Watch *self, PyObject *Py_UNUSED(unused))
{
    if (self->loop == NULL) {
        PyErr_SetString(PyExc_RuntimeError, "this Watch has no loop");
        return NULL;
    }
    if (self->stats == NULL) {
        self->stats = lw_loopstats_new(self->loop);
        if (self->stats == NULL || lw_handlerun_need(1) < 0) {
            Py_CLEAR(self->stats);
            return NULL;
        }
        lw_loopstats_list(self->stats, 1);
        self->w.stats = self->stats;
    }
    self->stats->open++;
    return Py_NewRef(self->stats);
}

static void
stats_drop(Watch *self)
{
    lw_loopstats *stats = self->stats;
    if (stats == NULL) {
        return;
    }
    self->w.stats = NULL;
    self->stats = NULL;
    stats->open = 0;
    lw_loopstats_list(stats, -1);
    if (lw_handlerun_need(-1) < 0) {
        PyErr_Clear();
    }
    Py_DECREF(stats);
}

static PyObject *
watch_stats_close(Watch *self, PyObject *Py_UNUSED(unused))
{
    if (self->stats != NULL && --self->stats->open <= 0) {
        stats_drop(self);
    }
    Py_RETURN_NONE;
}

static PyObject *
watch_abandon(Watch *self, PyObject *Py_UNUSED(unused))
{
    lw_watch_detach(self);
    Py_RETURN_NONE;
}

static PyObject *
watch_get_kind(Watch *self, void *Py_UNUSED(unused))
{
    return PyUnicode_FromString(kind_names[self->w.kind]);
}

static PyObject *
watch_get_exact(Watch *self, void *Py_UNUSED(unused))
{
    return PyBool_FromLong(self->w.kind != LW_GENERIC);
}

static PyObject *
watch_get_scopes(Watch *self, void *Py_UNUSED(unused))
{
    return PyLong_FromLong(self->nscopes);
}

static PyMethodDef watch_methods[] = {
    {"open_scope", (PyCFunction)(void (*)(void))watch_open_scope, METH_VARARGS | METH_KEYWORDS,
     "open_scope(threshold_ns, interval_ns, on_block=None) -> Scope"},
    {"busy", (PyCFunction)watch_busy, METH_NOARGS, "The loop starts to work now."},
    {"idle", (PyCFunction)watch_idle, METH_NOARGS, "The loop waits for I/O from now on."},
    {"stats_open", (PyCFunction)watch_stats_open, METH_NOARGS, "Count spans and callbacks from now on -> LoopStats"},
    {"stats_close", (PyCFunction)watch_stats_close, METH_NOARGS, "No longer; the LoopStats stays readable."},
    {"abandon", (PyCFunction)watch_abandon, METH_NOARGS, "Take the probe away; scopes stay, and find nothing more."},
    {NULL, NULL, 0, NULL},
};
static PyObject *
watch_get_busy_since(Watch *self, void *Py_UNUSED(unused))
{
    return PyLong_FromUnsignedLongLong(atomic_load_explicit(&self->w.busy, memory_order_relaxed));
}

static PyGetSetDef watch_getset[] = {
    {"busy_since", (getter)watch_get_busy_since, NULL, "When the span that lasts began (monotonic ns); 0: it waits.",
     NULL},
    {"kind", (getter)watch_get_kind, NULL, "Kind of probe.", NULL},
    {"exact", (getter)watch_get_exact, NULL, "Whether spans are measured by a probe.", NULL},
    {"scopes", (getter)watch_get_scopes, NULL, "Number of open scopes.", NULL},
    {NULL, NULL, NULL, NULL, NULL},
};
static PyType_Slot watch_slots[] = {
    {Py_tp_doc, "One watched loop."}, {Py_tp_new, PyType_GenericNew}, {Py_tp_init, watch_tp_init},
    {Py_tp_traverse, watch_traverse}, {Py_tp_clear, watch_clear},     {Py_tp_dealloc, watch_dealloc},
    {Py_tp_methods, watch_methods},   {Py_tp_getset, watch_getset},   {0, NULL},
};
static PyType_Spec watch_spec = {"loopwatch._core.Watch", sizeof(Watch), 0,
                                 Py_TPFLAGS_DEFAULT | Py_TPFLAGS_HAVE_GC | Py_TPFLAGS_IMMUTABLETYPE, watch_slots};

int
lw_watch_init(PyObject *module)
{
    if (lw_watch_type == NULL) {
        lw_watch_type = (PyTypeObject *)PyType_FromModuleAndSpec(module, &watch_spec, NULL);
    }
    if (lw_watch_type == NULL || PyModule_AddType(module, lw_watch_type) < 0) {
        return -1;
    }
    lw_watchdog_set_drain(lw_drain_generic);
    return 0;
}
