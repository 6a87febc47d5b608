/* capture.h: stacks of busy loops where memory cannot be read from outside.
 *
 * Only in fallback (layout.h: an unknown interpreter, or a kernel that refuses
 * both ways to read memory).  Then the watchdog, which never waits for the GIL,
 * asks a second thread, which does: it takes the GIL, asks the interpreter for
 * the loop's frame by its own functions (sys._current_frames, PyFrame_GetBack),
 * and gives the GIL back.  What it saw is put into the loop's sampler, and the
 * block says that it was `captured` so: a thread that runs Python code gives
 * the GIL up within milliseconds, but one in a C call that holds it only after
 * that call, so the stack is that of the moment after, most often of the same
 * line.  If the span is over by then, nothing is noted.
 *
 * The thread exists once a loop is watched in fallback, until interpreter exit
 * (it is joined before, by the hook that joins the watchdog) or fork.  It
 * holds its own lock only while it neither has nor waits for the GIL; it holds
 * a slot's lock only for copying, never while it calls Python. */
#ifndef LW_CAPTURE_H
#define LW_CAPTURE_H

#include "watchdog.h"

int lw_capture_start(void);  /* idempotent, GIL held; does nothing where stacks can be read; -1 and errno */
void lw_capture_stop(void);  /* for good; call without the GIL */
void lw_capture_fork(void);  /* in a child: there is no such thread any more */
void lw_capture_ask(lw_watch *w, uint64_t span, uint64_t now); /* the watchdog's: never waits; w locked */
int lw_capture_tid(void);    /* its native id; 0: there is none */

#endif
