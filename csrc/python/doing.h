/* doing.h: what one thread of this process does at this moment, seen from outside.
 *
 * The kernel tells whether it runs or in which system call it sits; where that
 * call is a futex, its address tells whether it waits for the GIL (the futex
 * lies inside the interpreter's GIL struct) or for any other lock.  No guess
 * is involved, and nothing of the thread is touched.
 *
 * Two readers: the sampler, which weighs many such readings of a blocked loop
 * into causes, and the thread guard, which says of a thread that was left
 * behind what it is doing.  Whoever asks while it holds the GIL sees every
 * thread that runs Python code wait for it: ask without.
 *
 * Needs no GIL and no lock, allocates nothing.  tstate may be 0 (a thread that
 * Python does not know) or dangle: it is only read by lw_mem_read.
 * Cost: 4 to 6 system calls. */
#ifndef LW_DOING_H
#define LW_DOING_H

#include <stdint.h>
#include <sys/types.h>

enum lw_doing_state {
    LW_DOES_UNKNOWN, /* gone, or the kernel does not tell */
    LW_DOES_RUN,     /* on a CPU, or ready to; a page fault counts as that too */
    LW_DOES_CALL,    /* in a system call that is no futex */
    LW_DOES_LOCK,    /* waits for a lock */
    LW_DOES_GIL,     /* waits for the GIL */
    LW_DOES_WAIT,    /* asleep; the kernel does not tell in what */
};

typedef struct {
    enum lw_doing_state state;
    long syscall;      /* its number for CALL and LOCK, else -1 */
    uint64_t arg;      /* that call's first argument */
    uintptr_t holder;  /* GIL: the thread state that has it, 0 when none or unknown */
    int has_gil;       /* RUN: this thread has the GIL */
    int gil_elsewhere; /* RUN: another thread has the GIL */
    int without_gil;   /* RUN: this thread surely has not the GIL, whoever else */
    int collecting;    /* RUN: and the garbage collector runs in it */
} lw_doing;

void lw_doing_read(uintptr_t tstate, pid_t tid, lw_doing *out);

#endif
