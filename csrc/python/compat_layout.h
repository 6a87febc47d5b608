/* compat_layout.h: where the interpreter keeps what is read by offset, and what
 * the words found there mean, on each CPython version.
 *
 * The watchdog reads other threads' memory by offset.  Where those offsets
 * come from:
 *
 *   3.11, 3.12   compiled in with offsetof; their layouts are frozen.
 *   3.13 +       read at run time from the table that _PyRuntime starts with
 *                (cookie "xdebugpy"), because fields move in patch releases.
 *                The table's own shape is fixed within one minor release,
 *                which is what an extension is built for (no abi3).
 *
 * A table with a wrong cookie or version, a free-threaded build, or a release
 * newer than the newest known gives a reason string, and the core falls back
 * (see layout.h).  Only layout.c, which fills lw_lay, sees lw_compat_layout();
 * all others read what it filled. */
#ifndef LW_COMPAT_LAYOUT_H
#define LW_COMPAT_LAYOUT_H

#include "compat.h"

/* Offsets, in bytes, of what a stack walk reads.  Plain numbers: the watchdog
 * needs no Python header to use them. */
typedef struct {
    size_t ts_frame;         /* tstate: newest frame, or the cframe below */
    int ts_frame_indirect;   /* 1: that field points to a cframe, which holds it at cf_frame */
    size_t cf_frame;
    size_t ts_interp, ts_native_id, ts_next;
    size_t fr_previous, fr_code, fr_instr, fr_owner, fr_locals, fr_size;
    size_t fr_entry; /* 3.11, else 0: says that C code began this frame; later a frame of the C stack's lies below it */
    size_t fr_stack_top; /* 3.14 +, else 0: pointer past the newest slot of a suspended frame */
    int fr_first_foreign_owner; /* owners from this one on are not Python code */
    size_t gen_frame, gen_state; /* in generators, coroutines, async generators: their own frame, and its state */
    size_t co_filename, co_qualname, co_linetable, co_firstlineno, co_code, co_flags, co_size;
    size_t in_threads, in_gc_collecting;
    size_t in_gil; /* interp: pointer to the GIL; unused when gil_fixed */
    uintptr_t gil_fixed; /* the GIL's address where it is process-wide */
    size_t gil_holder, gil_locked, gil_size;
    size_t ts_size; /* what is public of a thread state */
    size_t dk_index_bits, dk_count, dk_entries; /* a dict's keys, before 3.14; dk_entries 0: not known */
} lw_layout;

/* The newest release these layouts were tried on. */
#define LW_NEWEST_KNOWN 0x030F

#ifdef LW_COMPAT_INTERNALS

#if PY_VERSION_HEX < 0x030E0000
#include <internal/pycore_dict.h>
#endif
#if PY_VERSION_HEX < 0x030D0000
#include <internal/pycore_frame.h>
#include <internal/pycore_interp.h>
#include <internal/pycore_runtime.h>
#else
#include <internal/pycore_frame.h>
#include <internal/pycore_gil.h>
#include <internal/pycore_runtime.h>
#endif

/* Fill *l; NULL, or why this interpreter cannot be read. */
static inline const char *
lw_compat_layout(lw_layout *l)
{
    memset(l, 0, sizeof(*l));
#ifdef Py_GIL_DISABLED
    return "free-threaded build";
#else
    if ((Py_Version >> 16) > LW_NEWEST_KNOWN) {
        return "interpreter newer than the newest known release";
    }
    if ((Py_Version >> 16) != (PY_VERSION_HEX >> 16)) {
        return "built for another release of CPython";
    }
    l->gil_size = sizeof(struct _gil_runtime_state);
#if PY_VERSION_HEX < 0x030D0000
    l->ts_frame = offsetof(PyThreadState, cframe);
    l->ts_frame_indirect = 1;
    l->cf_frame = offsetof(_PyCFrame, current_frame);
    l->ts_interp = offsetof(PyThreadState, interp);
    l->ts_native_id = offsetof(PyThreadState, native_thread_id);
    l->ts_next = offsetof(PyThreadState, next);
    l->fr_previous = offsetof(_PyInterpreterFrame, previous);
    l->fr_code = offsetof(_PyInterpreterFrame, f_code);
    l->fr_instr = offsetof(_PyInterpreterFrame, prev_instr);
    l->fr_owner = offsetof(_PyInterpreterFrame, owner);
    l->fr_locals = offsetof(_PyInterpreterFrame, localsplus);
#if PY_VERSION_HEX < 0x030C0000
    l->fr_entry = offsetof(_PyInterpreterFrame, is_entry);
#endif
    l->fr_first_foreign_owner = 3;
    l->gen_frame = offsetof(PyGenObject, gi_iframe);
    l->gen_state = offsetof(PyGenObject, gi_frame_state);
    l->co_filename = offsetof(PyCodeObject, co_filename);
    l->co_qualname = offsetof(PyCodeObject, co_qualname);
    l->co_linetable = offsetof(PyCodeObject, co_linetable);
    l->co_firstlineno = offsetof(PyCodeObject, co_firstlineno);
    l->co_code = offsetof(PyCodeObject, co_code_adaptive);
    l->in_threads = offsetof(PyInterpreterState, threads.head);
    l->in_gc_collecting = offsetof(PyInterpreterState, gc) + offsetof(struct _gc_runtime_state, collecting);
    l->gil_holder = offsetof(struct _gil_runtime_state, last_holder);
    l->gil_locked = offsetof(struct _gil_runtime_state, locked);
#if PY_VERSION_HEX < 0x030C0000 /* one GIL a process */
    l->gil_fixed = (uintptr_t)&_PyRuntime.ceval.gil;
#else /* 3.12: one GIL an interpreter */
    l->in_gil = offsetof(PyInterpreterState, ceval) + offsetof(struct _ceval_state, gil);
#endif
#else /* 3.13 +: the debug offsets */
    const _Py_DebugOffsets *d = (const _Py_DebugOffsets *)&_PyRuntime;
    if (memcmp(d->cookie, "xdebugpy", 8) != 0) {
        return "the interpreter's debug offsets have no cookie";
    }
    if ((d->version >> 16) != (PY_VERSION_HEX >> 16)) {
        return "the interpreter's debug offsets are of another release";
    }
    if (d->free_threaded) {
        return "free-threaded build";
    }
    l->ts_frame = d->thread_state.current_frame;
    l->ts_interp = d->thread_state.interp;
    l->ts_native_id = d->thread_state.native_thread_id;
    l->ts_next = d->thread_state.next;
    l->fr_previous = d->interpreter_frame.previous;
    l->fr_code = d->interpreter_frame.executable;
    l->fr_instr = d->interpreter_frame.instr_ptr;
    l->fr_owner = d->interpreter_frame.owner;
    l->fr_locals = d->interpreter_frame.localsplus;
    l->fr_first_foreign_owner = 3;
#if PY_VERSION_HEX < 0x030E0000 /* in the table from 3.14 on */
    l->gen_frame = offsetof(PyGenObject, gi_iframe);
    l->gen_state = offsetof(PyGenObject, gi_frame_state);
#else
    l->gen_frame = d->gen_object.gi_iframe;
    l->gen_state = d->gen_object.gi_frame_state;
    l->fr_stack_top = d->interpreter_frame.stackpointer;
#endif
    l->co_filename = d->code_object.filename;
    l->co_qualname = d->code_object.qualname;
    l->co_linetable = d->code_object.linetable;
    l->co_firstlineno = d->code_object.firstlineno;
    l->co_code = d->code_object.co_code_adaptive;
    l->in_threads = d->interpreter_state.threads_head;
    l->in_gc_collecting = d->interpreter_state.gc + d->gc.collecting;
    l->in_gil = d->interpreter_state.ceval_gil;
    /* given from the interpreter's start, for its own GIL; wanted from the GIL's start */
    l->gil_holder = d->interpreter_state.gil_runtime_state_holder - d->interpreter_state.gil_runtime_state;
    l->gil_locked = d->interpreter_state.gil_runtime_state_locked - d->interpreter_state.gil_runtime_state;
#endif
#if PY_VERSION_HEX < 0x030E0000 /* later the running task stands in the thread state */
    l->dk_index_bits = offsetof(PyDictKeysObject, dk_log2_index_bytes);
    l->dk_count = offsetof(PyDictKeysObject, dk_nentries);
    l->dk_entries = offsetof(PyDictKeysObject, dk_indices);
#endif
    l->co_flags = offsetof(PyCodeObject, co_flags); /* a public struct: the same within a minor release */
    l->ts_size = sizeof(PyThreadState);
    l->fr_size = l->fr_locals;
    l->co_size = l->co_code;
    return NULL;
#endif
}
#endif /* LW_COMPAT_INTERNALS */

/* The object a frame's slot points to.  3.14 and later tag the low bits of a
 * slot; before that the mask changes nothing, as objects are aligned. */
static inline uintptr_t
lw_untag(uintptr_t slot)
{
    return slot & ~(uintptr_t)7;
}

/* Does a slot own a reference?  3.14 and later mark the ones that do not in
 * the lowest bit (a local variable owns it instead: LOAD_FAST_BORROW), and
 * plain ints in the lowest two. */
static inline int
lw_slot_owns(uintptr_t slot)
{
#if PY_VERSION_HEX < 0x030E0000
    return slot != 0;
#else
    return (slot & ~(uintptr_t)7) != 0 && (slot & 1) == 0;
#endif
}
static inline int
lw_slot_borrows(uintptr_t slot)
{
#if PY_VERSION_HEX < 0x030E0000
    return 0;
#else
    return (slot & ~(uintptr_t)7) != 0 && (slot & 3) == 1;
#endif
}

/* Is a generator's frame, in that state, started and waiting?  3.15 numbered
 * the states anew. */
static inline int
lw_gen_suspended(signed char state)
{
#if PY_VERSION_HEX < 0x030D0000
    return state == -1;
#elif PY_VERSION_HEX < 0x030F0000
    return state == -2 || state == -1;
#else
    return state >= 1 && state <= 3;
#endif
}

/* Does it run now? */
static inline int
lw_gen_running(signed char state)
{
#if PY_VERSION_HEX < 0x030F0000
    return state == 0;
#else
    return state == 4;
#endif
}

/* Where an exact int keeps its digits, for one of a single digit; -1 if it has
 * more (or is negative).  3.12 moved the sign into a tag of three low bits. */
static inline long
lw_small_int(const PyLongObject *copy)
{
#if PY_VERSION_HEX < 0x030C0000
    Py_ssize_t size = Py_SIZE((const PyObject *)copy);
    return size == 0 ? 0 : size == 1 ? (long)copy->ob_digit[0] : -1;
#else
    uintptr_t tag = copy->long_value.lv_tag;
    if ((tag & 3) == 1) {
        return 0;
    }
    return (tag & 3) == 0 && (tag >> 3) == 1 ? (long)copy->long_value.ob_digit[0] : -1;
#endif
}

/* Where a frame object points to the frame that it stands for: the word after f_back, on all versions. */
static inline uintptr_t
lw_frame_of_object(PyObject *frame)
{
    return *(uintptr_t *)((char *)frame + sizeof(PyObject) + sizeof(void *));
}

#endif
