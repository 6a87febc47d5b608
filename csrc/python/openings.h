/* openings.h: where descriptors, child processes, executors and selectors came from.
 *
 * While a guard is open, some functions of the standard library are seen:
 *
 *   written in C    io.open, os.open, os.dup, os.pipe, ..., fork, posix_spawn,
 *                   _posixsubprocess.fork_exec.  The function's table entry
 *                   (PyMethodDef) is exchanged for one of ours, equal but for
 *                   the C function, which calls the first one and then notes
 *                   what came out
 *   in Python       the __init__ of socket.socket, of the executors and of
 *                   the selectors that asyncio's loops make, whose vectorcall
 *                   pointer is exchanged in the same way
 *
 * No module, class or dict changes, nobody who imported a function by name is
 * missed, and the last guard to leave puts the pointers back.  Whoever runs
 * through us at that moment returns through us: our functions are never freed.
 * An audit hook would tell the same, but can never be taken away again.
 *
 * What is kept: a descriptor's Origin by number, with the identity it had, so
 * that a number closed and given out again behind our back says nothing wrong;
 * a child's by pid; an executor's and a selector's by object.  Descriptors opened by C code
 * (libuv, SQLite) are not seen: they have no Origin.
 *
 * Cost: 0.5 to 1 µs an opening, 0.2 µs a guard.  All under the GIL. */
#ifndef LW_OPENINGS_H
#define LW_OPENINGS_H

#include "origins.h"

int lw_openings_init(PyObject *module);

#endif
