/* taskstats.h: what became of the tasks of each coroutine, by where they were created.
 *
 * Tasks with the same coroutine and the same creation stack form a group.  Its
 * counters grow as tasks are born (lw_task_born_hook), step (handlerun.c) and
 * die (lw_task_died_hook); how a dead task had ended is read from its memory
 * at offsets that were found by looking at futures of our own.  What lives is
 * not kept in step: a sampler walks the records of all tracked loops, in
 * slices, and tells for each group how many are pending, how many are done but
 * still held, how old they are, and where they wait.
 *
 * - A group owns its creation stack and its coroutine's name; groups are never
 *   dropped while counting is on, at most LW_GROUPS of them: the rest share the
 *   last one, which has neither and says so.
 * - A record points to its group; groups outlive records, as both end with the counting.
 * - A sampler remembers its place by a record; tasks.c tells when one is unlinked.
 *
 * Cost: 10 ns a birth, a death or a step; a sample 0.2 to 0.33 us a task.  Memory:
 * 200 bytes a group.  All under the GIL. */
#ifndef LW_TASKSTATS_H
#define LW_TASKSTATS_H

#include "compat.h"
#include "tasks.h"

#define LW_GROUPS 4096

struct lw_task_group {
    lw_creation *creation; /* owned; NULL: not known, or the group of the rest */
    PyObject *name;        /* owned str, or NULL: the coroutine's qualified name */
    int number;            /* from 1 on; 0: the group of the rest */
    uint64_t born, held;   /* held: not freed yet, pending or done */
    uint64_t returned, failed, cancelled, destroyed, unknown, unretrieved; /* of those that were freed */
    uint64_t steps, busy_ns, longest_ns;
};

typedef struct {
    int needed, n;
    uint64_t generation;              /* grows when all are forgotten */
    lw_task_group *slots[LW_GROUPS * 2]; /* borrowed: open addressing */
    lw_task_group *all[LW_GROUPS];    /* owned */
    lw_task_group rest;
} lw_task_groups;
extern lw_task_groups lw_groups;

int lw_taskstats_need(int delta); /* +1: count from now on; -1: no longer */
void lw_taskstats_step(PyObject *callback, uint64_t ns); /* a callback ran so long: whose step was it? */
int lw_taskstats_init(PyObject *module);
/* tasksampler.c */
void lw_tasksampler_unlinked(lw_task_record *record);
int lw_tasksampler_init(PyObject *module);

#endif
