/*
 * arena: the memory of one span.
 *
 * While a block lasts, the watchdog needs room for samples, but must not call
 * malloc (a thread it samples may hold the allocator's lock). So address space
 * is reserved once, and the kernel backs a page when it is first written: an
 * arena that is never used costs its address range and nothing else.
 *
 * Taking is a bump of `used`; nothing is freed by itself. At the end of the
 * span all is dropped at once by lw_arena_reset, which gives pages beyond the
 * first LW_ARENA_KEEP bytes back to the kernel, so one terrible span does not
 * stay resident for good.
 *
 * Invariants: 0 <= used <= cap; used is a multiple of 8; base is page-aligned,
 * NULL when closed. Memory from take is not cleared: it may hold what an
 * earlier span left there.
 *
 * Cost: take is a handful of instructions and no system call (a page fault at
 * a first touch); reset is one madvise, and only if the span went past KEEP.
 * One owner at a time; no locking here. Fork: the child has a private copy.
 */
#ifndef LW_ARENA_H
#define LW_ARENA_H

#include <stddef.h>
#include <stdint.h>

#define LW_ARENA_KEEP ((size_t)64 * 1024)

typedef struct lw_arena {
    uint8_t *base; /* owned: a private mapping of cap bytes */
    size_t cap, used;
} lw_arena;

/* Reserve cap bytes (rounded up to whole pages). 0, or -1 with *a closed. */
int lw_arena_open(lw_arena *a, size_t cap);

/* Give the range back. A closed or zeroed arena may be closed again. */
void lw_arena_close(lw_arena *a);

/* Forget all that was taken. Pointers from take are dead. */
void lw_arena_reset(lw_arena *a);

/* n bytes, aligned to 8, valid until reset or close; NULL when full. */
void *lw_arena_take(lw_arena *a, size_t n);

#endif
