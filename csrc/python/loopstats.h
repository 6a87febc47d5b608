/* loopstats.h: what one loop did for as long as a monitor watches it.
 *
 * Two histograms that never forget: `lag`, every busy span (the time between
 * two waits for I/O, which is how late a callback can come), and `callbacks`,
 * every single callback.  Busy time and iterations are their sums and counts.
 *
 * Spans come from the loop's probe, which has both clock readings anyway.
 * Callback times come from a C Handle._run that stands in asyncio's class
 * while any monitor is open (handlerun.c): one more clock reading a callback,
 * in place of a Python function.  uvloop and trio run callbacks of their own:
 * their times are not known, and `callbacks` says so by being empty.
 *
 * Who writes: the loop's own thread (uvloop's spans without the GIL).  Who
 * reads: anybody, relaxed; see histogram.h.  An object of Python's, so that
 * whoever reads keeps it alive; the Watch owns one while it is counted. */
#ifndef LW_LOOPSTATS_H
#define LW_LOOPSTATS_H

#include "../core/histogram.h"
#include "compat.h"

typedef struct lw_loopstats {
    PyObject_HEAD PyObject *loop; /* owned until closed, then NULL */
    struct lw_loopstats *next;    /* borrowed: all that are counted now */
    int open;                     /* monitors that count here */
    uint64_t since_ns;
    uint64_t mark_ns;             /* the loop's thread: when the callback that runs began */
    int marked; /* mark_ns is set by the probe at each wait's end; else handlerun.c looks at the clock */
    lw_hist lag, callbacks;
} lw_loopstats;

extern PyTypeObject *lw_loopstats_type; /* owned, process-wide */

lw_loopstats *lw_loopstats_new(PyObject *loop); /* new reference */

/* The statistics of a loop that is counted now; borrowed, or NULL.  GIL held. */
lw_loopstats *lw_loopstats_of(PyObject *loop);
void lw_loopstats_list(lw_loopstats *s, int delta); /* found by lw_loopstats_of from now on (+1), no longer (-1) */

/* By the probe, on the loop's thread: a span ended, and another one began. */
static inline void
lw_loopstats_span(lw_loopstats *s, uint64_t begun, uint64_t now)
{
    if (begun != 0 && now >= begun) {
        lw_hist_add(&s->lag, now - begun);
    }
}

int lw_loopstats_init(PyObject *module);

/* handlerun.c: asyncio.Handle._run in C, while somebody needs it.  +1, -1; -1 with an exception when it cannot be. */
int lw_handlerun_need(int delta);
int lw_handlerun_init(PyObject *module);

#endif
