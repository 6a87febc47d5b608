/* uvrun.h: when a run of a uvloop begins and ends, and its close().
 *
 * uvloop's close() fails over handles that are not its own, and a loop that
 * stands still does not block: so two attributes of the instance stand before
 * methods of the class while the loop is stopped or about to stop.  `close`
 * takes our handles away first; `run_forever`, which all ways to run a loop go
 * through, tells the probe of the begin and the end of a run.  Not while it
 * runs, as an instance that has a dict costs every look-up on it some ten
 * nanoseconds: when they stand is the probe's to say.  What the program itself
 * had put there is called, and comes back. */
#ifndef LW_UVRUN_H
#define LW_UVRUN_H

#include "watch.h"

PyObject *lw_uvrun_new(Watch *watch); /* new reference to what lw_uvrun_set() takes, which holds the watch */

/* Put them there (STAND), or take away what is still ours.  Under the GIL; no exception stays. */
void lw_uvrun_set(PyObject *loop, PyObject *attributes, int stand);

#endif
