/* allocs.h: where surviving memory was allocated, by sampling.
 *
 * While it is on, the allocators of Python's objects and of PyMem_Malloc are
 * wrapped (PyMem_SetAllocator): every so many bytes, at random (exponential
 * with the mean asked for, so that no pattern of sizes escapes), one
 * allocation is written down with its stack and the coroutine of the task that
 * made it, and struck out when it is freed.  What is left over, each weighted
 * by the inverse of its chance of being sampled, estimates what survives and who
 * allocated it.
 *
 * - Not sampled: one subtraction for an allocation, one look at a byte for a
 *   free (allocbook.h).  So the cost is that of a call more, some nanoseconds.
 * - A hook runs inside somebody's malloc: it makes and drops no Python object,
 *   runs nothing of the program's, and takes memory from malloc() only.
 * - Both domains are entered with the GIL held (the core serves one
 *   interpreter and refuses free-threaded builds), so there are no races.
 * - At most LW_ALLOC_MAX samples are kept; more are counted as dropped.
 * - It stops by putting the allocators back; where somebody wrapped ours
 *   meanwhile, ours stay and pass through.
 * - Memory that was allocated before it was on is freed through it unseen.
 *   Objects on the interpreter's free lists count as alive, as for tracemalloc.
 */
#ifndef LW_ALLOCS_H
#define LW_ALLOCS_H

#include "compat.h"

void lw_allocs_pause(void); /* take no more samples: the interpreter ends */
int lw_allocs_init(PyObject *module);

#endif
