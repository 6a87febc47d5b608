/* watch.c: Watch and Scope (see watch.h). */
#include "watch.h"

#include <sys/syscall.h>
#include <unistd.h>

#include "../core/clock.h"
#include "loopstats.h"
#include "layout.h"

PyTypeObject *lw_watch_type, *lw_scope_type;

static const char *const kind_names[] = {"selector-epoll", "selector", "uv", "trio", "generic"};
static Watch *generic_list[64]; /* borrowed: attached generic watches, for the drain */
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

static void
refresh_bounds(Watch *self)
{
    uint64_t threshold = UINT64_MAX, interval = UINT64_MAX;
    for (Scope *s = self->scopes; s != NULL; s = s->next) {
        threshold = s->threshold < threshold ? s->threshold : threshold;
        interval = s->interval < interval ? s->interval : interval;
    }
    atomic_store(&self->w.min_threshold, threshold);
    atomic_store(&self->w.interval, interval);
}

static void
keep(Scope *scope, PyObject *block)
{
    if (scope->on_block != NULL) {
        PyObject *result = PyObject_CallOneArg(scope->on_block, block);
        if (result == NULL) {
            PyErr_WriteUnraisable(scope->on_block);
        }
        Py_XDECREF(result);
        return;
    }
    if (PyList_GET_SIZE(scope->found) >= LW_MAX_FOUND) {
        (void)PyList_SetSlice(scope->found, 0, 1, NULL);
    }
    if (PyList_Append(scope->found, block) < 0) {
        PyErr_WriteUnraisable((PyObject *)scope);
    }
}

/* The span, clipped to one scope: its block, or nothing. */
static void
judge(Watch *self, Scope *scope, uint64_t start, uint64_t end)
{
    uint64_t from = start > scope->entered ? start : scope->entered;
    if (end <= from || end - from < scope->threshold) {
        return;
    }
    PyObject *block = lw_block_build(self, from, end, scope->threshold);
    if (block == NULL) {
        PyErr_WriteUnraisable((PyObject *)scope);
        return;
    }
    if (block != Py_None) {
        keep(scope, block);
    }
    Py_DECREF(block);
}

/* Hold the sampler still.  The span ends here (OVER) or goes on behind a scope; the
 * mark of a working loop goes only after a stop was accounted for, by us or the watchdog. */
static void
pin(Watch *self, uint64_t start, uint64_t end, int over)
{
    lw_watch_lock(&self->w);
    lw_account_gap(&self->w, end);
    if (over) {
        atomic_store(&self->w.busy, 0);
    }
    if (self->w.sampler.span != start) { /* never sampled */
        lw_sampler_begin(&self->w.sampler, start);
    }
    self->w.pinned++;
    lw_watch_unlock(&self->w);
}

static void
unpin(Watch *self)
{
    lw_watch_lock(&self->w);
    self->w.pinned--;
    lw_watch_unlock(&self->w);
}

void
lw_span_end(Watch *self, uint64_t start, uint64_t end)
{
    PyObject *type, *value, *traceback;
    PyErr_Fetch(&type, &value, &traceback);
    Py_INCREF(self);
    pin(self, start, end, self->w.kind != LW_GENERIC);
    /* A callback may open or close scopes: walk over a copy. */
    int n = self->nscopes, i = 0;
    Scope **copy = PyMem_Calloc((size_t)(n ? n : 1), sizeof(Scope *));
    if (copy != NULL) {
        for (Scope *s = self->scopes; s != NULL && i < n; s = s->next) {
            copy[i++] = (Scope *)Py_NewRef(s);
        }
        while (i > 0) { /* the outermost, oldest first */
            Scope *s = copy[--i];
            if (s->watch != NULL) {
                judge(self, s, start, end);
            }
            Py_DECREF(s);
        }
    }
    PyMem_Free(copy);
    unpin(self);
    Py_DECREF(self);
    PyErr_Restore(type, value, traceback);
}

static void
drain_one(Watch *self)
{
    uint64_t end = atomic_load(&self->w.pending_end);
    if (end != 0) {
        lw_span_end(self, atomic_load(&self->w.pending_start), end);
        atomic_store(&self->w.pending_end, 0);
    }
}

int
lw_drain_generic(void *unused)
{
    (void)unused;
    for (int i = 0; i < generic_count; i++) {
        drain_one(generic_list[i]);
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
        if (generic_count == (int)(sizeof(generic_list) / sizeof(generic_list[0]))) {
            PyErr_SetString(PyExc_RuntimeError, "at most 64 loops without a probe can be watched at once");
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

static void
detach(Watch *self)
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
    refresh_bounds(self);
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
    detach(self);
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
    Scope *scope = PyObject_GC_New(Scope, lw_scope_type);
    if (scope == NULL) {
        return NULL;
    }
    scope->watch = NULL;
    scope->next = NULL;
    scope->on_block = on_block == Py_None ? NULL : Py_NewRef(on_block);
    scope->threshold = (uint64_t)threshold;
    scope->interval = (uint64_t)interval;
    scope->found = PyList_New(0);
    PyObject_GC_Track(scope);
    if (scope->found == NULL || (!self->attached && attach(self) < 0)) {
        Py_DECREF(scope);
        return NULL;
    }
    scope->watch = (Watch *)Py_NewRef(self);
    scope->next = self->scopes;
    self->scopes = scope;
    self->nscopes++;
    refresh_bounds(self);
    lw_watchdog_hurry((uint64_t)threshold);
    scope->entered = lw_now_ns();
    return (PyObject *)scope;
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
    detach(self);
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
    {"busy_since", (getter)watch_get_busy_since, NULL, "When the span that lasts began (monotonic ns); 0: it waits.", NULL},
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

/* --- Scope --- */

static PyObject *
swap_found(Scope *self)
{
    PyObject *empty = PyList_New(0), *found;
    if (empty == NULL) {
        return NULL;
    }
    found = self->found;
    self->found = empty;
    return found;
}

/* Take an open scope off its Watch; the last one takes the probe away. */
static void
scope_unlink(Scope *self)
{
    Watch *watch = self->watch;
    for (Scope **at = &watch->scopes; *at != NULL; at = &(*at)->next) {
        if (*at == self) {
            *at = self->next;
            watch->nscopes--;
            break;
        }
    }
    self->watch = NULL;
    refresh_bounds(watch);
    if (watch->nscopes == 0) {
        detach(watch);
    }
    Py_DECREF(watch);
}

static void
scope_shut(Scope *self)
{
    Watch *watch = self->watch;
    if (watch == NULL) {
        return;
    }
    uint64_t now = lw_now_ns();
    if (watch->w.kind == LW_GENERIC) {
        drain_one(watch);
    }
    uint64_t busy = atomic_load(&watch->w.busy);
    if (watch->attached && busy != 0 && busy < now && now - busy >= self->threshold) {
        pin(watch, busy, now, 0);
        judge(watch, self, busy, now);
        unpin(watch);
    }
    scope_unlink(self);
}

static PyObject *
scope_take(Scope *self, PyObject *Py_UNUSED(unused))
{
    return swap_found(self);
}

static PyObject *
scope_close(Scope *self, PyObject *Py_UNUSED(unused))
{
    scope_shut(self);
    return swap_found(self);
}

static PyObject *
scope_get_closed(Scope *self, void *Py_UNUSED(unused))
{
    return PyBool_FromLong(self->watch == NULL);
}

static int
scope_traverse(Scope *self, visitproc visit, void *arg)
{
    Py_VISIT(Py_TYPE(self));
    Py_VISIT(self->watch);
    Py_VISIT(self->on_block);
    Py_VISIT(self->found);
    return 0;
}

static int
scope_clear(Scope *self)
{
    Py_CLEAR(self->on_block);
    return 0;
}

static void
scope_dealloc(Scope *self)
{
    PyTypeObject *type = Py_TYPE(self);
    PyObject_GC_UnTrack(self);
    if (self->watch != NULL) { /* forgotten open: unlink, judge nothing */
        scope_unlink(self);
    }
    Py_XDECREF(self->on_block);
    Py_XDECREF(self->found);
    type->tp_free(self);
    Py_DECREF(type);
}

static PyMethodDef scope_methods[] = {
    {"take", (PyCFunction)scope_take, METH_NOARGS, "The blocks found so far; they are given out once."},
    {"close", (PyCFunction)scope_close, METH_NOARGS, "End the scope; the blocks not taken yet."},
    {NULL, NULL, 0, NULL},
};
static PyGetSetDef scope_getset[] = {
    {"closed", (getter)scope_get_closed, NULL, "Whether the scope has ended.", NULL},
    {NULL, NULL, NULL, NULL, NULL},
};
static PyType_Slot scope_slots[] = {
    {Py_tp_doc, "A stretch of watching on one Watch."},
    {Py_tp_traverse, scope_traverse},
    {Py_tp_clear, scope_clear},
    {Py_tp_dealloc, scope_dealloc},
    {Py_tp_methods, scope_methods},
    {Py_tp_getset, scope_getset},
    {0, NULL},
};
static PyType_Spec scope_spec = {"loopwatch._core.Scope", sizeof(Scope), 0,
                                 Py_TPFLAGS_DEFAULT | Py_TPFLAGS_HAVE_GC | Py_TPFLAGS_IMMUTABLETYPE
                                     | Py_TPFLAGS_DISALLOW_INSTANTIATION,
                                 scope_slots};

int
lw_watch_init(PyObject *module)
{
    if (lw_watch_type == NULL) {
        lw_watch_type = (PyTypeObject *)PyType_FromModuleAndSpec(module, &watch_spec, NULL);
    }
    if (lw_scope_type == NULL) {
        lw_scope_type = (PyTypeObject *)PyType_FromModuleAndSpec(module, &scope_spec, NULL);
    }
    if (lw_watch_type == NULL || lw_scope_type == NULL || PyModule_AddType(module, lw_watch_type) < 0
        || PyModule_AddType(module, lw_scope_type) < 0) {
        return -1;
    }
    lw_watchdog_set_drain(lw_drain_generic);
    return 0;
}
