/* loopqueue.h: what waits on a loop: its ready callbacks, its timers.
 *
 * asyncio's loops have them as attributes, `_ready` (a deque) and `_scheduled`
 * (a heap).  uvloop's are fields of a compiled class, which its traverse
 * function names without telling which is which: so they are known by what they
 * are.  Its only deque holds the ready callbacks; the set with TimerHandles in
 * it the timers; while no set has any, no timer waits.
 *
 * Of a deque it is known how many were ever taken from it: each append and each
 * pop adds one to its `state` (which tells an iterator that it changed), so the
 * pops are half of what `state` has grown more than the length.  Where `state`
 * lies is found by experiment.  Both are read without the GIL, by whoever keeps
 * the deque alive.
 *
 * trio and others have neither: unknown.  The GIL held; no exception stays. */
#ifndef LW_LOOPQUEUE_H
#define LW_LOOPQUEUE_H

#include "compat.h"

PyObject *lw_loop_ready(PyObject *loop);  /* new reference to the queue; NULL: unknown */
int lw_queue_is_counted(PyObject *queue); /* whether it is a deque, and lw_queue_taken() can be asked */
PyObject *lw_loop_timers(PyObject *loop); /* new reference to a list or a set of handles, some may be cancelled; NULL */

extern size_t lw_deque_state; /* the offset of a deque's `state`; 0: not known */

static inline size_t
lw_queue_changes(const void *queue)
{
    return *(const volatile size_t *)((const char *)queue + lw_deque_state);
}

/* How many were taken from QUEUE, counted from some time on. */
static inline size_t
lw_queue_taken(const void *queue)
{
    return (lw_queue_changes(queue) - (size_t)((const volatile PyVarObject *)queue)->ob_size) / 2;
}

int lw_loopqueue_init(PyObject *module);

#endif
