/* layout.h: how this interpreter's memory is laid out, and whether to trust it.
 *
 * Filled once at import, then only read, by any thread without a lock.
 * lw_layout_init() takes the offsets from compat_layout.h and proves them: it
 * walks the stack of the thread that imports, through the same safe reads that
 * the watchdog uses, and compares names and lines with what the interpreter says
 * itself.  If anything differs, lw_layout_ok() is 0 for the process's life:
 * spans are still measured exactly (that needs no foreign memory), and blocks
 * say why they have no stack. */
#ifndef LW_LAYOUT_H
#define LW_LAYOUT_H

#include "compat_layout.h"

/* Offsets into asyncio's objects, found by looking into one of our own; 0 = not known. */
typedef struct {
    size_t task_name, task_coro, task_context, coro_qualname, handle_callback;
    uintptr_t run_once_code;       /* address of BaseEventLoop._run_once's code (kept alive) */
    int local_ntodo, local_i, local_handle; /* slots in its frame, or -1 */
    uintptr_t task_type;
    uintptr_t current_tasks;       /* the dict loop -> running task, kept alive; 0: the thread state has it */
    size_t ts_task;                /* in the thread state: the running task; 0 not known */
    /* trio's: the code of unrolled_run (kept alive), its local `task`, and slots of a Task */
    uintptr_t trio_code;
    int trio_task;
    size_t trio_name, trio_coro;
} lw_asyncio_layout;

/* Python: a loop `L`, good for making tasks that never run, and a coroutine function `c`. */
#define LW_PROBE_LOOP \
    "class L:\n" \
    "    def get_debug(self): return False\n" \
    "    def call_soon(self, *a, **k): pass\n" \
    "    def call_exception_handler(self, c): pass\n" \
    "    def is_running(self): return False\n" \
    "async def c(): pass\n"

extern lw_layout lw_lay;
extern lw_asyncio_layout lw_alay;

/* Whether LOOP is the one that runs in this thread: the thread state has it beside its task.  0 also where not known. */
static inline int
lw_loop_runs_here(PyObject *loop)
{
    return lw_alay.ts_task != 0 && ((PyObject **)((char *)PyThreadState_Get() + lw_alay.ts_task))[-1] == loop;
}

int lw_layout_init(void); /* -1 with an exception set only on memory errors */
int lw_layout_ok(void);
const char *lw_layout_text(void); /* "exact" or "fallback: why" */
void lw_layout_asyncio(void); /* once, GIL held; failures leave fields unknown */
void lw_layout_trio(void); /* the same */
void lw_layout_running_task(PyObject *loop); /* the same, from the task that runs now in LOOP, until one was there */

#endif
