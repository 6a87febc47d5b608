/*
 * histogram: the buckets' bounds, and what readers ask of a copy (histogram.h
 * says what is counted and by whom).
 *
 * Invariants: bucket i ends where bucket i + 1 begins, the last one has no end;
 * a copy's count is the sum of its buckets, whatever was added meanwhile; a
 * quantile is never below the true value, nor above it by more than a bucket.
 * Pure: no state, any thread.
 */
#include "histogram.h"

uint64_t
lw_hist_upper(int i)
{
    if (i >= LW_HIST_BUCKETS - 1) {
        return UINT64_MAX;
    }
    i++; /* the lower bound of the next one */
    if (i < LW_HIST_SUB) {
        return (uint64_t)i;
    }
    int power = i / LW_HIST_SUB - 1 + LW_HIST_BITS;
    return ((uint64_t)(LW_HIST_SUB + i % LW_HIST_SUB)) << (power - LW_HIST_BITS);
}

void
lw_hist_read(const lw_hist *h, lw_hist_copy *out)
{
    out->count = 0;
    out->sum = atomic_load_explicit(&h->sum, memory_order_relaxed);
    out->max = atomic_load_explicit(&h->max, memory_order_relaxed);
    for (int i = 0; i < LW_HIST_BUCKETS; i++) {
        out->bucket[i] = atomic_load_explicit(&h->bucket[i], memory_order_relaxed);
        out->count += out->bucket[i]; /* so that a copy agrees with itself */
    }
}

void
lw_hist_since(lw_hist_copy *of, const lw_hist_copy *earlier)
{
    int highest = -1;
    of->count = 0;
    of->sum = of->sum > earlier->sum ? of->sum - earlier->sum : 0;
    for (int i = 0; i < LW_HIST_BUCKETS; i++) {
        of->bucket[i] = of->bucket[i] > earlier->bucket[i] ? of->bucket[i] - earlier->bucket[i] : 0;
        of->count += of->bucket[i];
        highest = of->bucket[i] > 0 ? i : highest;
    }
    if (highest < 0) {
        of->max = 0;
    }
    else if (of->max == earlier->max && lw_hist_upper(highest) - 1 < of->max) {
        of->max = lw_hist_upper(highest) - 1;
    }
}

uint64_t
lw_hist_quantile(const lw_hist_copy *h, double q)
{
    uint64_t seen = 0, wanted;
    if (h->count == 0) {
        return 0;
    }
    q = q > 0 ? (q < 1 ? q : 1) : 0; /* a NaN counts as 0 */
    wanted = (uint64_t)(q * (double)h->count + 0.9999999);
    wanted = wanted < 1 ? 1 : wanted > h->count ? h->count : wanted;
    for (int i = 0; i < LW_HIST_BUCKETS; i++) {
        seen += h->bucket[i];
        if (seen >= wanted) {
            uint64_t last = lw_hist_upper(i) - 1;
            return last < h->max ? last : h->max;
        }
    }
    return h->max;
}
