/* futurestate.h: how an asyncio future or task ended, read from its memory.
 *
 * Needed where asking is not possible or too dear: of a task that is being torn
 * down (its methods must not be called), and of 100,000 of them at once.
 * Offsets are found once, by comparing futures of our own that are pending,
 * finished, failed and cancelled; where that finds nothing unambiguous, the
 * answer is "not known" for ever.
 *
 * Only asyncio's C Future and Task and their subclasses are read, under the
 * GIL.  Nothing is changed: an exception that nobody retrieved stays so. */
#ifndef LW_FUTURESTATE_H
#define LW_FUTURESTATE_H

#include "compat.h"

enum lw_future_end { LW_FUTURE_UNKNOWN, LW_FUTURE_PENDING, LW_FUTURE_RETURNED, LW_FUTURE_FAILED, LW_FUTURE_CANCELLED };

/* *unretrieved: it failed, and nobody has asked for the exception yet. */
enum lw_future_end lw_future_end_of(PyObject *future, int *unretrieved);

int lw_futurestate_learn(void); /* once, before the first question; 0: nothing can be known */
int lw_futurestate_init(PyObject *module);

#endif
