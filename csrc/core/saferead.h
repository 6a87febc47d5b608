/*
 * saferead: read any address of this process; a bad one is an error code.
 *
 * A sampler that follows another thread's frames holds pointers that may have
 * been freed, unmapped or half written since. Dereferencing one is a crash;
 * asking the kernel to copy from it is -1. Two ways, tried in this order:
 *
 *   process_vm_readv   on our own pid: always permitted unless seccomp refuses
 *   /proc/self/mem     pread at the address, through a descriptor kept open
 *
 * Invariants: no allocation, no lock, no signal handler; errno is left as it
 * was found. What is read is a snapshot of bytes, not of an object: check it.
 *
 * Fork: both ways name one process (a pid, an address space), and the child
 * inherits the parent's. Call lw_mem_init in the child before the first read,
 * else it reads its parent's memory.
 *
 * Cost: a read is 0.4 µs (0.6 by /proc), near the same for 8 bytes and for 4096:
 * read whole structs, not fields.
 * Readers: any thread. lw_mem_init: one thread at a time.
 */
#ifndef LW_SAFEREAD_H
#define LW_SAFEREAD_H

#include <stddef.h>

/* Pick the way that works in this process. 0, or -1 when neither does (every
   read then fails). Cheap when called again in the same process. */
int lw_mem_init(void);

/* Copy len bytes from addr. 0: all were copied. -1: not all can be read, and
   what dst holds is unspecified. */
int lw_mem_read(const void *addr, void *dst, size_t len);

/* "process_vm_readv", "/proc/self/mem" or "none"; a static string. */
const char *lw_mem_method(void);

#endif
