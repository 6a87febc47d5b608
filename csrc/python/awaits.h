/* awaits.h: where a suspended coroutine is.
 *
 * A suspended task is a chain: its coroutine awaits another one, that awaits a
 * generator, that iterates a future.  Each link says what comes next (links.h).
 *
 * - All of it on the caller's own interpreter under the GIL.  Nothing here
 *   runs Python code as long as the task is asyncio's C Task (any other is
 *   asked by attribute), so the chain cannot change under a walk.
 * - A link is owned by the frame of the link before it.  Pointers in
 *   lw_await_place are borrowed from there: good until Python code runs.
 * - A chain is followed for at most LW_MAX_LINKS links.
 *
 * Cost: 37 to 87 ns a link (hashing chains of five, 3.11 to 3.15). */
#ifndef LW_AWAITS_H
#define LW_AWAITS_H

#include "links.h"

#define LW_MAX_LINKS 512

/* For the monitor: where a task waits, without building anything. */
typedef struct {
    lw_await_place innermost; /* code NULL: not suspended in Python code */
    lw_await_place user; /* the innermost place in the program's own files; else the innermost outside asyncio; else
                                 the innermost */
    PyObject *awaited; /* borrowed: the future or other object at the chain's end, or NULL */
    uint64_t hash; /* of the whole chain's codes and instructions */
    int depth;
} lw_await_site_info;

/* 0, or -1 (no exception set) for a task that is done, runs, has not begun, or cannot be read. */
int lw_await_site(PyObject *task, lw_await_site_info *out);

/* Fills PLACES, outermost first; how many, never an error. *AWAITED (borrowed) is what is at the end, or NULL. */
int lw_await_links(PyObject *coro, lw_await_place *places, int room, PyObject **awaited);
PyObject *lw_await_coro(PyObject *task); /* a new reference, or NULL without exception */

int lw_awaits_init(PyObject *module);

#endif
