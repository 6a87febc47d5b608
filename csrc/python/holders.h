/* holders.h: who refers to some objects, and which objects are of some types,
 * within a given CPU time of the thread.
 *
 * gc.get_referrers() answers the first for one level, but cannot be told when
 * to stop: where millions of references live it blocks an event loop for
 * seconds.  Here one pass serves all targets of a level at once, looks at the
 * clock as it goes, also inside of a large container, and ends at its deadline
 * with what it has seen.  The answer says whether it saw everything.
 *
 * A target is found in a small hash table.  Of one that many refer to only the
 * first 100 are given: nobody reads more, and they say enough.
 *
 * GIL held throughout.  Runs no Python code during a pass, changes nothing.
 * Before 3.12 gc.get_objects() lends its list, which is left out, as is the
 * frame and the list of the caller: the caller knows them. */
#ifndef LW_HOLDERS_H
#define LW_HOLDERS_H

#include "compat.h"

int lw_holders_init(PyObject *module);

#endif
