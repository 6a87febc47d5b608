/* calls.h: how long each call takes, on the threads that run event loops.
 *
 * The engine "exact" of EventLoopMonitor.  Each call pushes (what, time) on its
 * thread's shadow stack and pops it when it ends; a clock reading each, and no
 * Python object is made unless it took at least the threshold.  Then REPORT, a
 * Python function, is called with what ended, on the thread and in the frame
 * where it ended; it says whether the call was told.  What is told is taken off
 * the own time of its callers' coroutines (`covered`).
 *
 * Where the events come from:
 *   3.11     a C profile function, set on each loop's thread (calls_enter).
 *   3.12 +   sys.monitoring, whose callbacks are the C objects of calls_hooks():
 *            cheaper, as no frame object is made.  It is one for all threads, so
 *            others pay a callback that returns at once.
 *
 * The stack holds addresses only to compare them, never to look into: code and
 * functions may be freed while they are on it.  An end whose begin was not seen
 * (we came in between) is ignored; one below the top takes away what is above it
 * (another greenlet, an event that never came).  A stack that is full counts
 * what it has no room for.
 *
 * Everything here needs the GIL.  A thread's stack goes with the thread. */
#ifndef LW_CALLS_H
#define LW_CALLS_H

#include "compat.h"

int lw_calls_init(PyObject *module);

#endif
