/* unraisable.h: an exception of a callback of the user's, in a place where the watched program must not see it.
 *
 * It goes to sys.unraisablehook.  A KeyboardInterrupt on the main thread is no fault of the callback: Ctrl-C came while
 * it ran, and is the program's, so it is delivered once more.  Needs the GIL and an exception; none is set afterwards. */
#ifndef LW_UNRAISABLE_H
#define LW_UNRAISABLE_H

#include <sys/syscall.h>
#include <unistd.h>

#include "compat.h"

static inline void
lw_unraisable(PyObject *where)
{
    if (PyErr_ExceptionMatches(PyExc_KeyboardInterrupt) && syscall(SYS_gettid) == getpid()) {
        PyErr_Clear();
        PyErr_SetInterrupt();
        return;
    }
    PyErr_WriteUnraisable(where);
}

#endif
