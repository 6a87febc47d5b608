/* heldby.h: the shortest chain of references that keeps an object alive.
 *
 * Breadth first over the graph of all objects (graph.h), from three kinds of
 * roots, each tried only when those before it led nowhere:
 *
 *  1. modules, and the variables of the frames that run, in every thread;
 *  2. the variables of the function that asks, but not the object itself in
 *     one of them: that its asker has it is known; and the asyncio handle that
 *     runs it, which is gone when it is over;
 *  3. objects with references left over that no tracked object and no running
 *     frame accounts for: C code, an object that is not tracked, a frozen one
 *     (gc.freeze()), and before 3.14 a value that a running function is using.
 *
 * No holders: weak references and so asyncio's registries of tasks, the modules
 * of loopwatch, frames of loopwatch that ask, and the lists they pass.
 *
 * Suspended coroutines, generators and frames of tracebacks are ordinary
 * objects of the graph.  Running ones are roots.  What is not tracked itself
 * (str, bytes, a dict of them) is searched for all the same; untracked tuples
 * and dicts are then gone into as well.
 *
 * Under the GIL throughout, with the collector off, running nothing of the
 * program's.  Memory: 40 to 50 bytes an object, freed at the end.  Cost: 0.2 to
 * 0.4 us an object. */
#ifndef LW_HELDBY_H
#define LW_HELDBY_H

#include "compat.h"

int lw_heldby_init(PyObject *module);

#endif
