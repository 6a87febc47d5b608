/* registry.c: see registry.h. */
#include "registry.h"

#include <sched.h>
#include <stdlib.h>

#include "watchdog.h"

#define CHUNK 256
#define CHUNKS (LW_MAX_LOOPS / CHUNK)

static pthread_mutex_t table_lock = PTHREAD_MUTEX_INITIALIZER;
static pthread_mutex_t reading = PTHREAD_MUTEX_INITIALIZER;
static _Atomic int waiting;                /* threads at the reading lock, perhaps with the GIL */
static _Atomic(lw_slot *) chunks[CHUNKS];  /* owned, for good */
static _Atomic int bound, count;
static lw_slot *free_slots;                /* borrowed list */

void
lw_lock(void)
{
    lw_fork_settle();
    atomic_fetch_add(&waiting, 1);
    pthread_mutex_lock(&reading);
    atomic_fetch_sub(&waiting, 1);
}

void
lw_unlock(void)
{
    pthread_mutex_unlock(&reading);
}

void
lw_lock_for_watchdog(void)
{
    for (int i = 0; i < 100 && atomic_load(&waiting) != 0; i++) {
        sched_yield();
    }
    pthread_mutex_lock(&reading);
}

int
lw_registry_count(void)
{
    return atomic_load(&count);
}

int
lw_registry_bound(void)
{
    return atomic_load_explicit(&bound, memory_order_acquire);
}

lw_slot *
lw_registry_slot(int i)
{
    return &atomic_load_explicit(&chunks[i / CHUNK], memory_order_acquire)[i % CHUNK];
}

/* A free slot, or NULL; the table's lock is held. */
static lw_slot *
take_slot(void)
{
    lw_slot *slot = free_slots;
    int next = atomic_load(&bound);
    if (slot != NULL) {
        free_slots = slot->next_free;
        return slot;
    }
    if (next == LW_MAX_LOOPS) {
        return NULL;
    }
    if (next % CHUNK == 0) {
        lw_slot *chunk = calloc(CHUNK, sizeof(*chunk));
        if (chunk == NULL) {
            return NULL;
        }
        for (int i = 0; i < CHUNK; i++) {
            pthread_mutex_init(&chunk[i].lock, NULL);
        }
        atomic_store_explicit(&chunks[next / CHUNK], chunk, memory_order_release);
    }
    atomic_store_explicit(&bound, next + 1, memory_order_release);
    return lw_registry_slot(next);
}

int
lw_registry_add(lw_watch *w)
{
    lw_fork_settle();
    pthread_mutex_lock(&table_lock);
    lw_slot *slot = take_slot();
    pthread_mutex_unlock(&table_lock);
    if (slot == NULL) {
        return -1;
    }
    pthread_mutex_lock(&slot->lock);
    w->slot = slot;
    atomic_store(&slot->watch, w);
    pthread_mutex_unlock(&slot->lock);
    atomic_fetch_add(&count, 1);
    return 0;
}

void
lw_registry_remove(lw_watch *w)
{
    lw_fork_settle();
    lw_slot *slot = w->slot;
    if (slot == NULL) {
        return;
    }
    pthread_mutex_lock(&slot->lock);
    atomic_store(&slot->watch, NULL);
    pthread_mutex_unlock(&slot->lock);
    w->slot = NULL;
    atomic_fetch_sub(&count, 1);
    pthread_mutex_lock(&table_lock);
    slot->next_free = free_slots;
    free_slots = slot;
    pthread_mutex_unlock(&table_lock);
}

lw_watch *
lw_slot_try(lw_slot *slot)
{
    if (atomic_load_explicit(&slot->watch, memory_order_relaxed) == NULL || pthread_mutex_trylock(&slot->lock) != 0) {
        return NULL;
    }
    lw_watch *w = atomic_load(&slot->watch);
    if (w == NULL) {
        pthread_mutex_unlock(&slot->lock);
    }
    return w;
}

void
lw_slot_leave(lw_slot *slot)
{
    pthread_mutex_unlock(&slot->lock);
}

void
lw_watch_lock(lw_watch *w)
{
    lw_fork_settle();
    if (w->slot != NULL) {
        pthread_mutex_lock(&w->slot->lock);
    }
}

void
lw_watch_unlock(lw_watch *w)
{
    if (w->slot != NULL) {
        pthread_mutex_unlock(&w->slot->lock);
    }
}

void
lw_registry_prefork(void)
{
    lw_lock();
    pthread_mutex_lock(&table_lock);
}

void
lw_registry_parent(void)
{
    pthread_mutex_unlock(&table_lock);
    lw_unlock();
}

void
lw_registry_child(int old_tid, int new_tid)
{
    pthread_mutex_init(&table_lock, NULL);
    pthread_mutex_init(&reading, NULL);
    atomic_store(&waiting, 0);
    free_slots = NULL;
    for (int i = 0; i < atomic_load(&bound); i++) {
        lw_slot *slot = lw_registry_slot(i);
        lw_watch *w = atomic_load(&slot->watch);
        pthread_mutex_init(&slot->lock, NULL);
        if (w != NULL && atomic_load(&w->tid) == old_tid) {
            atomic_store(&w->tid, new_tid);
            continue;
        }
        if (w != NULL) {
            atomic_store(&slot->watch, NULL);
            w->slot = NULL;
            lw_sampler_close(&w->sampler);
            atomic_store(&w->busy, 0);
            atomic_fetch_sub(&count, 1);
        }
        slot->next_free = free_slots;
        free_slots = slot;
    }
}
