/* compat.h: every CPython version and every internal field, here and in
 * compat_layout.h.
 *
 * Each question that differs between releases is one inline function with one
 * `#if` inside it; nothing else in the bridge tests PY_VERSION_HEX or includes
 * an internal header.
 *
 * compat.h answers about objects in our hands, under the GIL: types, functions,
 * dicts, weak references, what the collector tells, and the calling thread.
 * compat_layout.h says where memory is that is read by offset, and what its words
 * mean.  Who needs internal headers defines LW_COMPAT_INTERNALS before any
 * include: layout.c, and no other. */
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

#define LW_EAGER_TASKS (PY_VERSION_HEX >= 0x030C0000) /* asyncio has them */

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
