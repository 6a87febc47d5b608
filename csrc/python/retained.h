/* retained.h: what would be freed if an object went away.
 *
 * Everything that can be reached from it is gathered, what is not tracked by
 * the collector (str, bytes, numbers) included, and the references among it are
 * taken off each one's count.  What is left over comes from elsewhere: such an
 * object stays, and so does all that it leads to.  The rest would go.
 *
 * - The starting objects go by definition, whoever holds them.  Of a task these
 *   are the task and its coroutine, whose frame is cleared when it ends.
 * - Not gone into, as they stay: types, modules, loops, the global dictionaries
 *   of functions.
 * - Sound: whatever cannot be told stays (immortal objects, a frame that runs
 *   now, a count that does not add up, what lies beyond the limit).  So the
 *   answer is never too large.  It is cut at a number of objects, and says so.
 * - Bytes are what the type's own __sizeof__ says where that is C code, with the
 *   collector's header; else what lw_object_bytes() says.
 *
 * Under the GIL, with the collector off, running nothing of the program's.
 * Cost: some 0.3 us an object reached.  Memory: 40 bytes for each, freed at the end. */
#ifndef LW_RETAINED_H
#define LW_RETAINED_H

#include "compat.h"

int lw_retained_init(PyObject *module);

#endif
