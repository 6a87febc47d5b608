/* taskname.h: which callback of its iteration a loop's thread is in.
 *
 * Read from outside, out of the locals of asyncio's `_run_once` frame: `i` of
 * `ntodo`, and the `handle` with its callback; a task's step or wake-up leads
 * on to the task, its name and its coroutine's qualified name.  Every pointer
 * is checked by type before it is believed; what is not known stays 0 or -1.
 * Loops without that frame (uvloop, trio) yield nothing here. */
#ifndef LW_TASKNAME_H
#define LW_TASKNAME_H

#include "frames.h"

typedef struct {
    int index, total;
    uintptr_t handle;
    uint32_t task, callback; /* offsets into the text buffer; 0 unknown */
} lw_callback;

/* Only index, total and handle: a few reads, for every sample. */
void lw_callback_where(const lw_walk *walk, lw_callback *out);
/* The names of out->handle's callback: once a segment. */
void lw_callback_names(lw_callback *out, lw_textbuf *text);

#endif
