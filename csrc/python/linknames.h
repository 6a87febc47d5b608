/* linknames.h: how one object refers to another, in the words of a program.
 *
 * The collector knows that a reference is there, not what it is called.  Once a
 * chain of references is found, each link is named by looking for the one
 * object in the other: the key of a dict, the index of a list, the name of a
 * local variable, a slot, an attribute.  What only C code knows (the entries of
 * an lru_cache) is named "c".
 *
 * Runs nothing of the program's: identity only, no comparison, no property, no
 * __getattribute__.  An instance that keeps its attributes without a dictionary
 * gets one, as vars(object) would; nothing else is changed. */
#ifndef LW_LINKNAMES_H
#define LW_LINKNAMES_H

#include "compat.h"

/* A new tuple (kind, name or key or index or None, RawFrame or None); FROM refers to TO. */
PyObject *lw_link_name(PyObject *from, PyObject *to);

/* The name of a variable of a frame at that address that is TO: borrowed, or NULL. */
PyObject *lw_frame_variable_name(uintptr_t frame, PyCodeObject *code, PyObject *to);
PyObject *lw_frame_place(uintptr_t frame, PyCodeObject *code); /* RawFrame */

#endif
