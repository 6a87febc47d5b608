/*
 * arena, the implementation: one mapping, one bump pointer.
 *
 * MAP_NORESERVE: the range is a promise to the program, not a claim on swap,
 * so a generous cap does not count against overcommit (unless the machine is
 * set to strict accounting; then open may fail). The mapping is private and
 * anonymous; after fork parent and child no longer see each other's writes.
 *
 * Every size is checked before it is rounded up, so none can wrap: take
 * compares with what is left, never with used + n.
 *
 * reset keeps the first LW_ARENA_KEEP bytes resident: the usual span fits, and
 * the next one takes no page faults there. Beyond, only what was used is given
 * back. If the kernel refuses (it does so for locked memory, after mlockall),
 * the pages stay and nothing else changes.
 */
#ifndef _GNU_SOURCE
#define _GNU_SOURCE
#endif
#include "arena.h"

#include <errno.h>
#include <sys/mman.h>
#include <unistd.h>

#define ALIGN ((size_t)8)

static size_t
round_up(size_t n, size_t to)
{
    return (n + to - 1) / to * to;
}

int
lw_arena_open(lw_arena *a, size_t cap)
{
    size_t page = (size_t)sysconf(_SC_PAGESIZE);
    void *base;

    *a = (lw_arena){NULL, 0, 0};
    if (cap == 0 || cap > PTRDIFF_MAX - page) {
        return -1;
    }
    cap = round_up(cap, page);
    base = mmap(NULL, cap, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (base == MAP_FAILED) {
        return -1;
    }
    *a = (lw_arena){base, cap, 0};
    return 0;
}

void
lw_arena_close(lw_arena *a)
{
    if (a->base != NULL) {
        munmap(a->base, a->cap);
    }
    *a = (lw_arena){NULL, 0, 0};
}

void
lw_arena_reset(lw_arena *a)
{
    if (a->used > LW_ARENA_KEEP) {
        /* KEEP is a multiple of every page size Linux has, up to 64 KiB; the
           kernel rounds the length up to whole pages, and cap is whole pages */
        int saved = errno;
        (void)madvise(a->base + LW_ARENA_KEEP, a->used - LW_ARENA_KEEP, MADV_DONTNEED);
        errno = saved;
    }
    a->used = 0;
}

void *
lw_arena_take(lw_arena *a, size_t n)
{
    size_t left = a->cap - a->used; /* a multiple of 8, as both are */
    void *p;
    if (n == 0) {
        n = 1; /* so that every answer is a place of its own */
    }
    if (n > left) {
        return NULL;
    }
    p = a->base + a->used;
    a->used += round_up(n, ALIGN);
    return p;
}
