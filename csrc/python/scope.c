/* scope.c: Scope, and the judge: which spans are whose blocks (see watch.h). */
#include "watch.h"

#include "../core/clock.h"
#include "callbacks.h"

PyTypeObject *lw_scope_type;

void
lw_scope_bounds(Watch *self)
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
        PyObject *told = Py_NewRef(scope->on_block), *result = PyObject_CallOneArg(told, block);
        if (result == NULL) {
            lw_callback_failed(told);
        }
        Py_XDECREF(result);
        Py_DECREF(told);
        return;
    }
    if (PyList_GET_SIZE(scope->found) >= LW_MAX_FOUND) {
        (void)PyList_SetSlice(scope->found, 0, 1, NULL);
    }
    if (PyList_Append(scope->found, block) < 0) {
        PyErr_WriteUnraisable((PyObject *)scope);
    }
}

/* The span, clipped to one scope that was ENTERED then: its block, or nothing. */
static void
judge(Watch *self, Scope *scope, uint64_t entered, uint64_t start, uint64_t end)
{
    uint64_t from = start > entered ? start : entered;
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

/* Hold the sampler still.  The span that began at START (0: the one that goes on) ends here (OVER) or goes on behind a
 * scope; the mark of a working loop goes only after a stop was accounted for, by us or the watchdog.  Returns START. */
static uint64_t
pin(Watch *self, uint64_t start, uint64_t end, int over)
{
    lw_watch_lock(&self->w);
    lw_account_gap(&self->w, end);
    start = start == 0 ? atomic_load(&self->w.busy) : start;
    if (over) {
        atomic_store(&self->w.busy, 0);
    }
    if (start != 0 && self->w.sampler.span != start) { /* never sampled */
        lw_sampler_begin(&self->w.sampler, start);
    }
    self->w.pinned++;
    lw_watch_unlock(&self->w);
    return start;
}

/* Let it go on; where the loop was forgotten meanwhile, end it. */
static void
unpin(Watch *self)
{
    lw_watch_lock(&self->w);
    self->w.pinned--;
    lw_watch_unlock(&self->w);
    if (self->w.pinned == 0 && self->w.slot == NULL) {
        lw_sampler_close(&self->w.sampler);
    }
}

void
lw_span_end(Watch *self, uint64_t start, uint64_t end)
{
    PyObject *type, *value, *traceback;
    PyErr_Fetch(&type, &value, &traceback);
    Py_INCREF(self);
    (void)pin(self, start, end, self->w.kind != LW_GENERIC);
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
                judge(self, s, s->entered, start, end);
            }
            Py_DECREF(s);
        }
    }
    PyMem_Free(copy);
    unpin(self);
    Py_DECREF(self);
    PyErr_Restore(type, value, traceback);
}

PyObject *
lw_scope_open(Watch *watch, uint64_t threshold, uint64_t interval, PyObject *on_block)
{
    Scope *scope = PyObject_GC_New(Scope, lw_scope_type);
    if (scope == NULL) {
        return NULL;
    }
    scope->watch = NULL;
    scope->next = NULL;
    scope->on_block = Py_XNewRef(on_block);
    scope->threshold = threshold;
    scope->interval = interval;
    scope->found = PyList_New(0);
    PyObject_GC_Track(scope);
    if (scope->found == NULL) {
        Py_DECREF(scope);
        return NULL;
    }
    scope->watch = (Watch *)Py_NewRef(watch);
    scope->next = watch->scopes;
    watch->scopes = scope;
    watch->nscopes++;
    lw_scope_bounds(watch);
    lw_watchdog_hurry(threshold);
    scope->entered = lw_now_ns();
    return (PyObject *)scope;
}

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
    lw_scope_bounds(watch);
    if (watch->nscopes == 0) {
        lw_watch_detach(watch);
    }
    Py_DECREF(watch);
}

/* The span that goes on, as if it ended now for this scope; what comes after is another one.  From any thread. */
static void
judge_so_far(Scope *self)
{
    Watch *watch = (Watch *)Py_NewRef(self->watch);
    uint64_t now = lw_now_ns(), entered = self->entered, busy;
    if (watch->w.kind == LW_GENERIC) {
        lw_watch_drain(watch);
    }
    self->entered = now; /* before anything is told of: meanwhile the span may end */
    busy = atomic_load(&watch->w.busy);
    if (watch->attached && busy != 0 && busy < now && now - busy >= self->threshold) {
        busy = pin(watch, 0, now, 0);
        if (busy != 0 && busy < now) {
            judge(watch, self, entered, busy, now);
        }
        unpin(watch);
    }
    Py_DECREF(watch);
}

static void
scope_shut(Scope *self)
{
    if (self->watch != NULL) {
        judge_so_far(self);
    }
    if (self->watch != NULL) { /* whoever was told of a block may have closed it */
        scope_unlink(self);
    }
}

static PyObject *
scope_cut(Scope *self, PyObject *Py_UNUSED(unused))
{
    Py_INCREF(self);
    if (self->watch != NULL) {
        judge_so_far(self);
    }
    Py_DECREF(self);
    Py_RETURN_NONE;
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
    {"cut", (PyCFunction)scope_cut, METH_NOARGS,
     "Take what the loop is busy with now for ended: the process is about to end.  From any thread."},
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
lw_scope_init(PyObject *module)
{
    if (lw_scope_type == NULL) {
        lw_scope_type = (PyTypeObject *)PyType_FromModuleAndSpec(module, &scope_spec, NULL);
    }
    return lw_scope_type == NULL ? -1 : PyModule_AddType(module, lw_scope_type);
}
