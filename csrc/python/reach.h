/* reach.h: can anything alive still wake a suspended task?
 *
 * The idea is that of Go's goroutine-leak profile.  Take every object the
 * garbage collector tracks and count the references among them; an object with
 * more references than that is held from outside (a running frame, C code, an
 * untracked object) and is a root.  Mark from the roots.  What is not reached
 * cannot be used by anything alive.
 *
 * The exact rule.  A task T is *suspended* when it is a C Task, pending, not
 * about to be cancelled, and blocked on a future F.  Any other task is live.
 *
 *  1. From a suspended task, marking does not go on into its coroutine, into F,
 *     or into its done-callbacks (they run only once it has ended).  It does go
 *     on into everything else: its attributes, its contexts.
 *  2. T is live when F, if F is no suspended task, or T's coroutine, or a part
 *     of it was reached: somebody alive can complete F, or step T by hand.
 *     A weak reference counts as a reference; an object with a weakref callback
 *     reaches the callback.
 *  3. T is live when it awaits a task that is live.
 *  4. T is live when something *under way* leads to it: a pending Handle or
 *     TimerHandle, a live task, a running generator of another thread, or an
 *     object held from outside by something other than the calling thread's
 *     local variables.  "Leads to" follows references, but not through modules'
 *     and functions' global dictionaries, types, and loops.  So asyncio.timeout's
 *     timer, a live TaskGroup, parent or sibling, and call_later(5, t.cancel)
 *     make T live.
 *  5. A live task is gone into like any other object; repeat until no more are
 *     found.
 *  6. Objects reached by nothing, not even from suspended tasks, are garbage
 *     that the collector may finalize at any time: those with a finalizer
 *     become roots, and all is repeated.
 *
 * What is left is stuck, and the claim is: as long as the program keeps its
 * tasks, none of their futures will ever complete; only cancel() can end this.
 * A variable or a global container that merely holds T does not make it live:
 * what its owner could do with it is cancel().  Not counted as "can be used":
 * asyncio's registries of all tasks and of async generators, loopwatch's own
 * objects, and looking into a task from outside (get_coro().cr_frame, gc).  If
 * nobody but asyncio's weak registry holds T, the collector may destroy it,
 * which is a finding of its own; the reason says so.
 *
 * Why over-counting cannot happen: references from untracked objects, frozen
 * ones (gc.freeze), C code and running frames are no edges, so they show up as
 * left over and make roots.  3.14 and later let a suspended frame's value stack
 * borrow what a local variable owns; traversal shows both, so what is marked as
 * borrowed there is taken off again.  An object with more edges than references is a root, too.
 *
 * Under the GIL, runs no Python code and allocates no object while it works;
 * nothing is changed.  Cost: about 0.5 µs an object. */
#ifndef LW_REACH_H
#define LW_REACH_H

#include "compat.h"

int lw_reach_init(PyObject *module);

#endif
