/*
 * children: which processes this one has started and not reaped.
 *
 *   any    one waitid that takes nothing away (WNOWAIT): is there a child at
 *          all, running or zombie?  The usual answer is no, in 0.2 µs
 *   mark   a moment: a child that began after it is new.  Start times count in
 *          clock ticks (10 ms), so the newest pid of the system at that moment
 *          decides within one tick
 *   list   /proc/self/task/TID/children of every thread where the kernel has
 *          that file, else the parents of all processes in /proc
 *
 * Invariants: no allocation, no lock; errno is left as it was found; nothing
 * is reaped.
 * Cost: mark 5 µs when there is a child, else nothing; list 10 µs a thread and
 * a child, or 6 µs a process of the machine.  Any thread.
 */
#ifndef LW_CHILDREN_H
#define LW_CHILDREN_H

#include <stddef.h>
#include <stdint.h>
#include <sys/types.h>

typedef struct {
    pid_t pid, parent;
    char state;     /* R S D Z T ... */
    uint64_t start; /* clock ticks since boot */
    char comm[32];  /* the kernel's name of it; bytes, NUL at the end */
} lw_child;

typedef struct {
    int any;        /* whether there was a child then */
    uint64_t tick;  /* clock ticks since boot */
    pid_t last_pid; /* the newest of the system; 0: not known */
} lw_children_mark;

int lw_children_any(void); /* 1 yes, 0 no */
void lw_children_now(lw_children_mark *mark);
int lw_child_is_new(const lw_child *child, const lw_children_mark *mark);

/* Fill at most cap children; how many there are, which may be more than cap. -1: /proc is not there. */
int lw_children_list(lw_child *out, int cap);

/* The text of /proc/PID/stat: 0, or -1 when not understood. */
int lw_parse_child(const char *buf, size_t len, lw_child *out);

#endif
