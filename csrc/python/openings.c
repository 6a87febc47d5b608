/* openings.c: see openings.h. */
#include "openings.h"

#include <stdlib.h>

#include "../core/fdtable.h"

#define MAX_FD 65536  /* greater numbers are not remembered */
#define MAX_PIDS 4096 /* more, and all are forgotten */

enum what { GIVES_FD, GIVES_FILE, GIVES_FDS, GIVES_PID, MAKES_SOCKET, MAKES_EXECUTOR, MAKES_SELECTOR };

/* A function that is seen.  The name of a Python one is CLASS of the module; its __init__ is meant. */
typedef struct {
    const char *module, *name;
    enum what what;
    PyObject *function; /* owned, for good, once it was found */
    PyMethodDef *first; /* borrowed: its own entry; stays when it is put back, for calls on their way */
    PyMethodDef ours;
    vectorcallfunc first_call;
    int missing; /* its module is imported and has no such function */
} point;

static point points[] = {
    {"io", "open", GIVES_FILE},
    {"posix", "open", GIVES_FD},
    {"posix", "dup", GIVES_FD},
    {"posix", "pipe", GIVES_FDS},
    {"posix", "pipe2", GIVES_FDS},
    {"posix", "openpty", GIVES_FDS},
    {"posix", "eventfd", GIVES_FD},
    {"posix", "memfd_create", GIVES_FD},
    {"posix", "pidfd_open", GIVES_FD},
    {"posix", "timerfd_create", GIVES_FD},
    {"posix", "fork", GIVES_PID},
    {"posix", "forkpty", GIVES_PID},
    {"posix", "posix_spawn", GIVES_PID},
    {"posix", "posix_spawnp", GIVES_PID},
    {"_posixsubprocess", "fork_exec", GIVES_PID},
    {"socket", "socket", MAKES_SOCKET},
    {"concurrent.futures.thread", "ThreadPoolExecutor", MAKES_EXECUTOR},
    {"concurrent.futures.process", "ProcessPoolExecutor", MAKES_EXECUTOR},
    {"selectors", "_PollLikeSelector", MAKES_SELECTOR},
};
#define POINTS (int)(sizeof(points) / sizeof(points[0]))

typedef struct {
    PyObject *origin; /* owned; NULL: nothing known of this number */
    uint64_t dev, ino;
} opened;

static int users;
static vectorcallfunc python_call; /* how any Python function is called */
static opened *by_fd; /* owned, by number */
static int by_fd_cap;
static PyObject *by_pid; /* owned dict: pid -> Origin */
static lw_births executors, selectors;

static void
note_fd(int fd, PyObject *origin)
{
    lw_fd id;
    if (fd < 0 || fd >= MAX_FD || lw_fdtable_one(fd, &id) < 0) {
        return;
    }
    if (fd >= by_fd_cap) {
        int cap = by_fd_cap ? by_fd_cap : 64;
        while (cap <= fd) {
            cap *= 2;
        }
        opened *more = realloc(by_fd, (size_t)cap * sizeof(*more));
        if (more == NULL) {
            return;
        }
        memset(more + by_fd_cap, 0, (size_t)(cap - by_fd_cap) * sizeof(*more));
        by_fd = more;
        by_fd_cap = cap;
    }
    PyObject *old = by_fd[fd].origin;
    by_fd[fd] = (opened){Py_NewRef(origin), id.dev, id.ino};
    Py_XDECREF(old);
}

/* The descriptor of a socket or file, by its own fileno(); -1 without an exception. */
static int
fileno_of(PyObject *object)
{
    PyObject *number = PyObject_CallMethod(object, "fileno", NULL);
    long fd = number != NULL && PyLong_Check(number) ? PyLong_AsLong(number) : -1;
    Py_XDECREF(number);
    PyErr_Clear();
    return fd >= 0 && fd < MAX_FD ? (int)fd : -1;
}

static void
note_pid(PyObject *pid, PyObject *origin)
{
    if (PyLong_Check(pid) && PyLong_AsLong(pid) > 0) {
        if (by_pid != NULL && PyDict_GET_SIZE(by_pid) >= MAX_PIDS) {
            PyDict_Clear(by_pid);
        }
        if (by_pid != NULL || (by_pid = PyDict_New()) != NULL) {
            (void)PyDict_SetItem(by_pid, pid, origin);
        }
    }
    PyErr_Clear();
}

/* Note what came out of a call.  RESULT passes through: NULL with its exception, or a new reference. */
static PyObject *
note(const point *p, PyObject *result, PyObject *object)
{
    if (result == NULL || users == 0) {
        return result;
    }
    PyObject *origin = lw_origin_here(0);
    if (origin == NULL) {
        PyErr_Clear();
        return result;
    }
    switch (p->what) {
    case GIVES_FD:
        note_fd(PyLong_Check(result) ? (int)PyLong_AsLong(result) : -1, origin);
        break;
    case GIVES_FILE:
        note_fd(fileno_of(result), origin);
        break;
    case GIVES_FDS:
        for (Py_ssize_t i = 0; PyTuple_Check(result) && i < PyTuple_GET_SIZE(result); i++) {
            PyObject *item = PyTuple_GET_ITEM(result, i);
            note_fd(PyLong_Check(item) ? (int)PyLong_AsLong(item) : -1, origin);
        }
        break;
    case GIVES_PID:
        note_pid(PyTuple_Check(result) && PyTuple_GET_SIZE(result) > 0 ? PyTuple_GET_ITEM(result, 0) : result, origin);
        if (strcmp(p->name, "forkpty") == 0 && PyTuple_Check(result) && PyTuple_GET_SIZE(result) > 1) {
            note_fd((int)PyLong_AsLong(PyTuple_GET_ITEM(result, 1)), origin);
        }
        break;
    case MAKES_SOCKET:
        note_fd(fileno_of(object), origin);
        break;
    case MAKES_EXECUTOR:
        (void)lw_births_put(&executors, (uintptr_t)object, object, origin, 0);
        break;
    case MAKES_SELECTOR:
        (void)lw_births_put(&selectors, (uintptr_t)object, object, origin, 0);
        break;
    }
    PyErr_Clear();
    Py_DECREF(origin);
    return result;
}

/* One set of C functions a point, as a C function is not told which entry it was called through. */
#define SEEN(i)                                                                                                        \
    static PyObject *seen_plain_##i(PyObject *self, PyObject *arg)                                                     \
    {                                                                                                                  \
        return note(&points[i], points[i].first->ml_meth(self, arg), NULL);                                            \
    }                                                                                                                  \
    static PyObject *seen_fast_##i(PyObject *self, PyObject *const *args, Py_ssize_t n)                                \
    {                                                                                                                  \
        return note(&points[i], ((lw_fast)(void (*)(void))points[i].first->ml_meth)(self, args, n), NULL);             \
    }                                                                                                                  \
    static PyObject *seen_keywords_##i(PyObject *self, PyObject *const *args, Py_ssize_t n, PyObject *names)           \
    {                                                                                                                  \
        return note(&points[i], ((lw_keywords)(void (*)(void))points[i].first->ml_meth)(self, args, n, names), NULL);  \
    }
typedef PyObject *(*lw_fast)(PyObject *, PyObject *const *, Py_ssize_t);
typedef PyObject *(*lw_keywords)(PyObject *, PyObject *const *, Py_ssize_t, PyObject *);
#define TRIPLE(i) {seen_plain_##i, seen_fast_##i, seen_keywords_##i}

/* clang-format off */
SEEN(0) SEEN(1) SEEN(2) SEEN(3) SEEN(4) SEEN(5) SEEN(6) SEEN(7)
SEEN(8) SEEN(9) SEEN(10) SEEN(11) SEEN(12) SEEN(13) SEEN(14)
static const struct {
    PyCFunction plain;
    lw_fast fast;
    lw_keywords keywords;
} seen[] = {TRIPLE(0), TRIPLE(1), TRIPLE(2), TRIPLE(3), TRIPLE(4), TRIPLE(5), TRIPLE(6), TRIPLE(7),
            TRIPLE(8), TRIPLE(9), TRIPLE(10), TRIPLE(11), TRIPLE(12), TRIPLE(13), TRIPLE(14)};
/* clang-format on */
_Static_assert(sizeof(points) / sizeof(points[0]) == sizeof(seen) / sizeof(seen[0]) + 4, "four points are Python's");

static PyObject *
seen_init(PyObject *callable, PyObject *const *args, size_t nargsf, PyObject *names)
{
    for (int i = POINTS - 1; i >= 0; i--) {
        if (points[i].function == callable) {
            Py_ssize_t n = PyVectorcall_NARGS(nargsf);
            return note(&points[i], points[i].first_call(callable, args, nargsf, names), n > 0 ? args[0] : Py_None);
        }
    }
    return python_call(callable, args, nargsf, names);
}

static void
exchange_entry(point *p, int number)
{
    PyMethodDef *entry = lw_method_entry(p->function);
    if (entry == NULL || entry == &p->ours) {
        return;
    }
    p->ours = *entry;
    switch (entry->ml_flags) {
    case METH_O:
    case METH_NOARGS:
    case METH_VARARGS:
        p->ours.ml_meth = seen[number].plain;
        break;
    case METH_FASTCALL:
        p->ours.ml_meth = (PyCFunction)(void (*)(void))seen[number].fast;
        break;
    case METH_FASTCALL | METH_KEYWORDS:
        p->ours.ml_meth = (PyCFunction)(void (*)(void))seen[number].keywords;
        break;
    default:
        return;
    }
    p->first = entry;
    lw_set_method_entry(p->function, &p->ours);
}

/* The function of a point: a new reference, or NULL, without an exception, while its module is not imported. */
static PyObject *
look_up(point *p)
{
    PyObject *name = PyUnicode_FromString(p->module), *module = NULL, *found = NULL, *type = NULL;
    if (name != NULL) {
        module = PyImport_GetModule(name);
    }
    int module_there = module != NULL;
    if (module != NULL && p->what < MAKES_SOCKET) {
        found = PyObject_GetAttrString(module, p->name);
    }
    else if (module != NULL) {
        type = PyObject_GetAttrString(module, p->name);
        found = type != NULL && PyType_Check(type) ? PyObject_GetAttrString(type, "__init__") : NULL;
    }
    Py_XDECREF(type);
    Py_XDECREF(module);
    Py_XDECREF(name);
    PyErr_Clear();
    if (found != NULL && !(p->what < MAKES_SOCKET ? PyCFunction_CheckExact(found) : PyFunction_Check(found))) {
        Py_CLEAR(found);
    }
    p->missing = found == NULL && module_there;
    return found;
}

static PyObject *
openings_begin(PyObject *Py_UNUSED(module), PyObject *Py_UNUSED(unused))
{
    for (int i = 0; i < POINTS; i++) {
        point *p = &points[i];
        if (p->missing || (p->function == NULL && (p->function = look_up(p)) == NULL)) {
            continue;
        }
        if (p->what < MAKES_SOCKET) {
            exchange_entry(p, i);
        }
        else if (lw_function_call(p->function) != seen_init) {
            p->first_call = lw_function_call(p->function);
            python_call = p->first_call;
            lw_set_function_call(p->function, seen_init);
        }
    }
    users++;
    return PyLong_FromUnsignedLongLong(lw_origin_serial());
}

static PyObject *
openings_end(PyObject *Py_UNUSED(module), PyObject *Py_UNUSED(unused))
{
    if (users == 0 || --users > 0) {
        Py_RETURN_NONE;
    }
    for (int i = 0; i < POINTS; i++) {
        point *p = &points[i];
        if (p->function == NULL) {
            continue;
        }
        if (p->what < MAKES_SOCKET && lw_method_entry(p->function) == &p->ours) {
            lw_set_method_entry(p->function, p->first);
        }
        else if (p->what >= MAKES_SOCKET && lw_function_call(p->function) == seen_init) {
            lw_set_function_call(p->function, p->first_call);
        }
    }
    opened *fds = by_fd;
    int cap = by_fd_cap;
    by_fd = NULL;
    by_fd_cap = 0;
    for (int i = 0; i < cap; i++) {
        Py_XDECREF(fds[i].origin);
    }
    free(fds);
    Py_CLEAR(by_pid);
    lw_births_clear(&executors);
    lw_births_clear(&selectors);
    Py_RETURN_NONE;
}

static PyObject *
opened_at(PyObject *Py_UNUSED(module), PyObject *args)
{
    int fd;
    unsigned long long dev, ino;
    if (!PyArg_ParseTuple(args, "iKK:opened_at", &fd, &dev, &ino)) {
        return NULL;
    }
    if (fd >= 0 && fd < by_fd_cap && by_fd[fd].origin != NULL && by_fd[fd].dev == dev && by_fd[fd].ino == ino) {
        return Py_NewRef(by_fd[fd].origin);
    }
    Py_RETURN_NONE;
}

static PyObject *
started_at(PyObject *Py_UNUSED(module), PyObject *pid)
{
    PyObject *origin = by_pid != NULL ? PyDict_GetItemWithError(by_pid, pid) : NULL;
    if (origin == NULL && PyErr_Occurred()) {
        return NULL;
    }
    return Py_NewRef(origin != NULL ? origin : Py_None);
}

static PyObject *
made(const lw_births *births, PyObject *since)
{
    unsigned long long serial = PyLong_AsUnsignedLongLong(since);
    if (serial == (unsigned long long)-1 && PyErr_Occurred()) {
        return NULL;
    }
    return lw_births_list(births, serial);
}

static PyObject *
executors_made(PyObject *Py_UNUSED(module), PyObject *since)
{
    return made(&executors, since);
}

static PyObject *
selectors_made(PyObject *Py_UNUSED(module), PyObject *since)
{
    return made(&selectors, since);
}

static PyMethodDef functions[] = {
    {"openings_begin", openings_begin, METH_NOARGS, "openings_begin() -> int: the serial now"},
    {"openings_end", openings_end, METH_NOARGS, "openings_end(): once for each openings_begin()"},
    {"opened_at", opened_at, METH_VARARGS, "opened_at(fd, dev, ino) -> Origin | None"},
    {"started_at", started_at, METH_O, "started_at(pid) -> Origin | None"},
    {"executors_made", executors_made, METH_O, "executors_made(since) -> list[tuple[executor, Origin, int]]"},
    {"selectors_made", selectors_made, METH_O, "selectors_made(since) -> list[tuple[selector, Origin, int]]"},
    {NULL, NULL, 0, NULL},
};

int
lw_openings_init(PyObject *module)
{
    return PyModule_AddFunctions(module, functions);
}
