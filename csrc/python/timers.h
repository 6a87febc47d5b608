/* timers.h: timers of a loop, and where they were scheduled.
 *
 * While a guard is open, instance attributes `call_at` (and `call_later`,
 * where the loop's own does not go through it) stand before the methods of the
 * loop's class: C callables that call the method and note a weak reference to
 * the handle it returned, with where it was scheduled.  Whether a handle still
 * waits is the handle's to say.
 *
 * Callbacks that only wake a task (asyncio.sleep, asyncio.timeout) are passed
 * through at once: such a timer is a pending task's matter.  For the others
 * the table by callback counts how often the same callable was scheduled while
 * its last handle was alive, which is what a callback does that schedules
 * itself again.
 *
 * The last guard takes the attributes away, or, if somebody wrapped them
 * meanwhile, leaves them passing through.
 * Cost: 30 ns for a task's timer, 0.6 µs for another, 1 µs a guard.  Under the
 * GIL, on the loop's thread (call_at is not thread-safe). */
#ifndef LW_TIMERS_H
#define LW_TIMERS_H

#include "origins.h"

int lw_timers_init(PyObject *module);

#endif
