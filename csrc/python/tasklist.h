/* tasklist.h: tasks seen as asyncio itself registers them.
 *
 * A program may set a task factory of its own, or make a Task directly, as
 * aiohttp and anyio do.  asyncio registers every task that is not done at once:
 *
 *   3.11 - 3.13  by calling add() on one WeakSet.  While any loop is tracked, an
 *                instance attribute `add` of that set, a C callable, does what
 *                WeakSet.add does and gives the task its record.  It is called
 *                from inside Task(), so the creation stack is right however the
 *                task was made; it replaces a Python function, so a task costs
 *                no more than before.  `del set.add` restores all.
 *                The record, a weak reference, is at the same time what the set
 *                holds of the task, so there is one less than it seems.
 *   3.14 +       in C, at the end of a linked list of the thread.  A guard
 *                marks where the list ends: the last tasks of it get records
 *                without a stack.  At its exit it walks back to there; what has
 *                no record yet came past the factory.  Offsets are found by
 *                looking at two tasks of our own; where that fails, such tasks
 *                are not found, and lw_tasklist_why() says so.
 *
 * So entering and leaving never depend on how many tasks there are. */
#ifndef LW_TASKLIST_H
#define LW_TASKLIST_H

#include "compat.h"

void lw_tasklist_watch(int delta); /* +1: a loop is tracked, -1: no longer */

int lw_tasklist_sees(void);        /* whether records are made here, so that no factory is needed */
const char *lw_tasklist_why(void); /* NULL, or why tasks that come past a factory cannot be seen */

void lw_tasklist_left(PyObject *record); /* the task of a record that stands in asyncio's set is dead */

int lw_tasklist_init(PyObject *module);

#endif
