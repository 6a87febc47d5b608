/* hang.h: a loop that has not come back is reported while it hangs.
 *
 * Called by the watchdog with the reading lock held, without the GIL, which
 * may never come free: straight to a file descriptor with write(2), from
 * static buffers, as faulthandler does, but with safe reads.  It gives the
 * stacks of all threads of the interpreter, the hanging loop's first, newest
 * frame last as tracebacks do.  A line that cannot be written at once (a full
 * pipe that nobody drains) is dropped: the watchdog waits for nobody. */
#ifndef LW_HANG_H
#define LW_HANG_H

#include <stdint.h>

void lw_hang_report(int fd, uintptr_t tstate, int tid, uint64_t age_ns, const char *running);

#endif
