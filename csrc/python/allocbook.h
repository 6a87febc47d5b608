/* allocbook.h: the sampled allocations that are still alive, by address.
 *
 * A hash table of at most LW_ALLOC_MAX samples, half full at most, and before
 * it a filter: a counter of samples for each hash of an address, so that nearly
 * every free is known to be none of ours by one look at a byte.  A counter that
 * reached 255 stays, which costs a look into the table and is never wrong.
 *
 * Samples are written down and struck out inside somebody's malloc() and free().
 * So the table's memory is of malloc(), and last references to stacks and names
 * are not dropped there, as that may run Python code: they are buried, in a yard
 * of fixed size, and dug out by a pending call or by whoever reads.  A full yard
 * keeps them for good.
 *
 * All under the GIL.  Only lw_allocbook_dig() and lw_allocbook_clear() run code of
 * the program's; the table may have changed when they return. */
#ifndef LW_ALLOCBOOK_H
#define LW_ALLOCBOOK_H

#include "creation.h"

#define LW_ALLOC_MAX 65536
#define LW_ALLOC_FILTER_BITS 16

typedef struct {
    uintptr_t at;          /* 0: free */
    size_t size;
    uint64_t weight;       /* bytes that it stands for */
    uint64_t born_ns;
    lw_creation *creation; /* owned or NULL */
    PyObject *coroutine;   /* owned str or NULL */
} lw_alloc_sample;

extern uint8_t lw_alloc_filter[1 << LW_ALLOC_FILTER_BITS]; /* samples by hash of their address; 255 stays for good */

static inline uint64_t
lw_alloc_mix(uintptr_t at)
{
    return (uint64_t)(at >> 4) * 0x9E3779B97F4A7C15u;
}

/* 0: there is no sample of that address. */
static inline uint8_t *
lw_alloc_filter_at(uintptr_t at)
{
    return &lw_alloc_filter[lw_alloc_mix(at) >> (64 - LW_ALLOC_FILTER_BITS)];
}

int lw_allocbook_open(void); /* idempotent; -1: no memory */
void lw_allocbook_blind(void); /* strike out no more: no free is looked up, the table stands still */
void lw_allocbook_clear(void); /* forget all samples, once blind */
void lw_allocbook_free(void);  /* the memory of a cleared table */

size_t lw_allocbook_live(void); /* how many samples */
void lw_allocbook_put(const lw_alloc_sample *new_steal); /* of an address that has none; there must be room */
void lw_allocbook_strike_out(uintptr_t at);              /* or nothing, where it has none */
void lw_allocbook_dig(void);                             /* drop what was buried */
/* All samples, with references of their own, in an array to be freed with free(); NULL: no memory. */
lw_alloc_sample *lw_allocbook_copy(size_t *n_out);

#endif
