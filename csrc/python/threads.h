/* threads.h: which threads were begun since a scope opened, and by whom.
 *
 * Which threads there are is the interpreter's own list: every thread state
 * has a number that grows and is never used twice, and the newest comes first.
 * So a scope is entered by reading one number, and what was begun since is the
 * front of the list.  Nothing can hide from that, whatever is patched.
 *
 * Where a thread was begun is told by a hook: while a scope is open,
 * start_new_thread and start_joinable_thread, in _thread and as threading
 * keeps them, are C callables that call the original with all arguments and
 * keep a record.  Their __self__ is the original.
 *
 * - When the last scope closes, the originals are put back where ours still
 *   stands.  A hook that somebody else took meanwhile goes on passing through;
 *   one that comes back (a patch undone late) is adopted, not hooked again.
 *   A patcher that wraps our hook, or that we wrap, causes one record.
 * - A record is keyed by the thread state's number, holds the creation stack
 *   (interned), names and a weak reference to the Thread: it keeps nothing of
 *   the program alive.  Records of ended threads go when there are twice as
 *   many as threads, all of them when the last scope closes.
 * - Scopes nest by context (a context variable) and through threads (a thread
 *   inherits its starter's): a thread that was begun inside another scope
 *   only, one that is open beside ours, is that one's to tell.
 *
 * All of it under the GIL; the hooks cost 1 us a thread, of 30 or more. */
#ifndef LW_THREADS_H
#define LW_THREADS_H

#include "compat.h"

int lw_threads_init(PyObject *module);

/* threadlook.c: threads_doing(), what threads are doing now. */
int lw_threadlook_init(PyObject *module);

#endif
