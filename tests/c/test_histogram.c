/* test_histogram: every value lies in its bucket, quantiles are bounded, differences agree. */
#include "check.h"
#include "histogram.h"

static uint64_t
draw(uint64_t *state)
{
    *state ^= *state << 13;
    *state ^= *state >> 7;
    *state ^= *state << 17;
    return *state;
}

static int
order(const void *a, const void *b)
{
    uint64_t x = *(const uint64_t *)a, y = *(const uint64_t *)b;
    return x < y ? -1 : x > y;
}

static void
test_bounds(void)
{
    uint64_t state = 88172645463325252u, lower = 0;
    for (int i = 0; i < LW_HIST_BUCKETS - 1; i++) { /* buckets follow each other without gap */
        uint64_t upper = lw_hist_upper(i);
        CHECK(upper > lower && lw_hist_index(lower) == i && lw_hist_index(upper - 1) == i);
        CHECK(upper - lower == 1 || (upper - lower) * LW_HIST_SUB <= lower);
        lower = upper;
    }
    CHECK(lw_hist_upper(LW_HIST_BUCKETS - 1) == UINT64_MAX);
    CHECK(lw_hist_index(UINT64_MAX) == LW_HIST_BUCKETS - 1);
    CHECK(lw_hist_index(LW_HIST_LIMIT) == LW_HIST_BUCKETS - 1);
    for (int n = 0; n < 10000; n++) {
        uint64_t value = draw(&state) >> (draw(&state) & 63);
        int i = lw_hist_index(value);
        if (i < 0 || i >= LW_HIST_BUCKETS || value >= lw_hist_upper(i) || (i > 0 && value < lw_hist_upper(i - 1))) {
            CHECK(!"value outside of its bucket");
        }
    }
}

static void
test_quantiles(void)
{
    static lw_hist h;
    static lw_hist_copy copy, earlier;
    static uint64_t values[5000];
    const double quantiles[] = {0, 0.01, 0.5, 0.9, 0.99, 0.999, 1};
    uint64_t state = 1234567, sum = 0;

    lw_hist_read(&h, &copy);
    CHECK(copy.count == 0 && lw_hist_quantile(&copy, 0.5) == 0);
    for (int i = 0; i < 5000; i++) {
        values[i] = draw(&state) >> (24 + draw(&state) % 40);
        sum += values[i];
        lw_hist_add(&h, values[i]);
    }
    qsort(values, 5000, sizeof(values[0]), order);
    lw_hist_read(&h, &copy);
    CHECK(copy.count == 5000 && copy.sum == sum && copy.max == values[4999]);
    for (size_t k = 0; k < sizeof(quantiles) / sizeof(quantiles[0]); k++) {
        int rank = (int)(quantiles[k] * 5000 + 0.9999999) - 1;
        uint64_t exact = values[rank < 0 ? 0 : rank], got = lw_hist_quantile(&copy, quantiles[k]);
        CHECK(got >= exact && got <= exact + exact / LW_HIST_SUB);
    }
    earlier = copy;
    lw_hist_add(&h, 1000);
    lw_hist_add(&h, 2000);
    lw_hist_read(&h, &copy);
    lw_hist_since(&copy, &earlier);
    CHECK(copy.count == 2 && copy.sum == 3000);
    CHECK(copy.max >= 2000 && copy.max <= 2000 + 2000 / LW_HIST_SUB);
    CHECK(lw_hist_quantile(&copy, 0.5) >= 1000 && lw_hist_quantile(&copy, 0.5) <= 1125);
    earlier = copy;
    lw_hist_since(&copy, &earlier);
    CHECK(copy.count == 0 && copy.sum == 0 && copy.max == 0);
}

void
test_histogram(void)
{
    test_bounds();
    test_quantiles();
}
