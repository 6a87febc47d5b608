/*
 * test_procfs: texts as the kernel writes them, and threads that make it write.
 *
 * First the parsers: well-formed lines, every prefix of one, numbers that do
 * not fit, names made to look like the fields that follow them.
 *
 * Then subjects: threads that sleep, wait for a mutex, poll a pipe or spin, and
 * are watched from outside until they are seen where they must be, with a
 * deadline of five seconds. A subject is stopped by what it waits for (flag,
 * byte in the pipe, unlock), whichever it is, so subject_stop needs no role.
 *
 * At the end the thread asks about itself, and about threads there are none of.
 */
#ifndef _GNU_SOURCE
#define _GNU_SOURCE
#endif
#include "check.h"

#include "clock.h"
#include "procfs.h"
#include "sysname.h"

#include <errno.h>
#include <limits.h>
#include <poll.h>
#include <pthread.h>
#include <stdatomic.h>
#include <stdlib.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/syscall.h>

#define SECOND UINT64_C(1000000000)

static pid_t
own_tid(void)
{
    return (pid_t)syscall(SYS_gettid);
}

/* --- procfs: parsers --------------------------------------------------------- */

static int
parse_syscall(const char *text, lw_syscall *out)
{
    char *copy = exact_copy(text, strlen(text));
    int rc = lw_parse_syscall(copy, strlen(text), out);
    free(copy);
    return rc;
}

static void
test_parse_syscall(void)
{
    static const char call[] = "202 0x7f01 0x189 0x0 0x7ffe00 0x0 0xffffffffffffffff 0x7ffdc0 0x7f8a\n";
    lw_syscall s;
    CHECK(parse_syscall("running\n", &s) == 0);
    CHECK(s.state == LW_SYS_RUNNING && s.nr == -1 && s.sp == 0);
    CHECK(parse_syscall("running", &s) == 0);
    CHECK(parse_syscall("-1 0x7ffdc0 0x7f8a\n", &s) == 0);
    CHECK(s.state == LW_SYS_BLOCKED_NO_CALL && s.nr == -1);
    CHECK(s.sp == 0x7ffdc0 && s.pc == 0x7f8a && s.args[0] == 0);
    CHECK(parse_syscall(call, &s) == 0);
    CHECK(s.state == LW_SYS_IN_CALL && s.nr == 202);
    CHECK(s.args[0] == 0x7f01 && s.args[1] == 0x189 && s.args[3] == 0x7ffe00);
    CHECK(s.args[5] == UINT64_MAX && s.sp == 0x7ffdc0 && s.pc == 0x7f8a);
    CHECK(parse_syscall("0 0x0 0x0 0x0 0x0 0x0 0x0 0x0 0x0", &s) == 0 && s.nr == 0);

    static const char *const bad[] = {
        "",
        "\n",
        "runnin",
        "running1\n",
        "-",
        "-1",
        "-1 0x1",
        "-2 0x1 0x2",
        "-1x 0x1 0x2",
        "202",
        "202 0x1 0x2 0x3 0x4 0x5 0x6 0x7",
        "202 1 2 3 4 5 6 7 8",
        "0x1 0x2",
        "202 0x 0x2 0x3 0x4 0x5 0x6 0x7 0x8",
        "abc",
        "202 0x1 0x2 0x3 0x4 0x5 0x6 0x7 0x8z",
        "202 0x10000000000000000 0x2 0x3 0x4 0x5 0x6 0x7 0x8",
        "99999999999999999999 0x1 0x2 0x3 0x4 0x5 0x6 0x7 0x8",
        "9223372036854775808 0x1 0x2 0x3 0x4 0x5 0x6 0x7 0x8",
    };
    for (size_t i = 0; i < sizeof bad / sizeof *bad; i++) {
        CHECK(parse_syscall(bad[i], &s) == -1);
        CHECK(s.state == LW_SYS_UNKNOWN && s.nr == -1 && s.args[0] == 0 && s.sp == 0);
    }
    for (size_t len = 0; len < sizeof call - 7; len++) {
        char *copy = exact_copy(call, len);
        CHECK(lw_parse_syscall(copy, len, &s) == -1);
        free(copy);
    }
}

static void
test_parse_schedstat(void)
{
    lw_sched s;
    CHECK(lw_parse_schedstat("123 456 7\n", 10, &s) == 0);
    CHECK(s.run_ns == 123 && s.delay_ns == 456);
    CHECK(lw_parse_schedstat("18446744073709551615 0 0", 24, &s) == 0);
    CHECK(s.run_ns == UINT64_MAX);
    CHECK(lw_parse_schedstat("18446744073709551616 0 0", 24, &s) == -1 && s.run_ns == 0);
    CHECK(lw_parse_schedstat("1 2", 3, &s) == -1 && s.run_ns == 0 && s.delay_ns == 0);
    CHECK(lw_parse_schedstat("", 0, &s) == -1);
    CHECK(lw_parse_schedstat("1 -2 3", 6, &s) == -1);
}

static int
parse_stat(const char *text, lw_stat *out)
{
    char *copy = exact_copy(text, strlen(text));
    int rc = lw_parse_stat(copy, strlen(text), out);
    free(copy);
    return rc;
}

static void
test_parse_stat(void)
{
    lw_stat s;
    CHECK(parse_stat("12 (py) S 1 12 12 0 -1 4194304 300 0 7 0 55 66 0 0 20\n", &s) == 0);
    CHECK(s.state == 'S' && s.majflt == 7 && s.utime == 55 && s.stime == 66);
    CHECK(parse_stat("12 (a) R 1 2) D 1 12 12 0 -1 0 300 0 8 0 5 6 0\n", &s) == 0);
    CHECK(s.state == 'D' && s.majflt == 8 && s.utime == 5 && s.stime == 6);
    CHECK(parse_stat("12 ()) T 1 12 12 0 -1 0 300 0 8 0 5 6", &s) == 0 && s.state == 'T');
    CHECK(parse_stat("12 (\n) t 1 12 12 0 -1 0 300 0 8 0 5 6", &s) == 0 && s.state == 't');
    CHECK(parse_stat("12 (py) S 1 12 12 0 -1 0 300 0 8 0 5", &s) == -1);
    CHECK(s.state == 0 && s.majflt == 0 && s.utime == 0);
    CHECK(parse_stat("12 (py)", &s) == -1);
    CHECK(parse_stat("12 (py) ", &s) == -1);
    CHECK(parse_stat("12 py S 1 12", &s) == -1);
    CHECK(parse_stat("12 (py) SS 1 12 12 0 -1 0 300 0 8 0 5 6", &s) == -1);
    CHECK(parse_stat("", &s) == -1);
}

/* --- procfs: threads ---------------------------------------------------------- */

enum thread_role { ROLE_SLEEP, ROLE_FUTEX, ROLE_POLL, ROLE_SPIN };

struct subject {
    enum thread_role role;
    const char *name; /* borrowed */
    atomic_int tid, stop;
    int pipe[2];
    pthread_mutex_t lock; /* held by the test while a ROLE_FUTEX runs */
    pthread_t thread;
};

static void *
subject_main(void *arg)
{
    struct subject *s = arg;
    prctl(PR_SET_NAME, s->name);
    atomic_store(&s->tid, (int)own_tid());
    if (s->role == ROLE_SLEEP) {
        while (!atomic_load(&s->stop)) {
            nap_ms(100);
        }
    }
    else if (s->role == ROLE_FUTEX) {
        pthread_mutex_lock(&s->lock);
        pthread_mutex_unlock(&s->lock);
    }
    else if (s->role == ROLE_POLL) {
        struct pollfd p = {.fd = s->pipe[0], .events = POLLIN};
        poll(&p, 1, -1);
    }
    else {
        while (!atomic_load(&s->stop)) {
        }
    }
    return NULL;
}

static void
subject_start(struct subject *s)
{
    CHECK(pipe(s->pipe) == 0);
    pthread_mutex_init(&s->lock, NULL);
    pthread_mutex_lock(&s->lock);
    CHECK(pthread_create(&s->thread, NULL, subject_main, s) == 0);
    while (atomic_load(&s->tid) == 0) {
        nap_ms(1);
    }
}

static void
subject_stop(struct subject *s)
{
    atomic_store(&s->stop, 1);
    CHECK(write(s->pipe[1], "x", 1) == 1);
    pthread_mutex_unlock(&s->lock);
    pthread_join(s->thread, NULL);
    pthread_mutex_destroy(&s->lock);
    close(s->pipe[0]);
    close(s->pipe[1]);
}

/* Whether the thread is seen in a call for which want is true, in 5 seconds. */
static int
seen_in(pid_t tid, int (*want)(long))
{
    uint64_t deadline = lw_now_ns() + 5 * SECOND;
    lw_syscall s;
    while (lw_now_ns() < deadline) {
        if (lw_read_syscall(tid, &s) == 0 && s.state == LW_SYS_IN_CALL && want(s.nr) && s.sp != 0 && s.pc != 0) {
            return 1;
        }
        nap_ms(1);
    }
    return 0;
}

static int
is_sleep(long nr)
{
    const char *name = lw_syscall_name(nr);
    return name != NULL && (strcmp(name, "clock_nanosleep") == 0 || strcmp(name, "nanosleep") == 0);
}

static void
test_procfs_sleeping(void)
{
    struct subject s = {.role = ROLE_SLEEP, .name = "x) R 1 2 3"};
    char name[32], cut[4], none[1];
    lw_stat st;
    lw_sched sched;
    subject_start(&s);
    pid_t tid = atomic_load(&s.tid);
    CHECK(seen_in(tid, is_sleep));
    CHECK(lw_read_comm(tid, name, sizeof name) == 0 && strcmp(name, "x) R 1 2 3") == 0);
    CHECK(lw_read_comm(tid, cut, sizeof cut) == 0 && strcmp(cut, "x) ") == 0);
    CHECK(lw_read_comm(tid, none, 1) == 0 && none[0] == '\0');
    CHECK(lw_read_comm(tid, none, 0) == -1);
    int asleep = 0;
    for (int i = 0; i < 1000 && !asleep; i++) {
        asleep = lw_read_stat(tid, &st) == 0 && st.state == 'S';
    }
    CHECK(asleep); /* not the R of its name */
    CHECK(lw_read_schedstat(tid, &sched) == 0);
    subject_stop(&s);

    struct subject lines = {.role = ROLE_SLEEP, .name = "a\nb\t)"};
    subject_start(&lines);
    CHECK(lw_read_comm(atomic_load(&lines.tid), name, sizeof name) == 0);
    CHECK(strcmp(name, "a?b?)") == 0 || strchr(name, '\n') == NULL);
    CHECK(lw_read_stat(atomic_load(&lines.tid), &st) == 0);
    subject_stop(&lines);
}

static void
test_procfs_waiting(void)
{
    struct subject lock = {.role = ROLE_FUTEX, .name = "futex"};
    struct subject io = {.role = ROLE_POLL, .name = "poll"};
    subject_start(&lock);
    subject_start(&io);
    CHECK(seen_in(atomic_load(&lock.tid), lw_syscall_is_futex));
    CHECK(seen_in(atomic_load(&io.tid), lw_syscall_is_poll));
    subject_stop(&io);
    subject_stop(&lock);
}

static void
test_procfs_running(void)
{
    struct subject s = {.role = ROLE_SPIN, .name = "spin"};
    lw_sched before, after;
    lw_syscall call;
    lw_stat st;
    subject_start(&s);
    pid_t tid = atomic_load(&s.tid);
    CHECK(lw_read_schedstat(tid, &before) == 0);
    nap_ms(100);
    CHECK(lw_read_schedstat(tid, &after) == 0);
    /* it ran or it wanted to, all the time; a tick may be missing */
    CHECK(after.run_ns + after.delay_ns > before.run_ns + before.delay_ns + 50000000);
    CHECK(lw_read_syscall(tid, &call) == 0 && call.state == LW_SYS_RUNNING);
    CHECK(lw_read_stat(tid, &st) == 0 && st.state == 'R');
    CHECK(st.utime + st.stime > 0);
    subject_stop(&s);
}

static void
test_procfs_own_and_gone(void)
{
    lw_syscall call;
    lw_sched sched;
    lw_stat st;
    char name[32];
    pid_t none[] = {0, -1, INT_MAX, INT_MIN};
    /* a thread that asks about itself is in the call that asks */
    CHECK(lw_read_syscall(own_tid(), &call) == 0);
    CHECK(call.state == LW_SYS_RUNNING || (call.state == LW_SYS_IN_CALL && call.nr == SYS_read));
    CHECK(lw_read_schedstat(own_tid(), &sched) == 0 && sched.run_ns > 0);
    CHECK(lw_read_stat(own_tid(), &st) == 0 && st.state == 'R');
    CHECK(lw_read_comm(own_tid(), name, sizeof name) == 0 && name[0] != '\0');
    errno = 77;
    for (size_t i = 0; i < sizeof none / sizeof *none; i++) {
        memset(&call, 0x5a, sizeof call);
        memset(&sched, 0x5a, sizeof sched);
        memset(&st, 0x5a, sizeof st);
        CHECK(lw_read_syscall(none[i], &call) == -1 && call.state == LW_SYS_UNKNOWN);
        CHECK(lw_read_schedstat(none[i], &sched) == -1 && sched.run_ns == 0);
        CHECK(lw_read_stat(none[i], &st) == -1 && st.state == 0);
        strcpy(name, "old");
        CHECK(lw_read_comm(none[i], name, sizeof name) == -1 && name[0] == '\0');
    }
    CHECK(errno == 77);
}

void
test_procfs(void)
{
    test_parse_syscall();
    test_parse_schedstat();
    test_parse_stat();
    test_procfs_sleeping();
    test_procfs_waiting();
    test_procfs_running();
    test_procfs_own_and_gone();
}
