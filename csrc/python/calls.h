/* calls.h: EventLoopMonitor's part of the core (see calls.c). */
#ifndef LW_CALLS_H
#define LW_CALLS_H

#include "compat.h"

int lw_calls_init(PyObject *module);

#endif
