/*
 * linetable, the implementation: a cursor that cannot leave its bytes.
 *
 * Two rules carry all the safety. take_byte is the only place that reads, and
 * it hands out payload bytes only: none past the end, none with the high bit
 * set (that would be the next entry's first byte). And all sums are made in
 * 64 bits from parts of at most 32, then must fit an int; a varint is at most
 * 6 bytes and 32 bits, which is all CPython writes.
 *
 * Every entry is decoded in full even when it is passed over: its payload has
 * no length, and its line delta counts for all that follow. An entry with a
 * line outside int is malformed; CPython cannot write one.
 *
 * Each turn of the loop eats at least one byte, so the time is bounded by len.
 */
#include "linetable.h"

#include <limits.h>

#define START_BIT 0x80
#define MORE_BIT 0x40
#define MAX_VARINT_BYTES 6

enum { CODE_ONE_LINE_0 = 10, CODE_NO_COLUMNS = 13, CODE_LONG = 14, CODE_NONE = 15 };

static const lw_pos no_pos = {0, 0, -1, -1};

typedef struct {
    const uint8_t *at, *end; /* borrowed: the table */
} cursor;

static int
take_byte(cursor *c, unsigned *out)
{
    if (c->at >= c->end || (*c->at & START_BIT)) {
        return -1;
    }
    *out = *c->at++;
    return 0;
}

static int
take_varint(cursor *c, int64_t *out)
{
    uint64_t value = 0;
    unsigned byte = MORE_BIT;
    for (int i = 0; byte & MORE_BIT; i++) {
        if (i == MAX_VARINT_BYTES || take_byte(c, &byte) < 0) {
            return -1;
        }
        value |= (uint64_t)(byte & (MORE_BIT - 1)) << (6 * i);
    }
    if (value > UINT32_MAX) {
        return -1;
    }
    *out = (int64_t)value;
    return 0;
}

static int
take_svarint(cursor *c, int64_t *out)
{
    int64_t value;
    if (take_varint(c, &value) < 0) {
        return -1;
    }
    *out = value & 1 ? -(value >> 1) : value >> 1;
    return 0;
}

static int
fits_int(int64_t value)
{
    return value >= INT_MIN && value <= INT_MAX;
}

/* Decode one payload; *line is the running line, moved by the entry's delta. */
static int
take_payload(cursor *c, unsigned code, int64_t *line, lw_pos *out)
{
    int64_t line_delta = 0, end_delta = 0, col = -1, end_col = -1;
    unsigned a, b;

    if (code == CODE_NONE) {
        *out = no_pos;
        return 0;
    }
    if (code < CODE_ONE_LINE_0) {
        if (take_byte(c, &a) < 0) {
            return -1;
        }
        col = (int64_t)(code << 3 | a >> 4);
        end_col = col + (a & 15);
    }
    else if (code < CODE_NO_COLUMNS) {
        if (take_byte(c, &a) < 0 || take_byte(c, &b) < 0) {
            return -1;
        }
        line_delta = code - CODE_ONE_LINE_0;
        col = a;
        end_col = b;
    }
    else {
        if (take_svarint(c, &line_delta) < 0) {
            return -1;
        }
        if (code == CODE_LONG) {
            if (take_varint(c, &end_delta) < 0 || take_varint(c, &col) < 0 || take_varint(c, &end_col) < 0) {
                return -1;
            }
            col -= 1;
            end_col -= 1;
        }
    }

    *line += line_delta;
    if (!fits_int(*line) || !fits_int(*line + end_delta) || !fits_int(col) || !fits_int(end_col)) {
        return -1;
    }
    out->line = (int)*line;
    out->end_line = (int)(*line + end_delta);
    out->col = (int)col;
    out->end_col = (int)end_col;
    return 0;
}

int
lw_linetable_find(const uint8_t *table, size_t len, int first_line, int code_unit_index, lw_pos *out)
{
    int64_t line = first_line;
    int64_t units_left = code_unit_index;

    *out = no_pos;
    if (table == NULL || code_unit_index < 0) {
        return -1;
    }
    cursor c = {table, table + len};
    while (c.at < c.end) {
        unsigned first = *c.at++;
        lw_pos pos;
        if (!(first & START_BIT) || take_payload(&c, first >> 3 & 15, &line, &pos) < 0) {
            return -1;
        }
        units_left -= (first & 7) + 1;
        if (units_left < 0) {
            *out = pos;
            return 0;
        }
    }
    return -1;
}
