/*
 * clock: the two clocks everything is stamped with.
 *
 * lw_now_ns measures: CLOCK_MONOTONIC, never set back, the same for every
 * thread. Spans, samples and records carry it, and only differences of it mean
 * anything. It is the clock behind Python's time.monotonic_ns(), so values can
 * be compared across the language border without conversion.
 *
 * lw_wall_ns names: CLOCK_REALTIME, for the reader of a report who asks "when
 * was that". It can jump; never subtract two of them.
 *
 * Cost: both go through the vDSO, about 20 ns and no system call on common
 * machines. Async-signal-safe, no state, no failure (both clocks always exist
 * on Linux), callable from any thread with or without the GIL.
 */
#ifndef LW_CLOCK_H
#define LW_CLOCK_H

#include <stdint.h>
#include <time.h>

static inline uint64_t
lw_clock_ns(clockid_t id)
{
    struct timespec t = {0, 0};
    clock_gettime(id, &t);
    return (uint64_t)t.tv_sec * UINT64_C(1000000000) + (uint64_t)t.tv_nsec;
}

static inline uint64_t
lw_now_ns(void)
{
    return lw_clock_ns(CLOCK_MONOTONIC);
}

static inline uint64_t
lw_wall_ns(void)
{
    return lw_clock_ns(CLOCK_REALTIME);
}

#endif
