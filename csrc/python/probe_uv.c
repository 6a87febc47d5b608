/* probe_uv.c: the probe of uvloop, through its libuv.
 *
 * uvloop hands out its uv_loop_t; libuv runs "prepare" handles just before it
 * polls and "check" handles just after.  Both callbacks run on the loop's
 * thread without the GIL; only a span that is long enough for a scope takes it.
 *
 * Each poll is the border of two iterations.  It is kept in ticks of the CPU
 * (ticks.h), and becomes a reading of the clock where a millisecond went by
 * since the last one: until then nothing can have been long.  So the begin that
 * the watchdog sees is up to a millisecond old, and the one of a block exact.
 *
 * While uvloop has callbacks to run, its idle handle is active and libuv polls
 * without waiting: then the check callback has nothing to do, and after some
 * such polls in a row it is given up.  Where the handle is not active and libuv
 * will not wait all the same (uv_backend_timeout is 0), it may be that
 * descriptors wait to be registered, so the check callback asks the clock
 * whether time went by after all.
 *
 * libuv runs I/O callbacks (a protocol's data_received) inside its poll, before
 * the check callback.  Its clock, in milliseconds, was read as the poll
 * returned, so after a wait the span begins with that millisecond, or with the
 * poll if that is later.  A callback that starts a timer sets that clock anew:
 * then the span begins with what the clock said when the watchdog first met the
 * thread outside of the poll call (look.c), up to a quarter threshold later.
 *
 * The handles are unref'd, so they keep no loop alive; their memory is freed by
 * their close callbacks.  The loop can be closed only through the attributes of
 * uvrun.h, which stand while it is stopped or about to stop: `stop_flag` tells
 * (not known: as long as the probe).  The run that goes on when the probe comes
 * ends with the poll before which the flag was seen. */
#include "watch.h"

#include <stdlib.h>

#include "../core/clock.h"
#include "../core/sysname.h"
#include "../core/ticks.h"
#include "libuv.h"
#include "loopqueue.h"
#include "loopstats.h"
#include "uvrun.h"

/* One probe: this head, then the two handles.  Owned by libuv until both are closed. */
typedef struct {
    Watch *watch; /* borrowed; NULL once detached */
    void *loop;
    int open;     /* handles not closed yet */
    PyObject *attributes; /* borrowed from the watch's `probe`: what lets it be closed, see uvrun.h */
    int closable; /* they stand */
    int wrapped;  /* this run goes through ours */
    void *idle;   /* borrowed: uvloop's handle; NULL: not found, or it is being closed */
    enum { WAITS, MAY_WAIT, STEPS } poll; /* what is known of the poll that comes or is on */
    uint64_t border; /* the last border, which is when the poll began, in ticks; 0: the span's begin is exact */
    uint64_t marked, marked_ns; /* the last one that was read on both clocks; less than a millisecond older */
    uint64_t millisecond; /* in ticks */
    unsigned int steps; /* iterations in a row that only stepped */
    int checking; /* the check callback is called */
} uv_probe;

#define STEPS_IN_A_ROW 64 /* then the check callback is given up until there is something to do for it */

static void on_check(void *handle);

#define ALIGNED(n) (((n) + 15) & ~(size_t)15)

static void *
prepare_of(uv_probe *p)
{
    return (char *)p + ALIGNED(sizeof(uv_probe));
}

static void *
check_of(uv_probe *p)
{
    return (char *)prepare_of(p) + ALIGNED(lw_uv.handle_size(LW_UV_PREPARE));
}

static inline int
may_be_closed(const uv_probe *p)
{
    return lw_uv.stop_flag == 0 || *(const unsigned int *)((const char *)p->loop + lw_uv.stop_flag) != 0;
}

/* Put the attributes there, or take them away.  Under the GIL. */
static void
set_closable(uv_probe *p, int closable)
{
    p->closable = closable;
    lw_uvrun_set(p->watch->loop, p->attributes, closable);
}

/* Whether the check callback is to be called. */
static inline void
set_checking(uv_probe *p, int checking)
{
    p->steps = 0;
    if (checking != p->checking) {
        p->checking = checking;
        if (checking) {
            lw_uv.check_start(check_of(p), on_check);
        }
        else {
            lw_uv.check_stop(check_of(p));
        }
    }
}

/* Another iteration begins, for the queue of callbacks.  Without the GIL: only this thread takes from it. */
static inline void
note_queue(lw_watch *w)
{
    if (w->ready != NULL) {
        atomic_store_explicit(&w->taken, lw_queue_taken(w->ready), memory_order_relaxed);
    }
}

/* When the span that ends at NOW began: at its border, or later if the poll waited.  The watchdog is told, if it is long. */
static uint64_t
settle_begin(uv_probe *p, lw_watch *w, uint64_t now)
{
    uint64_t busy = atomic_load_explicit(&w->busy, memory_order_relaxed), start;
    if (p->border == 0 || busy == 0) {
        return busy;
    }
    start = p->marked_ns + (p->border - p->marked) * 1000000 / p->millisecond;
    if (start < busy) {
        start = busy;
    }
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
    if (p->watch == NULL) {
        return;
    }
    if (may_be_closed(p) != p->closable) {
        atomic_store(&p->watch->w.stands, 0);
        PyGILState_STATE state = PyGILState_Ensure();
        set_closable(p, !p->closable);
        PyGILState_Release(state);
        if (p->watch == NULL) {
            return;
        }
        set_checking(p, 1);
    }
    lw_watch *w = &p->watch->w;
    uint64_t ticks = lw_ticks();
    int brief = ticks - p->marked < p->millisecond && w->stats == NULL
                && atomic_load_explicit(&w->min_threshold, memory_order_relaxed) >= 1000000;
    if (p->idle != NULL && lw_uv.is_active(p->idle)) {
        p->poll = STEPS;
        if (brief && ++p->steps == STEPS_IN_A_ROW && !p->closable) {
            set_checking(p, 0);
        }
    }
    else {
        set_checking(p, 1);
        p->poll = lw_uv.backend_timeout(p->loop) == 0 ? MAY_WAIT : WAITS;
        if (p->idle != NULL && lw_uv.is_closing(p->idle)) {
            p->idle = NULL;
        }
    }
    if (!brief) {
        uint64_t now = lw_now_ns(), start = settle_begin(p, w, now);
        if (!end_span(p, w, start, &now)) {
            return;
        }
        p->marked_ns = now;
        p->marked = ticks = lw_ticks();
        lw_mark_busy(w, now);
    }
    p->border = ticks;
    note_queue(w);
    if (p->poll == WAITS) {
        atomic_store_explicit(&w->libuv_before, lw_uv.now(p->loop), memory_order_relaxed);
        atomic_store_explicit(&w->busy, 0, memory_order_release);
    }
    else if (p->poll == MAY_WAIT) {
        atomic_store_explicit(&w->may_wait, atomic_load_explicit(&w->busy, memory_order_relaxed), memory_order_release);
    }
}

/* The loop stands still from now on. */
static void
end_run(uv_probe *p, lw_watch *w)
{
    uint64_t now = lw_now_ns(), start = settle_begin(p, w, now);
    if (end_span(p, w, start, &now)) {
        p->border = p->marked = 0;
        atomic_store(&w->stands, 1);
        atomic_store_explicit(&w->busy, 0, memory_order_release);
    }
}

/* A poll that may have waited is over, and so are its callbacks: the span began when it returned. */
static void
begin_span(uv_probe *p, lw_watch *w)
{
    uint64_t start = lw_uv.now(p->loop) * 1000000, busy = atomic_load_explicit(&w->busy, memory_order_relaxed);
    start = start < p->marked_ns ? p->marked_ns : start;
    if (p->poll == MAY_WAIT) {
        atomic_store_explicit(&w->may_wait, 0, memory_order_relaxed);
    }
    if (p->poll == MAY_WAIT && busy != 0 && lw_now_ns() - busy < 1000000) {
        return; /* it did not */
    }
    if (busy != 0) { /* the watchdog met a callback, or saw nobody wait */
        const lw_sampler *seen = &w->sampler;
        lw_watch_lock(w);
        int met = atomic_load(&w->met) > 1;
        if (p->poll == MAY_WAIT) { /* met before libuv's clock says the poll returned: that was set anew */
            met = seen->span == busy && seen->n > 0 && !lw_syscall_is_poll(seen->segs[0].syscall)
                  && seen->segs[0].first_ns + 1000000 < start;
        }
        if (busy < start && met) {
            start = p->poll == WAITS && w->met_clock > p->marked_ns && w->met_clock < busy ? w->met_clock : busy;
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
    uv_probe *p = (uv_probe *)((char *)handle - ALIGNED(lw_uv.handle_size(LW_UV_PREPARE)) - ALIGNED(sizeof(uv_probe)));
    if (p->poll != STEPS && p->watch != NULL) {
        begin_span(p, &p->watch->w);
    }
    if (p->closable && lw_uv.stop_flag != 0 && !p->wrapped && p->watch != NULL) {
        end_run(p, &p->watch->w);
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
    uv_probe *p = (uv_probe *)((char *)handle - ALIGNED(lw_uv.handle_size(LW_UV_PREPARE)) - ALIGNED(sizeof(uv_probe)));
    if (--p->open == 0) {
        free(p);
    }
}

int
lw_probe_uv_find(PyObject *loop, char *why, size_t cap)
{
    const char *reason = lw_libuv_find();
    if (reason == NULL && lw_libuv_loop(loop) == NULL) {
        reason = "uvloop does not hand out its uv_loop_t";
    }
    if (reason != NULL) {
        snprintf(why, cap, "%s", reason);
        return -1;
    }
    return 0;
}

void
lw_probe_uv_begin_run(Watch *self)
{
    uv_probe *p = self->uv;
    if (p != NULL) {
        p->wrapped = 1;
        p->border = p->marked = 0;
        atomic_store(&self->w.stands, 0);
        lw_adopt_thread(&self->w);
        lw_mark_busy(&self->w, lw_now_ns());
        note_queue(&self->w);
    }
}

void
lw_probe_uv_end_run(Watch *self)
{
    uv_probe *p = self->uv;
    if (p != NULL && p->wrapped) {
        p->wrapped = 0;
        end_run(p, &self->w);
    }
}

int
lw_probe_uv_attach(Watch *self)
{
    void *loop = lw_libuv_loop(self->loop);
    PyObject *attributes = NULL, *ready = NULL, *parts = NULL, *running = NULL;
    uv_probe *p = NULL;

    if (loop == NULL || !lw_uv.ready) {
        PyErr_SetString(PyExc_RuntimeError, "uvloop did not hand out its uv_loop_t: the loop is closed");
        return -1;
    }
    attributes = lw_uvrun_new(self);
    ready = lw_loop_ready(self->loop);
    parts = attributes ? PyTuple_Pack(2, attributes, ready ? ready : Py_None) : NULL;
    Py_XDECREF(ready);
    Py_XDECREF(attributes);
    if (parts == NULL) {
        return -1;
    }
    p = calloc(1, ALIGNED(sizeof(*p)) + ALIGNED(lw_uv.handle_size(LW_UV_PREPARE)) + lw_uv.handle_size(LW_UV_CHECK));
    if (p == NULL) {
        Py_DECREF(parts);
        PyErr_NoMemory();
        return -1;
    }
    p->watch = self;
    p->loop = loop;
    p->open = 2;
    lw_uv.prepare_init(loop, prepare_of(p)); /* these four cannot fail */
    lw_uv.check_init(loop, check_of(p));
    lw_uv.prepare_start(prepare_of(p), on_prepare);
    set_checking(p, 1);
    lw_uv.unref(prepare_of(p));
    lw_uv.unref(check_of(p));
    p->idle = lw_libuv_idle(loop, prepare_of(p));
    lw_ticks_start();
    p->millisecond = lw_ticks_of(1000000);
    self->uv = p;
    lw_watch_lock(&self->w);
    self->w.libuv = loop;
    self->w.ready = lw_queue_is_counted(ready) ? ready : NULL;
    note_queue(&self->w);
    lw_watch_unlock(&self->w);
    p->attributes = attributes;
    Py_XSETREF(self->probe, parts);
    running = PyObject_CallMethod(self->loop, "is_running", NULL);
    PyErr_Clear();
    if (running != Py_True || may_be_closed(p)) {
        set_closable(p, 1);
    }
    atomic_store(&self->w.stands, 0); /* whoever comes before a run is about to begin it */
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
    lw_watch_lock(&self->w);
    self->w.libuv = NULL;
    self->w.ready = NULL;
    lw_watch_unlock(&self->w);
    self->uv = NULL;
    p->watch = NULL;
    lw_uv.close(prepare_of(p), on_closed_prepare);
    lw_uv.close(check_of(p), on_closed_check);
    Py_CLEAR(self->probe);
    PyErr_Restore(type, value, traceback);
}
