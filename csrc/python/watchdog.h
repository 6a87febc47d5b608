/* watchdog.h: the one thread that looks at loops from outside.
 *
 * A pthread a process, all signals blocked, that never holds or waits for the
 * GIL, never allocates, and touches other threads' memory by safe reads only.
 * It sleeps on a condition with a timeout; the timeout is the timer, and the
 * condition is how it is told to stop or that an earlier deadline came.  It
 * starts with the first watch; when the last one is gone it goes on ticking
 * slowly for a while (so that a guard need not wake it) and then parks.
 *
 * What it shares with others, and under which lock, is in registry.h.  It walks
 * all watches, and looks at an idle one by a few atomic reads.  However many
 * are busy, it rests at least as long as it looked: past some hundred busy
 * loops samples come less often, and the rest of the walk is made next time,
 * from where this one stopped.
 *
 * Stopped process: when the watchdog wakes far later than planned although the
 * kernel does not count it as ready-but-waiting meanwhile, nothing in the
 * process ran (SIGSTOP, a debugger, a paused machine).  That time is taken
 * down against every span it fell into.
 *
 * Fork: waits for the sample that is being taken, so the child finds all whole;
 * the child has no watchdog until lw_watchdog_start() is called again there. */
#ifndef LW_WATCHDOG_H
#define LW_WATCHDOG_H

#include <stdatomic.h>
#include <stdint.h>

#include "registry.h"
#include "sampler.h"

enum lw_kind { LW_EPOLL, LW_SELECTOR, LW_UV, LW_TRIO, LW_GENERIC };

/* One watched loop, without any Python object. */
typedef struct lw_watch {
    /* written by the loop's own thread (a generic one's: by the watchdog), read by both */
    _Atomic uint64_t busy;     /* CLOCK_MONOTONIC ns at which the present span began; 0: waits for I/O */
    _Atomic uint64_t spans;    /* begun so far */
    _Atomic uintptr_t tstate;  /* of the thread that runs it */
    _Atomic int tid;
    _Atomic uint64_t min_threshold, interval; /* of the open scopes */
    enum lw_kind kind;
    uint64_t gil_ns; /* the loop's own thread only: at the span's begin it waited so long for the GIL, 0 unknown */
    struct lw_loopstats *stats; /* borrowed from the Watch, NULL: not counted; written with the GIL held */
    lw_slot *slot; /* borrowed; written by the loop's own thread, NULL: not registered */
    /* under the slot's lock */
    int pinned;
    uint64_t next_ns, spans_seen;
    unsigned long ident; /* of its thread, for capture.h */
    uint64_t asked_span, asked_at; /* a capture is asked for; 0: none */
    uint64_t stop_seen; /* stops of the process up to here are taken down */
    lw_sampler sampler;
    /* generic: a finished span that waits to be handed over */
    _Atomic uint64_t pending_start, pending_end;
    int epoll_seen;
    /* uvloop: the watchdog met the thread outside of its poll while the loop had no span, and how often since */
    uint64_t met_at;
    _Atomic int met;
    _Atomic uint64_t may_wait; /* the span that stays while it is not known whether the poll waits; 0: none */
    uint64_t met_clock; /* libuv's clock then, in ns; 0: it stood as before the poll */
    void *libuv; /* borrowed: its uv_loop_t; under the slot's lock */
    const void *ready; /* the same: uvloop's queue of callbacks; NULL: not found */
    _Atomic uint64_t libuv_before; /* its clock when the poll began, in ms */
    _Atomic int stands; /* uvloop: no run goes on */
    _Atomic size_t taken; /* uvloop: how many had ever been taken from its queue as this iteration began */
} lw_watch;

int lw_watchdog_start(void);             /* idempotent; -1 and errno */
void lw_watchdog_stop(void);             /* joins; for interpreter exit */
int lw_watchdog_add(lw_watch *w);        /* -1: no memory or no thread */
void lw_watchdog_remove(lw_watch *w);
void lw_watchdog_hurry(uint64_t threshold); /* a scope with that threshold was opened */
void lw_account_gap(lw_watch *w, uint64_t now); /* w locked: has the process been stopped until just now? */
int lw_watchdog_after_fork(void);

/* The handlers of a forked child run in the order in which they were registered, so another library's may run Python
 * code, and with it ours, before our locks were made anew (uvloop's does, for a subprocess).  Whoever takes one of them
 * comes through here first. */
extern _Atomic int lw_forking_pid; /* the process that forks just now; 0: none does */
void lw_fork_settle_child(int forking);
static inline void
lw_fork_settle(void)
{
    int forking = atomic_load_explicit(&lw_forking_pid, memory_order_relaxed);
    if (forking != 0) {
        lw_fork_settle_child(forking);
    }
}

int lw_watchdog_tid(void);              /* its native id, 0 while it does not run */
void lw_watchdog_hang(uint64_t after_ns, int fd);
void lw_watchdog_stress(uintptr_t tstate, int tid, uint64_t interval);
void lw_watchdog_set_drain(int (*drain)(void *)); /* given to Py_AddPendingCall for generic watches */

typedef struct {
    uint64_t samples, ticks, cpu_ns, watches, failed_reads, running;
} lw_watchdog_numbers;
void lw_watchdog_read(lw_watchdog_numbers *out);

#endif
