/* look.c: see look.h. */
#include "look.h"

#include <sys/stat.h>

#include "../core/clock.h"
#include "../core/procfs.h"
#include "../core/sysname.h"
#include "capture.h"
#include "compat.h"
#include "hang.h"
#include "libuv.h"

#define MS UINT64_C(1000000)
#define TICK_MAX (100 * MS) /* a wake-up costs some 50 us of CPU on a virtual machine */
#define SLICE_NS (20 * MS)  /* of sampling in one walk */
#define BASELINES 32        /* run-delays read in one walk */

static _Atomic uint64_t hang_after;
static int hang_fd = 2;         /* under the reading lock */
static struct stat hang_file;   /* what that descriptor was: a program may close it and open another file */
static int (*drain_call)(void *);
static struct {
    uintptr_t tstate;
    int tid;
    uint64_t interval;
    lw_sampler sampler;
    _Atomic uint64_t span;
} stress; /* under the reading lock */

static int
is_hang_file(int fd)
{
    struct stat now;
    return fstat(fd, &now) == 0 && now.st_dev == hang_file.st_dev && now.st_ino == hang_file.st_ino;
}

/* The descriptor hang reports go to: ours, stderr where the program closed ours but not that, else -1. */
static int
hang_target(void)
{
    return is_hang_file(hang_fd) ? hang_fd : is_hang_file(2) ? 2 : -1;
}

/* The task or callback that the newest sample met, or NULL. */
static const char *
running_now(const lw_sampler *s)
{
    const lw_segment *seg = s->n > 0 ? &s->segs[s->n - 1] : NULL;
    uint32_t name = seg == NULL ? 0 : seg->task != 0 ? seg->task : seg->callback;
    return name != 0 ? s->text.base + name : NULL;
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

/* libuv calls I/O callbacks from inside its poll, where no hook is: a thread met outside of the poll call works. */
static void
look_uv(lw_watch *w, uint64_t now)
{
    lw_syscall sys;
    uint64_t busy = atomic_load(&w->busy);
    int unsure = busy != 0 && busy == atomic_load(&w->may_wait);
    if (atomic_load(&w->stands) || (busy != 0 && busy != w->met_at && !unsure)
        || lw_read_syscall(atomic_load(&w->tid), &sys) < 0) {
        return;
    }
    const char *name = sys.state == LW_SYS_IN_CALL ? lw_syscall_name(sys.nr) : NULL;
    if (name != NULL && lw_syscall_is_poll(sys.nr) && name[0] == 'e') {
        if (busy != 0) { /* it was on its way there, or does wait */
            (void)atomic_compare_exchange_strong(&w->busy, &busy, 0);
        }
        atomic_store(&w->met, 0);
    }
    else if (busy != 0) {
        atomic_fetch_add(&w->met, unsure ? 0 : 1);
    }
    else if (atomic_compare_exchange_strong(&w->busy, &busy, now)) {
        uint64_t clock = w->libuv != NULL ? lw_uv.now(w->libuv) : 0;
        w->met_at = now;
        w->met_clock = clock != atomic_load(&w->libuv_before) ? clock * MS : 0;
        atomic_store(&w->met, 1);
    }
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
        s->ready = w->ready;
        s->taken = atomic_load(&w->taken);
        lw_sampler_sample(s, atomic_load(&w->tstate), tid, &w->busy, interval);
        w->next_ns = now + (age / 64 > interval ? age / 64 : interval);
        lw_capture_ask(w, busy, now);
    }
    if (report != 0 && age >= (s->hang_next ? s->hang_next : report)) {
        s->hang_next = (s->hang_next ? s->hang_next : report) * 2;
        lw_hang_report(hang_target(), atomic_load(&w->tstate), tid, age, running_now(s));
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
    if (w->kind == LW_UV) {
        look_uv(w, now);
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
uint64_t
lw_look_at_all(void)
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

int
lw_look_stress(uint64_t *next)
{
    lw_lock_for_watchdog();
    int active = stress.interval != 0;
    if (active) {
        uint64_t again = lw_now_ns() + stress.interval;
        if (stress.sampler.n > LW_MAX_SEGMENTS / 2 || stress.sampler.text.used > LW_TEXT_SIZE / 2) {
            lw_sampler_begin(&stress.sampler, 1);
        }
        lw_sampler_sample(&stress.sampler, stress.tstate, stress.tid, &stress.span, MS);
        *next = again < *next ? again : *next;
    }
    lw_unlock();
    return active;
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
lw_look_set_stress(uintptr_t tstate, int tid, uint64_t interval)
{
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
}

void
lw_look_fork(void)
{
    stress.interval = 0;
}

void
lw_watchdog_set_drain(int (*drain)(void *))
{
    drain_call = drain;
}
