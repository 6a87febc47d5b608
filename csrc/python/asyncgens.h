/* asyncgens.h: async generators that were begun and not finished.
 *
 * The interpreter calls the hook `firstiter` of the thread when an async
 * generator is iterated for the first time, and the hook `finalizer` when one
 * is dropped before its end; event loops set both for as long as they run.
 * While a guard is open, ours stand before the loop's, note, and call them:
 *
 *   firstiter   a weak reference to the generator and where it was begun
 *   finalizer   that nobody closed this one: where it stood.  Its weak
 *               references are gone by then, so it is found by its address
 *
 * A finalizer is set only where one was: with none, the interpreter ends a
 * dropped generator in another way.  A generator keeps the finalizer it began
 * with, so ours may be called long after the guard is gone; it passes through.
 *
 * The hooks belong to a thread.  The last guard takes them away again if they
 * still stand there; left from another thread, they take themselves away when
 * they are called next.
 * Cost: 0.5 µs a generator, 1 µs a guard.  All under the GIL. */
#ifndef LW_ASYNCGENS_H
#define LW_ASYNCGENS_H

#include "origins.h"

int lw_asyncgens_init(PyObject *module);

#endif
