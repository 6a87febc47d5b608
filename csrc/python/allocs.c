/* allocs.c: see allocs.h. */
#include "allocs.h"

#include <math.h>
#include <stdlib.h>

#include "../core/clock.h"
#include "allocbook.h"
#include "layout.h"

typedef struct {
    PyMemAllocatorDomain domain;
    PyMemAllocatorEx original;
    int installed;
} hook;

static struct {
    int on, inside;
    int64_t left;             /* bytes until the next sample */
    double mean;
    uint64_t random;
    uint64_t taken, dropped, started_ns;
    PyObject *running_loop, *current_task; /* owned: asyncio's C functions, or NULL */
    PyObject *tasks_by_loop;               /* owned: what 3.11 has in place of current_task, a dict, or NULL */
} state;

static hook hooks[2] = {{PYMEM_DOMAIN_MEM, {0}, 0}, {PYMEM_DOMAIN_OBJ, {0}, 0}};

/* Bytes until the next sample: exponential with the mean asked for. */
static int64_t
next_interval(void)
{
    state.random ^= state.random << 13;
    state.random ^= state.random >> 7;
    state.random ^= state.random << 17;
    double uniform = ((double)(state.random >> 11) + 0.5) / 9007199254740992.0;
    return (int64_t)(-log(uniform) * state.mean) + 1;
}

/* The qualified name of the running task's coroutine: a new reference, or NULL.  Makes no object. */
static PyObject *
running_coroutine(void)
{
    PyObject *loop = NULL, *task = NULL, *coroutine = NULL, *name = NULL;
    if (state.running_loop == NULL || lw_alay.task_coro == 0 || lw_alay.coro_qualname == 0) {
        return NULL;
    }
    loop = PyObject_CallNoArgs(state.running_loop);
    if (loop != NULL && loop != Py_None && Py_TYPE(loop)->tp_hash == PyBaseObject_Type.tp_hash) { /* none of its own */
        task = state.current_task != NULL ? PyObject_CallOneArg(state.current_task, loop)
                                          : Py_XNewRef(PyDict_GetItemWithError(state.tasks_by_loop, loop));
    }
    if (task != NULL && (uintptr_t)Py_TYPE(task) == lw_alay.task_type) {
        coroutine = *(PyObject **)((char *)task + lw_alay.task_coro);
        if (coroutine != NULL && PyCoro_CheckExact(coroutine)) {
            name = Py_XNewRef(*(PyObject **)((char *)coroutine + lw_alay.coro_qualname));
        }
    }
    Py_XDECREF(task);
    Py_XDECREF(loop);
    return name;
}

/* A call that counts bytes crossed the line: write it down. */
static void
take(uintptr_t at, size_t size)
{
    PyObject *type, *value, *traceback;
    state.left = next_interval();
    if (at == 0 || state.inside || !lw_thread_is_attached()) {
        return;
    }
    if (lw_allocbook_live() >= LW_ALLOC_MAX) {
        state.dropped++;
        return;
    }
    state.inside = 1;
    int collecting = PyGC_Disable();
    PyErr_Fetch(&type, &value, &traceback);
    lw_allocbook_strike_out(at); /* one that was freed behind our back */
    lw_alloc_sample new = {.at = at, .size = size, .born_ns = lw_now_ns()};
    new.weight = (uint64_t)((double)size / -expm1(-(double)size / state.mean));
    new.creation = lw_creation_here_quiet(0);
    new.coroutine = running_coroutine(); /* calls C functions: the table may change meanwhile */
    lw_allocbook_put(&new);
    state.taken++;
    PyErr_Restore(type, value, traceback);
    if (collecting) {
        PyGC_Enable();
    }
    state.inside = 0;
}

static inline void
allocated(void *at, size_t size)
{
    state.left -= (int64_t)size;
    if (state.left < 0 && state.on) {
        take((uintptr_t)at, size ? size : 1);
    }
}

static inline void
freed(void *at)
{
    if (*lw_alloc_filter_at((uintptr_t)at) != 0 && at != NULL) {
        lw_allocbook_strike_out((uintptr_t)at);
    }
}

static void *
hook_malloc(void *ctx, size_t size)
{
    PyMemAllocatorEx *original = &((hook *)ctx)->original;
    void *at = original->malloc(original->ctx, size);
    allocated(at, size);
    return at;
}

static void *
hook_calloc(void *ctx, size_t count, size_t size)
{
    PyMemAllocatorEx *original = &((hook *)ctx)->original;
    void *at = original->calloc(original->ctx, count, size);
    allocated(at, at != NULL ? count * size : 0);
    return at;
}

static void *
hook_realloc(void *ctx, void *before, size_t size)
{
    PyMemAllocatorEx *original = &((hook *)ctx)->original;
    void *at = original->realloc(original->ctx, before, size);
    if (at != NULL) { /* else the old one stands */
        freed(before);
        allocated(at, size);
    }
    return at;
}

static void
hook_free(void *ctx, void *at)
{
    PyMemAllocatorEx *original = &((hook *)ctx)->original;
    freed(at);
    original->free(original->ctx, at);
}

static int
on_top(const hook *h)
{
    PyMemAllocatorEx now;
    PyMem_GetAllocator(h->domain, &now);
    return now.malloc == hook_malloc && now.ctx == h;
}

/* Does an allocation come by here?  Another tool may have put the allocators back over us. */
static int
reached(const hook *h)
{
    int64_t left = state.left;
    state.left = INT64_MAX;
    void *probe = h->domain == PYMEM_DOMAIN_MEM ? PyMem_Malloc(1) : PyObject_Malloc(1);
    int came = state.left != INT64_MAX;
    if (h->domain == PYMEM_DOMAIN_MEM) {
        PyMem_Free(probe);
    }
    else {
        PyObject_Free(probe);
    }
    state.left = left;
    return came;
}

static void
install(hook *h)
{
    PyMemAllocatorEx ours = {h, hook_malloc, hook_calloc, hook_realloc, hook_free};
    if (h->installed && !reached(h)) {
        h->installed = 0; /* somebody who was there before us ended, and put back what he had found */
    }
    if (!h->installed) {
        PyMem_GetAllocator(h->domain, &h->original);
        PyMem_SetAllocator(h->domain, &ours);
        h->installed = 1;
    }
}

static void
uninstall(hook *h)
{
    if (h->installed && on_top(h)) {
        PyMem_SetAllocator(h->domain, &h->original);
        h->installed = 0;
    }
}

static PyObject *
asyncio_function(const char *name)
{
    PyObject *module = PyImport_ImportModule("_asyncio");
    PyObject *function = module ? PyObject_GetAttrString(module, name) : NULL;
    PyErr_Clear();
    Py_XDECREF(module);
    return function;
}

static PyObject *
alloc_start(PyObject *Py_UNUSED(module), PyObject *arg)
{
    Py_ssize_t mean = PyLong_AsSsize_t(arg);
    if (mean == -1 && PyErr_Occurred()) {
        return NULL;
    }
    if (mean < 1) {
        return PyErr_Format(PyExc_ValueError, "sample_bytes must be at least 1, got %zd", mean);
    }
    if (state.on) {
        PyErr_SetString(PyExc_RuntimeError, "allocations are being sampled already: stop that first");
        return NULL;
    }
    if (!lw_layout_ok()) {
        return PyErr_Format(PyExc_RuntimeError, "allocations cannot be sampled with this interpreter: %s",
                            lw_layout_text());
    }
    if (lw_allocbook_open() < 0) {
        return PyErr_NoMemory();
    }
    lw_layout_asyncio();
    Py_XSETREF(state.running_loop, asyncio_function("_get_running_loop"));
    Py_XSETREF(state.current_task, asyncio_function("current_task"));
    Py_XSETREF(state.tasks_by_loop, asyncio_function("_current_tasks"));
    if (state.current_task == NULL && (state.tasks_by_loop == NULL || !PyDict_CheckExact(state.tasks_by_loop))) {
        Py_CLEAR(state.running_loop);
    }
    state.mean = (double)mean;
    state.random = lw_now_ns() | 1;
    state.left = next_interval();
    state.taken = state.dropped = 0;
    state.started_ns = lw_now_ns();
    state.on = 1;
    install(&hooks[0]);
    install(&hooks[1]);
    Py_RETURN_NONE;
}

static PyObject *
alloc_stop(PyObject *Py_UNUSED(module), PyObject *Py_UNUSED(unused))
{
    state.on = 0;
    lw_allocbook_blind();
    uninstall(&hooks[0]);
    uninstall(&hooks[1]);
    lw_allocbook_clear();
    if (!hooks[0].installed && !hooks[1].installed) {
        lw_allocbook_free();
    }
    lw_allocbook_dig();
    Py_CLEAR(state.running_loop);
    Py_CLEAR(state.current_task);
    Py_CLEAR(state.tasks_by_loop);
    Py_RETURN_NONE;
}

static PyObject *
alloc_read(PyObject *Py_UNUSED(module), PyObject *Py_UNUSED(unused))
{
    PyObject *list = NULL, *frames = NULL, *entry = NULL;
    lw_alloc_sample *copy = NULL;
    size_t n;

    if (!state.on) {
        PyErr_SetString(PyExc_RuntimeError, "allocations are not being sampled: start that first");
        return NULL;
    }
    if (!reached(&hooks[0]) || !reached(&hooks[1])) {
        PyErr_SetString(
            PyExc_RuntimeError,
            "the sampling of allocations was cut off: a tool that was on before it, such as tracemalloc, was "
            "stopped and put the allocators back as it had found them. Stop this trace, and start it anew");
        return NULL;
    }
    state.inside++; /* what this makes is no part of the picture */
    lw_allocbook_dig();
    copy = lw_allocbook_copy(&n); /* building the list frees and allocates */
    list = copy ? PyList_New(0) : PyErr_NoMemory();
    for (size_t i = 0; i < n; i++) {
        if (list != NULL) {
            frames = lw_creation_frames(copy[i].creation);
            entry = frames == NULL ? NULL
                                   : Py_BuildValue("(OOKKKK)", frames, copy[i].coroutine ? copy[i].coroutine : Py_None,
                                                   (unsigned long long)copy[i].size, (unsigned long long)copy[i].weight,
                                                   (unsigned long long)copy[i].born_ns,
                                                   (unsigned long long)(uintptr_t)copy[i].creation);
            if (entry == NULL || PyList_Append(list, entry) < 0) {
                Py_CLEAR(list);
            }
            Py_CLEAR(entry);
            Py_CLEAR(frames);
        }
        lw_creation_decref(copy[i].creation);
        Py_XDECREF(copy[i].coroutine);
    }
    free(copy);
    state.inside--;
    return list;
}

static PyObject *
alloc_info(PyObject *Py_UNUSED(module), PyObject *Py_UNUSED(unused))
{
    return Py_BuildValue("{s:O,s:n,s:K,s:K,s:d,s:K}", "on", state.on ? Py_True : Py_False, "live",
                         (Py_ssize_t)lw_allocbook_live(), "taken", (unsigned long long)state.taken, "dropped",
                         (unsigned long long)state.dropped, "sample_bytes", state.mean, "started_ns",
                         (unsigned long long)state.started_ns);
}

void
lw_allocs_pause(void)
{
    state.on = 0;
    lw_allocbook_blind(); /* nor look up what is freed: pending calls are over */
}

static PyMethodDef functions[] = {
    {"alloc_start", alloc_start, METH_O, "alloc_start(sample_bytes): sample allocations from now on."},
    {"alloc_stop", alloc_stop, METH_NOARGS, "Forget all samples and put the allocators back."},
    {"alloc_read", alloc_read, METH_NOARGS, "The samples not freed yet."},
    {"alloc_info", alloc_info, METH_NOARGS, "Numbers about the sampling."},
    {NULL, NULL, 0, NULL},
};

int
lw_allocs_init(PyObject *module)
{
    return PyModule_AddFunctions(module, functions);
}
