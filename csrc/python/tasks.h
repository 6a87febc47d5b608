/* tasks.h: a record of each asyncio task that was born while somebody tracks its loop.
 *
 * What is remembered: when, where (an interned creation stack), by which task,
 * and in which order.  Nothing is decoded and nothing is asked of the task until
 * a guard or a monitor looks; the scope it was born under is then read from the
 * context that the task runs in.  Task is never subclassed.
 *
 * Who makes records, while at least one tracker is open on a loop:
 *   3.11 - 3.13  asyncio's own registration of every task (tasklist.h); from 3.12
 *                on also the TaskFactory, where the loop has a factory: an eager
 *                task that ends in its first step is never registered.
 *   3.14 +       a TaskFactory on the loop, a C callable (taskfactory.c); what
 *                comes past it is found at the guard's exit (tasklist.h) and has
 *                a record without a stack, flagged LW_TASK_UNSEEN.
 *
 * - A record is a weakref.ref whose callback unlinks it: it dies with its task,
 *   keeps nothing of it alive, and is found from the task through the task's own
 *   list of weak references.  It must stay tracked by the garbage collector,
 *   which moves weak references with callbacks between its lists.
 * - A loop's records form a list in the order in which they were made, so what
 *   was born since a mark is a walk back from its end.
 *
 * Cost: see benchmarks/RESULTS.md; under 200 bytes while it lives.  All of it under the
 * GIL; nothing here runs Python code while it holds pointers into the list. */
#ifndef LW_TASKS_H
#define LW_TASKS_H

#include "compat.h"
#include "creation.h"

typedef struct lw_task_loop lw_task_loop;
typedef struct lw_task_group lw_task_group; /* taskstats.h */

enum {
    LW_TASK_PAST = 1,    /* it came past the factory */
    LW_TASK_UNSEEN = 2,  /* recorded later than it was born: no creation stack, no parent */
    LW_TASK_ADOPTED = 4, /* it was there before; its record only marks a place in asyncio's list */
    LW_TASK_LISTED = 8,  /* the record is what asyncio's own set of all tasks holds of it */
};

typedef struct lw_task_record {
    PyWeakReference ref;
    struct lw_task_record *older, *newer; /* borrowed */
    lw_task_loop *home;     /* borrowed; NULL once the loop is no longer tracked, or the task is dead */
    PyObject *task;         /* borrowed; what it pointed to, also while it dies */
    lw_creation *creation;  /* owned, or NULL */
    PyObject *parent_name;  /* owned, or NULL: str, or the number of an unnamed task */
    uint64_t seq;           /* when its creation began; 1 and up, over all loops */
    uint64_t order;         /* when it was recorded, after its creation (an eager one may have made others before) */
    uint64_t parent_seq;    /* 0: the parent has no record, or there was none */
    uint64_t born_ns;       /* CLOCK_MONOTONIC, to a few milliseconds */
    uint32_t flags;
    lw_task_group *group;   /* borrowed: whom its task is counted with, or NULL */
} lw_task_record;

struct lw_task_loop {
    PyObject_HEAD vectorcallfunc call;
    PyObject *loop;  /* owned while trackers are open, else NULL */
    PyObject *below; /* owned, or NULL: the factory that was there before */
    PyObject *create_task; /* owned, or NULL: what stands in the loop's place of it (createtask.h) */
    lw_task_record *oldest, *newest; /* owned, each of the list */
    lw_task_loop *next; /* borrowed: the list of tracked loops */
    Py_ssize_t trackers, alive;
    uint64_t born;
    int installed; /* as the loop's task factory */
    int refused;   /* tasks that could not be recorded */
};

/* The record of TASK, or NULL.  Borrowed. */
lw_task_record *lw_task_record_of(PyObject *task);

/* Whether nothing refers to TASK weakly, so that it has no record. */
static inline int
lw_task_is_unreferenced(PyObject *task)
{
    return Py_TYPE(task)->tp_weaklistoffset != 0 && *PyObject_GET_WEAKREFS_LISTPTR(task) == NULL;
}

/* Calls visit(record, task, arg), newest first, for each record of HOME (NULL: of all tracked loops) made after the
 * mark SINCE (0: all); both are held meanwhile, so visit may run any Python code.  Stops where it returns nonzero, and
 * returns that; -1 with an exception when memory is short. */
int lw_tasks_visit(lw_task_loop *home, uint64_t since, int (*visit)(lw_task_record *, PyObject *, void *), void *arg);

uint64_t lw_tasks_mark(void);            /* the order of the newest record of all */
lw_task_loop *lw_task_loops(void);       /* borrowed list, by next */
lw_task_loop *lw_task_loop_of(PyObject *loop); /* borrowed, or NULL */

/* For whoever counts (the monitor): called when a record was made, and when its task dies, with the record still whole;
 * the corpse may be read by offset, not used.  Must not run Python code nor raise.  NULL: nobody listens. */
extern void (*lw_task_born_hook)(lw_task_record *record, PyObject *task);
extern void (*lw_task_died_hook)(lw_task_record *record, PyObject *corpse);
/* Called before a record leaves its loop's list, for whoever remembers a place in it. */
extern void (*lw_task_unlink_hook)(lw_task_record *record);

/* The creation stack of a task, also while it is being destroyed.  Borrowed, or NULL. */
lw_creation *lw_tasks_creation_of(PyObject *task);

/* Used by taskfactory.c and tasklist.c. */
lw_task_record *lw_task_record_new(lw_task_loop *home, PyObject *task, uint64_t seq, uint32_t flags); /* borrowed */
static inline uint64_t
lw_tasks_next_seq(void)
{
    extern uint64_t lw_tasks_seq; /* of the creation that began last */
    return ++lw_tasks_seq;
}
void lw_tasks_forget(lw_task_loop *home); /* drop all its records */
void lw_tasks_forget_dead(void); /* nobody tracks anything any more */
extern PyObject *lw_scope_var; /* owned: the ContextVar that holds the scope token */

extern PyTypeObject *lw_task_record_type, *lw_task_factory_type; /* owned, process-wide */
int lw_tasks_init(PyObject *module);
int lw_taskrecord_init(PyObject *module);
int lw_taskfactory_init(PyObject *module);

#endif
