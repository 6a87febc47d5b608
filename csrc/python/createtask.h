/* createtask.h: a loop's create_task(), done in C while its tasks are tracked.
 *
 * asyncio's own is a Python method that calls another one and hands keywords on
 * by a dict; an instance attribute `create_task` of the loop, a C callable, does
 * the same thing in less time than recording the task takes.  So a tracked
 * create_task() costs about what a bare one does.
 *
 * It does so only where the outcome is certain to be the same: the loop's class
 * has asyncio's own create_task() and _check_closed(), it is open, has no task
 * factory but ours with nothing below, and it is called with one coroutine and
 * no keywords but `name` and `context`.  In debug mode Task() itself remembers
 * the stack, of which asyncio's Python method takes its own frame away: here is
 * none to take.  Else the class's method is called, as if we were not there; that holds too for who keeps the callable
 * when nobody tracks the loop any more.  Whether the class was changed meanwhile
 * is told by its version tag.
 *
 * It stands there while a tracker is open, unless the loop had such an attribute
 * of its own, and goes with the last one if it is still in place.  All under the
 * GIL, on any thread. */
#ifndef LW_CREATETASK_H
#define LW_CREATETASK_H

#include "tasks.h"

/* asyncio.tasks.Task(coro, loop=loop, **keywords); VALUES are those of KWNAMES (NULL: none). */
PyObject *lw_task_make(PyObject *loop, PyObject *coro, PyObject *const *values, PyObject *kwnames);

PyObject *
lw_createtask_install(lw_task_loop *home); /* what stands there now, an owned reference, or NULL; never raises */
void lw_createtask_remove(PyObject *installed); /* takes it out; the reference stays the caller's; never raises */

int lw_createtask_init(PyObject *module);

#endif
