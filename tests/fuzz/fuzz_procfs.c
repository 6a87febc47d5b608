/*
 * fuzz_procfs: any bytes as the text of a /proc file.
 *
 * All three parsers get the same input, in a block of exactly its size and
 * without a NUL. The kernel writes well-formed text, but a thread's name is the
 * program's own, other kernels have other fields, and what stands in /proc of a
 * sandbox is the sandbox's work.
 *
 * What must hold for every input:
 * - the answer is 0 or -1, and -1 leaves the struct cleared;
 * - a system call that was understood, written out again in the kernel's form,
 *   is understood as the same; likewise the two scheduler times.
 */
#include "procfs.h"

#include <stdio.h>
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
write_syscall(const lw_syscall *s, char *text, size_t cap)
{
    typedef unsigned long long ull;
    if (s->state == LW_SYS_RUNNING) {
        return snprintf(text, cap, "running\n");
    }
    if (s->state == LW_SYS_BLOCKED_NO_CALL) {
        return snprintf(text, cap, "-1 0x%llx 0x%llx\n", (ull)s->sp, (ull)s->pc);
    }
    must(s->state == LW_SYS_IN_CALL && s->nr >= 0);
    return snprintf(text, cap, "%ld 0x%llx 0x%llx 0x%llx 0x%llx 0x%llx 0x%llx 0x%llx 0x%llx\n", s->nr, (ull)s->args[0],
                    (ull)s->args[1], (ull)s->args[2], (ull)s->args[3], (ull)s->args[4], (ull)s->args[5], (ull)s->sp,
                    (ull)s->pc);
}

static int
same_syscall(const lw_syscall *a, const lw_syscall *b)
{
    return a->state == b->state && a->nr == b->nr && a->sp == b->sp && a->pc == b->pc
           && memcmp(a->args, b->args, sizeof a->args) == 0;
}

static void
try_syscall(const char *buf, size_t len)
{
    static const lw_syscall unknown = {.state = LW_SYS_UNKNOWN, .nr = -1};
    lw_syscall s, again;
    char text[256];
    if (lw_parse_syscall(buf, len, &s) == 0) {
        int n = write_syscall(&s, text, sizeof text);
        must(n > 0 && lw_parse_syscall(text, (size_t)n, &again) == 0);
        must(same_syscall(&s, &again));
    }
    else {
        must(same_syscall(&s, &unknown));
    }
}

static void
try_schedstat(const char *buf, size_t len)
{
    lw_sched s, again;
    char text[96];
    if (lw_parse_schedstat(buf, len, &s) == 0) {
        int n =
            snprintf(text, sizeof text, "%llu %llu 1\n", (unsigned long long)s.run_ns, (unsigned long long)s.delay_ns);
        must(n > 0 && lw_parse_schedstat(text, (size_t)n, &again) == 0);
        must(s.run_ns == again.run_ns && s.delay_ns == again.delay_ns);
    }
    else {
        must(s.run_ns == 0 && s.delay_ns == 0);
    }
}

static void
try_stat(const char *buf, size_t len)
{
    lw_stat s;
    if (lw_parse_stat(buf, len, &s) < 0) {
        must(s.state == 0 && s.utime == 0 && s.stime == 0 && s.majflt == 0);
    }
}

int
LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    char *text = malloc(size ? size : 1);
    must(text != NULL);
    if (size > 0) {
        memcpy(text, data, size);
    }
    try_syscall(text, size);
    try_schedstat(text, size);
    try_stat(text, size);
    free(text);
    return 0;
}
