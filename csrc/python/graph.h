/* graph.h: every object that the garbage collector tracks, numbered, with what
 * holds each from outside.
 *
 * lw_graph_take() numbers the objects; a hash table finds the number of an
 * address.  Edges are not stored: they are asked for again by tp_traverse.
 * lw_graph_count() takes from each object's reference count the references that
 * the others hold; what is left over is held from outside: by a running frame,
 * by C code, or by something that is not tracked.
 *
 * - Objects are borrowed.  From taking the graph until it is freed, its user
 *   keeps the GIL, keeps the collector off, runs nothing of the program's, and
 *   drops no object that was there before.
 * - A generator or coroutine that executes is marked LW_NODE_RUNNING and not
 *   traversed: what is on its stack is in motion.  Its variables are found by
 *   lw_graph_frames(), which visits the frames that run, in every thread.
 * - 3.14 and later let a suspended frame's value stack borrow what a local
 *   variable owns; traversal shows both, the count takes that off again.
 * - An immortal object's count is only a mark: it looks held from outside.
 *
 * Memory: 24 bytes an object and 8 to 16 of the table.  Cost: 0.1 to 0.2 us an object. */
#ifndef LW_GRAPH_H
#define LW_GRAPH_H

#include "../core/clock.h"
#include "compat.h"

#define LW_NO_NODE UINT32_MAX
#define LW_NODE_RUNNING (1u << 31) /* the other flags are the user's */

typedef struct {
    PyObject *object; /* borrowed */
    Py_ssize_t outside;
    uint32_t extra; /* the user's */
    uint32_t flags;
} lw_node;

typedef struct {
    lw_node *nodes; /* owned */
    uint32_t *table; /* owned */
    uint32_t n, room;
    size_t mask;
    uint64_t deadline; /* of this thread's CPU time; 0: none */
    size_t edges;
    int late; /* the deadline passed: what was taken, counted or marked is not to be used */
} lw_graph;

typedef struct {
    uintptr_t frame;    /* its address */
    PyCodeObject *code; /* borrowed from the frame */
    int depth;          /* 0: the newest Python frame of its thread */
    int own;            /* of the calling thread */
    unsigned long ident;
} lw_running_frame;

static inline size_t
lw_graph_slot(const lw_graph *g, const PyObject *object)
{
    return (size_t)(((uintptr_t)object >> 4) * 0x9E3779B97F4A7C15ull >> 20) & g->mask;
}

/* Whether the deadline has passed; asked for every edge, it looks at the clock rarely. */
static inline int
lw_graph_is_late(lw_graph *g)
{
    if ((++g->edges & 0x3fff) == 0 && g->deadline != 0 && lw_clock_ns(CLOCK_THREAD_CPUTIME_ID) > g->deadline) {
        g->late = 1;
    }
    return g->late;
}

/* The number of an object, or LW_NO_NODE. */
static inline uint32_t
lw_graph_find(const lw_graph *g, const PyObject *object)
{
    for (size_t slot = lw_graph_slot(g, object); g->table[slot] != LW_NO_NODE; slot = (slot + 1) & g->mask) {
        if (g->nodes[g->table[slot]].object == object) {
            return g->table[slot];
        }
    }
    return LW_NO_NODE;
}

int lw_graph_init(lw_graph *g, uint32_t room);             /* an empty one: 0, or -1 without exception */
/* 0, also when it is late, or -1 with an exception.  DEADLINE: of this thread's CPU time, 0 for none. */
int lw_graph_take(lw_graph *g, uint64_t deadline);
uint32_t lw_graph_add(lw_graph *g, PyObject *object);      /* the number it has now, or LW_NO_NODE: no memory */
void lw_graph_count(lw_graph *g);
void lw_graph_free(lw_graph *g);

/* References that a suspended generator's or coroutine's traversal shows, but its stack only borrows. */
void lw_graph_borrowed(PyObject *generator, visitproc visit, void *arg);

/* Every running frame of every thread of this interpreter, each thread's newest first; stops where VISIT gives other
 * than 0, and returns that. */
int lw_graph_frames(int (*visit)(const lw_running_frame *, void *), void *arg);

#endif
