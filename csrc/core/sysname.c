/*
 * sysname, the implementation: one list, and a trick to bind it.
 *
 * Not every machine has every call (aarch64 never had poll or open) and not
 * every header knows the newest ones. Instead of an #ifdef a name: before
 * <sys/syscall.h> is read, each SYS_name is declared as an enumerator of -1.
 * Where the header then defines a macro of that name, the macro wins in all
 * that follows, and it is the number; where it does not, the enumerator stays,
 * and -1 is a number no thread is ever in. So nothing of the system may be
 * included above the enum, and no list but sysname.def needs upkeep.
 *
 * The order is by kind, for the reader; the search does not use it.
 */
#include "sysname.h"

enum {
#define X(name) SYS_##name = -1,
#include "sysname.def"
#undef X
};

#include <stddef.h>
#include <sys/syscall.h>

static const struct {
    long nr;
    const char *name;
} calls[] = {
#define X(name) {SYS_##name, #name},
#include "sysname.def"
#undef X
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
           && (nr == SYS_poll || nr == SYS_ppoll || nr == SYS_select || nr == SYS__newselect || nr == SYS_pselect6
               || nr == SYS_epoll_wait || nr == SYS_epoll_pwait || nr == SYS_epoll_pwait2 || nr == SYS_io_uring_enter);
}

int
lw_syscall_is_futex(long nr)
{
    return nr >= 0 && (nr == SYS_futex || nr == SYS_futex_waitv || nr == SYS_futex_wait);
}
