/* sampler.h: what one loop's thread did during one span, as the watchdog saw it.
 *
 * A sample is a stack plus evidence of why time passes: the system call the
 * thread sits in, whether it waits for the GIL and who holds it, whether the
 * garbage collector runs, how long it was ready but had no CPU.  Runs of
 * samples with the same stack (same code and line in every frame) form a
 * segment; a sample speaks for the time up to the midpoints to its neighbours.
 *
 * Why each cause is what it is:
 *   GIL      a futex inside the interpreter's GIL struct, held by another
 *            thread: whoever waits for any other lock waits elsewhere.
 *   lock     any other futex.
 *   Python   runs, and the newest instruction moved during the walk, or
 *            between equal samples.   C call: runs, and nothing moved.
 *   gc       the interpreter's "collecting" flag while this thread runs.
 *   starved  the thread is ready, but its CPU time has not grown for longer than
 *            a scheduler's tick: it does not move because it does not run.
 * Import is told from the stack when a block is built (blocks.c).
 *
 * Whether a frame is the same call as in the sample before is told by its
 * address, its code, and its caller: if that has moved on, or is itself another
 * call, so is this one.  A frame that surely is another one is marked `fresh`
 * and begins a new segment.  Short calls made one after the other from the same
 * line look alike; `advances` counts the samples between which the thread may
 * have come back to that line: none where it did not run meanwhile.
 *
 * Which callback of an iteration ran is read from the locals of the
 * `_run_once` frame below it (`i`, `ntodo`, `handle`), so it costs the loop
 * nothing, on every version.
 *
 * All of it lives in one mmap'ed arena a loop, mapped at its first sample and
 * reset at each span; nothing else is allocated while sampling.  Full buffers count what they drop.  Everything
 * here is touched under the lock of the loop's slot (registry.h) only. */
#ifndef LW_SAMPLER_H
#define LW_SAMPLER_H

#include <stdatomic.h>

#include "../core/arena.h"
#include "frames.h"

#define LW_ARENA_SIZE (2u << 20)
#define LW_TEXT_SIZE (192u * 1024)
#define LW_MAX_SEGMENTS 1024

enum lw_mark {
    LW_MARK_FRESH = 1,  /* surely another call than in the segment before */
    LW_MARK_FROM_C = 2, /* C code called it */
};

enum lw_cause {
    LW_PYTHON,
    LW_C_CALL, /* that holds the GIL, or none knows */
    LW_C_RELEASED, /* that released it */
    LW_SYSCALL,
    LW_LOCK,
    LW_GIL,
    LW_STARVED,
    LW_STOPPED,
    LW_GC,
    LW_IMPORT,
    LW_UNKNOWN,
    LW_CAUSES
};
extern const char *const lw_cause_names[LW_CAUSES];

typedef struct {
    uint64_t first_ns, last_ns; /* of its samples */
    uint64_t vote_ns[LW_CAUSES];
    uint32_t samples, changed, running, advances;
    uint32_t shifts;            /* samples in which the newest frame was at another instruction than before */
    int64_t weight;             /* of the newest frame's expression, kept for the one that took most of the time */
    int captured;               /* its stack was taken under the GIL (capture.h) */
    long syscall;               /* the last one seen that counted as system call; -1 none */
    int waited;                 /* for the GIL, at the newest sample */
    int nframes, omitted;
    lw_frame *frames;           /* in the arena, newest first */
    int holder_id, holder_n;
    uint32_t holder_comm;
    lw_frame *holder_frames;
    uintptr_t newest, newest_instr, handle;
    int index, total;           /* callback of the iteration, -1 unknown */
    int framed;                 /* its callback has a frame of the loop before it */
    uint32_t task, callback;
    int callback_is_c;
    long request, holder_request; /* numbers (requests.h); 0 none */
} lw_segment;

typedef struct {
    uintptr_t loop;             /* the loop object, where its running task is looked up by it; else 0 */
    const void *ready;          /* uvloop: its queue of callbacks, borrowed; NULL: not known */
    size_t taken;               /* how many had ever been taken from it as the iteration began */
    uint64_t span;              /* busy_since of the span sampled; 0 = none */
    uint64_t last_ns;           /* of the newest sample */
    uint64_t delay_at, delay_ns; /* run-delay counter: when read, and its value, before the span's first sample */
    uint64_t first_at, first_delay_ns; /* the same at that sample, where the reading before is old; first_at 0: not */
    uint64_t stopped_ns;        /* of this span, the process did not run */
    uint32_t n, dropped;
    lw_segment *segs;
    lw_arena arena;
    lw_textbuf text;
    uint64_t hang_next;
    uint64_t seen_run_ns; /* CPU time of the thread at the newest sample */
    uint64_t run_ns, run_changed; /* CPU time of the thread when last seen to grow, and when that was */
} lw_sampler;

void lw_sampler_close(lw_sampler *s); /* all zero again, as it has to begin */
void lw_sampler_begin(lw_sampler *s, uint64_t span);
/* Take one sample of thread TID whose state is at TSTATE.  busy: where its
 * span's beginning is kept; the sample is thrown away when that changed. */
void lw_sampler_sample(lw_sampler *s, uintptr_t tstate, int tid, const _Atomic uint64_t *busy, uint64_t interval);
/* What a capture saw of the present span, AFTER_NS after it was asked for: the stack of the samples that have none yet. */
void lw_sampler_captured(lw_sampler *s, const lw_frame *frames, int n, int omitted, const lw_textbuf *text,
                         uint64_t after_ns);
void lw_sampler_baseline(lw_sampler *s, int tid, uint64_t now);
extern _Atomic uint64_t lw_count_samples, lw_count_failed;
enum lw_cause lw_segment_cause(const lw_segment *seg);

#endif
