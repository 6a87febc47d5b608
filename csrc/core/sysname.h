/*
 * sysname: system call numbers in words.
 *
 * /proc gives a number; a report says "in clock_nanosleep". The table holds
 * what can make a thread wait or take long: files, sockets, sleeps, locks,
 * processes, memory, sync. Numbers differ between architectures, so the names
 * are bound to the SYS_ macros of the machine that compiles; a name that its
 * headers lack is simply absent.
 *
 * The two predicates carry the only distinctions the judges make: a thread in
 * a poll call waits for I/O as a loop should; a thread in a futex waits for a
 * lock (or for the GIL, which only the caller can tell).
 *
 * Cost: a linear search of some 250 entries, 0.1 µs; meant for reports,
 * not for each sample. The predicates are a few comparisons. Pure, no state,
 * any thread.
 */
#ifndef LW_SYSNAME_H
#define LW_SYSNAME_H

/* The name without prefix ("read"), a static string; NULL when not known. */
const char *lw_syscall_name(long nr);

/* 1 for poll ppoll select pselect6 epoll_wait epoll_pwait epoll_pwait2
   io_uring_enter, else 0. */
int lw_syscall_is_poll(long nr);

/* 1 for futex and its younger forms that wait, else 0. */
int lw_syscall_is_futex(long nr);

#endif
