/* hang.c: see hang.h. */
#include "hang.h"

#include <poll.h>
#include <stdarg.h>
#include <stdio.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

#include "../core/procfs.h"
#include "../core/saferead.h"
#include "../core/sysname.h"
#include "frames.h"
#include "layout.h"

#define MAX_THREADS 256

static lw_walk walk;
static char text_space[64 * 1024];
static lw_textbuf text;

/* Names may hold what a terminal would obey: control characters, C1's (0xc2 0x80 to 0x9f in UTF-8) too.  The newline
 * at the end is ours. */
static void
disarm(char *line)
{
    for (unsigned char *at = (unsigned char *)line; at[0] != 0 && at[1] != 0; at++) {
        if (at[0] < ' ' || at[0] == 0x7f) {
            at[0] = '?';
        }
        else if (at[0] == 0xc2 && at[1] >= 0x80 && at[1] < 0xa0) {
            at[0] = at[1] = '?';
        }
    }
}

static void __attribute__((format(printf, 2, 3)))
say(int fd, const char *format, ...)
{
    char line[LW_MAX_TEXT * 2 + 128];
    va_list args;
    va_start(args, format);
    int n = vsnprintf(line, sizeof(line), format, args);
    va_end(args);
    disarm(line);
    struct pollfd ready = {fd, POLLOUT, 0};
    if (poll(&ready, 1, 0) != 1 || !(ready.revents & POLLOUT)) {
        return; /* nobody drains that pipe: a line lost is better than a lock held for ever */
    }
    for (int at = 0, size = n < (int)sizeof(line) ? n : (int)sizeof(line) - 1; at < size;) {
        ssize_t wrote = write(fd, line + at, (size_t)(size - at));
        if (wrote <= 0) {
            return;
        }
        at += (int)wrote;
    }
}

static int
ends_with(const char *name, const char *end)
{
    size_t size = strlen(name), tail = strlen(end);
    return size >= tail && strcmp(name + size - tail, end) == 0;
}

/* How many frames of the walk to show, newest first: without those of `loopwatch run` at the outer end, and runpy's
 * below them. */
static int
frames_of_program(void)
{
    lw_frame frame;
    for (int i = 0; i < walk.n; i++) {
        if (lw_decode_frame(&walk.raw[i], &frame, &text) < 0
            || !ends_with(text.base + frame.file, "/loopwatch/commands/program.py")) {
            continue;
        }
        int shown = i;
        while (shown > 1 && lw_decode_frame(&walk.raw[shown - 1], &frame, &text) == 0
               && strcmp(text.base + frame.file, "<frozen runpy>") == 0) {
            shown--;
        }
        return shown > 0 ? shown : 1;
    }
    return walk.n;
}

static void
say_thread(int fd, uintptr_t tstate, int tid, const char *what)
{
    lw_syscall sys;
    lw_frame frame;
    char comm[32] = "?";
    const char *doing = "unknown", *name;

    if (lw_read_syscall(tid, &sys) == 0) {
        name = sys.state == LW_SYS_IN_CALL ? lw_syscall_name(sys.nr) : NULL;
        doing = sys.state == LW_SYS_RUNNING   ? "running"
                : sys.state == LW_SYS_IN_CALL ? (name ? name : "a system call")
                                              : "blocked in the kernel";
    }
    (void)lw_read_comm(tid, comm, sizeof(comm));
    say(fd, "  %s, native id %d (%s), %s, most recent call last:\n", what, tid, comm, doing);
    lw_textbuf_init(&text, text_space, sizeof(text_space));
    if (!lw_layout_ok() || lw_walk_stack(tstate, &walk) < 0) {
        say(fd, "    (its stack cannot be read: %s)\n", lw_layout_text());
        return;
    }
    for (int i = frames_of_program() - 1; i >= 0; i--) {
        if (walk.omitted && i == LW_KEEP_INNER - 1) {
            say(fd, "    ... %d frames left out\n", walk.omitted);
        }
        if (lw_decode_frame(&walk.raw[i], &frame, &text) == 0) {
            say(fd, "    File \"%s\", line %d, in %s\n", text.base + frame.file, frame.line, text.base + frame.name);
        }
    }
}

void
lw_hang_report(int fd, uintptr_t tstate, int tid, uint64_t age_ns, const char *running)
{
    uintptr_t interp, other;
    unsigned long native;

    struct timespec now = {0, 0};
    (void)clock_gettime(CLOCK_REALTIME, &now);
    int second = (int)(now.tv_sec % 86400); /* in UTC: localtime() takes a lock */
    say(fd, "loopwatch: HANG: an event loop has not come back for %llu.%01llu s (process %d, %02d:%02d:%02d UTC)\n",
        (unsigned long long)(age_ns / 1000000000), (unsigned long long)(age_ns / 100000000 % 10), (int)getpid(),
        second / 3600, second / 60 % 60, second % 60);
    if (running != NULL) {
        say(fd, "  It runs '%s'\n", running);
    }
    say_thread(fd, tstate, tid, "The loop's thread");
    if (!lw_layout_ok() || lw_read_ptr(tstate + lw_lay.ts_interp, &interp) < 0
        || lw_read_ptr(interp + lw_lay.in_threads, &other) < 0) {
        return;
    }
    for (int i = 0; i < MAX_THREADS && other != 0; i++) {
        if (other != tstate && lw_mem_read((const void *)(other + lw_lay.ts_native_id), &native, sizeof(native)) == 0) {
            say_thread(fd, other, (int)native, "Thread");
        }
        if (lw_read_ptr(other + lw_lay.ts_next, &other) < 0) {
            return;
        }
    }
}
