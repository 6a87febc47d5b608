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
#include "hang.h"
#include "layout.h"

#define MAX_WATCHES 1024
#define MS UINT64_C(1000000)
#define LINGER_NS (5000 * MS)   /* slow ticks after the last watch, then parked */
#define TICK_MAX (100 * MS)      /* a wake-up costs some 50 us of CPU on a virtual machine */
#define DELAY_REFRESH (1000 * MS) /* how old the watchdog's own run-delay reading may be */
#define GAP_MIN (20 * MS)       /* later than this is worth asking why */

static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;
static pthread_cond_t wake;
static pthread_t thread;
static int running, stopping, atfork_done;
static _Atomic int wd_tid;
static lw_watch *watches[MAX_WATCHES];
static int nwatches;
static uint64_t planned;        /* when the present wait should end; 0: not waiting with a deadline */
static uint64_t delay_before;   /* the watchdog's run-delay some time before it began to wait */
static uint64_t delay_read;     /* when that was read */
static uint64_t gap_until;      /* a gap up to here is accounted for */
static uint64_t idle_since;
static _Atomic uint64_t ticks, cpu_ns;
static uint64_t hang_after;
static int hang_fd = 2;
static struct stat hang_file;    /* what that descriptor was: a program may close it and open another file */
static _Atomic int waiting;      /* threads at the lock, perhaps with the GIL */
static int forking_tid;
static int (*drain_call)(void *);
static struct {
    uintptr_t tstate;
    int tid;
    uint64_t interval;
    lw_sampler sampler;
    _Atomic uint64_t span;
} stress;

void
lw_lock(void)
{
    atomic_fetch_add(&waiting, 1);
    pthread_mutex_lock(&lock);
    atomic_fetch_sub(&waiting, 1);
}

/* The watchdog lets those go first who wait at the lock. */
static void
let_others(void)
{
    if (atomic_load(&waiting) != 0) {
        pthread_mutex_unlock(&lock);
        for (int i = 0; i < 100 && atomic_load(&waiting) != 0; i++) {
            sched_yield();
        }
        pthread_mutex_lock(&lock);
    }
}

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

void
lw_unlock(void)
{
    pthread_mutex_unlock(&lock);
}

static void
add_stop(lw_watch *w, uint64_t from, uint64_t until)
{
    uint64_t busy = atomic_load(&w->busy);
    if (busy == 0 || busy >= until || w->pinned) {
        return;
    }
    if (w->sampler.span != busy) {
        lw_sampler_begin(&w->sampler, busy);
    }
    w->sampler.stopped_ns += until - (busy > from ? busy : from);
}

/* The length of a stop that ends now; 0 if there was none.  Locked. */
static uint64_t
gap_begin(uint64_t now, uint64_t *from)
{
    lw_sched sched;
    if (planned == 0 || now < planned + GAP_MIN || wd_tid == 0) {
        return 0;
    }
    *from = planned > gap_until ? planned : gap_until;
    if (now <= *from || lw_read_schedstat(wd_tid, &sched) < 0) {
        return 0;
    }
    return (sched.delay_ns - delay_before) * 2 < now - *from ? now - *from : 0;
}

void
lw_account_gap(lw_watch *w, uint64_t now)
{
    uint64_t from;
    if (gap_begin(now, &from) != 0) {
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

/* Look at one loop; returns when to look again. */
static uint64_t
look(lw_watch *w, uint64_t now, uint64_t tick)
{
    lw_sampler *s = &w->sampler;
    if (w->pinned) {
        return now + tick;
    }
    if (w->kind == LW_GENERIC) {
        look_generic(w, now);
        tick = tick < atomic_load(&w->min_threshold) / 50 ? tick : atomic_load(&w->min_threshold) / 50;
        if (atomic_load(&w->pending_end) != 0) {
            return now + tick;
        }
    }
    uint64_t busy = atomic_load_explicit(&w->busy, memory_order_acquire);
    uint64_t spans = atomic_load_explicit(&w->spans, memory_order_relaxed);
    uint64_t start = atomic_load(&w->min_threshold) / 4;
    uint64_t interval = atomic_load(&w->interval);
    int tid = atomic_load(&w->tid);
    if (busy == 0 || now < busy) {
        if (spans != w->spans_seen) {
            lw_sampler_baseline(s, tid, now);
            w->spans_seen = spans;
        }
        return now + tick;
    }
    uint64_t age = now - busy;
    if (age < start) {
        if (s->delay_at < busy) {
            lw_sampler_baseline(s, tid, now);
        }
        return busy + start < now + tick ? busy + start : now + tick;
    }
    if (s->span != busy) {
        lw_sampler_begin(s, busy);
    }
    if (now >= w->next_ns || s->n == 0) {
        lw_sampler_sample(s, atomic_load(&w->tstate), tid, &w->busy, interval);
        w->next_ns = now + (age / 64 > interval ? age / 64 : interval);
    }
    if (hang_after != 0 && age >= (s->hang_next ? s->hang_next : hang_after)) {
        s->hang_next = (s->hang_next ? s->hang_next : hang_after) * 2;
        lw_hang_report(hang_target(), atomic_load(&w->tstate), tid, age);
    }
    if (w->kind == LW_GENERIC && now + tick < w->next_ns) {
        return now + tick;
    }
    return w->next_ns;
}

static void
note_gap(uint64_t now)
{
    uint64_t from;
    if (gap_begin(now, &from) != 0) {
        for (int i = 0; i < nwatches; i++) {
            add_stop(watches[i], from, now);
        }
        gap_until = now;
    }
}

static void
wait_until(uint64_t when)
{
    lw_sched sched;
    struct timespec ts = {(time_t)(when / 1000000000), (long)(when % 1000000000)};
    uint64_t now = lw_now_ns();
    if (now - delay_read > DELAY_REFRESH && lw_read_schedstat(wd_tid, &sched) == 0) {
        delay_before = sched.delay_ns;
        delay_read = now;
    }
    planned = when;
    pthread_cond_timedwait(&wake, &lock, &ts);
    now = lw_now_ns();
    if (nwatches != 0) {
        note_gap(now);
    }
    planned = 0;
}

static void *
watchdog_main(void *unused)
{
    struct timespec cpu;
    (void)unused;
    pthread_mutex_lock(&lock);
    wd_tid = (int)syscall(SYS_gettid);
    while (!stopping) {
        uint64_t now = lw_now_ns();
        uint64_t tick = TICK_MAX, next;
        for (int i = 0; i < nwatches; i++) {
            uint64_t t = atomic_load(&watches[i]->min_threshold) / 4;
            tick = t < tick ? (t > MS ? t : MS) : tick;
        }
        next = now + tick;
        for (int i = 0; i < nwatches; i++) {
            uint64_t again = look(watches[i], now, tick);
            next = again < next ? again : next;
            let_others(); /* may shorten the list: the bound is read anew */
        }
        if (stress.interval != 0) {
            if (stress.sampler.n > LW_MAX_SEGMENTS / 2 || stress.sampler.text.used > LW_TEXT_SIZE / 2) {
                lw_sampler_begin(&stress.sampler, 1);
            }
            lw_sampler_sample(&stress.sampler, stress.tstate, stress.tid, &stress.span, MS);
            next = now + stress.interval < next ? now + stress.interval : next;
        }
        ticks++;
        if (clock_gettime(CLOCK_THREAD_CPUTIME_ID, &cpu) == 0) {
            cpu_ns = (uint64_t)cpu.tv_sec * 1000000000u + (uint64_t)cpu.tv_nsec;
        }
        if (nwatches == 0 && stress.interval == 0) {
            idle_since = idle_since ? idle_since : now;
            if (now - idle_since > LINGER_NS) {
                pthread_cond_wait(&wake, &lock); /* parked */
                idle_since = 0;
                continue;
            }
        }
        else {
            idle_since = 0;
        }
        now = lw_now_ns();
        if (next <= now) {
            pthread_mutex_unlock(&lock); /* let others at it between two samples */
            sched_yield();
            pthread_mutex_lock(&lock);
        }
        else {
            wait_until(next);
        }
    }
    wd_tid = 0;
    pthread_mutex_unlock(&lock);
    return NULL;
}

static void
fork_prepare(void)
{
    lw_lock();
    forking_tid = (int)syscall(SYS_gettid);
}

static void
fork_parent(void)
{
    pthread_mutex_unlock(&lock);
}

static void
fork_child(void)
{
    pthread_mutex_init(&lock, NULL);
    (void)lw_mem_init(); /* reads go to this process from now on */
    running = stopping = 0;
    wd_tid = 0;
    planned = 0;
    gap_until = 0;
    delay_read = 0;
    stress.interval = 0;
    waiting = 0;
    for (int i = 0; i < nwatches;) { /* of all threads only the one that forked is here */
        lw_watch *w = watches[i];
        if (atomic_load(&w->tid) == forking_tid) {
            atomic_store(&w->tid, (int)syscall(SYS_gettid));
            i++;
            continue;
        }
        watches[i] = watches[--nwatches];
        w->registered = 0;
        lw_sampler_close(&w->sampler);
        atomic_store(&w->busy, 0);
    }
}

int
lw_watchdog_start(void)
{
    int err = 0;
    sigset_t all, old;
    pthread_condattr_t attr;

    lw_lock();
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
#ifdef __linux__
        pthread_setname_np(thread, "loopwatch");
#endif
    }
done:
    pthread_mutex_unlock(&lock);
    errno = err;
    return err == 0 ? 0 : -1;
}

void
lw_watchdog_stop(void)
{
    lw_lock();
    if (!running) {
        pthread_mutex_unlock(&lock);
        return;
    }
    stopping = 1;
    pthread_cond_signal(&wake);
    pthread_mutex_unlock(&lock);
    pthread_join(thread, NULL);
    lw_lock();
    running = stopping = 0;
    pthread_mutex_unlock(&lock);
}

int
lw_watchdog_add(lw_watch *w)
{
    int status = -1;
    if (lw_watchdog_start() < 0) {
        return -1;
    }
    lw_lock();
    if (nwatches < MAX_WATCHES && lw_sampler_open(&w->sampler) == 0) {
        watches[nwatches++] = w;
        w->registered = 1;
        w->pinned = 0;
        w->next_ns = w->spans_seen = 0;
        status = 0;
    }
    pthread_mutex_unlock(&lock);
    return status;
}

void
lw_watchdog_remove(lw_watch *w)
{
    lw_lock();
    for (int i = 0; i < nwatches; i++) {
        if (watches[i] == w) {
            watches[i] = watches[--nwatches];
            lw_sampler_close(&w->sampler);
            break;
        }
    }
    w->registered = 0;
    pthread_mutex_unlock(&lock);
}

void
lw_watchdog_hurry(uint64_t threshold)
{
    uint64_t need = threshold / 4 > MS ? threshold / 4 : MS;
    lw_lock();
    if (planned == 0 || planned > lw_now_ns() + need) {
        pthread_cond_signal(&wake);
    }
    pthread_mutex_unlock(&lock);
}

int
lw_watchdog_after_fork(void)
{
    lw_mem_init();
    return nwatches ? lw_watchdog_start() : 0;
}

void
lw_watchdog_hang(uint64_t after_ns, int fd)
{
    lw_lock();
    hang_after = after_ns;
    hang_fd = fd;
    if (fstat(fd, &hang_file) < 0) {
        hang_after = 0;
    }
    pthread_mutex_unlock(&lock);
}

void
lw_watchdog_stress(uintptr_t tstate, int tid, uint64_t interval)
{
    if (interval != 0) {
        (void)lw_watchdog_start();
    }
    lw_lock();
    if (interval != 0 && stress.interval == 0) {
        if (lw_sampler_open(&stress.sampler) < 0) {
            interval = 0;
        }
        else {
            stress.span = 1;
            lw_sampler_begin(&stress.sampler, 1);
        }
    }
    else if (interval == 0 && stress.interval != 0) {
        lw_sampler_close(&stress.sampler);
    }
    stress.tstate = tstate;
    stress.tid = tid;
    stress.interval = interval;
    if (running) {
        pthread_cond_signal(&wake);
    }
    pthread_mutex_unlock(&lock);
}

void
lw_watchdog_set_drain(int (*drain)(void *))
{
    drain_call = drain;
}

void
lw_watchdog_read(lw_watchdog_numbers *out)
{
    lw_lock();
    out->samples = lw_count_samples;
    out->failed_reads = lw_count_failed;
    out->ticks = ticks;
    out->cpu_ns = cpu_ns;
    out->watches = (uint64_t)nwatches;
    out->running = (uint64_t)running;
    pthread_mutex_unlock(&lock);
}
