/*
 * saferead, the implementation: which of the two ways is open, and for whom.
 *
 * State is three atomics: the method, the pid it was chosen for, and the
 * descriptor of /proc/self/mem (-1 while the first way works). Readers only
 * load them; lw_mem_init writes the method last, with release order, so a
 * reader that sees a method sees what belongs to it. In the same process a
 * method that still works is kept, so re-initializing never pulls the
 * descriptor from under a reader; after fork there is no other reader.
 *
 * The descriptor is one a program may close behind our back (daemons close all
 * they have), and its number may then be another file's, whose bytes would be
 * taken for memory. So its device and inode are remembered and compared before
 * each read, and before it is closed. That costs the fallback one more call.
 *
 * Why a wild address is safe: the kernel copies with its own fault handling
 * and answers EFAULT (EIO from /proc). Both calls may stop short at the border
 * of a mapping; a short count is a failure here.
 */
#ifndef _GNU_SOURCE
#define _GNU_SOURCE
#endif
#include "saferead.h"

#include <errno.h>
#include <fcntl.h>
#include <stdatomic.h>
#include <stdint.h>
#include <sys/stat.h>
#include <sys/types.h>
#include <sys/uio.h>
#include <unistd.h>

enum { LW_MEM_NONE = 0, LW_MEM_VM_READV, LW_MEM_PROC };

static _Atomic int mem_method = LW_MEM_NONE;
static _Atomic int mem_pid = 0;
static _Atomic int mem_fd = -1;
static _Atomic uint64_t mem_dev = 0, mem_ino = 0;

static int
read_vm(pid_t pid, const void *addr, void *dst, size_t len)
{
    struct iovec to = {dst, len};
    struct iovec from = {(void *)(uintptr_t)addr, len};
    ssize_t n = process_vm_readv(pid, &to, 1, &from, 1, 0);
    return n >= 0 && (size_t)n == len ? 0 : -1;
}

/* Whether fd is still the file that lw_mem_init opened. */
static int
fd_is_ours(int fd)
{
    struct stat st;
    return fd >= 0 && fstat(fd, &st) == 0 && (uint64_t)st.st_dev == atomic_load(&mem_dev)
           && (uint64_t)st.st_ino == atomic_load(&mem_ino);
}

static int
read_proc(int fd, const void *addr, void *dst, size_t len)
{
    uint8_t *to = dst;
    uintptr_t at = (uintptr_t)addr;
    if (!fd_is_ours(fd)) {
        return -1;
    }
    while (len > 0) {
        /* an address in the upper half is a negative offset: refused */
        ssize_t n = pread(fd, to, len, (off_t)at);
        if (n < 0 && errno == EINTR) {
            continue;
        }
        if (n <= 0) {
            return -1;
        }
        to += n;
        at += (uintptr_t)n;
        len -= (size_t)n;
    }
    return 0;
}

int
lw_mem_read(const void *addr, void *dst, size_t len)
{
    int saved = errno;
    int rc = -1;
    int method = atomic_load_explicit(&mem_method, memory_order_acquire);

    if (method != LW_MEM_NONE && (uintptr_t)addr + len < len) {
        rc = -1; /* wraps around the address space */
    }
    else if (method != LW_MEM_NONE && len == 0) {
        rc = 0;
    }
    else if (method == LW_MEM_VM_READV) {
        rc = read_vm((pid_t)atomic_load(&mem_pid), addr, dst, len);
    }
    else if (method == LW_MEM_PROC) {
        rc = read_proc(atomic_load(&mem_fd), addr, dst, len);
    }
    errno = saved;
    return rc;
}

/* Whether the chosen way reads this very stack, now. */
static int
mem_works(void)
{
    volatile uint64_t probe = UINT64_C(0x6c6f6f7077617463) ^ (uint64_t)getpid();
    uint64_t seen = 0;
    return lw_mem_read((const void *)&probe, &seen, sizeof seen) == 0 && seen == probe;
}

static void
drop_fd(void)
{
    int fd = atomic_load(&mem_fd);
    if (fd_is_ours(fd)) {
        close(fd);
    }
    atomic_store(&mem_fd, -1);
}

static int
open_proc(void)
{
    struct stat st;
    int fd = open("/proc/self/mem", O_RDONLY | O_CLOEXEC);
    if (fd < 0) {
        return -1;
    }
    if (fstat(fd, &st) != 0) {
        close(fd);
        return -1;
    }
    atomic_store(&mem_dev, (uint64_t)st.st_dev);
    atomic_store(&mem_ino, (uint64_t)st.st_ino);
    atomic_store(&mem_fd, fd);
    return 0;
}

int
lw_mem_init(void)
{
    int saved = errno;
    int rc = 0;
    int pid = (int)getpid();

    if (atomic_load(&mem_pid) == pid && mem_works()) {
        goto done;
    }
    atomic_store_explicit(&mem_method, LW_MEM_NONE, memory_order_release);
    drop_fd();
    atomic_store(&mem_pid, pid);

    atomic_store_explicit(&mem_method, LW_MEM_VM_READV, memory_order_release);
    if (mem_works()) {
        goto done;
    }
    atomic_store_explicit(&mem_method, LW_MEM_NONE, memory_order_release);
    if (open_proc() == 0) {
        atomic_store_explicit(&mem_method, LW_MEM_PROC, memory_order_release);
        if (mem_works()) {
            goto done;
        }
        atomic_store_explicit(&mem_method, LW_MEM_NONE, memory_order_release);
        drop_fd();
    }
    rc = -1;
done:
    errno = saved;
    return rc;
}

const char *
lw_mem_method(void)
{
    switch (atomic_load_explicit(&mem_method, memory_order_acquire)) {
    case LW_MEM_VM_READV:
        return "process_vm_readv";
    case LW_MEM_PROC:
        return "/proc/self/mem";
    default:
        return "none";
    }
}
