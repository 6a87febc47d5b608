/* callbacks.h: calling what the user or the interpreter gave us, in the middle of a program that must not notice.
 *
 * An exception of such a callback goes to sys.unraisablehook.  A KeyboardInterrupt
 * on the main thread is no fault of the callback: Ctrl-C came while it ran, and is
 * the program's, so it is delivered once more.
 *
 * calling_both() puts a function of ours before another one, as a C function: it
 * stands in no Python stack, so the other one, which may look at its caller's
 * line, sees the one it always saw.
 *
 * All under the GIL. */
#ifndef LW_CALLBACKS_H
#define LW_CALLBACKS_H

#include "compat.h"

void lw_callback_failed(PyObject *callback); /* with an exception set; none is afterwards */
int lw_callbacks_init(PyObject *module);

#endif
