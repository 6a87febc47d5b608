/*
 * linetable: from an instruction to its place in the source (CPython 3.11+).
 *
 * A code object's co_linetable is a run of entries, each for 1-8 code units.
 * An entry's first byte has the high bit set, all its other bytes have it
 * clear: 1cccc lll, code c, length l+1, then the payload of the code:
 *
 *    0-9   short form: same line, column = code*8 + 3 bits, width 4 bits
 *   10-12  one line:   line + (code-10), column byte, end column byte
 *   13     no columns: line + svarint
 *   14     long form:  line + svarint, then varints end line delta,
 *                      column+1, end column+1 (0: unknown)
 *   15     no location
 *
 * Varints are 6 bits a byte, low bits first, 0x40 set when more follow; in an
 * svarint bit 0 is the sign. Lines accumulate from first_line, so a lookup is
 * linear in the instructions before it: about 2.5 ns an entry.
 *
 * The bytes may come from a code object that was freed while they were copied,
 * so nothing is trusted: never reads outside the table, stops at the first
 * byte out of place, never overflows. Pure: no state, any thread.
 */
#ifndef LW_LINETABLE_H
#define LW_LINETABLE_H

#include <stddef.h>
#include <stdint.h>

typedef struct {
    int line, end_line; /* 1-based; both 0: no location */
    int col, end_col;   /* byte offsets from 0; -1: unknown */
} lw_pos;

/* The position of the instruction at code_unit_index (in units of 2 bytes).
   0: found. -1: malformed, or beyond the end of the table; *out then says "no
   location". The RESUME of a module truly has line 0, end_line 1. */
int lw_linetable_find(const uint8_t *table, size_t len, int first_line, int code_unit_index, lw_pos *out);

#endif
