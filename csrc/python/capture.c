/* capture.c: see capture.h. */
#include "capture.h"

#include <errno.h>
#include <pthread.h>
#include <signal.h>
#include <sys/syscall.h>
#include <unistd.h>

#include "../core/clock.h"
#include "compat.h"
#include "layout.h"

#define TEXT_SIZE (64 * 1024)

static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER; /* asked */
static pthread_cond_t wake = PTHREAD_COND_INITIALIZER;
static int asked;
static pthread_t thread;
static _Atomic int running, closed, stopping, own_tid;

/* Buffers of this thread. */
static lw_frame frames[LW_MAX_FRAMES];
static char space[TEXT_SIZE];
static lw_textbuf text;

static uint32_t
put_attribute(PyObject *object, const char *name)
{
    PyObject *value = PyObject_GetAttrString(object, name);
    const char *utf8 = value != NULL && PyUnicode_Check(value) ? PyUnicode_AsUTF8(value) : NULL;
    uint32_t at = utf8 != NULL ? lw_textbuf_add(&text, utf8) : 0;
    Py_XDECREF(value);
    PyErr_Clear();
    return at;
}

static void
put_frame(PyFrameObject *frame, lw_frame *out)
{
    PyCodeObject *code = PyFrame_GetCode(frame);
    int last = PyFrame_GetLasti(frame);
    *out = (lw_frame){.code = (uintptr_t)code, .instr = (uintptr_t)last, .col = -1, .end_col = -1};
    if (!PyCode_Addr2Location(code, last, &out->line, &out->col, &out->end_line, &out->end_col)) {
        out->line = out->end_line = PyFrame_GetLineNumber(frame);
        PyErr_Clear();
    }
    out->line = out->line > 0 ? out->line : 0;
    out->end_line = out->end_line > 0 ? out->end_line : 0;
    out->file = put_attribute((PyObject *)code, "co_filename");
    out->name = put_attribute((PyObject *)code, "co_qualname");
    out->code_flags = code->co_flags;
    out->at = out->instr;
    Py_DECREF(code);
}

/* The stack of a thread, newest first, into frames[]; how many are left out goes to *omitted. */
static int
take_stack(unsigned long ident, int *omitted)
{
    PyObject *function = PySys_GetObject("_current_frames"), *all = NULL, *key = NULL; /* function: borrowed */
    PyFrameObject *frame = NULL;
    int n = 0;

    *omitted = 0;
    lw_textbuf_init(&text, space, sizeof(space));
    all = function != NULL ? PyObject_CallNoArgs(function) : NULL;
    key = all != NULL ? PyLong_FromUnsignedLong(ident) : NULL;
    if (key != NULL && PyDict_Check(all)) {
        PyObject *found = PyDict_GetItemWithError(all, key); /* borrowed */
        frame = found != NULL && PyFrame_Check(found) ? (PyFrameObject *)Py_NewRef(found) : NULL;
    }
    while (frame != NULL) {
        PyFrameObject *back = PyFrame_GetBack(frame);
        if (n == LW_MAX_FRAMES) { /* the outermost ones are kept: make room behind the inner part */
            memmove(&frames[LW_KEEP_INNER], &frames[LW_KEEP_INNER + 1], (LW_KEEP_OUTER - 1) * sizeof(frames[0]));
            n--;
            *omitted += 1;
        }
        put_frame(frame, &frames[n++]);
        Py_SETREF(frame, back);
    }
    Py_XDECREF(key);
    Py_XDECREF(all);
    PyErr_Clear();
    return n;
}

static void
serve(lw_slot *slot)
{
    unsigned long ident = 0;
    uint64_t span = 0, at = 0;
    int n, omitted;

    pthread_mutex_lock(&slot->lock);
    lw_watch *w = atomic_load(&slot->watch);
    if (w != NULL) {
        ident = w->ident;
        span = w->asked_span;
        at = w->asked_at;
        w->asked_span = 0;
    }
    pthread_mutex_unlock(&slot->lock);
    if (span == 0) {
        return;
    }
    n = take_stack(ident, &omitted);
    pthread_mutex_lock(&slot->lock);
    w = atomic_load(&slot->watch);
    if (n > 0 && w != NULL && !w->pinned && atomic_load(&w->busy) == span && w->sampler.span == span) {
        lw_sampler_captured(&w->sampler, frames, n, omitted, &text, lw_now_ns() - at);
    }
    pthread_mutex_unlock(&slot->lock);
}

static void *
capture_main(void *unused)
{
    (void)unused;
    atomic_store(&own_tid, (int)syscall(SYS_gettid));
    pthread_mutex_lock(&lock);
    while (!atomic_load(&stopping)) {
        if (!asked) {
            pthread_cond_wait(&wake, &lock);
            continue;
        }
        asked = 0;
        pthread_mutex_unlock(&lock);
        PyGILState_STATE state = PyGILState_Ensure();
        for (int i = 0; i < lw_registry_bound() && !atomic_load(&stopping); i++) {
            serve(lw_registry_slot(i));
        }
        PyGILState_Release(state);
        pthread_mutex_lock(&lock);
    }
    pthread_mutex_unlock(&lock);
    atomic_store(&own_tid, 0);
    return NULL;
}

int
lw_capture_start(void)
{
    sigset_t all, old;
    if (running || closed || lw_layout_ok()) {
        return 0;
    }
    sigfillset(&all);
    pthread_sigmask(SIG_SETMASK, &all, &old);
    int err = pthread_create(&thread, NULL, capture_main, NULL);
    pthread_sigmask(SIG_SETMASK, &old, NULL);
    if (err != 0) {
        errno = err;
        return -1;
    }
    pthread_setname_np(thread, "loopwatch-gil");
    running = 1;
    return 0;
}

void
lw_capture_stop(void)
{
    closed = 1;
    if (!running) {
        return;
    }
    running = 0;
    atomic_store(&stopping, 1);
    pthread_mutex_lock(&lock);
    pthread_cond_signal(&wake);
    pthread_mutex_unlock(&lock);
    pthread_join(thread, NULL);
}

void
lw_capture_fork(void)
{
    pthread_mutex_init(&lock, NULL);
    pthread_cond_init(&wake, NULL);
    asked = 0;
    atomic_store(&running, 0);
    atomic_store(&own_tid, 0);
}

void
lw_capture_ask(lw_watch *w, uint64_t span, uint64_t now)
{
    if (lw_layout_ok() || w->asked_span == span) {
        return;
    }
    w->asked_span = span;
    w->asked_at = now;
    pthread_mutex_lock(&lock); /* held for moments only, and never with the GIL */
    asked = 1;
    pthread_cond_signal(&wake);
    pthread_mutex_unlock(&lock);
}

int
lw_capture_tid(void)
{
    return atomic_load(&own_tid);
}
