/* reachgraph.h: what the two halves of reach.h's answer work on.
 *
 * reach.c numbers all objects, notes what each is and what suspended tasks wait
 * for, and asks on behalf of Python; reachmark.c applies the rules until nothing
 * changes.  One lw_reach is one question: made, marked and freed under the GIL
 * without running Python code.  Once `failed` is set no flag means anything. */
#ifndef LW_REACHGRAPH_H
#define LW_REACHGRAPH_H

#include "graph.h"

enum {
    REACHED = 1,    /* by anything alive */
    UNDER_WAY = 2,  /* rule 4; implies REACHED */
    KEPT = 4,       /* only for rule 6: by a suspended task that is not live */
    BARRIER = 8,    /* reached, but never gone into: asyncio's registries, the caller's own list */
    COMMON = 16,    /* rule 4, where "leads to" stops: modules, types, loops, global dictionaries */
    OURS = 32,      /* of a type of loopwatch */
    LIVE_TASK = 128,
    SUSPENDED = 256, /* a task, by the definition of the header */
    TASK = 512,
    HANDLE = 1024,
};

typedef struct {
    uint32_t task, future, coro; /* numbers; NONE: not tracked by the collector */
    PyObject *future_object, *coro_object, *callback, *callback_tuple; /* borrowed from the task */
    int seen;
} waiting;

#define NONE LW_NO_NODE
#define LW_REACH_TYPES 1024 /* a power of two */

typedef struct {
    lw_graph all; /* a suspended task's `extra` is its place in `tasks` */
    struct {
        PyTypeObject *type;
        uint32_t flags;
    } types[LW_REACH_TYPES]; /* by address: what their objects get as flags */
    uint32_t *stack; /* owned; number << 1 | under way */
    size_t depth, room;
    waiting *tasks; /* owned; the suspended ones */
    uint32_t ntasks;
    uint32_t *weakrefs; /* owned; those with a callback */
    uint32_t nweakrefs;
    PyTypeObject *task_type, *future_type, *handle_type, *loop_type; /* borrowed from asyncio */
    getter get_state, get_waiter, get_must_cancel, get_coro, get_loop, get_callbacks;
    PyObject *str_asyncgens, *str_data; /* owned */
    uint32_t current;
    int bits;   /* what the visitor gives */
    uint64_t deadline; /* of this thread's CPU time; 0: none */
    enum { FINE, NO_MEMORY, NO_TIME } failed;
} lw_reach;

static inline uint32_t
lw_reach_node(const lw_reach *g, const PyObject *object)
{
    return lw_graph_find(&g->all, object);
}

static inline int
lw_reach_is_late(lw_reach *g)
{
    if (lw_graph_is_late(&g->all) && !g->failed) {
        g->failed = NO_TIME;
    }
    return g->failed == NO_TIME;
}

/* Marks what rules 1 to 6 call live; `failed` tells whether it came to an end. */
void lw_reach_mark(lw_reach *g);

#endif
