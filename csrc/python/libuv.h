/* libuv.h: the functions of the libuv that uvloop runs on.
 *
 * They are looked up in uvloop's own extension module, which exports them or is
 * linked with them; sizes come from uv_handle_size.  Nothing of libuv's headers
 * is needed: handles are opaque, but for how they begin (data, loop, type),
 * which is proved by a handle of our own.
 *
 * The one field of uv_loop_t that is read, the public `stop_flag`, is found by
 * uv_stop() on a loop of our own.  Filled once under the GIL, then only read. */
#ifndef LW_LIBUV_H
#define LW_LIBUV_H

#include "compat.h"

#define LW_UV_CHECK 2
#define LW_UV_IDLE 6
#define LW_UV_PREPARE 9

typedef void (*lw_uv_callback)(void *handle);

typedef struct {
    int ready;
    int (*prepare_init)(void *loop, void *handle);
    int (*prepare_start)(void *handle, lw_uv_callback cb);
    int (*check_init)(void *loop, void *handle);
    int (*check_start)(void *handle, lw_uv_callback cb);
    int (*check_stop)(void *handle);
    void (*close)(void *handle, lw_uv_callback cb);
    void (*unref)(void *handle);
    size_t (*handle_size)(int type);
    int (*backend_timeout)(const void *loop);
    uint64_t (*now)(const void *loop);
    /* these three may be NULL */
    void (*walk)(void *loop, void (*visit)(void *handle, void *arg), void *arg);
    int (*is_active)(const void *handle);
    int (*is_closing)(const void *handle);
    size_t stop_flag; /* its offset; 0: not known */
} lw_libuv;

extern lw_libuv lw_uv;

const char *lw_libuv_find(void);        /* NULL, or why the functions are not to be had; no exception stays */
void *lw_libuv_loop(PyObject *loop);    /* its uv_loop_t, or NULL; no exception stays */
/* uvloop's idle handle, active while callbacks are ready, told by its type; NULL where there is not exactly one, or
 * where a started PREPARE handle of that loop does not look as expected. */
void *lw_libuv_idle(void *loop, const void *prepare);

#endif
