/* doing.c: see doing.h. */
#include "doing.h"

#include "../core/procfs.h"
#include "../core/saferead.h"
#include "../core/sysname.h"
#include "frames.h"
#include "layout.h"

typedef struct {
    uintptr_t at, holder; /* at: 0 when unknown */
    int locked, collecting; /* locked: -1 when unknown */
} gil_view;

static void
view_gil(uintptr_t tstate, gil_view *gil)
{
    uintptr_t interp = 0;

    *gil = (gil_view){0, 0, -1, 0};
    if (!lw_layout_ok() || tstate == 0 || lw_read_ptr(tstate + lw_lay.ts_interp, &interp) < 0) {
        return;
    }
    gil->at = lw_lay.gil_fixed;
    if (gil->at == 0) {
        (void)lw_read_ptr(interp + lw_lay.in_gil, &gil->at);
    }
    if (gil->at != 0
        && (lw_read_ptr(gil->at + lw_lay.gil_holder, &gil->holder) < 0
            || lw_mem_read((const void *)(gil->at + lw_lay.gil_locked), &gil->locked, sizeof(gil->locked)) < 0)) {
        gil->locked = -1;
    }
    if (lw_mem_read((const void *)(interp + lw_lay.in_gc_collecting), &gil->collecting, sizeof(gil->collecting)) < 0) {
        gil->collecting = 0;
    }
}

/* Where /proc tells no system call (a kernel built without it, or one that refuses) the state letter still tells. */
static void
by_letter(pid_t tid, lw_doing *out)
{
    lw_stat stat;
    if (lw_read_stat(tid, &stat) == 0) {
        out->state = stat.state == 'R'                        ? LW_DOES_RUN
                     : stat.state == 'S' || stat.state == 'D' ? LW_DOES_WAIT
                                                              : LW_DOES_UNKNOWN;
    }
}

void
lw_doing_read(uintptr_t tstate, pid_t tid, lw_doing *out)
{
    lw_syscall sys;
    gil_view gil;

    *out = (lw_doing){.state = LW_DOES_UNKNOWN, .syscall = -1};
    if (lw_read_syscall(tid, &sys) < 0) {
        by_letter(tid, out);
        return;
    }
    view_gil(tstate, &gil);
    switch (sys.state) {
    case LW_SYS_IN_CALL:
        if (lw_syscall_is_futex(sys.nr) && gil.at != 0 && sys.args[0] >= gil.at
            && sys.args[0] < gil.at + lw_lay.gil_size) {
            out->state = LW_DOES_GIL;
            out->holder = gil.locked == 1 && gil.holder != tstate ? gil.holder : 0;
            break;
        }
        out->state = lw_syscall_is_futex(sys.nr) ? LW_DOES_LOCK : LW_DOES_CALL;
        out->syscall = sys.nr;
        out->arg = sys.args[0];
        break;
    case LW_SYS_RUNNING:
    case LW_SYS_BLOCKED_NO_CALL: /* a page fault */
        out->state = LW_DOES_RUN;
        out->gil_elsewhere = gil.locked == 1 && gil.holder != tstate;
        out->has_gil = gil.locked == 1 && gil.holder == tstate && tstate != 0;
        out->without_gil = gil.locked == 0 || out->gil_elsewhere;
        out->collecting = gil.collecting == 1 && out->has_gil;
        break;
    default:
        break;
    }
}
