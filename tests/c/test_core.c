/*
 * test_core: the C core, tested without an interpreter.
 *
 * One program; one file for each subject that is large (test_linetable.c,
 * test_saferead.c, test_procfs.c, test_histogram.c), the small ones here. In each, one static
 * function a truth, named after it. Two habits matter:
 *
 * - Inputs to parsers lie in heap blocks of exactly their size (exact_copy), so
 *   that under AddressSanitizer a read of one byte too many is an error, not
 *   luck.
 * - What depends on the kernel is tried on the kernel: real threads asleep in
 *   real calls, pages really unmapped, a real seccomp filter that refuses
 *   process_vm_readv, a real fork. Waiting for a state is a loop with a
 *   deadline of seconds, never one sleep that hopes.
 *
 * Run by run.sh, plain and under the sanitizers. The comparison with a real
 * CPython is linetable_crosscheck.py; garbage is the fuzzers' part.
 */
#ifndef _GNU_SOURCE
#define _GNU_SOURCE
#endif
#include "check.h"

#include "arena.h"
#include "clock.h"
#include "sysname.h"

#include <limits.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/syscall.h>

long checks_passed, checks_failed;

/* --- clock ----------------------------------------------------------------- */

static void
test_clock(void)
{
    uint64_t a = lw_now_ns(), b, wall = lw_wall_ns();
    nap_ms(5);
    b = lw_now_ns();
    CHECK(b - a >= 5000000);
    CHECK(b - a < 60 * UINT64_C(1000000000));
    CHECK(wall / UINT64_C(1000000000) <= (uint64_t)time(NULL));
    CHECK(wall / UINT64_C(1000000000) + 60 > (uint64_t)time(NULL));
}

/* --- sysname ------------------------------------------------------------------ */

static int
is_named(long nr, const char *name)
{
    const char *got = lw_syscall_name(nr);
    return got != NULL && strcmp(got, name) == 0;
}

static void
test_sysname(void)
{
    int known = 0, polls = 0, futexes = 0;
    CHECK(is_named(SYS_read, "read"));
    CHECK(is_named(SYS_clock_nanosleep, "clock_nanosleep"));
    CHECK(is_named(SYS_futex, "futex"));
    CHECK(is_named(SYS_wait4, "wait4"));
    CHECK(is_named(SYS_recvfrom, "recvfrom"));
    CHECK(is_named(SYS_fsync, "fsync"));
    CHECK(is_named(SYS_getrandom, "getrandom"));
#ifdef SYS_epoll_wait
    CHECK(is_named(SYS_epoll_wait, "epoll_wait") && lw_syscall_is_poll(SYS_epoll_wait));
#endif
#ifdef SYS_io_uring_enter
    CHECK(lw_syscall_is_poll(SYS_io_uring_enter));
#endif
    CHECK(lw_syscall_is_poll(SYS_epoll_pwait) && lw_syscall_is_poll(SYS_ppoll));
    CHECK(lw_syscall_is_futex(SYS_futex) && !lw_syscall_is_futex(SYS_read));
    CHECK(lw_syscall_name(-1) == NULL && lw_syscall_name(LONG_MIN) == NULL);
    CHECK(lw_syscall_name(LONG_MAX) == NULL && lw_syscall_name(100000) == NULL);
    CHECK(!lw_syscall_is_poll(-1) && !lw_syscall_is_futex(-1));
    for (long nr = 0; nr < 1000; nr++) {
        known += lw_syscall_name(nr) != NULL;
        polls += lw_syscall_is_poll(nr);
        futexes += lw_syscall_is_futex(nr);
        /* what a predicate knows has a name */
        CHECK(!(lw_syscall_is_poll(nr) || lw_syscall_is_futex(nr)) || lw_syscall_name(nr) != NULL);
    }
    CHECK(known >= 120);
    CHECK(polls >= 3 && polls <= 8);
    CHECK(futexes >= 1 && futexes <= 3);
}

/* --- arena -------------------------------------------------------------------- */

static void
test_arena(void)
{
    size_t page = (size_t)sysconf(_SC_PAGESIZE), cap = 64 * LW_ARENA_KEEP;
    lw_arena a, odd;
    CHECK(lw_arena_open(&a, cap) == 0 && a.cap == cap && a.used == 0);
    uint8_t *first = lw_arena_take(&a, 1), *second = lw_arena_take(&a, 9);
    CHECK(first == a.base && second == first + 8 && a.used == 24);
    uint8_t *empty = lw_arena_take(&a, 0), *next = lw_arena_take(&a, 8);
    CHECK(empty != NULL && next != NULL && next > empty);
    CHECK((uintptr_t)next % 8 == 0);

    CHECK(lw_arena_take(&a, SIZE_MAX) == NULL); /* rounding up must not wrap */
    CHECK(lw_arena_take(&a, SIZE_MAX - 7) == NULL);
    CHECK(lw_arena_take(&a, cap) == NULL && a.used == 40);
    size_t left = cap - a.used;
    CHECK(lw_arena_take(&a, left + 1) == NULL);
    uint8_t *rest = lw_arena_take(&a, left);
    CHECK(rest != NULL && a.used == cap);
    memset(rest, 0xaa, left); /* all of it is there */
    CHECK(lw_arena_take(&a, 1) == NULL && lw_arena_take(&a, 0) == NULL);

    lw_arena_reset(&a);
    CHECK(a.used == 0 && a.base == first);
    CHECK(a.base[LW_ARENA_KEEP - 1] == 0xaa); /* kept */
    unsigned char resident = 1;
    CHECK(mincore(a.base + LW_ARENA_KEEP, page, &resident) == 0 && !(resident & 1));
    CHECK(mincore(a.base + cap - page, page, &resident) == 0 && !(resident & 1));
    CHECK(a.base[LW_ARENA_KEEP] == 0 && a.base[cap - 1] == 0); /* given back */
    CHECK(lw_arena_take(&a, cap) == a.base);
    lw_arena_reset(&a);
    lw_arena_close(&a);
    CHECK(a.base == NULL && lw_arena_take(&a, 1) == NULL);
    lw_arena_reset(&a);
    lw_arena_close(&a);

    CHECK(lw_arena_open(&odd, 100) == 0 && odd.cap == page); /* whole pages */
    CHECK(lw_arena_take(&odd, 100) != NULL);
    lw_arena_reset(&odd);
    lw_arena_close(&odd);
    CHECK(lw_arena_open(&odd, 0) == -1 && odd.base == NULL);
    CHECK(lw_arena_open(&odd, SIZE_MAX) == -1 && odd.base == NULL);
    CHECK(lw_arena_open(&odd, PTRDIFF_MAX) == -1);
    CHECK(lw_arena_open(&odd, (size_t)1 << 60) == -1 && lw_arena_take(&odd, 1) == NULL);
}

int
main(void)
{
    test_clock();
    test_linetable();
    test_saferead();
    test_procfs();
    test_histogram();
    test_sysname();
    test_arena();
    return check_summary();
}
