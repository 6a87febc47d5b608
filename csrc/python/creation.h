/* creation.h: where something was created, remembered cheaply.
 *
 * lw_creation_here() walks the frames of the calling thread (ownstack.h) and
 * looks the stack up in a table: equal stacks are one lw_creation.  Nothing is
 * decoded until somebody asks for the lines.
 *
 * - An interned stack owns references to its code objects.  So an instruction
 *   address in the table names one code object and no other for as long as
 *   the entry lives, and comparing addresses is enough.
 * - Reference counted; the last reference takes it out of the table.  While
 *   somebody keeps the cache (lw_creation_keep), the last few stacks met are
 *   held, so that a loop that creates and ends one thing after the other does
 *   not build and free its stack each time.
 *
 * Memory comes from the raw allocator, so that the hooks of allocs.h may call here.
 *
 * Cost: 1 to 2 ns a frame when the stack is known already.  All under the GIL. */
#ifndef LW_CREATION_H
#define LW_CREATION_H

#include "compat.h"

typedef struct lw_creation lw_creation;

/* The calling thread's stack without its SKIP innermost Python frames.  An owned reference, or NULL, without an
 * exception, where it has no Python frame or memory is short. */
lw_creation *lw_creation_here(int skip);
/* The same from inside an allocator: no object is made or dropped, nothing of the program's runs; NULL where the layout
 * is not proved. */
lw_creation *lw_creation_here_quiet(int skip);
void lw_creation_incref(lw_creation *c);
void lw_creation_decref(lw_creation *c); /* NULL is fine; may run Python code when it frees (code objects) */
int lw_creation_decref_shared(lw_creation *c); /* 0, and nothing done, where this is the last reference */

PyObject *lw_creation_frames(const lw_creation *c); /* a list of RawFrame, outermost first; [] for NULL */
PyObject *lw_creation_frames_from(const lw_creation *c, int skip); /* the same without the SKIP innermost */
PyCodeObject *lw_creation_code(const lw_creation *c, int i); /* borrowed: of the i-th place from within, or NULL */
int lw_creation_omitted(const lw_creation *c); /* frames left out of the middle of a very deep stack */

void lw_creation_keep(int delta); /* +1: cache recent stacks from now on; -1: no longer needed */
Py_ssize_t lw_creation_count(void); /* distinct stacks now interned */
size_t lw_creation_bytes(void); /* memory of all of them, the table included */

int lw_creation_init(PyObject *module);

#endif
