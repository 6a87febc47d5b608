/* ticks.h: a clock that is read at every call of a program.
 *
 * On x86-64 whose time-stamp counter runs at one rate on all CPUs it is that
 * counter, some 10 ns cheaper than the vDSO's clock, elsewhere the monotonic
 * clock itself.  How long a tick is follows from both clocks: lw_ticks_start()
 * reads them for a fifth of a millisecond, which is good for 0.1 %, and
 * lw_ticks_ns() reads them again and uses all the time between, so the error of
 * a duration soon is below a millionth.
 *
 * No lock: whoever calls holds the GIL, but for lw_ticks() once lw_ticks_start()
 * was called.  Ticks wrap around never. */
#ifndef LW_TICKS_H
#define LW_TICKS_H

#include <stdint.h>

#include "clock.h"

#if defined(__x86_64__)
#include <cpuid.h>
#include <x86intrin.h>
#endif

static int lw_ticks_tsc = -1; /* -1: not asked yet */
static uint64_t lw_ticks_at, lw_ticks_ns_at; /* both clocks when it was asked */
static double lw_ticks_rate = 1.0; /* ticks a nanosecond */

static inline uint64_t
lw_ticks(void)
{
#if defined(__x86_64__)
    if (lw_ticks_tsc > 0) {
        return __rdtsc();
    }
#endif
    return lw_now_ns();
}

/* Bring the rate up to date. */
static inline void
lw_ticks_measure(void)
{
    uint64_t ns = lw_now_ns(), ticks = lw_ticks();
    if (lw_ticks_tsc > 0 && ns > lw_ticks_ns_at + 100000) {
        lw_ticks_rate = (double)(ticks - lw_ticks_at) / (double)(ns - lw_ticks_ns_at);
    }
}

static inline void
lw_ticks_start(void)
{
    if (lw_ticks_tsc < 0) {
        lw_ticks_tsc = 0;
#if defined(__x86_64__)
        unsigned a = 0, b = 0, c = 0, d = 0;
        lw_ticks_tsc = __get_cpuid(0x80000007, &a, &b, &c, &d) && (d & (1u << 8)) != 0; /* invariant */
#endif
        lw_ticks_ns_at = lw_now_ns();
        lw_ticks_at = lw_ticks();
        while (lw_ticks_tsc > 0 && lw_now_ns() < lw_ticks_ns_at + 200000) {
        }
    }
    lw_ticks_measure();
}

static inline uint64_t
lw_ticks_ns(uint64_t ticks)
{
    lw_ticks_measure();
    return (uint64_t)((double)ticks / lw_ticks_rate);
}

static inline uint64_t
lw_ticks_of(uint64_t ns)
{
    return (uint64_t)((double)ns * lw_ticks_rate);
}

#endif
