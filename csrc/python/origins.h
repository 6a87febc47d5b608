/* origins.h: where and when things were made while somebody watched.
 *
 * An Origin is one making: the interned creation stack, the thread, a serial
 * number that grows by one a making, and the value of the context variable
 * RESOURCE_SCOPE there.  A guard remembers the serial at its entry: what has a
 * greater one was made since; and it adds its mark to the variable, which
 * tasks and callbacks inherit: what has the mark was made on its behalf.
 *
 * lw_births is a table from an object's address (or any other key) to a weak
 * reference and the Origin.  An entry counts only while its weak reference
 * does, so an address that is used again finds nothing old.  Entries are never
 * taken out one by one: the table drops the dead when it is full, and all of
 * them when nobody watches any more.
 *
 * All under the GIL.  Dropping an entry may run Python code (a code object's
 * last reference), so the table is whole before anything is dropped. */
#ifndef LW_ORIGINS_H
#define LW_ORIGINS_H

#include "compat.h"
#include "creation.h"

typedef struct {
    PyObject_HEAD lw_creation *where; /* owned; NULL: the stack could not be read */
    uint64_t serial;
    unsigned long thread; /* ident */
    PyObject *scope;      /* owned; NULL: the variable was not set there */
} Origin;

uint64_t lw_origin_serial(void);   /* of the newest one */
PyObject *lw_origin_here(int skip); /* a new Origin of this place; NULL with an exception */

typedef struct {
    uintptr_t key;    /* 0: free */
    PyObject *ref;    /* owned: a weak reference */
    PyObject *origin; /* owned */
    uint64_t count;   /* what the table's user makes of it */
} lw_birth;

typedef struct {
    lw_birth *slots; /* owned */
    size_t cap, used;
} lw_births;

/* Enter OBJECT under KEY, in place of what stood there. -1 with an exception: no memory, or no weak references to it. */
int lw_births_put(lw_births *t, uintptr_t key, PyObject *object, PyObject *origin, uint64_t count);
lw_birth *lw_births_find(const lw_births *t, uintptr_t key); /* borrowed, until the next put; NULL: none, or dead */
lw_birth *lw_births_entry(const lw_births *t, uintptr_t key); /* the same, a dead one too */
void lw_births_clear(lw_births *t);

/* A list of (object, Origin, count) for the living with a serial above SINCE. */
PyObject *lw_births_list(const lw_births *t, uint64_t since);

int lw_origins_init(PyObject *module);

#endif
