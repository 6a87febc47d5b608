/*
 * sysname, the implementation: one list, and a trick to bind it.
 *
 * Not every machine has every call (aarch64 never had poll or open) and not
 * every header knows the newest ones. Instead of an #ifdef a name: before
 * <sys/syscall.h> is read, each SYS_name is declared as an enumerator of -1.
 * Where the header then defines a macro of that name, the macro wins in all
 * that follows, and it is the number; where it does not, the enumerator stays,
 * and -1 is a number no thread is ever in. So nothing of the system may be
 * included above the enum, and no list but LW_CALLS needs upkeep.
 *
 * The order is by kind, for the reader; the search does not use it.
 */
#include "sysname.h"

#define LW_CALLS(X)                                                            \
    /* reading and writing */                                                  \
    X(read) X(write) X(readv) X(writev) X(pread64) X(pwrite64) X(preadv)       \
    X(pwritev) X(preadv2) X(pwritev2) X(sendfile) X(sendfile64) X(splice)      \
    X(tee) X(vmsplice) X(copy_file_range) X(readahead) X(ioctl) X(lseek)       \
    /* waiting for descriptors */                                              \
    X(poll) X(ppoll) X(select) X(_newselect) X(pselect6) X(epoll_wait)         \
    X(epoll_pwait) X(epoll_pwait2) X(epoll_create) X(epoll_create1)            \
    X(epoll_ctl) X(io_uring_setup) X(io_uring_enter) X(io_uring_register)      \
    X(io_setup) X(io_destroy) X(io_submit) X(io_cancel) X(io_getevents)        \
    X(io_pgetevents) X(eventfd) X(eventfd2) X(signalfd) X(signalfd4)           \
    X(timerfd_create) X(timerfd_settime) X(timerfd_gettime)                    \
    X(inotify_init1) X(inotify_add_watch) X(fanotify_init) X(fanotify_mark)    \
    /* sockets */                                                              \
    X(socket) X(socketpair) X(bind) X(listen) X(connect) X(accept) X(accept4)  \
    X(recv) X(send) X(recvfrom) X(sendto) X(recvmsg) X(sendmsg) X(recvmmsg)    \
    X(sendmmsg) X(shutdown) X(getsockopt) X(setsockopt) X(getsockname)         \
    X(getpeername) X(socketcall)                                               \
    /* sleeping, clocks, locks */                                              \
    X(nanosleep) X(clock_nanosleep) X(pause) X(alarm) X(sched_yield)           \
    X(clock_gettime) X(clock_settime) X(futex) X(futex_waitv) X(futex_wait)    \
    X(futex_wake) X(futex_requeue) X(semop) X(semtimedop) X(semget) X(semctl)  \
    X(msgsnd) X(msgrcv) X(mq_open) X(mq_timedsend) X(mq_timedreceive)          \
    X(membarrier) X(restart_syscall) X(timer_settime)                          \
    /* opening and closing */                                                  \
    X(open) X(openat) X(openat2) X(creat) X(close) X(close_range) X(dup)       \
    X(dup2) X(dup3) X(pipe) X(pipe2) X(fcntl) X(flock) X(memfd_create)         \
    X(name_to_handle_at) X(open_by_handle_at)                                  \
    /* to the disk */                                                          \
    X(fsync) X(fdatasync) X(sync) X(syncfs) X(sync_file_range) X(msync)        \
    X(truncate) X(ftruncate) X(fallocate) X(fadvise64)                         \
    /* names and directories */                                                \
    X(stat) X(lstat) X(fstat) X(newfstatat) X(statx) X(statfs) X(fstatfs)      \
    X(access) X(faccessat) X(faccessat2) X(getdents) X(getdents64) X(getcwd)   \
    X(chdir) X(fchdir) X(chroot) X(mkdir) X(mkdirat) X(mknod) X(mknodat)       \
    X(rmdir) X(unlink) X(unlinkat) X(rename) X(renameat) X(renameat2) X(link)  \
    X(linkat) X(symlink) X(symlinkat) X(readlink) X(readlinkat) X(chmod)       \
    X(fchmod) X(fchmodat) X(chown) X(lchown) X(fchown) X(fchownat) X(utime)    \
    X(utimes) X(utimensat) X(futimesat) X(getxattr) X(lgetxattr) X(fgetxattr)  \
    X(setxattr) X(lsetxattr) X(fsetxattr) X(listxattr) X(removexattr)          \
    X(mount) X(umount2) X(pivot_root) X(swapon) X(swapoff) X(quotactl)         \
    /* memory */                                                               \
    X(mmap) X(munmap) X(mremap) X(mprotect) X(madvise) X(process_madvise)      \
    X(brk) X(mlock) X(mlock2) X(munlock) X(mlockall) X(munlockall)             \
    X(mincore) X(mbind) X(move_pages) X(migrate_pages) X(userfaultfd)          \
    X(shmat) X(shmdt) X(process_vm_readv) X(process_vm_writev)                 \
    /* processes, threads, signals */                                          \
    X(fork) X(vfork) X(clone) X(clone3) X(execve) X(execveat) X(exit)          \
    X(exit_group) X(wait4) X(waitid) X(waitpid) X(kill) X(tkill) X(tgkill)     \
    X(pidfd_open) X(pidfd_getfd) X(pidfd_send_signal) X(rt_sigsuspend)         \
    X(rt_sigtimedwait) X(rt_sigprocmask) X(rt_sigaction) X(rt_sigreturn)       \
    X(rt_sigqueueinfo) X(ptrace) X(prctl) X(seccomp) X(unshare) X(setns)       \
    X(sched_setaffinity) X(sched_getaffinity) X(sched_setscheduler)            \
    X(setpriority) X(getpid) X(gettid) X(getrusage) X(prlimit64)               \
    /* the system */                                                           \
    X(getrandom) X(bpf) X(perf_event_open) X(syslog) X(sysinfo) X(uname)       \
    X(init_module) X(finit_module) X(delete_module) X(reboot)                  \
    X(keyctl) X(request_key) X(add_key)

enum {
#define LW_ABSENT(name) SYS_##name = -1,
    LW_CALLS(LW_ABSENT)
#undef LW_ABSENT
};

#include <stddef.h>
#include <sys/syscall.h>

static const struct {
    long nr;
    const char *name;
} calls[] = {
#define LW_ENTRY(name) {SYS_##name, #name},
    LW_CALLS(LW_ENTRY)
#undef LW_ENTRY
};

const char *
lw_syscall_name(long nr)
{
    if (nr < 0) {
        return NULL;
    }
    for (size_t i = 0; i < sizeof calls / sizeof *calls; i++) {
        if (calls[i].nr == nr) {
            return calls[i].name;
        }
    }
    return NULL;
}

int
lw_syscall_is_poll(long nr)
{
    return nr >= 0
        && (nr == SYS_poll || nr == SYS_ppoll || nr == SYS_select
            || nr == SYS__newselect || nr == SYS_pselect6 || nr == SYS_epoll_wait
            || nr == SYS_epoll_pwait || nr == SYS_epoll_pwait2
            || nr == SYS_io_uring_enter);
}

int
lw_syscall_is_futex(long nr)
{
    return nr >= 0
        && (nr == SYS_futex || nr == SYS_futex_waitv || nr == SYS_futex_wait);
}
