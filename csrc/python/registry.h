/* registry.h: which loops are watched, and the locks between them and the watchdog.
 *
 * A slot a watch, in chunks that are never freed, so the watchdog walks them
 * without a lock: it reads a slot's pointer, and only where there is a watch
 * tries that slot's own lock.  The lock guards the watch's sampler and all
 * that lw_watch says is under it.  Whoever holds it, the watchdog passes by;
 * a loop's thread waits for it, with the GIL, no longer than one sample of its
 * own loop takes (some 0.1 ms), however many loops there are.
 *
 * The reading lock guards the static buffers of frames.c and sampler.c, and is
 * what a fork waits for, so that a child finds samplers whole.  The watchdog
 * takes it for one sample at a time.  Order: a slot's lock, then the reading
 * lock; the table's own lock, for taking and giving back slots, is innermost.
 * Nobody calls into Python, or waits for anything else, while holding any.
 *
 * `pinned` keeps the watchdog from a sampler whose contents a thread with the
 * GIL turns into Python objects without the lock. */
#ifndef LW_REGISTRY_H
#define LW_REGISTRY_H

#include <pthread.h>
#include <stdatomic.h>

struct lw_watch;

typedef struct lw_slot {
    pthread_mutex_t lock;
    _Atomic(struct lw_watch *) watch; /* borrowed; NULL: free */
    struct lw_slot *next_free;        /* borrowed; under the table's lock */
} lw_slot;

#define LW_MAX_LOOPS (256 * 256)

int lw_registry_add(struct lw_watch *w); /* -1: no memory, or LW_MAX_LOOPS are there */
void lw_registry_remove(struct lw_watch *w); /* idempotent; after it the watchdog does not know w */
int lw_registry_count(void);

/* The watchdog's walk: slots below the bound. */
int lw_registry_bound(void);
lw_slot *lw_registry_slot(int i);
struct lw_watch *lw_slot_try(lw_slot *slot); /* its watch, locked; NULL when free or locked by another */
void lw_slot_leave(lw_slot *slot);

/* The owner's side; nothing happens for a watch that is not registered. */
void lw_watch_lock(struct lw_watch *w);
void lw_watch_unlock(struct lw_watch *w);

void lw_lock(void); /* the reading lock */
void lw_unlock(void);
void lw_lock_for_watchdog(void); /* lets those go first who wait at it */

/* In a child all locks are new, and only the watches of the thread that forked, whose id was OLD_TID, stay. */
void lw_registry_prefork(void);
void lw_registry_parent(void);
void lw_registry_child(int old_tid, int new_tid);

#endif
