/*
 * fuzz_linetable: any bytes as a location table.
 *
 * Input: 4 bytes first line, 2 bytes instruction index, the rest is the table
 * (a block of exactly its size, so AddressSanitizer sees any step outside).
 * The sampler may hand over the bytes of a code object that was freed while
 * they were copied; this is that case, without the luck.
 *
 * Beyond "does not crash", what must hold for every input:
 * - the answer is 0 or -1, and -1 leaves "no location";
 * - a table that has index i has every index below i;
 * - bytes behind the entry that answers do not change the answer, so the
 *   table cut anywhere gives the same answer or none.
 */
#include "linetable.h"

#include <stdlib.h>
#include <string.h>

static void
must(int ok)
{
    if (!ok) {
        abort();
    }
}

static int
find_exact(const uint8_t *bytes, size_t len, int first_line, int index, lw_pos *out)
{
    uint8_t *table = malloc(len ? len : 1);
    must(table != NULL);
    memcpy(table, bytes, len);
    int rc = lw_linetable_find(table, len, first_line, index, out);
    free(table);
    must(rc == 0 || rc == -1);
    must(rc == 0 || (out->line == 0 && out->end_line == 0 && out->col == -1 && out->end_col == -1));
    return rc;
}

int
LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    int32_t first_line;
    uint16_t index;
    lw_pos pos, other;

    if (size < 6) {
        return 0;
    }
    memcpy(&first_line, data, 4);
    memcpy(&index, data + 4, 2);
    data += 6;
    size -= 6;

    int rc = find_exact(data, size, first_line, index, &pos);
    if (rc == 0) {
        must(pos.end_line >= pos.line && pos.col >= -1 && pos.end_col >= -1);
        must(find_exact(data, size, first_line, index / 2, &other) == 0);
    }
    if (find_exact(data, size - size / 3, first_line, index, &other) == 0) {
        must(rc == 0 && memcmp(&pos, &other, sizeof pos) == 0);
    }
    find_exact(data, size, first_line, -1 - index, &other);
    return 0;
}
