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
 * All of it under the GIL. */
#ifndef LW_THREADS_H
#define LW_THREADS_H

#include "compat.h"
#include "creation.h"

/* What a scope is, apart from the handle ThreadScope that somebody closes or drops: contexts, inner scopes and records
 * hold it for as long as they like. */
typedef struct lw_thread_scope {
    PyObject_HEAD uint64_t mark;    /* the newest thread state's number when it opened */
    struct lw_thread_scope *parent; /* owned: the scope it was opened in, or NULL */
    int open;
} lw_thread_scope;

typedef struct {
    PyObject_HEAD lw_creation *creation; /* owned, or NULL */
    PyObject *thread;                    /* owned weak reference to a threading.Thread, or NULL */
    PyObject *target, *module;           /* owned str or NULL: what runs in it */
    lw_thread_scope *scope;                  /* owned: the innermost scope open where it was begun, or NULL */
    unsigned long ident;
    uint64_t born_ns;
} ThreadRecord;

int lw_threads_init(PyObject *module);
int lw_threads_hook(void);                      /* -1 with an exception; nothing is hooked then */
void lw_threads_unhook(void);                   /* and forget all records */
PyObject *lw_thread_record(PyThreadState *ts);  /* borrowed, NULL without one; or with an exception */

/* threadscope.c: the type ThreadScope. */
int lw_threadscope_init(PyObject *module);
lw_thread_scope *lw_thread_scope_here(void);        /* borrowed: the innermost open scope of this context or thread */

/* threadlook.c: threads_doing(), what threads are doing now. */
int lw_threadlook_init(PyObject *module);

#endif
