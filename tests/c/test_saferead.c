/*
 * test_saferead: every kind of address, by every way, in every process.
 *
 * check_reads is the heart: borders of mappings, holes, null, addresses no
 * process has, and errno untouched. It runs in this process, in a forked child,
 * and again where process_vm_readv is refused by a seccomp filter, which is how
 * containers refuse it. Filters and limits cannot be taken back, so those parts
 * run in children of their own.
 *
 * PROT_NONE pages are not among the holes: /proc/self/mem reads through them,
 * by design of the kernel, and nobody has to care. Holes are unmapped.
 *
 * Run before anything else calls lw_mem_init: the state before it is looked at
 * too.
 */
#ifndef _GNU_SOURCE
#define _GNU_SOURCE
#endif
#include "check.h"

#include "saferead.h"

#include <errno.h>
#include <fcntl.h>
#include <linux/filter.h>
#include <linux/seccomp.h>
#include <pthread.h>
#include <stdatomic.h>
#include <stddef.h>
#include <stdint.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <sys/syscall.h>

static void
check_reads(void)
{
    size_t page = (size_t)sysconf(_SC_PAGESIZE);
    char dst[64];
    uint8_t *pages = mmap(NULL, 4 * page, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    CHECK(pages != MAP_FAILED);
    memset(pages, 'a', page);
    memset(pages + page, 'b', page);
    CHECK(munmap(pages + 2 * page, page) == 0);
    CHECK(mprotect(pages, page, PROT_READ) == 0);

    errno = 77;
    CHECK(lw_mem_read(pages + page - 32, dst, 64) == 0); /* over two mappings */
    CHECK(dst[0] == 'a' && dst[31] == 'a' && dst[32] == 'b' && dst[63] == 'b');
    CHECK(lw_mem_read(pages + 2 * page - 64, dst, 64) == 0); /* up to the hole */
    CHECK(lw_mem_read(pages + 2 * page - 63, dst, 64) == -1); /* one byte in it */
    CHECK(lw_mem_read(pages + 2 * page - 1, dst, 2) == -1);
    CHECK(lw_mem_read(pages + 2 * page, dst, 1) == -1);
    CHECK(lw_mem_read(pages + 3 * page - 1, dst, 2) == -1); /* begins in it */
    CHECK(lw_mem_read(pages + 3 * page, dst, 64) == 0); /* behind it */
    CHECK(lw_mem_read(NULL, dst, 8) == -1);
    CHECK(lw_mem_read((void *)8, dst, 8) == -1);
    CHECK(lw_mem_read((void *)(UINTPTR_MAX - 3), dst, 8) == -1); /* wraps */
    CHECK(lw_mem_read((void *)(UINTPTR_MAX - 4095), dst, 8) == -1);
    CHECK(lw_mem_read((void *)((uintptr_t)1 << 62), dst, 8) == -1);
    CHECK(lw_mem_read((void *)((uintptr_t)1 << 63), dst, 8) == -1);
    CHECK(lw_mem_read(NULL, dst, 0) == 0); /* nothing to read, nothing unread */
    CHECK(errno == 77);
    CHECK(lw_mem_init() == 0); /* again, in the same process */
    CHECK(lw_mem_read(pages, dst, 64) == 0);
    CHECK(errno == 77);
    munmap(pages, 2 * page);
    munmap(pages + 3 * page, page);
}

static volatile int fork_word = 1;

static void
child_reads_its_own(void)
{
    int seen = 0;
    fork_word = 2;
    CHECK(lw_mem_init() == 0);
    CHECK(lw_mem_read((const void *)&fork_word, &seen, sizeof seen) == 0);
    CHECK(seen == 2);
    check_reads();
}

struct churn {
    uint8_t *_Atomic at;
    atomic_int stop;
    size_t page;
};

static void *
churn_main(void *arg)
{
    struct churn *c = arg;
    while (!atomic_load(&c->stop)) {
        uint8_t *p = mmap(NULL, c->page, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
        memset(p, 0x5a, c->page);
        atomic_store(&c->at, p);
        munmap(p, c->page);
    }
    return NULL;
}

/* Pages that vanish while they are read. */
static void
test_saferead_churn(void)
{
    struct churn c = {.at = NULL, .stop = 0, .page = (size_t)sysconf(_SC_PAGESIZE)};
    pthread_t thread;
    uint8_t buf[256];
    long odd = 0;
    CHECK(pthread_create(&thread, NULL, churn_main, &c) == 0);
    for (int i = 0; i < 50000; i++) {
        int rc = lw_mem_read(atomic_load(&c.at), buf, sizeof buf);
        odd += rc != 0 && rc != -1;
    }
    atomic_store(&c.stop, 1);
    pthread_join(thread, NULL);
    CHECK(odd == 0);
}

/* From here on process_vm_readv fails with EPERM in this process. 0 or -1. */
static int
refuse_vm_readv(void)
{
    struct sock_filter code[] = {
        BPF_STMT(BPF_LD | BPF_W | BPF_ABS, offsetof(struct seccomp_data, nr)),
        BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, SYS_process_vm_readv, 0, 1),
        BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_ERRNO | EPERM),
        BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_ALLOW),
    };
    struct sock_fprog filter = {sizeof code / sizeof *code, code};
    if (prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) != 0) {
        return -1;
    }
    return prctl(PR_SET_SECCOMP, SECCOMP_MODE_FILTER, &filter);
}

/* The first descriptor >= from that is open on /proc/PID/mem; -1 when none is. */
static int
mem_descriptor(int from)
{
    for (int fd = from; fd < 256; fd++) {
        char link[64], target[64];
        snprintf(link, sizeof link, "/proc/self/fd/%d", fd);
        ssize_t n = readlink(link, target, sizeof target - 1);
        if (n > 4 && memcmp(target + n - 4, "/mem", 4) == 0) {
            return fd;
        }
    }
    return -1;
}

static void
child_drops_its_parents_descriptor(void)
{
    child_reads_its_own();
    int fd = mem_descriptor(0);
    CHECK(fd >= 0 && mem_descriptor(fd + 1) == -1);
}

static void
child_without_vm_readv(void)
{
    int word = 5, seen = 0, fd, other;
    struct stat st;
    CHECK(lw_mem_init() == 0 && strcmp(lw_mem_method(), "process_vm_readv") == 0);
    if (refuse_vm_readv() != 0) {
        printf("seccomp is not available: the /proc/self/mem way is not tried\n");
        return;
    }
    CHECK(lw_mem_read(&word, &seen, sizeof seen) == -1); /* refused behind its back */
    CHECK(lw_mem_init() == 0 && strcmp(lw_mem_method(), "/proc/self/mem") == 0);
    CHECK(lw_mem_read(&word, &seen, sizeof seen) == 0 && seen == 5);
    check_reads();
    test_saferead_churn();
    check_in_child(child_drops_its_parents_descriptor, "fork, /proc/self/mem");

    fd = mem_descriptor(0);
    CHECK(fd >= 0 && (fcntl(fd, F_GETFD) & FD_CLOEXEC));
    /* its number becomes another file's: no bytes of that file as memory */
    other = open("/dev/zero", O_RDONLY);
    CHECK(dup2(other, fd) == fd);
    CHECK(lw_mem_read(&word, &seen, sizeof seen) == -1);
    CHECK(lw_mem_init() == 0); /* finds a new one, and leaves that file open */
    CHECK(lw_mem_read(&word, &seen, sizeof seen) == 0 && seen == 5);
    CHECK(fstat(fd, &st) == 0 && S_ISCHR(st.st_mode));
    CHECK(close(mem_descriptor(0)) == 0);
    CHECK(lw_mem_read(&word, &seen, sizeof seen) == -1);
    CHECK(lw_mem_init() == 0 && lw_mem_read(&word, &seen, sizeof seen) == 0);

    /* neither way */
    close(mem_descriptor(0));
    struct rlimit none = {0, 0};
    CHECK(setrlimit(RLIMIT_NOFILE, &none) == 0);
    CHECK(lw_mem_init() == -1 && strcmp(lw_mem_method(), "none") == 0);
    CHECK(lw_mem_read(&word, &seen, sizeof seen) == -1);
}

void
test_saferead(void)
{
    int word = 5, seen = 0;
    CHECK(strcmp(lw_mem_method(), "none") == 0);
    CHECK(lw_mem_read(&word, &seen, sizeof seen) == -1); /* before init */
    CHECK(lw_mem_init() == 0);
    CHECK(strcmp(lw_mem_method(), "none") != 0);
    check_reads();
    test_saferead_churn();
    check_in_child(child_reads_its_own, "fork");
    check_in_child(child_without_vm_readv, "without process_vm_readv");
}
