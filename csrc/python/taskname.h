/* taskname.h: which callback of its iteration a loop's thread is in.
 *
 * Read from outside, out of the locals of asyncio's `_run_once` frame: `i` of
 * `ntodo`, and the `handle` with its callback; a task's step or wake-up leads
 * on to the task, its name and its coroutine's qualified name; a C function is
 * named after its module or its object's type.  Every pointer is checked by
 * type before it is believed; what is not known stays 0 or -1.
 * trio's run loop has its task in a local of `unrolled_run`; its name and
 * coroutine are slots.  uvloop has no frame of its own: the task that runs is
 * looked up as asyncio.current_task() does, in the thread state (3.14 and
 * later) or the dict of running tasks; plain callbacks have no name there, and
 * which of how many it is the sampler asks uvloop's queue (loopqueue.h). */
#ifndef LW_TASKNAME_H
#define LW_TASKNAME_H

#include "frames.h"

typedef struct {
    int index, total;
    uintptr_t handle; /* tells one callback from another: a Handle, or a task */
    enum lw_named { LW_BY_HANDLE, LW_BY_TASK, LW_BY_TRIO_TASK } named;
    uint32_t task, callback; /* offsets into the text buffer; 0 unknown */
    int is_c; /* the callback is a C function, and no task's step */
} lw_callback;

/* All but the names: a few reads, for every sample.  LOOP: see lw_sampler. */
void lw_callback_where(const lw_walk *walk, uintptr_t tstate, uintptr_t loop, lw_callback *out);
/* The names of out->handle's callback: once a segment. */
void lw_callback_names(lw_callback *out, lw_textbuf *text);

#endif
