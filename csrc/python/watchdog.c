/* watchdog.c: see watchdog.h. */
#include "watchdog.h"

#include <errno.h>
#include <pthread.h>
#include <signal.h>
#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>

#include "../core/clock.h"
#include "../core/procfs.h"
#include "../core/saferead.h"
#include "capture.h"
#include "look.h"

#define MS UINT64_C(1000000)
#define LINGER_NS (5000 * MS)   /* slow ticks after the last watch, then parked */
#define DELAY_REFRESH (1000 * MS) /* how old the watchdog's own run-delay reading may be */
#define GAP_MIN (20 * MS)       /* later than this is worth asking why */

/* One for starting and stopping; the other is the watchdog's while it decides how long to sleep, and guards `earliest`. */
static pthread_mutex_t state_lock = PTHREAD_MUTEX_INITIALIZER, sleep_lock = PTHREAD_MUTEX_INITIALIZER;
static pthread_cond_t wake;
static pthread_t thread;
static _Atomic int running;
static int atfork_done;
static _Atomic int stopping;
static _Atomic int wd_tid;
static _Atomic uint64_t planned; /* when the present wait should end; 0: not waiting with a deadline */
static uint64_t earliest; /* a wake-up asked for while it did not wait; 0: none */
static _Atomic uint64_t delay_before; /* the watchdog's run-delay some time before it began to wait */
static uint64_t delay_read; /* when that was read */
static uint64_t idle_since;
static _Atomic uint64_t ticks, cpu_ns;
static int forking_tid;
_Atomic int lw_forking_pid;

int
lw_watchdog_tid(void)
{
    return atomic_load(&wd_tid);
}

/* The process did not run: take it down against the span it fell into.  W is locked. */
static void
add_stop(lw_watch *w, uint64_t from, uint64_t until)
{
    uint64_t busy = atomic_load(&w->busy);
    from = from > w->stop_seen ? from : w->stop_seen;
    if (busy == 0 || busy >= until || from >= until || w->pinned) {
        return;
    }
    if (w->sampler.span != busy) {
        lw_sampler_begin(&w->sampler, busy);
    }
    w->sampler.stopped_ns += until - (busy > from ? busy : from);
    w->stop_seen = until;
}

/* Whether a stop ends now that began when the watchdog should have woken. */
static int
is_gap(uint64_t now, uint64_t *from)
{
    lw_sched sched;
    int tid = atomic_load(&wd_tid);
    *from = atomic_load(&planned);
    if (*from == 0 || now < *from + GAP_MIN || tid == 0 || lw_read_schedstat(tid, &sched) < 0) {
        return 0;
    }
    return (sched.delay_ns - atomic_load(&delay_before)) * 2 < now - *from;
}

void
lw_account_gap(lw_watch *w, uint64_t now)
{
    uint64_t from;
    if (is_gap(now, &from)) {
        add_stop(w, from, now);
    }
}

/* The process was stopped while the watchdog waited: no span is to blame. */
static void
note_gap(uint64_t now)
{
    uint64_t from;
    if (lw_registry_count() == 0 || !is_gap(now, &from)) {
        return;
    }
    for (int i = 0; i < lw_registry_bound(); i++) {
        lw_slot *slot = lw_registry_slot(i);
        lw_watch *w = lw_slot_try(slot); /* whoever holds it has asked for itself */
        if (w != NULL) {
            lw_lock_for_watchdog();
            add_stop(w, from, now);
            lw_unlock();
            lw_slot_leave(slot);
        }
    }
}

/* Sleep until then, or for good where nothing is watched; the sleep lock is held. */
static void
wait_until(uint64_t when)
{
    lw_sched sched;
    uint64_t now = lw_now_ns();
    if (earliest != 0 && earliest < when) {
        when = earliest;
    }
    earliest = 0;
    if (now >= when) {
        return;
    }
    if (now - delay_read > DELAY_REFRESH && lw_read_schedstat(atomic_load(&wd_tid), &sched) == 0) {
        atomic_store(&delay_before, sched.delay_ns);
        delay_read = now;
    }
    if (idle_since != 0 && now - idle_since > LINGER_NS) {
        pthread_cond_wait(&wake, &sleep_lock); /* parked */
        idle_since = 0;
        return;
    }
    struct timespec ts = {(time_t)(when / 1000000000), (long)(when % 1000000000)};
    atomic_store(&planned, when);
    pthread_cond_timedwait(&wake, &sleep_lock, &ts);
    note_gap(lw_now_ns());
    atomic_store(&planned, 0);
}

static void *
watchdog_main(void *unused)
{
    struct timespec cpu;
    (void)unused;
    atomic_store(&wd_tid, (int)syscall(SYS_gettid));
    while (!atomic_load(&stopping)) {
        uint64_t next = lw_look_at_all();
        idle_since = lw_registry_count() != 0 ? 0 : idle_since != 0 ? idle_since : lw_now_ns();
        if (lw_look_stress(&next)) {
            idle_since = 0;
        }
        ticks++;
        if (clock_gettime(CLOCK_THREAD_CPUTIME_ID, &cpu) == 0) {
            cpu_ns = (uint64_t)cpu.tv_sec * 1000000000u + (uint64_t)cpu.tv_nsec;
        }
        pthread_mutex_lock(&sleep_lock);
        if (!atomic_load(&stopping)) {
            wait_until(next);
        }
        pthread_mutex_unlock(&sleep_lock);
    }
    atomic_store(&wd_tid, 0);
    return NULL;
}

static void
fork_prepare(void)
{
    lw_registry_prefork();
    forking_tid = (int)syscall(SYS_gettid);
    atomic_store(&lw_forking_pid, (int)getpid());
}

static void
fork_parent(void)
{
    atomic_store(&lw_forking_pid, 0);
    lw_registry_parent();
}

/* In the child, once: as its handler of pthread_atfork(), or before, see lw_fork_settle(). */
static void
fork_child(void)
{
    if (atomic_exchange(&lw_forking_pid, 0) == 0) {
        return;
    }
    pthread_mutex_init(&state_lock, NULL);
    pthread_mutex_init(&sleep_lock, NULL);
    (void)lw_mem_init(); /* reads go to this process from now on */
    running = 0;
    atomic_store(&stopping, 0);
    atomic_store(&wd_tid, 0);
    atomic_store(&planned, 0);
    delay_read = earliest = idle_since = 0;
    lw_look_fork();
    lw_capture_fork();
    lw_registry_child(forking_tid, (int)syscall(SYS_gettid));
}

void
lw_fork_settle_child(int forking)
{
    if (forking != (int)getpid()) {
        fork_child();
    }
}

int
lw_watchdog_start(void)
{
    int err = 0;
    sigset_t all, old;
    pthread_condattr_t attr;

    lw_fork_settle();
    pthread_mutex_lock(&state_lock);
    if (running) {
        goto done;
    }
    if (!atfork_done) {
        err = pthread_atfork(fork_prepare, fork_parent, fork_child);
        if (err != 0) {
            goto done;
        }
        atfork_done = 1;
    }
    pthread_condattr_init(&attr);
    pthread_condattr_setclock(&attr, CLOCK_MONOTONIC);
    pthread_cond_init(&wake, &attr);
    pthread_condattr_destroy(&attr);
    sigfillset(&all);
    pthread_sigmask(SIG_SETMASK, &all, &old);
    err = pthread_create(&thread, NULL, watchdog_main, NULL);
    pthread_sigmask(SIG_SETMASK, &old, NULL);
    if (err == 0) {
        running = 1;
        pthread_setname_np(thread, "loopwatch");
    }
done:
    pthread_mutex_unlock(&state_lock);
    errno = err;
    return err == 0 ? 0 : -1;
}

/* Make it walk again by WHEN. */
static void
wake_by(uint64_t when)
{
    lw_fork_settle();
    pthread_mutex_lock(&sleep_lock);
    uint64_t at = atomic_load(&planned);
    if (at == 0 || at > when) {
        earliest = earliest == 0 || when < earliest ? when : earliest;
        if (running) {
            pthread_cond_signal(&wake);
        }
    }
    pthread_mutex_unlock(&sleep_lock);
}

void
lw_watchdog_stop(void)
{
    lw_fork_settle();
    pthread_mutex_lock(&state_lock);
    if (running) {
        atomic_store(&stopping, 1);
        wake_by(0);
        pthread_join(thread, NULL);
        running = 0;
        atomic_store(&stopping, 0);
    }
    pthread_mutex_unlock(&state_lock);
}

int
lw_watchdog_add(lw_watch *w)
{
    w->next_ns = w->spans_seen = w->stop_seen = w->asked_span = 0;
    return lw_watchdog_start() < 0 || lw_capture_start() < 0 ? -1 : lw_registry_add(w);
}

void
lw_watchdog_remove(lw_watch *w)
{
    lw_registry_remove(w);
    if (w->pinned == 0) { /* else whoever reads its samples closes it */
        lw_sampler_close(&w->sampler);
    }
}

void
lw_watchdog_hurry(uint64_t threshold)
{
    uint64_t by = lw_now_ns() + (threshold / 4 > MS ? threshold / 4 : MS), at = atomic_load(&planned);
    if (at == 0 || at > by) {
        wake_by(by);
    }
}

int
lw_watchdog_after_fork(void)
{
    lw_fork_settle();
    lw_mem_init();
    if (lw_registry_count() == 0) {
        return 0;
    }
    return lw_watchdog_start() < 0 || lw_capture_start() < 0 ? -1 : 0;
}

void
lw_watchdog_stress(uintptr_t tstate, int tid, uint64_t interval)
{
    if (interval != 0) {
        (void)lw_watchdog_start();
    }
    lw_look_set_stress(tstate, tid, interval);
    wake_by(1);
}

void
lw_watchdog_read(lw_watchdog_numbers *out)
{
    out->samples = lw_count_samples;
    out->failed_reads = lw_count_failed;
    out->ticks = ticks;
    out->cpu_ns = cpu_ns;
    out->watches = (uint64_t)lw_registry_count();
    out->running = (uint64_t)atomic_load(&running);
}
