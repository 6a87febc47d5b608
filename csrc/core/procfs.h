/*
 * procfs: what the kernel says of one thread of this process.
 *
 *   syscall    in which system call it waits, with arguments; the one question
 *              that tells "waits" from "works" from outside
 *   schedstat  time on a CPU and time runnable but waiting for one
 *   stat       state letter, user and system ticks, major faults
 *   comm       the thread's name
 *
 * Each file has a pure parser (bytes in, struct out: tested and fuzzed by
 * itself) and a reader that opens, reads and closes /proc/self/task/TID/FILE
 * into a stack buffer. /proc/self is followed at each call, so nothing goes
 * stale after fork.
 *
 * Invariants: no allocation, no stdio, no lock; errno is left as it was found.
 * Every function gives 0, or -1 with *out cleared: thread gone, file refused
 * (hidepid, no CONFIG_SCHED_INFO), text not understood. No parser needs a NUL.
 *
 * Cost: 4 system calls a reader, 2-3 µs. Readers: any thread, no GIL. The
 * answer is of a moment that is over: two readings that agree mean more.
 */
#ifndef LW_PROCFS_H
#define LW_PROCFS_H

#include <stddef.h>
#include <stdint.h>
#include <sys/types.h>

enum lw_sys_state {
    LW_SYS_UNKNOWN = 0,
    LW_SYS_RUNNING,         /* on a CPU, or runnable */
    LW_SYS_IN_CALL,         /* asleep in system call nr */
    LW_SYS_BLOCKED_NO_CALL, /* asleep, but in no call: a page fault, a stop */
};

typedef struct {
    enum lw_sys_state state;
    long nr;          /* -1 unless LW_SYS_IN_CALL */
    uint64_t args[6]; /* 0 unless LW_SYS_IN_CALL */
    uint64_t sp, pc;  /* 0 when running */
} lw_syscall;

int lw_parse_syscall(const char *buf, size_t len, lw_syscall *out);
/* Asked by a thread about itself, the answer is the read that asks. */
int lw_read_syscall(pid_t tid, lw_syscall *out);

typedef struct {
    uint64_t run_ns;   /* on a CPU, since the thread began */
    uint64_t delay_ns; /* runnable, but without a CPU */
} lw_sched;

int lw_parse_schedstat(const char *buf, size_t len, lw_sched *out);
int lw_read_schedstat(pid_t tid, lw_sched *out);

typedef struct {
    char state;            /* R S D T t Z X I; 0 when unknown */
    uint64_t utime, stime; /* clock ticks: sysconf(_SC_CLK_TCK) a second */
    uint64_t majflt;       /* faults that had to wait for a disk */
} lw_stat;

int lw_parse_stat(const char *buf, size_t len, lw_stat *out);
int lw_read_stat(pid_t tid, lw_stat *out);

/* The thread's name, cut to cap-1 bytes, always NUL-terminated when cap > 0;
   control bytes within become '?'. */
int lw_read_comm(pid_t tid, char *dst, size_t cap);

#endif
