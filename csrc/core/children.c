/* children.c: see children.h. */
#include "children.h"

#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

static ssize_t
slurp(const char *path, char *buf, size_t cap)
{
    size_t n = 0;
    int fd = open(path, O_RDONLY | O_CLOEXEC);
    if (fd < 0) {
        return -1;
    }
    for (ssize_t got; n < cap - 1 && (got = read(fd, buf + n, cap - 1 - n)) > 0;) {
        n += (size_t)got;
    }
    close(fd);
    buf[n] = 0;
    return (ssize_t)n;
}

int
lw_parse_child(const char *buf, size_t len, lw_child *out)
{
    memset(out, 0, sizeof(*out));
    const char *open_at = memchr(buf, '(', len), *close_at = memrchr(buf, ')', len);
    if (open_at == NULL || close_at == NULL || close_at < open_at) {
        return -1;
    }
    size_t name = (size_t)(close_at - open_at - 1);
    char rest[512];
    size_t left = len - (size_t)(close_at + 1 - buf);
    left = left < sizeof(rest) - 1 ? left : sizeof(rest) - 1;
    memcpy(rest, close_at + 1, left);
    rest[left] = 0;
    out->pid = (pid_t)strtol(buf, NULL, 10);
    name = name < sizeof(out->comm) - 1 ? name : sizeof(out->comm) - 1;
    memcpy(out->comm, open_at + 1, name);
    int parent;
    unsigned long long start;
    /* state ppid, then the 22nd field of all: the 20th after the name */
    if (sscanf(rest, " %c %d %*s %*s %*s %*s %*s %*s %*s %*s %*s %*s %*s %*s %*s %*s %*s %*s %*s %llu", &out->state,
               &parent, &start)
        != 3) {
        return -1;
    }
    out->parent = (pid_t)parent;
    out->start = start;
    return 0;
}

static int
read_child(pid_t pid, lw_child *out)
{
    char path[48], buf[1024];
    snprintf(path, sizeof(path), "/proc/%ld/stat", (long)pid);
    ssize_t n = slurp(path, buf, sizeof(buf));
    return n > 0 ? lw_parse_child(buf, (size_t)n, out) : -1;
}

int
lw_children_any(void)
{
    siginfo_t info;
    int saved = errno, r;
    do {
        r = waitid(P_ALL, 0, &info, WEXITED | WNOHANG | WNOWAIT | __WALL);
    } while (r < 0 && errno == EINTR);
    int any = !(r < 0 && errno == ECHILD);
    errno = saved;
    return any;
}

void
lw_children_now(lw_children_mark *mark)
{
    char buf[128];
    struct timespec now;
    int saved = errno;
    memset(mark, 0, sizeof(*mark));
    mark->any = lw_children_any();
    if (mark->any) {
        uint64_t hz = (uint64_t)sysconf(_SC_CLK_TCK);
        clock_gettime(CLOCK_BOOTTIME, &now);
        mark->tick = (uint64_t)now.tv_sec * hz + (uint64_t)now.tv_nsec / (1000000000u / hz);
        if (slurp("/proc/loadavg", buf, sizeof(buf)) > 0) {
            const char *last = strrchr(buf, ' ');
            mark->last_pid = last != NULL ? (pid_t)strtol(last, NULL, 10) : 0;
        }
    }
    errno = saved;
}

int
lw_child_is_new(const lw_child *child, const lw_children_mark *mark)
{
    if (!mark->any || child->start > mark->tick) {
        return 1;
    }
    return child->start == mark->tick && mark->last_pid > 0 && child->pid > mark->last_pid;
}

typedef struct {
    lw_child *out;
    int cap, n;
} found;

static void
add(found *f, pid_t pid, pid_t self)
{
    lw_child child;
    if (pid > 0 && read_child(pid, &child) == 0 && child.parent == self) {
        if (f->n < f->cap) {
            f->out[f->n] = child;
        }
        f->n++;
    }
}

/* 0, or -1 where the kernel has no such file. */
static int
by_threads(found *f, pid_t self)
{
    char path[320], buf[16384];
    DIR *tasks = opendir("/proc/self/task");
    if (tasks == NULL) {
        return -1;
    }
    int status = 0;
    for (struct dirent *entry; status == 0 && (entry = readdir(tasks)) != NULL;) {
        if (entry->d_name[0] == '.') {
            continue;
        }
        snprintf(path, sizeof(path), "/proc/self/task/%s/children", entry->d_name);
        if (slurp(path, buf, sizeof(buf)) < 0) {
            snprintf(path, sizeof(path), "/proc/self/task/%s", entry->d_name);
            status = access(path, F_OK) == 0 ? -1 : 0; /* the thread ended: go on */
            continue;
        }
        for (char *at = buf, *end;; at = end) {
            long pid = strtol(at, &end, 10);
            if (end == at) {
                break;
            }
            add(f, (pid_t)pid, self);
        }
    }
    closedir(tasks);
    return status;
}

static int
by_parents(found *f, pid_t self)
{
    DIR *all = opendir("/proc");
    if (all == NULL) {
        return -1;
    }
    for (struct dirent *entry; (entry = readdir(all)) != NULL;) {
        if (entry->d_name[0] >= '1' && entry->d_name[0] <= '9') {
            add(f, (pid_t)strtol(entry->d_name, NULL, 10), self);
        }
    }
    closedir(all);
    return 0;
}

int
lw_children_list(lw_child *out, int cap)
{
    found f = {out, cap, 0};
    int saved = errno, status;
    pid_t self = getpid();
    status = by_threads(&f, self);
    if (status < 0) {
        f.n = 0;
        status = by_parents(&f, self);
    }
    errno = saved;
    return status < 0 ? -1 : f.n;
}
