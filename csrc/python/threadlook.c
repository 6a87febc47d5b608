/* threadlook.c: what some threads are doing now, and where.
 *
 * threads_doing() is asked by a guard that found threads left behind.  It goes
 * over them twice:
 *
 * - first without the GIL, because a thread that runs Python code waits for
 *   the GIL while the asker has it; a thread that still waits for the asker's
 *   GIL is given a few moments to take it.  Safe reads only: a thread may end
 *   meanwhile.  Whether its newest frame moves tells Python code from a C call;
 * - then with it: the stacks, of those that are still there.
 *
 * Cost: the looks, plus the time to get the GIL back (an interval of the
 * interpreter's, 5 ms, where another thread keeps it busy). */
#include "capture.h"
#include "threads.h"

#include <stdlib.h>
#include <time.h>

#include "../core/saferead.h"
#include "../core/sysname.h"
#include "doing.h"
#include "frames.h"
#include "layout.h"
#include "watch.h"

#define PATIENCE 10
#define MOMENT_NS 100000

typedef struct {
    unsigned long long id; /* of the thread state; 0: a thread that Python does not know */
    uintptr_t tstate;      /* 0 when gone */
    int tid, moved;
    unsigned long holder;  /* native id of who has the GIL it waits for, 0 unknown */
    lw_doing doing;
} look;

static lw_walk walk; /* the registry lock's, as frames.h says */
static lw_frame frames[LW_MAX_FRAMES];
static char space[64 * 1024];
static lw_textbuf text;

static PyThreadState *
find(unsigned long long id)
{
    PyThreadState *ts = PyInterpreterState_ThreadHead(PyInterpreterState_Get());
    while (ts != NULL && PyThreadState_GetID(ts) != id) {
        ts = PyThreadState_Next(ts);
    }
    return ts;
}

static void
pause_a_moment(void)
{
    nanosleep(&(struct timespec){0, MOMENT_NS}, NULL);
}

/* Whether a running thread's newest frame moves: Python code.  The lock is not held over the pause, so what the first
 * walk saw is put back for the second look. */
static int
moves(uintptr_t tstate)
{
    int moved = 0;
    lw_lock();
    if (lw_walk_stack(tstate, &walk) == 0) {
        int n = walk.n;
        uintptr_t first = walk.first, instr = walk.first_instr;
        moved = walk.moved;
        lw_unlock();
        pause_a_moment();
        lw_lock();
        walk.n = n;
        walk.moved = moved;
        walk.first = first;
        walk.first_instr = instr;
        lw_walk_again(tstate, &walk);
        moved = walk.moved;
    }
    lw_unlock();
    return moved;
}

/* No GIL here. */
static void
look_at(look *l)
{
    for (int i = 0; i < PATIENCE; i++) {
        lw_doing_read(l->tstate, l->tid, &l->doing);
        if (l->doing.state != LW_DOES_GIL || l->doing.holder != 0) {
            break;
        }
        pause_a_moment();
    }
    if (l->doing.holder != 0) {
        (void)lw_mem_read((const void *)(l->doing.holder + lw_lay.ts_native_id), &l->holder, sizeof(l->holder));
    }
    if (l->doing.state == LW_DOES_RUN && l->tstate != 0 && lw_layout_ok()) {
        l->moved = moves(l->tstate);
    }
}

static PyObject *
stack(PyThreadState *ts)
{
    int n = 0;
    if (ts == NULL || !lw_layout_ok()) {
        return Py_NewRef(Py_None);
    }
    lw_lock();
    lw_textbuf_init(&text, space, sizeof(space));
    if (lw_walk_stack((uintptr_t)ts, &walk) == 0) {
        for (int i = 0; i < walk.n; i++) {
            n += lw_decode_frame(&walk.raw[i], &frames[n], &text) == 0;
        }
    }
    lw_unlock();
    return lw_frames_list(frames, n, &text);
}

static PyObject *
told(const look *l)
{
    static const char *const names[] = {"unknown", "runs", "call", "lock", "gil", "asleep"};
    const char *what = names[l->doing.state];
    PyThreadState *ts = l->id ? find(l->id) : NULL;
    if (l->id != 0 && ts == NULL) {
        what = "ended";
    }
    else if (l->doing.state == LW_DOES_RUN) {
        what = l->moved ? "python" : l->doing.collecting ? "gc" : l->doing.has_gil ? "c_call" : "runs";
    }
    const char *call = l->doing.state == LW_DOES_CALL ? lw_syscall_name(l->doing.syscall) : NULL;
    char number[32];
    if (l->doing.state == LW_DOES_CALL && call == NULL) {
        (void)snprintf(number, sizeof(number), "system call %ld", l->doing.syscall);
        call = number;
    }
    return Py_BuildValue("(szKkN)", what, call, (unsigned long long)l->doing.arg, l->holder, stack(ts));
}

static PyObject *
threads_doing(PyObject *Py_UNUSED(module), PyObject *arg)
{
    PyObject *pairs = PySequence_Tuple(arg), *list = NULL;
    Py_ssize_t n = pairs ? PyTuple_GET_SIZE(pairs) : 0;
    look *looks = pairs ? calloc((size_t)(n ? n : 1), sizeof(look)) : NULL;
    if (looks == NULL) {
        Py_XDECREF(pairs);
        return PyErr_Occurred() ? NULL : PyErr_NoMemory();
    }
    for (Py_ssize_t i = 0; i < n; i++) {
        PyObject *pair = PyTuple_GET_ITEM(pairs, i);
        if (!PyTuple_Check(pair) || !PyArg_ParseTuple(pair, "Ki", &looks[i].id, &looks[i].tid)) {
            if (!PyErr_Occurred()) {
                PyErr_Format(PyExc_TypeError, "threads_doing() takes pairs (id, native id), got %R", pair);
            }
            goto done;
        }
        looks[i].tstate = looks[i].id ? (uintptr_t)find(looks[i].id) : 0;
    }
    Py_BEGIN_ALLOW_THREADS;
    for (Py_ssize_t i = 0; i < n; i++) {
        look_at(&looks[i]);
    }
    Py_END_ALLOW_THREADS;
    list = PyList_New(n);
    for (Py_ssize_t i = 0; list != NULL && i < n; i++) {
        PyObject *row = told(&looks[i]);
        if (row == NULL) {
            Py_CLEAR(list);
            break;
        }
        PyList_SET_ITEM(list, i, row);
    }
done:
    free(looks);
    Py_DECREF(pairs);
    return list;
}

static PyObject *
own_tids(PyObject *Py_UNUSED(module), PyObject *Py_UNUSED(unused))
{
    return Py_BuildValue("(ii)", lw_watchdog_tid(), lw_capture_tid());
}

static PyMethodDef methods[] = {
    {"threads_doing", threads_doing, METH_O, "threads_doing(pairs) -> list"},
    {"own_tids", own_tids, METH_NOARGS, "Native ids of loopwatch's own threads, 0 for each that does not run."},
    {NULL, NULL, 0, NULL},
};

int
lw_threadlook_init(PyObject *module)
{
    return PyModule_AddFunctions(module, methods);
}
