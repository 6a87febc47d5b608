/* calls.c: see calls.h. */
#include "calls.h"

#include <pthread.h>
#include <stdlib.h>

#include "../core/clock.h"
#include "../core/ticks.h"
#include "callbacks.h"

#define FIRST_ROOM 256
#define MOST_ROOM (1 << 20)

typedef struct {
    uintptr_t what; /* a frame (3.11), a code object or a callable: only ever compared */
    uint64_t began, covered; /* ticks */
} lw_call;

typedef struct {
    int n, room, entered;
    long lost; /* calls that run now and found no room */
    lw_call *calls; /* owned */
} lw_calls;

static __thread lw_calls *here; /* owned by the thread: freed by the key; NULL or not entered: no loop runs here */
static pthread_key_t key;
static PyObject *report; /* owned; NULL: off */
static uint64_t threshold_ticks = UINT64_MAX, threshold_ns;

static void
drop(void *calls)
{
    free(((lw_calls *)calls)->calls);
    free(calls);
    here = NULL;
}

static inline void
push(lw_calls *c, uintptr_t what)
{
    if (c->n == c->room) {
        int room = c->room ? c->room * 2 : FIRST_ROOM;
        lw_call *more = room <= MOST_ROOM ? realloc(c->calls, (size_t)room * sizeof(*more)) : NULL;
        if (more == NULL) {
            c->lost++;
            return;
        }
        c->calls = more;
        c->room = room;
    }
    lw_call *call = &c->calls[c->n++];
    call->what = what;
    call->covered = 0;
    call->began = lw_ticks();
}

/* It took long: tell Python, which says whether it was told. */
static int
tell(lw_calls *c, PyObject *what, int is_c, uint64_t taken, uint64_t covered)
{
    PyObject *type, *value, *traceback;
    uint64_t ns = lw_ticks_ns(taken), began = lw_ticks();
    int told = 0;
    if (report == NULL || ns < threshold_ns) {
        return 0;
    }
    PyErr_Fetch(&type, &value, &traceback);
    PyObject *function = Py_NewRef(report); /* it may be switched off meanwhile */
    PyObject *result = PyObject_CallFunction(function, "OiKK", what, is_c, (unsigned long long)ns,
                                             (unsigned long long)lw_ticks_ns(covered));
    if (result == NULL) {
        lw_callback_failed(function);
    }
    told = result == Py_True;
    Py_XDECREF(result);
    Py_DECREF(function);
    PyErr_Restore(type, value, traceback);
    uint64_t spent = lw_ticks() - began; /* telling is no part of the calls that still run */
    for (int i = 0; i < c->n; i++) {
        c->calls[i].began += spent;
    }
    return told;
}

/* WHAT ends; OBJECT is told of, if it took long. */
static inline void
pop(lw_calls *c, uintptr_t what, PyObject *object, int is_c)
{
    if (c->lost > 0) {
        c->lost--;
        return;
    }
    int at = c->n - 1;
    while (at >= 0 && c->calls[at].what != what) {
        at--;
    }
    if (at < 0) {
        return;
    }
    uint64_t taken = lw_ticks() - c->calls[at].began, covered = c->calls[at].covered;
    for (int i = at + 1; i < c->n; i++) {
        covered += c->calls[i].covered;
    }
    c->n = at;
    if (taken >= threshold_ticks && tell(c, object, is_c, taken, covered)) {
        covered = taken;
    }
    if (covered != 0 && at > 0 && c->n >= at) {
        c->calls[at - 1].covered += covered;
    }
}

#if !LW_HAS_MONITORING

/* What the interpreter hands to a thread's profile function: the way to the thread's calls without a look-up. */
typedef struct {
    PyObject_HEAD lw_calls *calls; /* borrowed: the thread has them for as long as it runs */
} Hook;

static PyObject *hook_call(PyObject *self, PyObject *args, PyObject *keywords);

static PyTypeObject hook_type = {
    PyVarObject_HEAD_INIT(NULL, 0).tp_name = "loopwatch._core.CallHook",
    .tp_basicsize = sizeof(Hook),
    .tp_flags = Py_TPFLAGS_DEFAULT | Py_TPFLAGS_DISALLOW_INSTANTIATION,
    .tp_call = hook_call,
};

static int
profile(PyObject *hook, PyFrameObject *frame, int event, PyObject *arg)
{
    lw_calls *c = ((Hook *)hook)->calls;
    if (report == NULL) {
        return 0;
    }
    switch (event) {
    case PyTrace_CALL:
        push(c, (uintptr_t)frame);
        break;
    case PyTrace_C_CALL:
        push(c, (uintptr_t)arg);
        break;
    case PyTrace_RETURN:
        pop(c, (uintptr_t)frame, Py_None, 0);
        break;
    case PyTrace_C_RETURN:
    case PyTrace_C_EXCEPTION:
        pop(c, (uintptr_t)arg, arg, 1);
        break;
    default:
        break;
    }
    return 0;
}

/* A tool put back what sys.getprofile() had given it: called for the first event, it takes its place again. */
static PyObject *
hook_call(PyObject *self, PyObject *Py_UNUSED(args), PyObject *Py_UNUSED(keywords))
{
    int still = ((Hook *)self)->calls == here && here != NULL && here->entered && report != NULL;
    PyEval_SetProfile(still ? profile : NULL, still ? self : NULL);
    Py_RETURN_NONE;
}

static int
hook_thread(void)
{
    Py_tracefunc now = lw_profile_function();
    if (now != NULL && now != profile) {
        PyErr_SetString(PyExc_RuntimeError,
                        "engine=\"exact\" needs the thread's profile function, and another profiler has it "
                        "(sys.setprofile(), cProfile, a coverage tool): end that first, or use engine=\"sample\"");
        return -1;
    }
    Hook *hook = PyObject_New(Hook, &hook_type);
    if (hook == NULL) {
        return -1;
    }
    hook->calls = here;
    PyEval_SetProfile(profile, (PyObject *)hook);
    Py_DECREF(hook);
    return 0;
}

static void
unhook_thread(void)
{
    if (lw_profile_function() == profile) {
        PyEval_SetProfile(NULL, NULL);
    }
}

#else

typedef struct {
    PyObject_HEAD vectorcallfunc call;
} Hook;

static PyObject *disable; /* owned: sys.monitoring.DISABLE */

/* Whether calling it begins a Python frame at once, so that the call is seen there. */
static inline int
is_python(PyObject *callable)
{
    return PyFunction_Check(callable)
           || (PyMethod_Check(callable) && PyFunction_Check(PyMethod_GET_FUNCTION(callable)));
}

static PyObject *
on_begin(PyObject *Py_UNUSED(self), PyObject *const *args, size_t n, PyObject *Py_UNUSED(names))
{
    lw_calls *c = here;
    if (c != NULL && c->entered && PyVectorcall_NARGS(n) >= 1) {
        push(c, (uintptr_t)args[0]);
    }
    Py_RETURN_NONE;
}

static PyObject *
on_end(PyObject *Py_UNUSED(self), PyObject *const *args, size_t n, PyObject *Py_UNUSED(names))
{
    lw_calls *c = here;
    if (c != NULL && c->entered && PyVectorcall_NARGS(n) >= 1) {
        pop(c, (uintptr_t)args[0], args[0], 0);
    }
    Py_RETURN_NONE;
}

static PyObject *
on_c_begin(PyObject *Py_UNUSED(self), PyObject *const *args, size_t n, PyObject *Py_UNUSED(names))
{
    lw_calls *c = here;
    if (PyVectorcall_NARGS(n) < 3) {
        Py_RETURN_NONE;
    }
    if (is_python(args[2])) {
        return Py_NewRef(disable); /* this line calls Python functions: their own events tell all */
    }
    if (c != NULL && c->entered) {
        push(c, (uintptr_t)args[2]);
    }
    Py_RETURN_NONE;
}

static PyObject *
on_c_end(PyObject *Py_UNUSED(self), PyObject *const *args, size_t n, PyObject *Py_UNUSED(names))
{
    lw_calls *c = here;
    if (c != NULL && c->entered && PyVectorcall_NARGS(n) >= 3) {
        pop(c, (uintptr_t)args[2], args[2], 1);
    }
    Py_RETURN_NONE;
}

static PyTypeObject hook_type = {
    PyVarObject_HEAD_INIT(NULL, 0).tp_name = "loopwatch._core.CallHook",
    .tp_basicsize = sizeof(Hook),
    .tp_flags = Py_TPFLAGS_DEFAULT | Py_TPFLAGS_HAVE_VECTORCALL,
    .tp_vectorcall_offset = offsetof(Hook, call),
    .tp_call = PyVectorcall_Call,
};

static PyObject *
calls_hooks(PyObject *Py_UNUSED(module), PyObject *arg)
{
    static const vectorcallfunc functions[] = {on_begin, on_end, on_c_begin, on_c_end};
    PyObject *hooks = PyTuple_New(4);
    if (disable == NULL) {
        disable = Py_NewRef(arg);
    }
    for (int i = 0; hooks != NULL && i < 4; i++) {
        Hook *hook = PyObject_New(Hook, &hook_type);
        if (hook == NULL) {
            Py_CLEAR(hooks);
            break;
        }
        hook->call = functions[i];
        PyTuple_SET_ITEM(hooks, i, (PyObject *)hook);
    }
    return hooks;
}

static int
hook_thread(void)
{
    return 0;
}

static void
unhook_thread(void)
{
}

#endif

/* Switch on with a REPORT and a threshold, or off with None. */
static PyObject *
calls_report(PyObject *Py_UNUSED(module), PyObject *args)
{
    PyObject *function;
    long long threshold = 0;
    if (!PyArg_ParseTuple(args, "O|L:calls_report", &function, &threshold)) {
        return NULL;
    }
    if (function != Py_None && (!PyCallable_Check(function) || threshold <= 0)) {
        PyErr_SetString(PyExc_TypeError, "calls_report(callable, threshold_ns above 0) or calls_report(None)");
        return NULL;
    }
    PyObject *before = report;
    report = NULL;
    if (function != Py_None) {
        lw_ticks_start();
        threshold_ns = (uint64_t)threshold;
        threshold_ticks =
            lw_ticks_of(threshold_ns - threshold_ns / 64); /* the rate is rough at first: tell() is exact */
        report = Py_NewRef(function);
    }
    Py_XDECREF(before);
    Py_RETURN_NONE;
}

static PyObject *
calls_enter(PyObject *Py_UNUSED(module), PyObject *Py_UNUSED(unused))
{
    lw_calls *c = here;
    if (c == NULL) {
        c = calloc(1, sizeof(*c));
        if (c == NULL || pthread_setspecific(key, c) != 0) {
            free(c);
            return PyErr_NoMemory();
        }
        here = c;
    }
    if (hook_thread() < 0) {
        return NULL;
    }
    c->n = 0;
    c->lost = 0;
    c->entered = 1;
    Py_RETURN_NONE;
}

static PyObject *
calls_leave(PyObject *Py_UNUSED(module), PyObject *Py_UNUSED(unused))
{
    unhook_thread();
    if (here != NULL) {
        here->n = here->entered = 0;
    }
    Py_RETURN_NONE;
}

static PyMethodDef methods[] = {
    {"calls_report", calls_report, METH_VARARGS, "calls_report(function, threshold_ns)"},
    {"calls_enter", calls_enter, METH_NOARGS, "Measure the calls of this thread."},
    {"calls_leave", calls_leave, METH_NOARGS, "Measure them no longer."},
#if LW_HAS_MONITORING
    {"calls_hooks", calls_hooks, METH_O, "calls_hooks(DISABLE): callbacks for sys.monitoring"},
#endif
    {NULL, NULL, 0, NULL},
};

int
lw_calls_init(PyObject *module)
{
    if (PyType_Ready(&hook_type) < 0) {
        return -1;
    }
    if (pthread_key_create(&key, drop) != 0) {
        PyErr_SetString(PyExc_ImportError, "loopwatch could not get a thread-specific key: the process has too many");
        return -1;
    }
    return PyModule_AddFunctions(module, methods);
}
