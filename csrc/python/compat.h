/* compat.h: every CPython version and every internal field, in one place.
 *
 * Each question that differs between releases is one inline function with one
 * `#if` inside it; nothing else in the bridge tests PY_VERSION_HEX or includes
 * an internal header.
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
 * (see layout.h).  Only layout.c defines LW_COMPAT_INTERNALS. */
#ifndef LW_COMPAT_H
#define LW_COMPAT_H

#ifdef LW_COMPAT_INTERNALS
#define Py_BUILD_CORE 1
#endif
#define PY_SSIZE_T_CLEAN
#include <Python.h>
#include <structmember.h> /* member descriptors; part of Python.h from 3.12 on */
#include <stddef.h>
#include <stdint.h>
#include <string.h>

#if PY_VERSION_HEX < 0x030B0000
#error "loopwatch needs CPython 3.11 or newer"
#endif

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

/* A type's attribute as its own dictionaries hold it: borrowed, NULL without
 * exception.  (tp_dict of the interpreter's own types is NULL from 3.12 on.) */
static inline PyObject *
lw_type_lookup(PyTypeObject *type, const char *name)
{
    PyObject *key = PyUnicode_InternFromString(name), *found = key ? _PyType_Lookup(type, key) : NULL;
    Py_XDECREF(key);
    PyErr_Clear();
    return found;
}

/* A frame object's variable: a new reference, or NULL with an exception; before
 * 3.12 only f_locals could tell, which changes the frame, so it is not known. */
static inline PyObject *
lw_frame_variable(PyObject *frame, PyObject *name)
{
#if PY_VERSION_HEX < 0x030C0000
    return NULL;
#else
    return PyFrame_GetVar((PyFrameObject *)frame, name);
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

/* Whether a thread was begun by the _thread module: 1 yes, 0 no (C code that
 * called PyGILState_Ensure, or an embedder), -1 not told.  The state says who
 * made it since 3.13; the numbers are WHENCE_THREADING and, since 3.15,
 * WHENCE_THREADING_DAEMON. */
static inline int
lw_begun_by_python(const PyThreadState *ts)
{
#if PY_VERSION_HEX < 0x030D0000
    (void)ts;
    return -1;
#else
    return ts->_whence == 3 || ts->_whence == 6;
#endif
}

/* The byte offset of a slot that a class keeps for NAME, or 0. */
static inline size_t
lw_slot_offset(PyObject *type, const char *name)
{
    PyObject *descr = PyObject_GetAttrString(type, name);
    size_t offset = 0;
    if (descr != NULL && Py_IS_TYPE(descr, &PyMemberDescr_Type)) {
        offset = (size_t)((PyMemberDescrObject *)descr)->d_member->offset;
    }
    Py_XDECREF(descr);
    PyErr_Clear();
    return offset;
}

/* Whether the calling thread is attached to the main interpreter, and so holds its GIL. */
static inline int
lw_thread_is_attached(void)
{
#if PY_VERSION_HEX < 0x030D0000
    PyThreadState *ts = _PyThreadState_UncheckedGet();
#else
    PyThreadState *ts = PyThreadState_GetUnchecked();
#endif
    return ts != NULL && PyThreadState_GetInterpreter(ts) == PyInterpreterState_Main();
}

/* What a weak reference refers to: a new reference, or NULL, without an exception, when it is gone.  3.13 brought the
 * function, 3.15 takes the old one away. */
static inline PyObject *
lw_weakref_get(PyObject *ref)
{
#if PY_VERSION_HEX < 0x030D0000
    PyObject *target = PyWeakref_GetObject(ref);
    return target == NULL || target == Py_None ? NULL : Py_NewRef(target);
#else
    PyObject *target = NULL;
    return PyWeakref_GetRef(ref, &target) > 0 ? target : NULL;
#endif
}

/* Makes a weak reference of a class of its own, whose object is dead, refer to OP, which can be: it goes behind the one
 * reference and the one proxy without a callback, which have the first places of an object's list. */
static inline void
lw_weakref_revive(PyWeakReference *ref, PyObject *op, PyObject *callback)
{
    PyWeakReference **list = (PyWeakReference **)PyObject_GET_WEAKREFS_LISTPTR(op), *before = *list;
    while (before != NULL && before->wr_next != NULL && before->wr_next->wr_callback == NULL) {
        before = before->wr_next;
    }
    ref->wr_object = op;
    ref->wr_callback = Py_NewRef(callback);
    ref->hash = -1;
    ref->wr_prev = before;
    ref->wr_next = before ? before->wr_next : NULL;
    if (ref->wr_next != NULL) {
        ref->wr_next->wr_prev = ref;
    }
    *(before ? &before->wr_next : list) = ref;
}

/* The table entry of a function written in C: what it is called, how, and the C function.  Every way to call it reads the
 * entry, the specialised instructions too. */
static inline PyMethodDef *
lw_method_entry(PyObject *function)
{
    return PyCFunction_CheckExact(function) ? ((PyCFunctionObject *)function)->m_ml : NULL;
}

static inline void
lw_set_method_entry(PyObject *function, PyMethodDef *entry)
{
    ((PyCFunctionObject *)function)->m_ml = entry;
}

/* How a Python function is called from C, as a type's __init__ is.  From 3.12 on there is an official way to change it,
 * which also tells the specialised instructions. */
static inline vectorcallfunc
lw_function_call(PyObject *function)
{
    return PyFunction_Check(function) ? ((PyFunctionObject *)function)->vectorcall : NULL;
}

static inline void
lw_set_function_call(PyObject *function, vectorcallfunc call)
{
#if PY_VERSION_HEX < 0x030C0000
    ((PyFunctionObject *)function)->vectorcall = call;
#else
    PyFunction_SetVectorcall((PyFunctionObject *)function, call);
#endif
}

/* Whether sys.monitoring tells of calls (3.12 and later), cheaper than a profile function: no frame object is made. */
#define LW_HAS_MONITORING (PY_VERSION_HEX >= 0x030C0000)

/* Has a C function called before DICT changes, for good; 0 where that is not to be had. */
#if PY_VERSION_HEX < 0x030C0000
#define LW_WATCH_DICT(dict, call) 0
#else
static inline int
lw_watch_dict(PyObject *dict, PyDict_WatchCallback call)
{
    int id = PyDict_AddWatcher(call), watched = id >= 0 && PyDict_Watch(id, dict) == 0;
    PyErr_Clear(); /* all taken */
    return watched;
}
#define LW_WATCH_DICT(dict, call) lw_watch_dict(dict, call)
#define LW_DICT_EVENT PyDict_WatchEvent
#endif

/* The C profile function of the calling thread, or NULL. */
static inline Py_tracefunc
lw_profile_function(void)
{
    return PyThreadState_Get()->c_profilefunc;
}

/* Bytes that the collector keeps before an object. */
static inline size_t
lw_gc_header_size(PyObject *op)
{
    return PyObject_IS_GC(op) ? 2 * sizeof(uintptr_t) : 0;
}

/* Call VISIT(object, arg) for every object that the collector tracks, until it gives 0.  VISIT runs no code of the
 * program.  Before 3.12 there is only gc.get_objects(): *skip is then set to its list, which is not the program's.
 * -1 with an exception set when that fails. */
static inline int
lw_visit_gc_objects(int (*visit)(PyObject *, void *), void *arg, PyObject **skip)
{
#if PY_VERSION_HEX >= 0x030C0000
    (void)skip;
    PyUnstable_GC_VisitObjects(visit, arg);
    return 0;
#else
    PyObject *gc = PyImport_ImportModule("gc");
    PyObject *all = gc == NULL ? NULL : PyObject_CallMethod(gc, "get_objects", NULL);
    int status = -1;
    if (all != NULL && PyList_Check(all)) {
        status = 0;
        *skip = all;
        for (Py_ssize_t i = 0; i < PyList_GET_SIZE(all) && visit(PyList_GET_ITEM(all, i), arg); i++) {
        }
    }
    Py_XDECREF(all);
    Py_XDECREF(gc);
    return status;
#endif
}

/* Whether asyncio keeps a thread's tasks in a linked list (3.14 and later) or all of them in one WeakSet. */
static inline int
lw_tasks_in_linked_list(void)
{
#if PY_VERSION_HEX < 0x030E0000
    return 0;
#else
    return 1;
#endif
}

/* Whether an object's reference count is only a mark.  3.12 brought immortal objects; what it and 3.14 write there is 2**32 - 1
 * and 3 * 2**30, both far above any count. */
static inline int
lw_is_immortal(PyObject *op)
{
#if PY_VERSION_HEX < 0x030C0000
    (void)op;
    return 0;
#else
    return Py_REFCNT(op) >= (Py_ssize_t)1 << 30;
#endif
}

/* Where a frame object points to the frame that it stands for: the word after f_back, on all versions. */
static inline uintptr_t
lw_frame_of_object(PyObject *frame)
{
    return *(uintptr_t *)((char *)frame + sizeof(PyObject) + sizeof(void *));
}

/* Whether instances keep their attributes where the interpreter likes: in a dict made on demand. */
static inline int
lw_has_managed_dict(PyTypeObject *type)
{
#if PY_VERSION_HEX < 0x030C0000
    return type->tp_dictoffset < 0; /* 3.11 marks it so */
#else
    return (type->tp_flags & Py_TPFLAGS_MANAGED_DICT) != 0;
#endif
}

/* Whether a dict's keys are its own, not shared with the other instances of a class. */
static inline int
lw_dict_owns_keys(PyObject *dict)
{
    return ((PyDictObject *)dict)->ma_values == NULL;
}

/* Where an instance keeps its attribute NAME, whose present value is VALUE, inside of itself (3.13 and later, until
 * somebody asks for much of its __dict__): the place and a byte that is 1 as long as it is that attribute's.  0 where it
 * is not so plain. */
typedef struct {
    PyObject **at; /* borrowed */
    const unsigned char *valid;
} lw_inline_attr;

static inline int
lw_find_inline_attr(PyObject *obj, PyObject *name, PyObject *value, lw_inline_attr *found)
{
#if PY_VERSION_HEX < 0x030D0000
    return 0;
#else
    PyTypeObject *type = Py_TYPE(obj);
    struct {
        unsigned char capacity, size, embedded, valid;
        PyObject *values[];
    } *inside = (void *)((char *)obj + type->tp_basicsize);
    int matches = 0;
    if (!(type->tp_flags & Py_TPFLAGS_INLINE_VALUES) || inside->embedded != 1 || inside->valid != 1
        || _PyType_Lookup(type, name) != NULL) {
        return 0;
    }
    for (int i = 0; i < inside->capacity; i++) {
        if (inside->values[i] == value) {
            matches++;
            found->at = &inside->values[i];
            found->valid = &inside->valid;
        }
    }
    return matches == 1;
#endif
}

#endif
