/*
 * procfs, the implementation: one reader, three parsers, one scanner.
 *
 * slurp builds the path by hand and reads the whole file into the caller's
 * stack buffer. All four files are made by the kernel in one go and are far
 * shorter than the buffers (a stat line is under 500 bytes), so a full buffer
 * means a file of another shape, and the parser decides.
 *
 * The parsers walk a scanner that never passes its end. Numbers that do not
 * fit 64 bits are an error, not a wrap-around. A line must be whole: each
 * parser wants all the fields it names, and each field to end at a blank or at
 * the end of the text.
 *
 * stat is the odd one: its second field is the thread's name in parentheses,
 * and the name may itself hold blanks and parentheses, as in "(a) R 1)".
 * Everything behind it is numbers, so the last ')' of the text closes it.
 */
#ifndef _GNU_SOURCE
#define _GNU_SOURCE
#endif
#include "procfs.h"

#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <string.h>
#include <unistd.h>

/* --- reading ------------------------------------------------------------- */

#define PATH_CAP 64

/* dst := "/proc/self/task/TID/name"; the caller's names all fit PATH_CAP. */
static void
task_path(char *dst, pid_t tid, const char *name)
{
    static const char head[] = "/proc/self/task/";
    char digits[16];
    size_t n = 0, at = sizeof head - 1;
    unsigned value = (unsigned)tid;

    memcpy(dst, head, at);
    do {
        digits[n++] = (char)('0' + value % 10);
        value /= 10;
    } while (value != 0);
    while (n > 0) {
        dst[at++] = digits[--n];
    }
    dst[at++] = '/';
    memcpy(dst + at, name, strlen(name) + 1);
}

/* Up to cap bytes of a task's file. The count, or -1. */
static ssize_t
slurp(pid_t tid, const char *name, char *buf, size_t cap)
{
    char path[PATH_CAP];
    int saved = errno;
    size_t got = 0;
    ssize_t n = -1;
    int fd;

    if (tid < 0) {
        return -1;
    }
    task_path(path, tid, name);
    do {
        fd = open(path, O_RDONLY | O_CLOEXEC);
    } while (fd < 0 && errno == EINTR);
    if (fd >= 0) {
        while (got < cap) {
            n = read(fd, buf + got, cap - got);
            if (n > 0) {
                got += (size_t)n;
            }
            else if (n == 0 || errno != EINTR) {
                break;
            }
        }
        close(fd);
    }
    errno = saved;
    return n < 0 ? -1 : (ssize_t)got;
}

/* --- scanning ------------------------------------------------------------ */

typedef struct {
    const char *at, *end; /* borrowed: the text */
} scanner;

static int
is_blank(char c)
{
    return c == ' ' || c == '\n' || c == '\t';
}

static void
skip_blanks(scanner *s)
{
    while (s->at < s->end && is_blank(*s->at)) {
        s->at++;
    }
}

static int
at_field_end(const scanner *s)
{
    return s->at == s->end || is_blank(*s->at);
}

static int
digit_value(char c)
{
    if (c >= '0' && c <= '9') {
        return c - '0';
    }
    if (c >= 'a' && c <= 'f') {
        return c - 'a' + 10;
    }
    if (c >= 'A' && c <= 'F') {
        return c - 'A' + 10;
    }
    return 99;
}

/* The next field as a number in base; digits only. */
static int
take_number(scanner *s, unsigned base, uint64_t *out)
{
    uint64_t value = 0;
    const char *from = s->at;
    for (; s->at < s->end; s->at++) {
        unsigned digit = (unsigned)digit_value(*s->at);
        if (digit >= base) {
            break;
        }
        if (value > (UINT64_MAX - digit) / base) {
            return -1;
        }
        value = value * base + digit;
    }
    if (s->at == from || !at_field_end(s)) {
        return -1;
    }
    *out = value;
    return 0;
}

static int
take_decimal(scanner *s, uint64_t *out)
{
    skip_blanks(s);
    return take_number(s, 10, out);
}

static int
take_hex(scanner *s, uint64_t *out)
{
    skip_blanks(s);
    if (s->end - s->at < 2 || s->at[0] != '0' || s->at[1] != 'x') {
        return -1;
    }
    s->at += 2;
    return take_number(s, 16, out);
}

static int
skip_fields(scanner *s, int count)
{
    while (count-- > 0) {
        skip_blanks(s);
        if (s->at == s->end) {
            return -1;
        }
        while (!at_field_end(s)) {
            s->at++;
        }
    }
    return 0;
}

/* --- syscall: "running" | "-1 SP PC" | "NR A0 A1 A2 A3 A4 A5 SP PC" -------- */

static int
scan_syscall(scanner *s, lw_syscall *out)
{
    static const char running[] = "running";
    size_t word = sizeof running - 1;
    uint64_t nr;

    if ((size_t)(s->end - s->at) >= word && memcmp(s->at, running, word) == 0) {
        s->at += word;
        out->state = LW_SYS_RUNNING;
        return at_field_end(s) ? 0 : -1;
    }
    if (s->at < s->end && *s->at == '-') {
        s->at++;
        if (take_number(s, 10, &nr) < 0 || nr != 1) {
            return -1;
        }
        out->state = LW_SYS_BLOCKED_NO_CALL;
    }
    else {
        if (take_number(s, 10, &nr) < 0 || nr > LONG_MAX) {
            return -1;
        }
        out->state = LW_SYS_IN_CALL;
        out->nr = (long)nr;
        for (int i = 0; i < 6; i++) {
            if (take_hex(s, &out->args[i]) < 0) {
                return -1;
            }
        }
    }
    return take_hex(s, &out->sp) < 0 || take_hex(s, &out->pc) < 0 ? -1 : 0;
}

int
lw_parse_syscall(const char *buf, size_t len, lw_syscall *out)
{
    const lw_syscall unknown = {.state = LW_SYS_UNKNOWN, .nr = -1};
    scanner s = {buf, buf + len};
    *out = unknown;
    if (scan_syscall(&s, out) < 0) {
        *out = unknown;
        return -1;
    }
    return 0;
}

int
lw_read_syscall(pid_t tid, lw_syscall *out)
{
    char buf[256];
    ssize_t n = slurp(tid, "syscall", buf, sizeof buf);
    return lw_parse_syscall(buf, n < 0 ? 0 : (size_t)n, out);
}

/* --- schedstat: "RUN DELAY SLICES" ---------------------------------------- */

int
lw_parse_schedstat(const char *buf, size_t len, lw_sched *out)
{
    const lw_sched nothing = {0, 0};
    scanner s = {buf, buf + len};
    uint64_t slices;
    *out = nothing;
    if (take_decimal(&s, &out->run_ns) < 0 || take_decimal(&s, &out->delay_ns) < 0 || take_decimal(&s, &slices) < 0) {
        *out = nothing;
        return -1;
    }
    return 0;
}

int
lw_read_schedstat(pid_t tid, lw_sched *out)
{
    char buf[128];
    ssize_t n = slurp(tid, "schedstat", buf, sizeof buf);
    return lw_parse_schedstat(buf, n < 0 ? 0 : (size_t)n, out);
}

/* --- stat: "TID (NAME) S ..." --------------------------------------------- */

static int
scan_stat(scanner *s, lw_stat *out)
{
    const char *close_paren = s->end;
    while (close_paren > s->at && close_paren[-1] != ')') {
        close_paren--;
    }
    if (close_paren == s->at) {
        return -1;
    }
    s->at = close_paren;
    skip_blanks(s);
    if (s->at == s->end || is_blank(*s->at)) {
        return -1;
    }
    out->state = *s->at++;
    if (!at_field_end(s)) {
        return -1;
    }
    /* between them: ppid pgrp session tty tpgid flags minflt cminflt */
    if (skip_fields(s, 8) < 0 || take_decimal(s, &out->majflt) < 0) {
        return -1;
    }
    /* cmajflt */
    if (skip_fields(s, 1) < 0 || take_decimal(s, &out->utime) < 0) {
        return -1;
    }
    return take_decimal(s, &out->stime);
}

int
lw_parse_stat(const char *buf, size_t len, lw_stat *out)
{
    const lw_stat nothing = {0, 0, 0, 0};
    scanner s = {buf, buf + len};
    *out = nothing;
    if (scan_stat(&s, out) < 0) {
        *out = nothing;
        return -1;
    }
    return 0;
}

int
lw_read_stat(pid_t tid, lw_stat *out)
{
    char buf[1024];
    ssize_t n = slurp(tid, "stat", buf, sizeof buf);
    return lw_parse_stat(buf, n < 0 ? 0 : (size_t)n, out);
}

/* --- comm: "NAME" ---------------------------------------------------------- */

int
lw_read_comm(pid_t tid, char *dst, size_t cap)
{
    char buf[128];
    size_t len;
    ssize_t n;
    if (cap == 0) {
        return -1;
    }
    dst[0] = '\0';
    n = slurp(tid, "comm", buf, sizeof buf);
    if (n < 0) {
        return -1;
    }
    len = (size_t)n;
    if (len > 0 && buf[len - 1] == '\n') {
        len--;
    }
    if (len > cap - 1) {
        len = cap - 1;
    }
    for (size_t i = 0; i < len; i++) {
        unsigned char c = (unsigned char)buf[i];
        dst[i] = c < 0x20 || c == 0x7f ? '?' : buf[i];
    }
    dst[len] = '\0';
    return 0;
}
