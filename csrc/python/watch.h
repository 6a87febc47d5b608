/* watch.h: a watched loop and the scopes open on it, as Python objects.
 *
 * A Watch is shared by all scopes on one loop.  The first open scope installs
 * the loop's probe and registers with the watchdog; the last one that closes
 * takes both away.  All of it needs the GIL; only the embedded lw_watch is
 * shared with the watchdog (watchdog.h says under which rules).
 *
 * The judge is one comparison: when a span ends (the probe calls
 * lw_span_end()), or a scope closes inside one, the span is clipped to each
 * scope and becomes that scope's block if it is at least its threshold long.
 * A scope keeps blocks in a list until take() or close(), or hands each to its
 * callback, whose exceptions are reported as unraisable and never reach the
 * loop.
 *
 * References: a Scope owns its Watch; a Watch owns loop, probe and what the
 * probe needs; its list of scopes borrows (a scope unlinks itself). */
#ifndef LW_WATCH_H
#define LW_WATCH_H

#include "compat.h"
#include "watchdog.h"

typedef struct Scope Scope;

typedef struct {
    PyObject_HEAD lw_watch w;
    PyObject *loop;     /* owned */
    PyObject *selector; /* owned, selector kinds only */
    PyObject *probe;    /* owned while installed */
    PyObject *before;   /* owned: the instance attribute that stood where the probe stands, or NULL */
    void *uv;           /* owned: uv_probe, see probe_uv.c */
    struct lw_loopstats *stats; /* owned while it is counted; w.stats is the same */
    Scope *scopes;      /* borrowed list */
    int nscopes;
    int attached;
} Watch;

struct Scope {
    PyObject_HEAD Watch *watch; /* owned; NULL once closed */
    Scope *next;  /* borrowed */
    uint64_t threshold, interval, entered;
    PyObject *on_block; /* owned or NULL */
    PyObject *found;    /* owned list */
};

#define LW_MAX_FOUND 10000 /* blocks kept by one scope; beyond, the oldest go */

extern PyTypeObject *lw_watch_type, *lw_scope_type; /* owned by the module, process-wide */
int lw_watch_init(PyObject *module);
int lw_scope_init(PyObject *module);
void lw_watch_detach(Watch *self); /* idempotent: the probe goes, the watchdog forgets the loop */
void lw_watch_drain(Watch *self);  /* hand over the finished span of a loop without a probe */
/* A new reference to an open scope on an attached watch; ON_BLOCK is borrowed, or NULL. */
PyObject *lw_scope_open(Watch *watch, uint64_t threshold, uint64_t interval, PyObject *on_block);
void lw_scope_bounds(Watch *watch); /* the smallest threshold and interval of its scopes */
void lw_span_end(Watch *self, uint64_t start, uint64_t end); /* GIL held; keeps any exception that is set */
int lw_drain_generic(void *unused);

/* Called by probes on the loop's thread when it starts to work, at NOW. */
static inline void
lw_mark_busy(lw_watch *w, uint64_t now)
{
    atomic_store_explicit(&w->spans, atomic_load_explicit(&w->spans, memory_order_relaxed) + 1, memory_order_relaxed);
    atomic_store_explicit(&w->busy, now, memory_order_release);
}

/* 1 when the span that ends at NOW is worth a look. */
static inline int
lw_span_is_long(lw_watch *w, uint64_t busy, uint64_t now)
{
    return busy != 0 && now - busy >= atomic_load_explicit(&w->min_threshold, memory_order_relaxed);
}

void lw_adopt_thread(lw_watch *w); /* the calling thread runs this loop now; GIL held */

/* probe_select.c */
int lw_probe_select_init(PyObject *module);
int lw_probe_select_attach(Watch *self);
void lw_probe_select_detach(Watch *self);
/* probe_uv.c */
int lw_probe_uv_find(PyObject *loop, char *why, size_t cap); /* 0, or -1 and why not */
int lw_probe_uv_attach(Watch *self);
void lw_probe_uv_detach(Watch *self);
void lw_probe_uv_begin_run(Watch *self); /* these two on the thread that runs it */
void lw_probe_uv_end_run(Watch *self);

/* blocks.c: a new reference to a RawBlock, NULL with an exception, or Py_None
 * when the time was not spent inside the loop at all. */
PyObject *lw_block_build(Watch *self, uint64_t from, uint64_t until, uint64_t threshold);
PyObject *lw_frames_list(const lw_frame *frames, int n, const lw_textbuf *text);

#endif
