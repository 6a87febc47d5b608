/* fdtable.c: see fdtable.h. */
#include "fdtable.h"

#include <errno.h>
#include <fcntl.h>
#include <stdlib.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <unistd.h>

#define MAX_HOLES 16 /* past that many numbers not open, another way is cheaper */
#define MAX_FAR 16   /* numbers beyond a hole that are remembered from one reading to the next */

/* The numbers that lay beyond the last hole when the directory was read; guesses, each is asked for again. */
static _Atomic int far_ones[MAX_FAR];
static _Atomic int far_count;

typedef struct {
    uint64_t ino;
    int64_t off;
    unsigned short len;
    unsigned char type;
    char name[];
} dirent64;

int
lw_fdtable_one(int fd, lw_fd *out)
{
    struct stat s;
    int saved = errno;
    if (fstat(fd, &s) < 0) {
        errno = saved;
        return -1;
    }
    *out = (lw_fd){fd, (uint32_t)s.st_mode, (uint64_t)s.st_dev, (uint64_t)s.st_ino};
    return 0;
}

static int
by_number(lw_fd *out, int cap)
{
    struct stat dir;
    int found = 0, holes = 0, fd = 0;
    lw_fd one;
    if (stat("/proc/self/fd", &dir) < 0 || dir.st_size <= 0) {
        return -1;
    }
    for (; found < dir.st_size && holes <= MAX_HOLES; fd++) {
        if (lw_fdtable_one(fd, &one) == 0) {
            if (found < cap) {
                out[found] = one;
            }
            found++;
        }
        else {
            holes++;
        }
    }
    for (int i = 0; found < dir.st_size && i < far_count; i++) {
        if (far_ones[i] >= fd && lw_fdtable_one(far_ones[i], &one) == 0) {
            if (found < cap) {
                out[found] = one;
            }
            found++;
        }
    }
    return found < dir.st_size ? -1 : found;
}

/* Remember what lies beyond the holes. */
static void
note_far(const lw_fd *all, int n)
{
    int holes = 0, count = 0;
    for (int i = 0; i < n; i++) {
        holes += all[i].fd - (i > 0 ? all[i - 1].fd + 1 : 0);
        if (holes > MAX_HOLES) {
            if (n - i > MAX_FAR) {
                break;
            }
            far_ones[count++] = all[i].fd;
        }
    }
    far_count = count;
}

static int
by_fd(const void *a, const void *b)
{
    return ((const lw_fd *)a)->fd - ((const lw_fd *)b)->fd;
}

static int
by_directory(lw_fd *out, int cap)
{
    _Alignas(dirent64) char buf[4096];
    int found = 0, sorted = 1;
    lw_fd one;
    int dir = open("/proc/self/fd", O_RDONLY | O_DIRECTORY | O_CLOEXEC);
    if (dir < 0) {
        return -1;
    }
    for (long n; (n = syscall(SYS_getdents64, dir, buf, sizeof(buf))) > 0;) {
        for (long at = 0; at < n;) {
            dirent64 *entry = (dirent64 *)(void *)(buf + at);
            at += entry->len;
            int fd = entry->name[0] >= '0' && entry->name[0] <= '9' ? atoi(entry->name) : -1;
            if (fd < 0 || fd == dir || lw_fdtable_one(fd, &one) < 0) {
                continue;
            }
            if (found < cap) {
                sorted = sorted && (found == 0 || out[found - 1].fd < fd);
                out[found] = one;
            }
            found++;
        }
    }
    close(dir);
    if (!sorted) {
        qsort(out, (size_t)(found < cap ? found : cap), sizeof(*out), by_fd);
    }
    if (found <= cap) {
        note_far(out, found);
    }
    return found;
}

int
lw_fdtable_read(lw_fd *out, int cap)
{
    int saved = errno, n = by_number(out, cap);
    if (n < 0) {
        n = by_directory(out, cap);
    }
    errno = saved;
    return n;
}
