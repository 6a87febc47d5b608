/* probe_uv.c: the probe of uvloop, through its libuv.
 *
 * uvloop hands out its uv_loop_t; libuv runs "prepare" handles just before it
 * polls and "check" handles just after.  Both callbacks run on the loop's
 * thread without the GIL; only a span that is long enough for a scope takes it.
 *
 * While uvloop has callbacks to run, its idle handle is active and libuv polls
 * without waiting: such a poll only marks the border of an iteration, and the
 * check callback has nothing to do.  The border is kept in ticks of the CPU
 * (ticks.h), and becomes a reading of the clock where a millisecond went by
 * since the last one: until then nothing can have been long.  So the begin that
 * the watchdog sees is up to a millisecond old, and the one of a block exact.
 *
 * Where the handle is not active and libuv will not wait all the same
 * (uv_backend_timeout is 0), each border is read.  That function also says 0
 * while descriptors wait to be registered, so the check callback then asks the
 * clock whether time went by after all.
 *
 * libuv runs I/O callbacks (a protocol's data_received) inside its poll, before
 * the check callback.  Its clock, in milliseconds, was read as the poll
 * returned, so after a wait the span begins with that millisecond, or with the
 * poll if that is later.  A callback that starts a timer sets that clock anew:
 * then the span begins where the watchdog met the thread outside of the poll
 * call (look.c), up to a quarter threshold later.
 *
 * libuv's functions are looked up in uvloop's own extension module, which
 * exports them or is linked with them; sizes come from uv_handle_size.  The
 * handles are unref'd, so they keep no loop alive; their memory is freed by
 * their close callbacks.  uvloop's close() fails over handles that are not its
 * own, so an instance attribute `close` takes ours away first and then calls
 * the method of the class; it is removed again with the probe.  An instance
 * that has a dict costs every look-up on it some ten nanoseconds, and a running
 * loop cannot be closed: the attribute stands only while the loop is stopped or
 * about to stop, which uv_loop_t's public field `stop_flag` tells.  Where that
 * lies is found out by uv_stop() on a loop of our own; not found: it stands for
 * as long as the probe. */
#include "watch.h"

#include <dlfcn.h>
#include <stdlib.h>

#include "../core/clock.h"
#include "../core/sysname.h"
#include "../core/ticks.h"
#include "loopstats.h"

#define UV_CHECK 2
#define UV_IDLE 6
#define UV_PREPARE 9

typedef void (*handle_cb)(void *handle);
static struct {
    int ready;
    int (*prepare_init)(void *loop, void *handle);
    int (*prepare_start)(void *handle, handle_cb cb);
    int (*check_init)(void *loop, void *handle);
    int (*check_start)(void *handle, handle_cb cb);
    void (*close)(void *handle, handle_cb cb);
    void (*unref)(void *handle);
    size_t (*handle_size)(int type);
    void (*walk)(void *loop, void (*visit)(void *handle, void *arg), void *arg);
    int (*is_active)(const void *handle);
    int (*is_closing)(const void *handle);
    int (*backend_timeout)(const void *loop);
    uint64_t (*now)(const void *loop);
    size_t stop_flag; /* its offset; 0: not known */
} uv;

/* One probe: this head, then the two handles.  Owned by libuv until both are closed. */
typedef struct {
    Watch *watch; /* borrowed; NULL once detached */
    void *loop;
    int open;     /* handles not closed yet */
    int closable; /* the attribute `close` stands */
    void *idle;   /* borrowed: uvloop's handle; NULL: not found, or it is being closed */
    enum { WAITS, MAY_WAIT, STEPS } poll; /* what is known of the poll that comes or is on */
    uint64_t polled; /* when it began; not read where it only steps */
    uint64_t border; /* the last border, in ticks; 0: the span's begin is exact */
    uint64_t marked; /* the last one that became a reading of the clock, in ticks */
    uint64_t millisecond; /* in ticks */
} uv_probe;

#define ALIGNED(n) (((n) + 15) & ~(size_t)15)

static void *
prepare_of(uv_probe *p)
{
    return (char *)p + ALIGNED(sizeof(uv_probe));
}

static void *
check_of(uv_probe *p)
{
    return (char *)prepare_of(p) + ALIGNED(uv.handle_size(UV_PREPARE));
}

static inline int
may_be_closed(const uv_probe *p)
{
    return uv.stop_flag == 0 || *(const unsigned int *)((const char *)p->loop + uv.stop_flag) != 0;
}

/* Put the attribute `close` there, or take it away if it is still ours.  Under the GIL; no exception stays. */
static void
set_closable(uv_probe *p, int closable)
{
    PyObject *loop = Py_NewRef(p->watch->loop), *closer = Py_XNewRef(p->watch->probe), *dict = NULL;
    p->closable = closable;
    if (closable) {
        (void)PyObject_SetAttrString(loop, "close", closer);
    }
    else {
        dict = PyObject_GenericGetDict(loop, NULL);
        if (dict != NULL && PyDict_GetItemString(dict, "close") == closer) {
            (void)PyObject_SetAttrString(loop, "close", NULL);
        }
    }
    PyErr_Clear();
    Py_XDECREF(dict);
    Py_XDECREF(closer);
    Py_DECREF(loop);
}

/* The last border in ns, of which only ticks are known, before NOW.  The span that the watchdog saw begins there. */
static uint64_t
settle_border(uv_probe *p, lw_watch *w, uint64_t now, uint64_t ticks)
{
    uint64_t busy = atomic_load_explicit(&w->busy, memory_order_relaxed), ago, start;
    if (p->border == 0 || busy == 0) {
        return busy;
    }
    ago = lw_ticks_ns(ticks - p->border);
    start = ago < now && now - ago > busy ? now - ago : busy;
    if (lw_span_is_long(w, start, now)) {
        lw_watch_lock(w);
        if (w->sampler.span == busy) {
            w->sampler.span = start;
        }
        atomic_store_explicit(&w->busy, start, memory_order_release);
        lw_watch_unlock(w);
    }
    return start;
}

/* The span is over at NOW; 0 when the probe was taken away by who was told of it. */
static int
end_span(uv_probe *p, lw_watch *w, uint64_t start, uint64_t *now)
{
    if (w->stats != NULL) {
        lw_loopstats_span(w->stats, start, *now);
    }
    if (lw_span_is_long(w, start, *now)) {
        PyGILState_STATE state = PyGILState_Ensure();
        Watch *watch = (Watch *)Py_XNewRef(p->watch);
        if (watch != NULL) {
            lw_adopt_thread(w);
            lw_span_end(watch, start, *now);
            *now = lw_now_ns();
        }
        int gone = p->watch == NULL;
        Py_XDECREF(watch);
        PyGILState_Release(state);
        return !gone;
    }
    return 1;
}

static void
on_prepare(void *handle)
{
    uv_probe *p = (uv_probe *)((char *)handle - ALIGNED(sizeof(uv_probe)));
    uint64_t ticks = 0;
    if (p->watch == NULL) {
        return;
    }
    if (may_be_closed(p) != p->closable) {
        PyGILState_STATE state = PyGILState_Ensure();
        set_closable(p, !p->closable);
        PyGILState_Release(state);
        if (p->watch == NULL) {
            return;
        }
    }
    lw_watch *w = &p->watch->w;
    if (p->idle != NULL && uv.is_active(p->idle)) {
        ticks = lw_ticks();
        p->poll = STEPS;
        if (ticks - p->marked < p->millisecond && w->stats == NULL) {
            p->border = ticks;
            return;
        }
    }
    else {
        p->poll = uv.backend_timeout(p->loop) == 0 ? MAY_WAIT : WAITS;
        if (p->idle != NULL && uv.is_closing(p->idle)) {
            p->idle = NULL;
        }
    }
    uint64_t now = lw_now_ns(), start = settle_border(p, w, now, ticks ? ticks : lw_ticks());
    if (!end_span(p, w, start, &now)) {
        return;
    }
    p->polled = now;
    p->border = p->marked = p->poll == STEPS ? lw_ticks() : 0;
    if (p->poll == WAITS) {
        atomic_store_explicit(&w->busy, 0, memory_order_release);
    }
    else {
        lw_mark_busy(w, now);
    }
}

/* A poll that may have waited is over, and so are its callbacks: the span began when it returned. */
static void
begin_span(uv_probe *p, lw_watch *w)
{
    uint64_t start = uv.now(p->loop) * 1000000, busy = atomic_load_explicit(&w->busy, memory_order_relaxed);
    start = start < p->polled ? p->polled : start;
    if (p->poll == MAY_WAIT && busy != 0 && lw_now_ns() - busy < 1000000) {
        return; /* it did not */
    }
    if (busy != 0) { /* the watchdog met a callback, or saw nobody wait */
        const lw_sampler *seen = &w->sampler;
        lw_watch_lock(w);
        int met = p->poll == MAY_WAIT ? seen->span == busy && seen->n > 0 && !lw_syscall_is_poll(seen->segs[0].syscall)
                                      : atomic_load(&w->met) > 1;
        if (busy < start && met) {
            start = busy;
        }
        if (w->sampler.span == busy) { /* the samples taken meanwhile are of this span */
            w->sampler.span = start;
        }
        lw_mark_busy(w, start);
        lw_watch_unlock(w);
        return;
    }
    lw_mark_busy(w, start);
}

static void
on_check(void *handle)
{
    uv_probe *p = (uv_probe *)((char *)handle - ALIGNED(uv.handle_size(UV_PREPARE)) - ALIGNED(sizeof(uv_probe)));
    if (p->poll != STEPS && p->watch != NULL) {
        begin_span(p, &p->watch->w);
    }
}

static void
on_closed_prepare(void *handle)
{
    uv_probe *p = (uv_probe *)((char *)handle - ALIGNED(sizeof(uv_probe)));
    if (--p->open == 0) {
        free(p);
    }
}

static void
on_closed_check(void *handle)
{
    uv_probe *p = (uv_probe *)((char *)handle - ALIGNED(uv.handle_size(UV_PREPARE)) - ALIGNED(sizeof(uv_probe)));
    if (--p->open == 0) {
        free(p);
    }
}

/* The offset of stop_flag: what uv_stop() changes of a loop, from all zeros to one; 0 where that is not so plain. */
static size_t
find_stop_flag(void *lib)
{
    int (*init)(void *) = NULL, (*end)(void *) = NULL;
    void (*stop)(void *) = NULL;
    size_t (*size_of)(void) = NULL, found = 0;
    unsigned int *before, *after;
    *(void **)&init = dlsym(lib, "uv_loop_init");
    *(void **)&end = dlsym(lib, "uv_loop_close");
    *(void **)&stop = dlsym(lib, "uv_stop");
    *(void **)&size_of = dlsym(lib, "uv_loop_size");
    if (!init || !end || !stop || !size_of) {
        return 0;
    }
    size_t size = size_of() / sizeof(*before) * sizeof(*before);
    after = calloc(1, size_of());
    before = malloc(size);
    if (after != NULL && before != NULL && init(after) == 0) {
        int changes = 0;
        memcpy(before, after, size);
        stop(after);
        for (size_t i = 0; i < size / sizeof(*before); i++) {
            if (after[i] != before[i]) {
                changes++;
                found = before[i] == 0 && after[i] == 1 ? i * sizeof(*before) : 0;
            }
        }
        found = changes == 1 ? found : 0;
        (void)end(after);
    }
    free(before);
    free(after);
    return found;
}

/* Look libuv's functions up in the file of the module uvloop.loop. */
static const char *
find_functions(void)
{
    PyObject *module = NULL, *file = NULL;
    const char *why = NULL;
    void *lib;

    if (uv.ready) {
        return NULL;
    }
    module = PyImport_ImportModule("uvloop.loop");
    file = module ? PyObject_GetAttrString(module, "__file__") : NULL;
    const char *path = file ? PyUnicode_AsUTF8(file) : NULL;
    if (path == NULL) {
        why = "the module uvloop.loop has no file";
        goto done;
    }
    lib = dlopen(path, RTLD_NOW | RTLD_NOLOAD);
    if (lib == NULL) {
        why = "uvloop's extension module cannot be opened";
        goto done;
    }
    *(void **)&uv.prepare_init = dlsym(lib, "uv_prepare_init");
    *(void **)&uv.prepare_start = dlsym(lib, "uv_prepare_start");
    *(void **)&uv.check_init = dlsym(lib, "uv_check_init");
    *(void **)&uv.check_start = dlsym(lib, "uv_check_start");
    *(void **)&uv.close = dlsym(lib, "uv_close");
    *(void **)&uv.unref = dlsym(lib, "uv_unref");
    *(void **)&uv.handle_size = dlsym(lib, "uv_handle_size");
    *(void **)&uv.walk = dlsym(lib, "uv_walk");
    *(void **)&uv.is_active = dlsym(lib, "uv_is_active");
    *(void **)&uv.is_closing = dlsym(lib, "uv_is_closing");
    *(void **)&uv.backend_timeout = dlsym(lib, "uv_backend_timeout");
    *(void **)&uv.now = dlsym(lib, "uv_now");
    if (!uv.prepare_init || !uv.prepare_start || !uv.check_init || !uv.check_start || !uv.close || !uv.unref
        || !uv.handle_size || !uv.backend_timeout || !uv.now) {
        why = "uvloop's extension module does not export libuv's functions";
        goto done;
    }
    uv.stop_flag = find_stop_flag(lib);
    lw_ticks_start();
    uv.ready = 1; /* the handle of dlopen is kept: the module is never unloaded */
done:
    PyErr_Clear();
    Py_XDECREF(file);
    Py_XDECREF(module);
    return why;
}

static void *
loop_pointer(PyObject *loop)
{
    PyObject *module = PyImport_ImportModule("uvloop.loop"), *capsule = NULL;
    void *pointer = NULL;
    if (module != NULL) {
        capsule = PyObject_CallMethod(module, "libuv_get_loop_t_ptr", "O", loop);
    }
    if (capsule != NULL && PyCapsule_CheckExact(capsule)) {
        pointer = PyCapsule_GetPointer(capsule, PyCapsule_GetName(capsule));
    }
    Py_XDECREF(capsule);
    Py_XDECREF(module);
    PyErr_Clear();
    return pointer;
}

int
lw_probe_uv_find(PyObject *loop, char *why, size_t cap)
{
    const char *reason = find_functions();
    if (reason == NULL && loop_pointer(loop) == NULL) {
        reason = "uvloop does not hand out its uv_loop_t";
    }
    if (reason != NULL) {
        snprintf(why, cap, "%s", reason);
        return -1;
    }
    return 0;
}

/* loop.close() while the probe is installed. */
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

static PyMethodDef close_def = {"close", (PyCFunction)close_loop, METH_NOARGS, "Close the event loop."};

static void
drop_watch(PyObject *capsule)
{
    Py_XDECREF((PyObject *)PyCapsule_GetPointer(capsule, "loopwatch.watch"));
}

/* How every handle begins, in the words of libuv's public header. */
typedef struct {
    void *data;
    void *loop;
    int type;
} uv_head;

/* uvloop has one idle handle a loop, active while callbacks are ready; of several none would tell that. */
typedef struct {
    void *handle;
    int count;
} idle_search;

static void
visit_handle(void *handle, void *arg)
{
    idle_search *search = arg;
    if (((const uv_head *)handle)->type == UV_IDLE) {
        search->handle = handle;
        search->count++;
    }
}

static void
find_idle(uv_probe *p)
{
    idle_search search = {NULL, 0};
    const uv_head *prepare = prepare_of(p), *check = check_of(p);
    int known = prepare->type == UV_PREPARE && check->type == UV_CHECK && prepare->loop == p->loop;
    if (known && uv.walk != NULL && uv.is_active != NULL && uv.is_closing != NULL) {
        uv.walk(p->loop, visit_handle, &search);
    }
    p->idle = search.count == 1 ? search.handle : NULL;
    p->millisecond = lw_ticks_of(1000000);
}

int
lw_probe_uv_attach(Watch *self)
{
    void *loop = loop_pointer(self->loop);
    PyObject *capsule = NULL, *closer = NULL, *running = NULL;
    uv_probe *p = NULL;

    if (loop == NULL || !uv.ready) {
        PyErr_SetString(PyExc_RuntimeError, "uvloop did not hand out its uv_loop_t: the loop is closed");
        return -1;
    }
    capsule = PyCapsule_New(Py_NewRef(self), "loopwatch.watch", drop_watch);
    closer = capsule ? PyCFunction_New(&close_def, capsule) : NULL;
    p = calloc(1, ALIGNED(sizeof(*p)) + ALIGNED(uv.handle_size(UV_PREPARE)) + uv.handle_size(UV_CHECK));
    if (closer == NULL || p == NULL) {
        if (!PyErr_Occurred()) {
            PyErr_NoMemory();
        }
        free(p);
        Py_XDECREF(closer);
        Py_XDECREF(capsule);
        return -1;
    }
    p->watch = self;
    p->loop = loop;
    p->open = 2;
    uv.prepare_init(loop, prepare_of(p)); /* these four cannot fail */
    uv.check_init(loop, check_of(p));
    uv.prepare_start(prepare_of(p), on_prepare);
    uv.check_start(check_of(p), on_check);
    uv.unref(prepare_of(p));
    uv.unref(check_of(p));
    find_idle(p);
    self->uv = p;
    Py_XSETREF(self->probe, closer);
    Py_DECREF(capsule);
    running = PyObject_CallMethod(self->loop, "is_running", NULL);
    PyErr_Clear();
    if (running != Py_True || may_be_closed(p)) {
        set_closable(p, 1);
    }
    Py_XDECREF(running);
    return 0;
}

void
lw_probe_uv_detach(Watch *self)
{
    PyObject *type, *value, *traceback;
    uv_probe *p = self->uv;
    if (p == NULL) {
        return;
    }
    PyErr_Fetch(&type, &value, &traceback);
    if (p->closable) {
        set_closable(p, 0);
    }
    self->uv = NULL;
    p->watch = NULL;
    uv.close(prepare_of(p), on_closed_prepare);
    uv.close(check_of(p), on_closed_check);
    Py_CLEAR(self->probe);
    PyErr_Restore(type, value, traceback);
}
