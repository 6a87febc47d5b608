/*
 * histogram: how often a time took how long, from 1 ns to hours, in 3 KB.
 *
 * Log-linear, as HdrHistogram's: each power of two is cut into LW_HIST_SUB equal
 * parts, so a bucket is at most 1/LW_HIST_SUB of its lower bound wide and a quantile read from
 * it is at most that much too high. Values below LW_HIST_SUB ns have a bucket each;
 * values from LW_HIST_LIMIT on share the last one. Nothing is ever rotated or
 * forgotten: a reader who wants "since then" subtracts an earlier copy.
 *
 * One writer a histogram (a loop's thread); counts, sum and maximum are relaxed
 * atomics, so any thread may read meanwhile. What it reads may be in the
 * middle of one addition: count, sum and buckets can differ by that one.
 *
 * Cost: an addition is a bit scan and five moves, 1-2 ns, no allocation. Pure.
 */
#ifndef LW_HISTOGRAM_H
#define LW_HISTOGRAM_H

#include <stdatomic.h>
#include <stdint.h>

#define LW_HIST_BITS 3
#define LW_HIST_SUB (1 << LW_HIST_BITS)
#define LW_HIST_TOP 43 /* the highest power of two told apart: 2^43 ns is 2.4 hours */
#define LW_HIST_BUCKETS ((LW_HIST_TOP - LW_HIST_BITS + 1) * LW_HIST_SUB)
#define LW_HIST_LIMIT (UINT64_C(1) << LW_HIST_TOP)

typedef struct {
    _Atomic uint64_t count, sum, max; /* sum and max in ns */
    _Atomic uint64_t bucket[LW_HIST_BUCKETS];
} lw_hist;

/* A plain copy, for one reader. */
typedef struct {
    uint64_t count, sum, max;
    uint64_t bucket[LW_HIST_BUCKETS];
} lw_hist_copy;

static inline int
lw_hist_index(uint64_t ns)
{
    if (ns < LW_HIST_SUB) {
        return (int)ns;
    }
    if (ns >= LW_HIST_LIMIT) {
        return LW_HIST_BUCKETS - 1;
    }
    int power = 63 - __builtin_clzll(ns);
    return (power - LW_HIST_BITS + 1) * LW_HIST_SUB + (int)((ns >> (power - LW_HIST_BITS)) & (LW_HIST_SUB - 1));
}

static inline void
lw_hist_bump(_Atomic uint64_t *at, uint64_t by)
{
    atomic_store_explicit(at, atomic_load_explicit(at, memory_order_relaxed) + by, memory_order_relaxed);
}

static inline void
lw_hist_add(lw_hist *h, uint64_t ns)
{
    lw_hist_bump(&h->count, 1);
    lw_hist_bump(&h->sum, ns);
    lw_hist_bump(&h->bucket[lw_hist_index(ns)], 1);
    if (ns > atomic_load_explicit(&h->max, memory_order_relaxed)) {
        atomic_store_explicit(&h->max, ns, memory_order_relaxed);
    }
}

/* The first value, in ns, that is beyond bucket I; UINT64_MAX for the last one. */
uint64_t lw_hist_upper(int i);

void lw_hist_read(const lw_hist *h, lw_hist_copy *out);

/* *of minus *earlier, bucket by bucket; the maximum is that of the highest bucket left. */
void lw_hist_since(lw_hist_copy *of, const lw_hist_copy *earlier);

/* The value, in ns, that a fraction Q (0 to 1) of all values do not exceed: the end of its bucket,
   or the maximum where that is less. 0 when nothing was counted. */
uint64_t lw_hist_quantile(const lw_hist_copy *h, double q);

#endif
