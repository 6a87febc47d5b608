/* libuv.c: see libuv.h. */
#include "libuv.h"

#include <dlfcn.h>
#include <stdlib.h>

lw_libuv lw_uv;

/* The offset of stop_flag: what uv_stop() changes of a loop, from all zeros to one; 0 where that is not so plain. */
static size_t
find_stop_flag(void *lib)
{
    int (*init)(void *) = NULL, (*end)(void *) = NULL;
    void (*stop)(void *) = NULL;
    size_t (*size_of)(void) = NULL, found = 0;
    unsigned int *before, *after;
    *(void **)&init = dlsym(lib, "uv_loop_init");
    *(void **)&end = dlsym(lib, "uv_loop_close");
    *(void **)&stop = dlsym(lib, "uv_stop");
    *(void **)&size_of = dlsym(lib, "uv_loop_size");
    if (!init || !end || !stop || !size_of) {
        return 0;
    }
    size_t size = size_of() / sizeof(*before) * sizeof(*before);
    after = calloc(1, size_of());
    before = malloc(size);
    if (after != NULL && before != NULL && init(after) == 0) {
        int changes = 0;
        memcpy(before, after, size);
        stop(after);
        for (size_t i = 0; i < size / sizeof(*before); i++) {
            if (after[i] != before[i]) {
                changes++;
                found = before[i] == 0 && after[i] == 1 ? i * sizeof(*before) : 0;
            }
        }
        found = changes == 1 ? found : 0;
        (void)end(after);
    }
    free(before);
    free(after);
    return found;
}

/* Look libuv's functions up in the file of the module uvloop.loop. */
const char *
lw_libuv_find(void)
{
    PyObject *module = NULL, *file = NULL;
    const char *why = NULL;
    void *lib;

    if (lw_uv.ready) {
        return NULL;
    }
    module = PyImport_ImportModule("uvloop.loop");
    file = module ? PyObject_GetAttrString(module, "__file__") : NULL;
    const char *path = file ? PyUnicode_AsUTF8(file) : NULL;
    if (path == NULL) {
        why = "the module uvloop.loop has no file";
        goto done;
    }
    lib = dlopen(path, RTLD_NOW | RTLD_NOLOAD);
    if (lib == NULL) {
        why = "uvloop's extension module cannot be opened";
        goto done;
    }
    *(void **)&lw_uv.prepare_init = dlsym(lib, "uv_prepare_init");
    *(void **)&lw_uv.prepare_start = dlsym(lib, "uv_prepare_start");
    *(void **)&lw_uv.check_init = dlsym(lib, "uv_check_init");
    *(void **)&lw_uv.check_start = dlsym(lib, "uv_check_start");
    *(void **)&lw_uv.check_stop = dlsym(lib, "uv_check_stop");
    *(void **)&lw_uv.close = dlsym(lib, "uv_close");
    *(void **)&lw_uv.unref = dlsym(lib, "uv_unref");
    *(void **)&lw_uv.handle_size = dlsym(lib, "uv_handle_size");
    *(void **)&lw_uv.walk = dlsym(lib, "uv_walk");
    *(void **)&lw_uv.is_active = dlsym(lib, "uv_is_active");
    *(void **)&lw_uv.is_closing = dlsym(lib, "uv_is_closing");
    *(void **)&lw_uv.backend_timeout = dlsym(lib, "uv_backend_timeout");
    *(void **)&lw_uv.now = dlsym(lib, "uv_now");
    if (!lw_uv.prepare_init || !lw_uv.prepare_start || !lw_uv.check_init || !lw_uv.check_start || !lw_uv.check_stop
        || !lw_uv.close || !lw_uv.unref || !lw_uv.handle_size || !lw_uv.backend_timeout || !lw_uv.now) {
        why = "uvloop's extension module does not export libuv's functions";
        goto done;
    }
    lw_uv.stop_flag = find_stop_flag(lib);
    lw_uv.ready = 1; /* the handle of dlopen is kept: the module is never unloaded */
done:
    PyErr_Clear();
    Py_XDECREF(file);
    Py_XDECREF(module);
    return why;
}

void *
lw_libuv_loop(PyObject *loop)
{
    PyObject *module = PyImport_ImportModule("uvloop.loop"), *capsule = NULL;
    void *pointer = NULL;
    if (module != NULL) {
        capsule = PyObject_CallMethod(module, "libuv_get_loop_t_ptr", "O", loop);
    }
    if (capsule != NULL && PyCapsule_CheckExact(capsule)) {
        pointer = PyCapsule_GetPointer(capsule, PyCapsule_GetName(capsule));
    }
    Py_XDECREF(capsule);
    Py_XDECREF(module);
    PyErr_Clear();
    return pointer;
}

/* How every handle begins, in the words of libuv's public header. */
typedef struct {
    void *data;
    void *loop;
    int type;
} uv_head;

typedef struct {
    void *handle;
    int count;
} idle_search;

static void
visit_handle(void *handle, void *arg)
{
    idle_search *search = arg;
    if (((const uv_head *)handle)->type == LW_UV_IDLE) {
        search->handle = handle;
        search->count++;
    }
}

void *
lw_libuv_idle(void *loop, const void *prepare)
{
    idle_search search = {NULL, 0};
    const uv_head *known = prepare;
    if (known->type == LW_UV_PREPARE && known->loop == loop && lw_uv.walk != NULL && lw_uv.is_active != NULL
        && lw_uv.is_closing != NULL) {
        lw_uv.walk(loop, visit_handle, &search);
    }
    return search.count == 1 ? search.handle : NULL;
}
