/* blocks.c: turns what a sampler saw of [from, until) into a RawBlock dict.
 *
 * The sampler is pinned by the caller, so its memory does not change while
 * Python objects are made of it.  A segment's time runs between the midpoints
 * of its border samples and their neighbours, clipped to the block.  Here too:
 *
 * - import: a stack that goes through importlib's _find_and_load, in the part
 *   that is the program's (the newest 40 frames), is an import, whatever runs;
 * - a block whose samples all lie outside a run_forever() was made by code
 *   that ran between two runs of the loop: not a block, None is returned;
 * - starved and stopped: read from the kernel's run-delay counter, and from
 *   the watchdog's own lateness.  A block that is mostly such time and would
 *   be under the threshold without it is marked as a stall. */
#include "../core/clock.h"
#include "../core/procfs.h"
#include "../core/sysname.h"
#include "loopqueue.h"
#include "watch.h"

#define IMPORT_DEPTH 40

PyObject *
lw_frames_list(const lw_frame *frames, int n, const lw_textbuf *text)
{
    PyObject *list = PyList_New(n);
    for (int i = 0; list != NULL && i < n; i++) {
        const lw_frame *f = &frames[n - 1 - i]; /* kept newest first, given outermost first */
        const char *file = text->base + f->file, *name = text->base + f->name;
        PyObject *item = Py_BuildValue("(NNiiii)", PyUnicode_DecodeUTF8(file, (Py_ssize_t)strlen(file), "replace"),
                                       PyUnicode_DecodeUTF8(name, (Py_ssize_t)strlen(name), "replace"), f->line,
                                       f->end_line, f->col, f->end_col);
        if (item == NULL) {
            Py_CLEAR(list);
            break;
        }
        PyList_SET_ITEM(list, i, item);
    }
    return list;
}

static int
frame_is(const lw_frame *f, const lw_textbuf *text, const char *file_part, const char *name_end)
{
    const char *name = text->base + f->name;
    size_t have = strlen(name), want = strlen(name_end);
    return have >= want && strcmp(name + have - want, name_end) == 0 && strstr(text->base + f->file, file_part) != NULL;
}

static int
is_import(const lw_segment *seg, const lw_textbuf *text)
{
    for (int i = 0; i < seg->nframes && i < IMPORT_DEPTH; i++) {
        if (frame_is(&seg->frames[i], text, "importlib._bootstrap", "_find_and_load")) {
            return 1;
        }
        if (frame_is(&seg->frames[i], text, "asyncio", "_run_once")) {
            return 0;
        }
    }
    return 0;
}

static int
in_loop(const lw_segment *seg, const lw_textbuf *text)
{
    if (seg->omitted || seg->nframes == 0) {
        return 1; /* cannot tell: believe the probe */
    }
    for (int i = 0; i < seg->nframes; i++) {
        if (frame_is(&seg->frames[i], text, "", "run_forever") || frame_is(&seg->frames[i], text, "", "_run_once")) {
            return 1;
        }
    }
    return 0;
}

static PyObject *
text_or_none(const lw_textbuf *text, uint32_t at)
{
    const char *s = text->base + at;
    if (at == 0) {
        Py_RETURN_NONE;
    }
    return PyUnicode_DecodeUTF8(s, (Py_ssize_t)strlen(s), "replace");
}

static PyObject *
int_or_none(long value, int known)
{
    if (!known) {
        Py_RETURN_NONE;
    }
    return PyLong_FromLong(value);
}

/* Did the function that segment I is in move, over all the block?  A line that
 * gives way to another one of the same function moved, too. */
static int
function_moves(const lw_sampler *s, uint32_t i)
{
    uint32_t moved = 0, running = 0, runs = 0;
    for (uint32_t j = 0; j < s->n; j++) {
        if (s->segs[j].nframes > 0 && s->segs[j].frames[0].code == s->segs[i].frames[0].code) {
            moved += s->segs[j].changed;
            running += s->segs[j].running;
            runs++;
        }
    }
    return (moved + runs - 1) * 4 > running;
}

/* A few samples that did not move are weak evidence of a C call: a short loop may
 * be met at the same place, and a preempted thread does not move at all.  In a
 * function that moves otherwise they are Python code; how many are few depends
 * on whether the thread was short of CPU. */
static enum lw_cause
cause_of(const lw_sampler *s, uint32_t i, int short_of_cpu)
{
    const lw_segment *seg = &s->segs[i];
    enum lw_cause cause = is_import(seg, &s->text) ? LW_IMPORT : lw_segment_cause(seg);
    if (cause == LW_C_CALL && seg->nframes > 0 && (short_of_cpu || seg->running <= 6) && function_moves(s, i)) {
        cause = LW_PYTHON;
    }
    return cause;
}

/* What is known of each frame, outermost first: (flags of its code object, marks). */
static PyObject *
frame_marks(const lw_segment *seg)
{
    PyObject *list = PyList_New(seg->nframes);
    for (int i = 0; list != NULL && i < seg->nframes; i++) {
        const lw_frame *f = &seg->frames[seg->nframes - 1 - i];
        PyObject *item = Py_BuildValue("(iI)", f->code_flags, (unsigned)f->marks);
        if (item == NULL) {
            Py_CLEAR(list);
            break;
        }
        PyList_SET_ITEM(list, i, item);
    }
    return list;
}

/* SLACK: how long before its first sample the one before was taken.  TOTAL: callbacks of the iteration, -1 unknown. */
static PyObject *
segment_dict(const lw_segment *seg, const lw_textbuf *text, enum lw_cause cause, uint64_t duration, uint64_t slack,
             int total)
{
    const char *call = cause == LW_SYSCALL || cause == LW_IMPORT ? lw_syscall_name(seg->syscall) : NULL;
    char number[32];
    if (cause == LW_SYSCALL && call == NULL) {
        snprintf(number, sizeof(number), "number %ld", seg->syscall);
        call = number;
    }
    int held = cause == LW_GIL && seg->holder_id != 0;
    return Py_BuildValue(
        "{s:N,s:i,s:K,s:I,s:s,s:z,s:N,s:N,s:N,s:N,s:N,s:N,s:N,s:N,s:N,s:l,s:N,s:I,s:I,s:K,s:K}", "frames",
        lw_frames_list(seg->frames, seg->nframes, text), "omitted", seg->omitted, "duration_ns",
        (unsigned long long)duration, "samples", (unsigned)seg->samples, "cause", lw_cause_names[cause], "syscall",
        call, "holder_id", int_or_none(seg->holder_id, held), "holder_comm",
        held ? text_or_none(text, seg->holder_comm) : Py_NewRef(Py_None), "holder_frames",
        held ? lw_frames_list(seg->holder_frames, seg->holder_n, text) : Py_NewRef(Py_None), "task",
        text_or_none(text, seg->task), "callback", text_or_none(text, seg->callback), "callback_is_c",
        PyBool_FromLong(seg->callback_is_c), "callback_index",
        int_or_none(seg->index, seg->index >= 0 && (total < 0 || seg->index < total)), "callback_total",
        int_or_none(total, total >= 0), "callback_framed", PyBool_FromLong(seg->framed), "request",
        held ? seg->holder_request : seg->request, "marks", frame_marks(seg), "advances", (unsigned)seg->advances,
        "shifts", (unsigned)seg->shifts, "slack_ns", (unsigned long long)slack, "steady_ns",
        (unsigned long long)(seg->last_ns - seg->first_ns));
}

static uint64_t
clip(uint64_t at, uint64_t from, uint64_t until)
{
    return at < from ? from : at > until ? until : at;
}

/* How much of the run-delay since a reading surely fell into [from, until): what fell before or after it cannot be
 * more than the time there. */
static uint64_t
delay_inside(uint64_t read_at, uint64_t was, uint64_t is, uint64_t from, uint64_t until)
{
    uint64_t outside = (read_at < from ? from - read_at : 0) + (lw_now_ns() - until);
    if (read_at == 0 || is < was + outside) {
        return 0;
    }
    uint64_t inside = is - was - outside;
    return inside < until - from ? inside : until - from;
}

/* How long of [from, until) the loop waited for the GIL after its poll: measured by the probe, without any sample. */
static uint64_t
gil_at_begin(const Watch *self, uint64_t from, uint64_t until)
{
    uint64_t had = self->w.sampler.span + self->w.gil_ns;
    return self->w.gil_ns == 0 || had <= from ? 0 : (had < until ? had : until) - from;
}

PyObject *
lw_block_build(Watch *self, uint64_t from, uint64_t until, uint64_t threshold)
{
    const lw_sampler *s = &self->w.sampler;
    uint64_t duration = until - from, starved = 0, stopped = 0;
    lw_sched sched;
    PyObject *segments = NULL, *item = NULL;
    int tid = atomic_load(&self->w.tid), captured = 0;
    int ran = self->w.ready ? (int)(lw_queue_taken(self->w.ready) - atomic_load(&self->w.taken)) : -1;

    if (self->w.kind == LW_EPOLL || self->w.kind == LW_SELECTOR) {
        int inside = s->n == 0;
        for (uint32_t i = 0; i < s->n && !inside; i++) {
            inside = in_loop(&s->segs[i], &s->text);
        }
        if (!inside) {
            Py_RETURN_NONE;
        }
    }
    if (lw_read_schedstat(tid, &sched) == 0) {
        uint64_t one = delay_inside(s->delay_at, s->delay_ns, sched.delay_ns, from, until);
        uint64_t other = delay_inside(s->first_at, s->first_delay_ns, sched.delay_ns, from, until);
        starved = one > other ? one : other;
    }
    stopped = s->stopped_ns < duration ? s->stopped_ns : duration;
    uint64_t lost = starved + stopped < duration ? starved + stopped : duration;
    int stall = lost * 2 > duration && duration - lost < threshold;

    segments = PyList_New(0);
    if (segments == NULL) {
        goto fail;
    }
    for (uint32_t i = 0; i < s->n; i++) {
        const lw_segment *seg = &s->segs[i];
        uint64_t left = i == 0 ? s->span : (s->segs[i - 1].last_ns + seg->first_ns) / 2;
        uint64_t before = clip(i == 0 ? s->span : s->segs[i - 1].last_ns, from, until);
        uint64_t right = i + 1 == s->n ? until : (seg->last_ns + s->segs[i + 1].first_ns) / 2;
        left = clip(left, from, until);
        right = clip(right, from, until);
        if (right <= left) {
            continue;
        }
        captured += seg->captured;
        item = segment_dict(seg, &s->text, cause_of(s, i, starved * 10 > duration), right - left,
                            seg->first_ns > before ? seg->first_ns - before : 0, ran >= 0 ? ran : seg->total);
        if (item == NULL || PyList_Append(segments, item) < 0) {
            goto fail;
        }
        Py_CLEAR(item);
    }
    if (s->n == 0 && gil_at_begin(self, from, until) * 2 > duration) {
        const lw_segment waited = {.syscall = -1, .index = -1, .total = -1};
        item = segment_dict(&waited, &s->text, LW_GIL, gil_at_begin(self, from, until), 0, -1);
        if (item == NULL || PyList_Append(segments, item) < 0) {
            goto fail;
        }
        Py_CLEAR(item);
    }
    return Py_BuildValue("{s:K,s:K,s:K,s:K,s:K,s:K,s:O,s:k,s:i,s:N,s:I,s:i}", "start_ns", (unsigned long long)from,
                         "wall_ns", (unsigned long long)(lw_wall_ns() - (lw_now_ns() - from)), "duration_ns",
                         (unsigned long long)duration, "threshold_ns", (unsigned long long)threshold, "stopped_ns",
                         (unsigned long long)stopped, "starved_ns", (unsigned long long)starved, "stall",
                         stall ? Py_True : Py_False, "thread_ident",
                         self->w.ident ? self->w.ident : PyThread_get_thread_ident(), "thread_native_id", tid,
                         "segments", segments, "dropped", (unsigned)s->dropped, "captured", captured);
fail:
    Py_XDECREF(item);
    Py_XDECREF(segments);
    return NULL;
}
