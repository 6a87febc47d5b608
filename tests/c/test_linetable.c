/*
 * test_linetable: location tables built by hand, whole and broken.
 *
 * ENTRY makes an entry's first byte, the payload is written out; a comment says
 * what it encodes wherever that is not plain. Each of the sixteen codes is
 * decoded alone, then a table of several is walked, since lines accumulate.
 *
 * The broken ones: every proper prefix of a table, a payload that is cut by the
 * next entry, varints too long or too wide, sums that leave an int, and bytes
 * from a fixed pseudo-random sequence. For all of them the answer is -1 with
 * "no location", or a position; under the sanitizers nothing may be read
 * outside the table, and no sum may overflow.
 */
#ifndef _GNU_SOURCE
#define _GNU_SOURCE
#endif
#include "check.h"

#include "linetable.h"

#include <limits.h>
#include <stdlib.h>

static int
find(const void *bytes, size_t len, int first_line, int index, lw_pos *out)
{
    uint8_t *table = exact_copy(bytes, len);
    int rc = lw_linetable_find(table, len, first_line, index, out);
    free(table);
    return rc;
}

static int
is_pos(lw_pos p, int line, int end_line, int col, int end_col)
{
    return p.line == line && p.end_line == end_line && p.col == col && p.end_col == end_col;
}

/* The first byte of an entry. */
#define ENTRY(code, units) (uint8_t)(0x80 | (code) << 3 | ((units) - 1))
#define TABLE(...) (const uint8_t[]){__VA_ARGS__}, sizeof((const uint8_t[]){__VA_ARGS__})

static void
test_linetable_each_code(void)
{
    lw_pos p;
    for (int code = 0; code < 10; code++) {
        CHECK(find(TABLE(ENTRY(code, 1), 0x5b), 7, 0, &p) == 0);
        CHECK(is_pos(p, 7, 7, code * 8 + 5, code * 8 + 5 + 11));
    }
    for (int code = 10; code < 13; code++) {
        CHECK(find(TABLE(ENTRY(code, 2), 100, 127), 7, 1, &p) == 0);
        CHECK(is_pos(p, 7 + code - 10, 7 + code - 10, 100, 127));
    }
    /* no columns, +3 and -3 */
    CHECK(find(TABLE(ENTRY(13, 1), 6), 7, 0, &p) == 0 && is_pos(p, 10, 10, -1, -1));
    CHECK(find(TABLE(ENTRY(13, 1), 7), 7, 0, &p) == 0 && is_pos(p, 4, 4, -1, -1));
    /* long: line +1000 (svarint 2000 = 16 + 31*64), end line +2, col 63
       (64 = 0 + 1*64), end col unknown */
    CHECK(find(TABLE(ENTRY(14, 8), 0x40 | 16, 31, 2, 0x40, 1, 0), 7, 7, &p) == 0);
    CHECK(is_pos(p, 1007, 1009, 63, -1));
    /* long: line -100 (201 = 9 + 3*64), unknown columns */
    CHECK(find(TABLE(ENTRY(14, 1), 0x40 | 9, 3, 0, 0, 0), 200, 0, &p) == 0);
    CHECK(is_pos(p, 100, 100, -1, -1));
    CHECK(find(TABLE(ENTRY(15, 1)), 7, 0, &p) == 0 && is_pos(p, 0, 0, -1, -1));
}

static void
test_linetable_walk(void)
{
    /* units 0-1: line 10; 2-9: none; 10: line 12; 11-13: line 12, short;
       14: line 2 (-10: 21) */
    static const uint8_t table[] = {
        ENTRY(10, 2), 4, 9, ENTRY(15, 8), ENTRY(12, 1), 0, 1, ENTRY(0, 3), 0x41, ENTRY(13, 1), 21,
    };
    lw_pos p;
    CHECK(find(table, sizeof table, 10, 0, &p) == 0 && is_pos(p, 10, 10, 4, 9));
    CHECK(find(table, sizeof table, 10, 1, &p) == 0 && is_pos(p, 10, 10, 4, 9));
    CHECK(find(table, sizeof table, 10, 2, &p) == 0 && is_pos(p, 0, 0, -1, -1));
    CHECK(find(table, sizeof table, 10, 9, &p) == 0 && is_pos(p, 0, 0, -1, -1));
    CHECK(find(table, sizeof table, 10, 10, &p) == 0 && is_pos(p, 12, 12, 0, 1));
    CHECK(find(table, sizeof table, 10, 13, &p) == 0 && is_pos(p, 12, 12, 4, 5));
    CHECK(find(table, sizeof table, 10, 14, &p) == 0 && is_pos(p, 2, 2, -1, -1));
    CHECK(find(table, sizeof table, 10, 15, &p) == -1 && is_pos(p, 0, 0, -1, -1));
    CHECK(find(table, sizeof table, 10, INT_MAX, &p) == -1);
    CHECK(find(table, sizeof table, 10, -1, &p) == -1);
    CHECK(find(table, sizeof table, 10, INT_MIN, &p) == -1);
    /* a module's RESUME: line 0 to 1 */
    CHECK(find(TABLE(ENTRY(14, 1), 3, 1, 1, 1), 1, 0, &p) == 0);
    CHECK(is_pos(p, 0, 1, 0, 0));
}

static void
test_linetable_malformed(void)
{
    static const uint8_t whole[] = {
        ENTRY(10, 1), 4, 9, ENTRY(14, 1), 0x50, 31, 2, 0x40, 1, 0x41, 2,
    };
    lw_pos p;
    CHECK(find(whole, sizeof whole, 1, 1, &p) == 0);
    for (size_t len = 0; len < sizeof whole; len++) {
        CHECK(find(whole, len, 1, 1, &p) == -1);
        CHECK(is_pos(p, 0, 0, -1, -1));
        CHECK(find(whole, len, 1, 0, &p) == (len >= 3 ? 0 : -1));
    }
    for (int code = 0; code < 15; code++) { /* every code but "none" has payload */
        CHECK(find(TABLE(ENTRY(code, 1)), 1, 0, &p) == -1);
        CHECK(find(TABLE(ENTRY(code, 1), ENTRY(15, 1)), 1, 0, &p) == -1);
    }
    CHECK(lw_linetable_find(NULL, 0, 1, 0, &p) == -1);
    CHECK(find("", 0, 1, 0, &p) == -1);
    CHECK(find(TABLE(0x00, 0x00), 1, 0, &p) == -1); /* no start bit */
    CHECK(find(TABLE(ENTRY(15, 1), 0x01), 1, 1, &p) == -1);
    /* a varint of 7 bytes, and one of 33 bits */
    CHECK(find(TABLE(ENTRY(13, 1), 0x40, 0x40, 0x40, 0x40, 0x40, 0x40, 0), 1, 0, &p) == -1);
    CHECK(find(TABLE(ENTRY(13, 1), 0x40, 0x40, 0x40, 0x40, 0x40, 4), 1, 0, &p) == -1);
    CHECK(find(TABLE(ENTRY(13, 1), 0x40, 0x40, 0x40, 0x40, 0x40, 1), 1, 0, &p) == 0);
    CHECK(is_pos(p, 1 + (1 << 29), 1 + (1 << 29), -1, -1));
    /* lines, end lines and columns beyond an int */
    CHECK(find(TABLE(ENTRY(11, 1), 0, 0), INT_MAX, 0, &p) == -1);
    CHECK(find(TABLE(ENTRY(13, 1), 3), INT_MIN, 0, &p) == -1);
    CHECK(find(TABLE(ENTRY(14, 1), 0, 1, 1, 1), INT_MAX, 0, &p) == -1);
    CHECK(find(TABLE(ENTRY(14, 1), 3, 1, 1, 1), INT_MIN, 0, &p) == -1);
    CHECK(find(TABLE(ENTRY(14, 1), 0, 0, 0x7f, 0x7f, 0x7f, 0x7f, 0x7f, 3, 1), 1, 0, &p) == -1);
    CHECK(find(TABLE(ENTRY(10, 1), 0, 0), INT_MAX, 0, &p) == 0 && p.line == INT_MAX);
}

static void
test_linetable_garbage(void)
{
    uint64_t seed = UINT64_C(0x9e3779b97f4a7c15);
    long odd = 0;
    for (int round = 0; round < 100000; round++) {
        uint8_t bytes[48];
        lw_pos p;
        for (size_t i = 0; i < sizeof bytes; i++) {
            seed ^= seed << 13, seed ^= seed >> 7, seed ^= seed << 17;
            bytes[i] = (uint8_t)(seed >> 32);
            if (i % 3 != 0) {
                bytes[i] &= 0x7f; /* more of it passes as payload */
            }
        }
        int rc = find(bytes, (size_t)(seed % (sizeof bytes + 1)), (int)(seed >> 33), (int)(seed % 40), &p);
        odd += rc != 0 && !(rc == -1 && is_pos(p, 0, 0, -1, -1));
    }
    CHECK(odd == 0);
}

void
test_linetable(void)
{
    test_linetable_each_code();
    test_linetable_walk();
    test_linetable_malformed();
    test_linetable_garbage();
}
