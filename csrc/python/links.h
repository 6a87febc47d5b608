/* links.h: one link of a chain of awaits.
 *
 * A link is a coroutine, a generator, an async generator, a small wrapper around
 * one, or a foreign make of these (Cython's).  It says itself what it awaits
 * (cr_await, gi_yieldfrom, ag_await; wrappers show it to the garbage collector),
 * so no internal field is needed to go on from it.  Only the place inside it,
 * its code and instruction, is read from its frame, at offsets that are proved
 * at import; where the proof fails, and for foreign links, the frame object
 * tells.
 *
 * - All of it on the caller's own interpreter under the GIL, and without running
 *   Python code: attributes are read only where C code serves them.
 * - Nothing is changed: no frame object is made where the layout is proved, and
 *   f_locals is never asked for (its snapshot would keep locals alive).
 * - Types met before are remembered, and held, so that an address names one type.
 *
 * Cost: see awaits.h. */
#ifndef LW_LINKS_H
#define LW_LINKS_H

#include "compat.h"

enum lw_link_kind {
    LW_LINK_END = 0,    /* awaits nothing that we can see */
    LW_LINK_CORO,       /* coroutine */
    LW_LINK_GEN,        /* generator, also one made a coroutine by types.coroutine */
    LW_LINK_AGEN,       /* async generator */
    LW_LINK_WRAPPER,    /* shows what it wraps to the garbage collector as its first referent */
    LW_LINK_PY_WRAPPER, /* types._GeneratorWrapper */
    LW_LINK_FOREIGN,    /* answers to cr_await or gi_yieldfrom by a descriptor, such as Cython's */
};

typedef struct {
    PyObject *link;     /* borrowed: coroutine, generator, … */
    PyCodeObject *code; /* borrowed; NULL: no Python code of its own, or not suspended */
    int lasti;          /* byte offset of its instruction; -1 not known */
} lw_await_place;

enum lw_link_kind lw_link_kind_of(PyTypeObject *type);
PyObject *lw_link_next(PyObject *link, enum lw_link_kind kind); /* a new reference, NULL at the chain's end */
void lw_link_place(PyObject *link, enum lw_link_kind kind, lw_await_place *out);

/* Of coroutines, generators and async generators only: */
int lw_is_frame_owner(PyObject *object);
int lw_frame_state(PyObject *object, int *suspended, int *running); /* -1: not known */

/* An attribute that is served by C code: a new reference, or NULL without exception.  Never runs Python code. */
PyObject *lw_link_attribute(PyObject *object, const char *name);
getter lw_type_getter(PyTypeObject *type, const char *name); /* the C function that serves it, or NULL */

int lw_links_init(PyObject *module);

#endif
