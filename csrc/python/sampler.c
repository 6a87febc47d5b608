/* sampler.c: see sampler.h. */
#include "sampler.h"

#include <limits.h>
#include <time.h>

#include "../core/clock.h"
#include "../core/procfs.h"
#include "../core/saferead.h"
#include "doing.h"
#include "layout.h"
#include "loopqueue.h"
#include "requests.h"
#include "taskname.h"

const char *const lw_cause_names[LW_CAUSES] = {
    "python", "c_call", "c_call_released", "syscall", "lock", "gil", "starved", "stopped", "gc", "import", "unknown"};
_Atomic uint64_t lw_count_samples, lw_count_failed;

/* A watchdog that was woken on the CPU of the thread it looks at sees it stand
 * still, whatever it does: so it steps aside for a moment before it says so,
 * until a segment has that many samples that did not move. */
#define BREATH_NS 50000
#define SETTLED 16

static lw_walk walk, holder_walk; /* the reading lock's */
static lw_frame decoded[LW_MAX_FRAMES];

void
lw_sampler_close(lw_sampler *s)
{
    lw_arena_close(&s->arena);
    memset(s, 0, sizeof(*s));
}

void
lw_sampler_begin(lw_sampler *s, uint64_t span)
{
    lw_arena_reset(&s->arena);
    s->span = span;
    s->n = s->dropped = 0;
    s->last_ns = 0;
    s->stopped_ns = s->first_at = 0;
    s->hang_next = 0;
    s->segs = NULL;
}

/* Room for the span's first sample.  Most loops never need any, so it is mapped when it is. */
static int
make_room(lw_sampler *s)
{
    if (s->arena.base == NULL && lw_arena_open(&s->arena, LW_ARENA_SIZE) < 0) {
        return -1;
    }
    lw_segment *segs = lw_arena_take(&s->arena, LW_MAX_SEGMENTS * sizeof(lw_segment));
    char *text = lw_arena_take(&s->arena, LW_TEXT_SIZE);
    if (segs == NULL || text == NULL) {
        return -1;
    }
    lw_textbuf_init(&s->text, text, LW_TEXT_SIZE);
    s->segs = segs;
    return 0;
}

void
lw_sampler_baseline(lw_sampler *s, int tid, uint64_t now)
{
    lw_sched sched;
    if (lw_read_schedstat(tid, &sched) == 0) {
        s->delay_at = now;
        s->delay_ns = sched.delay_ns;
    }
}

/* With many loops the reading before the span may be a second old: too old to tell whose the delay was. */
#define BASELINE_OLD UINT64_C(150000000)

static void
first_delay(lw_sampler *s, int tid, uint64_t now)
{
    lw_sched sched;
    if (s->delay_at + BASELINE_OLD < s->span && lw_read_schedstat(tid, &sched) == 0) {
        s->first_at = now;
        s->first_delay_ns = sched.delay_ns;
    }
}

typedef struct {
    enum lw_cause cause;
    long syscall;
    uintptr_t holder;
    int running;
    int without_gil; /* running, while another thread holds the GIL */
} evidence;

/* The kernel brings a running thread's CPU time up to date at each tick, every 10 ms at the latest. */
#define TICK_NS UINT64_C(11000000)

static int
has_no_cpu(lw_sampler *s, int tid, uint64_t now)
{
    lw_sched sched;
    if (lw_read_schedstat(tid, &sched) < 0) {
        return 0;
    }
    if (sched.run_ns != s->run_ns) {
        s->run_ns = sched.run_ns;
        s->run_changed = now;
        return 0;
    }
    return now - s->run_changed > TICK_NS;
}

static void
weigh(lw_sampler *s, uintptr_t tstate, int tid, uint64_t now, evidence *ev)
{
    lw_doing now_does;

    ev->cause = LW_UNKNOWN;
    ev->syscall = -1;
    ev->holder = 0;
    ev->running = ev->without_gil = 0;
    lw_doing_read(tstate, tid, &now_does);
    switch (now_does.state) {
    case LW_DOES_CALL:
        ev->cause = LW_SYSCALL;
        ev->syscall = now_does.syscall;
        break;
    case LW_DOES_LOCK:
        ev->cause = LW_LOCK;
        ev->syscall = now_does.syscall;
        break;
    case LW_DOES_GIL:
        ev->cause = LW_GIL;
        ev->holder = now_does.holder;
        break;
    case LW_DOES_RUN:
        if (has_no_cpu(s, tid, now)) {
            ev->cause = LW_STARVED;
            break;
        }
        ev->running = 1;
        ev->without_gil = now_does.gil_elsewhere;
        ev->cause = now_does.collecting ? LW_GC : now_does.without_gil ? LW_C_RELEASED : LW_C_CALL;
        break;
    default:
        break;
    }
}

/* Decode walk into decoded[], reusing what the segment before has in common with it. */
static int
decode(lw_sampler *s, const lw_walk *w, const lw_segment *before)
{
    int n = 0, back;
    for (int i = 0; i < w->n; i++) {
        back = before == NULL ? -1 : before->nframes - (w->n - i); /* counted from the outermost */
        if (back >= 0 && before->frames[back].code == w->raw[i].code && before->frames[back].instr == w->raw[i].instr) {
            decoded[n] = before->frames[back];
            decoded[n].frame = w->raw[i].frame;
            decoded[n].at = w->raw[i].instr;
        }
        else if (lw_decode_frame(&w->raw[i], &decoded[n], &s->text) < 0) {
            continue;
        }
        decoded[n++].marks = w->raw[i].from_c ? LW_MARK_FROM_C : 0;
    }
    return n;
}

/* How many frames lie below frame I of N, kept newest first, those left out included. */
static int
depth_of(int i, int n, int omitted)
{
    return n - 1 - i + (i < LW_KEEP_INNER ? omitted : 0);
}

/* Mark the frames of decoded[] that are another call than those of the sample before; 1 if there is one.  With
 * OTHER_CALLBACK the loop has gone on to the next one since, so all that it called is new. */
static int
mark_fresh(const lw_segment *before, int n, int omitted, int other_callback)
{
    int fresh = 0, any = 0, back = before->nframes - 1;
    for (int i = n - 1; i >= 0; i--) {
        lw_frame *f = &decoded[i];
        int depth = depth_of(i, n, omitted);
        while (back >= 0 && depth_of(back, before->nframes, before->omitted) < depth) {
            back--;
        }
        const lw_frame *was = back >= 0 ? &before->frames[back] : NULL;
        if (was == NULL || depth_of(back, before->nframes, before->omitted) != depth || was->frame != f->frame
            || was->code != f->code) {
            fresh = 1;
        }
        if (fresh) {
            f->marks |= LW_MARK_FRESH;
            any = 1;
        }
        else {
            fresh = was->at != f->at || (other_callback && f->code == lw_alay.run_once_code);
        }
    }
    return any;
}

/* What the newest sample saw of the frames of a segment that goes on.  Of the expressions that the newest frame was
 * seen in, one that takes most of the time is kept (a majority vote). */
static void
renew(lw_segment *seg, int n, uint64_t share)
{
    seg->shifts += n > 0 && seg->samples > 0 && seg->frames[0].at != decoded[0].at;
    if (n > 0 && seg->frames[0].instr == decoded[0].instr) {
        seg->weight += (int64_t)share;
    }
    else if (n > 0 && (seg->weight -= (int64_t)share) < 0) {
        uint32_t marks = seg->frames[0].marks;
        seg->weight = -seg->weight;
        seg->frames[0] = decoded[0];
        seg->frames[0].marks = marks;
    }

    for (int i = 0; i < n; i++) {
        seg->frames[i].frame = decoded[i].frame;
        seg->frames[i].at = decoded[i].at;
    }
}

/* Whether the thread may have run since the sample before.  Its CPU time is exact while it sleeps. */
static int
may_have_run(lw_sampler *s, int tid, const evidence *ev)
{
    lw_sched sched;
    uint64_t was = s->seen_run_ns;
    if (lw_read_schedstat(tid, &sched) < 0) {
        return 1;
    }
    s->seen_run_ns = sched.run_ns;
    return ev->running || ev->cause == LW_STARVED || sched.run_ns != was;
}

static int
same_stack(const lw_segment *seg, const lw_frame *frames, int n)
{
    if (seg->nframes != n) {
        return 0;
    }
    for (int i = 0; i < n; i++) {
        if (seg->frames[i].code != frames[i].code || seg->frames[i].line != frames[i].line) {
            return 0;
        }
    }
    return 1;
}

static void
blame_holder(lw_sampler *s, lw_segment *seg, uintptr_t holder)
{
    unsigned long native = 0;
    char comm[32];
    if (holder == 0 || seg->holder_id != 0 || lw_walk_stack(holder, &holder_walk) < 0
        || lw_mem_read((const void *)(holder + lw_lay.ts_native_id), &native, sizeof(native)) < 0) {
        return;
    }
    int n = decode(s, &holder_walk, NULL);
    lw_frame *kept = lw_arena_take(&s->arena, (size_t)(n ? n : 1) * sizeof(lw_frame));
    if (kept == NULL) {
        return;
    }
    memcpy(kept, decoded, (size_t)n * sizeof(lw_frame));
    seg->holder_frames = kept;
    seg->holder_n = n;
    seg->holder_id = (int)native;
    seg->holder_request = lw_request_of(holder);
    if (lw_read_comm((pid_t)native, comm, sizeof(comm)) == 0) {
        seg->holder_comm = lw_textbuf_add(&s->text, comm);
    }
}

/* Which of uvloop's ready callbacks it is: the last one that was taken from the queue.  Where none was, what runs is a
 * timer's callback, or one for I/O. */
static int
index_in_queue(const lw_sampler *s)
{
    size_t changes = lw_queue_changes(s->ready), taken = lw_queue_taken(s->ready) - s->taken;
    if (lw_queue_changes(s->ready) != changes || taken >= INT_MAX) {
        return -1; /* it changed meanwhile: unknown */
    }
    return (int)taken - 1;
}

static lw_segment *
new_segment(lw_sampler *s, const lw_walk *w, int n, const lw_callback *where, long request, uint64_t now)
{
    if (s->n >= LW_MAX_SEGMENTS) {
        return NULL;
    }
    lw_frame *kept = lw_arena_take(&s->arena, (size_t)(n ? n : 1) * sizeof(lw_frame));
    if (kept == NULL) {
        return NULL;
    }
    lw_segment *seg = &s->segs[s->n++];
    memset(seg, 0, sizeof(*seg));
    memcpy(kept, decoded, (size_t)n * sizeof(lw_frame));
    seg->frames = kept;
    seg->nframes = n;
    seg->omitted = w->omitted;
    seg->syscall = -1;
    seg->first_ns = now;
    lw_callback named = *where;
    lw_callback_names(&named, &s->text);
    seg->index = where->index;
    seg->framed = where->named == LW_BY_HANDLE && where->index >= 0;
    seg->total = where->total;
    seg->handle = where->handle;
    seg->task = named.task;
    seg->callback = named.callback;
    seg->callback_is_c = named.is_c;
    seg->request = request;
    return seg;
}

void
lw_sampler_sample(lw_sampler *s, uintptr_t tstate, int tid, const _Atomic uint64_t *busy, uint64_t interval)
{
    evidence ev;
    lw_callback where = {.index = -1, .total = -1};
    lw_segment *seg = s->n ? &s->segs[s->n - 1] : NULL;
    uint64_t now = lw_now_ns();
    uint64_t share = s->last_ns ? now - s->last_ns : interval;
    long request = 0;
    int n = 0, other_callback, other_call = 1;

    if (s->segs == NULL && make_room(s) < 0) {
        s->dropped++;
        return;
    }
    if (s->n == 0) {
        first_delay(s, tid, now);
    }
    weigh(s, tstate, tid, now, &ev);
    walk.n = walk.omitted = walk.moved = 0;
    if (lw_layout_ok() && lw_walk_stack(tstate, &walk) == 0) {
        lw_callback_where(&walk, tstate, s->loop, &where);
        if (s->ready != NULL) {
            where.index = index_in_queue(s);
        }
        n = decode(s, &walk, seg);
        request = lw_request_of(tstate);
    }
    else {
        lw_count_failed++;
    }
    if (ev.without_gil && seg != NULL && seg->waited && !walk.moved && walk.n > 0
        && seg->newest_instr == walk.raw[0].instr && seg->newest == walk.raw[0].frame) {
        /* It waited for the GIL here, and Python has not moved since: woken for a moment, to ask for it again. */
        ev.cause = LW_GIL;
        ev.running = 0;
    }
    int advanced = may_have_run(s, tid, &ev);
    if (ev.running && !ev.without_gil && walk.n > 0 && !walk.moved && (seg == NULL || seg->running < SETTLED)) {
        nanosleep(&(struct timespec){0, BREATH_NS}, NULL);
        lw_walk_again(tstate, &walk);
    }
    if (atomic_load_explicit(busy, memory_order_acquire) != s->span) {
        return; /* the span ended while we looked: whatever we saw may be of the next one */
    }
    lw_count_samples++;
    other_callback = seg == NULL || seg->handle != where.handle || seg->index != where.index || seg->request != request;
    if (seg != NULL) {
        other_call = mark_fresh(seg, n, walk.omitted, other_callback);
    }
    if (other_callback || other_call || !same_stack(seg, decoded, n)) {
        seg = new_segment(s, &walk, n, &where, request, now);
        if (seg == NULL) {
            s->dropped++;
            s->last_ns = now;
            return;
        }
    }
    else if (ev.running && (seg->newest_instr != (walk.n ? walk.raw[0].instr : 0))) {
        seg->changed++;
    }
    renew(seg, n, share);
    seg->advances += (uint32_t)advanced;
    if (walk.n > 0) {
        seg->newest = walk.raw[0].frame;
        seg->newest_instr = walk.raw[0].instr;
    }
    if (ev.running) {
        seg->running++;
        if (walk.moved) {
            seg->changed++;
        }
    }
    if (ev.syscall >= 0 && ev.cause == LW_SYSCALL) {
        seg->syscall = ev.syscall;
    }
    seg->waited = ev.cause == LW_GIL;
    if (ev.cause == LW_GIL) {
        blame_holder(s, seg, ev.holder);
    }
    seg->vote_ns[ev.cause] += share;
    seg->samples++;
    seg->last_ns = now;
    s->last_ns = now;
}

/* A thread that runs Python code gives the GIL up this soon, five times its switch interval at the latest. */
#define SOON_NS UINT64_C(25000000)

void
lw_sampler_captured(lw_sampler *s, const lw_frame *frames, int n, int omitted, const lw_textbuf *text,
                    uint64_t after_ns)
{
    lw_segment *seg = s->n > 0 ? &s->segs[s->n - 1] : NULL, *before = s->n > 1 ? seg - 1 : NULL;
    if (seg == NULL || seg->nframes > 0) {
        return;
    }
    if (after_ns < SOON_NS) {
        seg->vote_ns[LW_PYTHON] += seg->vote_ns[LW_C_CALL];
        seg->vote_ns[LW_C_CALL] = 0;
    }
    if (before != NULL && same_stack(before, frames, n)) {
        for (int c = 0; c < LW_CAUSES; c++) {
            before->vote_ns[c] += seg->vote_ns[c];
        }
        before->samples += seg->samples;
        before->running += seg->running;
        before->syscall = seg->syscall >= 0 ? seg->syscall : before->syscall;
        before->last_ns = seg->last_ns;
        s->n--;
        return;
    }
    lw_frame *kept = lw_arena_take(&s->arena, (size_t)n * sizeof(lw_frame));
    if (kept == NULL) {
        return;
    }
    for (int i = 0; i < n; i++) {
        kept[i] = frames[i];
        kept[i].file = frames[i].file ? lw_textbuf_add(&s->text, text->base + frames[i].file) : 0;
        kept[i].name = frames[i].name ? lw_textbuf_add(&s->text, text->base + frames[i].name) : 0;
    }
    seg->frames = kept;
    seg->nframes = n;
    seg->omitted = omitted;
    seg->captured = 1;
}

enum lw_cause
lw_segment_cause(const lw_segment *seg)
{
    /* the two kinds of C call stand together against the others */
    uint64_t held = seg->vote_ns[LW_C_CALL], released = seg->vote_ns[LW_C_RELEASED], most = held + released;
    enum lw_cause best = most == 0 ? LW_UNKNOWN : released > held ? LW_C_RELEASED : LW_C_CALL;
    for (int c = 0; c < LW_CAUSES; c++) {
        if (c != LW_C_CALL && c != LW_C_RELEASED && seg->vote_ns[c] > most) {
            most = seg->vote_ns[c];
            best = (enum lw_cause)c;
        }
    }
    if (best == LW_C_CALL && seg->changed * 4 > seg->running) {
        best = LW_PYTHON;
    }
    return best;
}
