/* watchdog.c: see watchdog.h. */
#include "watchdog.h"

#include <errno.h>
#include <pthread.h>
#include <signal.h>
#include <stdlib.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>

#include "../core/clock.h"
#include "../core/procfs.h"
#include "../core/saferead.h"
#include "../core/sysname.h"
#include "capture.h"
#include "hang.h"
#include "layout.h"

#define MS UINT64_C(1000000)
#define LINGER_NS (5000 * MS)   /* slow ticks after the last watch, then parked */
#define TICK_MAX (100 * MS)      /* a wake-up costs some 50 us of CPU on a virtual machine */
#define DELAY_REFRESH (1000 * MS) /* how old the watchdog's own run-delay reading may be */
#define GAP_MIN (20 * MS)       /* later than this is worth asking why */
#define SLICE_NS (20 * MS)      /* of sampling in one walk */
#define BASELINES 32            /* run-delays read in one walk */

static pthread_mutex_t state_lock = PTHREAD_MUTEX_INITIALIZER; /* starting and stopping */
static pthread_mutex_t sleep_lock =
    PTHREAD_MUTEX_INITIALIZER; /* held by the watchdog but in its wait: wake, earliest */
static pthread_cond_t wake;
static pthread_t thread;
static _Atomic int running;
static int atfork_done;
static _Atomic int stopping;
static _Atomic int wd_tid;
static _Atomic uint64_t planned;      /* when the present wait should end; 0: not waiting with a deadline */
static uint64_t earliest;             /* a wake-up asked for while it did not wait; 0: none */
static _Atomic uint64_t delay_before; /* the watchdog's run-delay some time before it began to wait */
static uint64_t delay_read;           /* when that was read */
static uint64_t idle_since;
static _Atomic uint64_t ticks, cpu_ns;
static _Atomic uint64_t hang_after;
static int hang_fd = 2;         /* under the reading lock */
static struct stat hang_file;   /* what that descriptor was: a program may close it and open another file */
static int forking_tid;
static int (*drain_call)(void *);
static struct {
    uintptr_t tstate;
    int tid;
    uint64_t interval;
    lw_sampler sampler;
    _Atomic uint64_t span;
} stress; /* under the reading lock */

int
lw_watchdog_tid(void)
{
    return atomic_load(&wd_tid);
}

/* The descriptor hang reports go to, or -1 when it is another file by now. */
static int
hang_target(void)
{
    struct stat now;
    int same = fstat(hang_fd, &now) == 0 && now.st_dev == hang_file.st_dev && now.st_ino == hang_file.st_ino;
    return same ? hang_fd : -1;
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

/* A loop without a probe: is its thread in its own poll?  epoll's calls are a
 * loop's; once one was seen, poll() and select() are taken for a callback's. */
static int
generic_waits(lw_watch *w)
{
    lw_syscall sys;
    if (lw_read_syscall(w->tid, &sys) < 0 || sys.state != LW_SYS_IN_CALL || !lw_syscall_is_poll(sys.nr)) {
        return 0;
    }
    const char *name = lw_syscall_name(sys.nr);
    int epoll = name != NULL && name[0] == 'e';
    if (epoll) {
        w->epoll_seen = 1;
    }
    return epoll || !w->epoll_seen;
}

static void
look_generic(lw_watch *w, uint64_t now)
{
    uint64_t busy = atomic_load(&w->busy);
    if (atomic_load(&w->pending_end) != 0) {
        return; /* not handed over yet */
    }
    if (generic_waits(w)) {
        if (busy != 0 && now - busy >= atomic_load(&w->min_threshold)) {
            atomic_store(&w->pending_start, busy);
            atomic_store(&w->pending_end, now);
            if (drain_call != NULL) {
                (void)Py_AddPendingCall(drain_call, NULL);
            }
        }
        atomic_store(&w->busy, 0);
    }
    else if (busy == 0) {
        atomic_store(&w->busy, now);
        atomic_fetch_add(&w->spans, 1);
    }
}

/* Sample one busy loop, locked, and report it when it hangs; returns when to look again. */
static uint64_t
look_closely(lw_watch *w, uint64_t busy, uint64_t now)
{
    lw_sampler *s = &w->sampler;
    uint64_t interval = atomic_load(&w->interval), age = now - busy, report = atomic_load(&hang_after);
    int tid = atomic_load(&w->tid);

    lw_lock_for_watchdog();
    if (s->span != busy) {
        lw_sampler_begin(s, busy);
    }
    if (now >= w->next_ns || s->n == 0) {
        lw_sampler_sample(s, atomic_load(&w->tstate), tid, &w->busy, interval);
        w->next_ns = now + (age / 64 > interval ? age / 64 : interval);
        lw_capture_ask(w, busy, now);
    }
    if (report != 0 && age >= (s->hang_next ? s->hang_next : report)) {
        s->hang_next = (s->hang_next ? s->hang_next : report) * 2;
        lw_hang_report(hang_target(), atomic_load(&w->tstate), tid, age);
    }
    lw_unlock();
    return w->next_ns;
}

/* One walk over all watches: what is left to do in it. */
typedef struct {
    uint64_t began, now; /* now is renewed where time went by */
    uint64_t next;       /* when the next walk is due */
    int baselines;
} walk_state;

static void
due(walk_state *walk, uint64_t when)
{
    walk->next = when < walk->next ? when : walk->next;
}

/* Look at one loop, locked. */
static void
look(lw_watch *w, walk_state *walk)
{
    uint64_t threshold = atomic_load_explicit(&w->min_threshold, memory_order_relaxed), now = walk->now;
    uint64_t start = threshold / 4;
    due(walk, now + (start > MS ? start : MS));
    if (w->pinned) {
        return;
    }
    if (w->kind == LW_GENERIC) {
        look_generic(w, now);
        due(walk, now + threshold / 50);
        if (atomic_load(&w->pending_end) != 0) {
            return;
        }
    }
    uint64_t busy = atomic_load_explicit(&w->busy, memory_order_acquire);
    uint64_t spans = atomic_load_explicit(&w->spans, memory_order_relaxed);
    int young = busy == 0 || now < busy + start;
    if (young && (busy == 0 || now < busy ? spans != w->spans_seen : w->sampler.delay_at < busy)
        && walk->baselines > 0) {
        walk->baselines--;
        lw_sampler_baseline(&w->sampler, atomic_load(&w->tid), now);
        w->spans_seen = spans;
    }
    if (young) {
        if (busy != 0 && now >= busy) {
            due(walk, busy + start);
        }
    }
    else if (w->sampler.span == busy && w->sampler.n != 0 && now < w->next_ns) {
        due(walk, w->next_ns);
    }
    else if (now - walk->began < SLICE_NS) {
        due(walk, look_closely(w, busy, now));
        walk->now = lw_now_ns();
    }
    else {
        due(walk, now);
    }
}

/* Look at all loops; returns when to do so again.  Begins where the walk before had no time left. */
static uint64_t
walk_all(void)
{
    static int first;
    uint64_t now = lw_now_ns();
    walk_state walk = {now, now, now + TICK_MAX, BASELINES};
    int bound = lw_registry_bound(), begin = first < bound ? first : 0, left_off = -1;

    for (int i = 0; i < bound; i++) {
        int at = begin + i < bound ? begin + i : begin + i - bound;
        lw_slot *slot = lw_registry_slot(at);
        lw_watch *w = lw_slot_try(slot);
        if (w == NULL) {
            due(&walk, atomic_load(&slot->watch) != NULL ? walk.now + MS : walk.next); /* its loop has it just now */
            continue;
        }
        look(w, &walk);
        lw_slot_leave(slot);
        if (left_off < 0 && (walk.baselines == 0 || walk.now - walk.began >= SLICE_NS)) {
            left_off = at + 1;
        }
    }
    first = left_off < 0 ? 0 : left_off;
    now = lw_now_ns();
    uint64_t rest = now + (now - walk.began); /* however many are busy: never more than half of a CPU */
    return walk.next > rest || now - walk.began < MS ? walk.next : rest;
}

static void
sample_stress(uint64_t *next)
{
    lw_lock_for_watchdog();
    if (stress.interval != 0) {
        uint64_t again = lw_now_ns() + stress.interval;
        if (stress.sampler.n > LW_MAX_SEGMENTS / 2 || stress.sampler.text.used > LW_TEXT_SIZE / 2) {
            lw_sampler_begin(&stress.sampler, 1);
        }
        lw_sampler_sample(&stress.sampler, stress.tstate, stress.tid, &stress.span, MS);
        *next = again < *next ? again : *next;
        idle_since = 0;
    }
    lw_unlock();
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
        uint64_t next = walk_all();
        idle_since = lw_registry_count() != 0 ? 0 : idle_since != 0 ? idle_since : lw_now_ns();
        sample_stress(&next);
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
}

static void
fork_child(void)
{
    pthread_mutex_init(&state_lock, NULL);
    pthread_mutex_init(&sleep_lock, NULL);
    (void)lw_mem_init(); /* reads go to this process from now on */
    running = 0;
    atomic_store(&stopping, 0);
    atomic_store(&wd_tid, 0);
    atomic_store(&planned, 0);
    delay_read = earliest = idle_since = 0;
    stress.interval = 0;
    lw_capture_fork();
    lw_registry_child(forking_tid, (int)syscall(SYS_gettid));
}

int
lw_watchdog_start(void)
{
    int err = 0;
    sigset_t all, old;
    pthread_condattr_t attr;

    pthread_mutex_lock(&state_lock);
    if (running) {
        goto done;
    }
    if (!atfork_done) {
        err = pthread_atfork(fork_prepare, lw_registry_parent, fork_child);
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
    lw_sampler_close(&w->sampler);
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
    lw_mem_init();
    if (lw_registry_count() == 0) {
        return 0;
    }
    return lw_watchdog_start() < 0 || lw_capture_start() < 0 ? -1 : 0;
}

void
lw_watchdog_hang(uint64_t after_ns, int fd)
{
    lw_lock();
    hang_fd = fd;
    atomic_store(&hang_after, fstat(fd, &hang_file) < 0 ? 0 : after_ns);
    lw_unlock();
}

void
lw_watchdog_stress(uintptr_t tstate, int tid, uint64_t interval)
{
    if (interval != 0) {
        (void)lw_watchdog_start();
    }
    lw_lock();
    if (interval != 0 && stress.interval == 0) {
        stress.span = 1;
        lw_sampler_begin(&stress.sampler, 1);
    }
    else if (interval == 0 && stress.interval != 0) {
        lw_sampler_close(&stress.sampler);
    }
    stress.tstate = tstate;
    stress.tid = tid;
    stress.interval = interval;
    lw_unlock();
    wake_by(1);
}

void
lw_watchdog_set_drain(int (*drain)(void *))
{
    drain_call = drain;
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
