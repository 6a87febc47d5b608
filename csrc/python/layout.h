/* layout.h: how this interpreter's memory is laid out, and whether to trust it.
 *
 * Filled once at import, then only read, by any thread without a lock.
 * lw_layout_init() takes the offsets from compat.h and proves them: it walks
 * the stack of the thread that imports, through the same safe reads that the
 * watchdog uses, and compares names and lines with what the interpreter says
 * itself.  If anything differs, lw_layout_ok() is 0 for the process's life:
 * spans are still measured exactly (that needs no foreign memory), and blocks
 * say why they have no stack. */
#ifndef LW_LAYOUT_H
#define LW_LAYOUT_H

#include "compat.h"

/* Offsets into asyncio's objects, found by looking into one of our own; 0 = not known. */
typedef struct {
    size_t task_name, task_coro, task_context, coro_qualname, handle_callback;
    uintptr_t run_once_code;       /* address of BaseEventLoop._run_once's code (kept alive) */
    int local_ntodo, local_i, local_handle; /* slots in its frame, or -1 */
    uintptr_t task_type;
} lw_asyncio_layout;

extern lw_layout lw_lay;
extern lw_asyncio_layout lw_alay;

int lw_layout_init(void);            /* -1 with an exception set only on memory errors */
int lw_layout_ok(void);
const char *lw_layout_text(void);    /* "exact" or "fallback: why" */
void lw_layout_asyncio(void);        /* once, GIL held; failures leave fields unknown */

#endif
