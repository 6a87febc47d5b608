/*
 * check: the whole test framework of the C tests.
 *
 * CHECK(cond) counts, and prints the place and the text of what failed; a test
 * goes on after a failure, so one run shows all of them. The counters are
 * defined once, beside main; only the main thread checks.
 *
 * A check that must run in a forked child (other pid, other limits, a seccomp
 * filter) goes through check_in_child: the child's failures come back in its
 * exit status, its passes are counted as one, and a child killed by a signal
 * is a failure that names the signal.
 *
 * check_summary prints the last line, "N passed, M failed", alone on its line,
 * and gives the exit status. Output is flushed before each fork, else the child
 * would print the parent's buffer again.
 */
#ifndef LW_TEST_CHECK_H
#define LW_TEST_CHECK_H

#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

extern long checks_passed, checks_failed;

void test_linetable(void);
void test_saferead(void);
void test_procfs(void);
void test_histogram(void);

#define CHECK(cond) check_that((cond) ? 1 : 0, #cond, __FILE__, __LINE__)

static inline void
check_that(int ok, const char *text, const char *file, int line)
{
    if (ok) {
        checks_passed++;
    }
    else {
        checks_failed++;
        printf("FAILED %s:%d: %s\n", file, line, text);
    }
}

static inline void
check_in_child(void (*body)(void), const char *name)
{
    int status = 0;
    pid_t child;
    fflush(stdout);
    child = fork();
    if (child == 0) {
        checks_failed = 0;
        body();
        fflush(stdout);
        _exit(checks_failed == 0 ? 0 : 1);
    }
    if (child < 0 || waitpid(child, &status, 0) != child) {
        status = -1;
    }
    if (status != -1 && WIFSIGNALED(status)) {
        printf("%s: killed by signal %d\n", name, WTERMSIG(status));
    }
    check_that(status == 0, name, "child", 0);
}

/* A heap copy without a byte to spare; the caller frees. */
static inline void *
exact_copy(const void *bytes, size_t len)
{
    void *copy = malloc(len ? len : 1);
    if (copy == NULL) {
        abort();
    }
    if (len > 0) {
        memcpy(copy, bytes, len);
    }
    return copy;
}

static inline void
nap_ms(long ms)
{
    struct timespec t = {ms / 1000, ms % 1000 * 1000000};
    nanosleep(&t, NULL);
}

static inline int
check_summary(void)
{
    printf("%ld passed, %ld failed\n", checks_passed, checks_failed);
    fflush(stdout);
    return checks_failed == 0 ? 0 : 1;
}

#endif
