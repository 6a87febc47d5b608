/* requests.h: which request a thread works for, read from outside.
 *
 * A web integration keeps the request at hand in a ContextVar; its value is an
 * object of one known class with a number in a slot.  The thread state points
 * at the current context, whatever runs in it: a task's step, a plain callback,
 * a function in a worker thread that got a copy.  So a sample follows thread
 * state, context, the trie (HAMT) of its variables, value, number: some ten safe
 * reads, made only once an integration is in use.  A number can be wrong no
 * more than a stack can; Python turns it into the request, or into nothing.
 *
 * No offset is believed: lw_requests_watch() finds each by looking into a
 * context of its own, then proves the reader on a small and a large context.
 * Where that fails, numbers are 0: unknown.
 *
 * Written once under the GIL, then only read, by any thread. */
#ifndef LW_REQUESTS_H
#define LW_REQUESTS_H

#include "compat.h"

/* The number of the request that the thread with this state works for; 0 none, or unknown. */
long lw_request_of(uintptr_t tstate);
int lw_requests_init(PyObject *module);

#endif
