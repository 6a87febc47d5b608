/* taskstats.c: see taskstats.h; tasksampler.c walks what lives. */
#include "taskstats.h"

#include "../core/clock.h"
#include "links.h"
#include "futurestate.h"
#include "layout.h"

lw_task_groups lw_groups;

static inline uint64_t
group_hash(lw_creation *creation, PyObject *name)
{
    uint64_t hash = ((uintptr_t)creation >> 4) * 0x9E3779B97F4A7C15u ^ ((uintptr_t)name >> 4) * 0xC2B2AE3D27D4EB4Fu;
    return hash ^ hash >> 29;
}

/* The qualified name that a task's coroutine has: borrowed, or NULL where it cannot be had without running code. */
static PyObject *
coroutine_name(PyObject *task)
{
    if (lw_alay.task_coro == 0 || lw_alay.coro_qualname == 0
        || !PyType_IsSubtype(Py_TYPE(task), (PyTypeObject *)lw_alay.task_type)) {
        return NULL;
    }
    PyObject *coroutine = *(PyObject **)((char *)task + lw_alay.task_coro);
    if (coroutine == NULL || !(PyCoro_CheckExact(coroutine) || PyGen_CheckExact(coroutine))) {
        return NULL;
    }
    return *(PyObject **)((char *)coroutine + lw_alay.coro_qualname);
}

static lw_task_group *
group_for(lw_creation *creation, PyObject *name)
{
    size_t i = group_hash(creation, name) & (LW_GROUPS * 2 - 1);
    lw_task_group *group;
    while ((group = lw_groups.slots[i]) != NULL) {
        if (group->creation == creation && group->name == name) {
            return group;
        }
        i = (i + 1) & (LW_GROUPS * 2 - 1);
    }
    if (lw_groups.n >= LW_GROUPS - 1) {
        return &lw_groups.rest;
    }
    group = PyMem_RawCalloc(1, sizeof(*group));
    if (group == NULL) {
        return &lw_groups.rest;
    }
    lw_creation_incref(creation);
    group->creation = creation;
    group->name = Py_XNewRef(name);
    group->number = lw_groups.n + 1;
    lw_groups.slots[i] = group;
    lw_groups.all[lw_groups.n++] = group;
    return group;
}

static void
born(lw_task_record *record, PyObject *task)
{
    lw_task_group *group = group_for(record->creation, coroutine_name(task));
    record->group = group;
    if (!(record->flags & LW_TASK_ADOPTED)) {
        group->born++;
    }
    group->held++;
}

static void
died(lw_task_record *record, PyObject *corpse)
{
    lw_task_group *group = record->group;
    int unretrieved = 0;
    if (group == NULL) {
        return;
    }
    record->group = NULL;
    group->held -= group->held > 0;
    switch (lw_future_end_of(corpse, &unretrieved)) {
    case LW_FUTURE_PENDING:
        group->destroyed++;
        break;
    case LW_FUTURE_CANCELLED:
        group->cancelled++;
        break;
    case LW_FUTURE_FAILED:
        group->failed++;
        group->unretrieved += unretrieved != 0;
        break;
    case LW_FUTURE_RETURNED:
        group->returned++;
        break;
    case LW_FUTURE_UNKNOWN:
        group->unknown++;
        break;
    }
}

static void
unlinked(lw_task_record *record)
{
    lw_tasksampler_unlinked(record);
    if (record->group != NULL) { /* it lives on, but its loop is no longer tracked */
        record->group->held -= record->group->held > 0;
        record->group = NULL;
    }
}

/* The task that a callback of the loop's steps or wakes; borrowed, or NULL. */
static PyObject *
task_of(PyObject *callback)
{
    static PyTypeObject *wrappers[2]; /* borrowed: static types of _asyncio's, or held by its module for good */
    PyTypeObject *type = Py_TYPE(callback);
    PyObject *task;
    if (type == &PyCFunction_Type) {
        task = PyCFunction_GET_SELF(callback);
    }
    else {
        if (type != wrappers[0] && type != wrappers[1]) {
            const char *dot = strrchr(type->tp_name, '.'), *name = dot ? dot + 1 : type->tp_name;
            int which = strcmp(name, "TaskStepMethWrapper") == 0     ? 0
                        : strcmp(name, "TaskWakeupMethWrapper") == 0 ? 1
                                                                     : -1;
            if (which < 0 || type->tp_basicsize < (Py_ssize_t)(sizeof(PyObject) + sizeof(PyObject *))
                || (type->tp_flags & Py_TPFLAGS_BASETYPE)) {
                return NULL;
            }
            wrappers[which] = type;
        }
        task = *(PyObject **)((char *)callback + sizeof(PyObject)); /* its first field, in all releases known */
    }
    return task != NULL && lw_alay.task_type != 0 && PyType_IsSubtype(Py_TYPE(task), (PyTypeObject *)lw_alay.task_type)
               ? task
               : NULL;
}

void
lw_taskstats_step(PyObject *callback, uint64_t ns)
{
    if (lw_groups.needed == 0) {
        return;
    }
    PyObject *task = task_of(callback);
    lw_task_record *record = task ? lw_task_record_of(task) : NULL;
    lw_task_group *group = record ? record->group : NULL;
    if (group != NULL) {
        group->steps++;
        group->busy_ns += ns;
        group->longest_ns = ns > group->longest_ns ? ns : group->longest_ns;
    }
}

static void
forget_groups(void)
{
    for (lw_task_loop *loop = lw_task_loops(); loop != NULL; loop = loop->next) {
        for (lw_task_record *record = loop->newest; record != NULL; record = record->older) {
            record->group = NULL;
        }
    }
    int n = lw_groups.n;
    lw_groups.n = 0;
    lw_groups.generation++;
    memset(lw_groups.slots, 0, sizeof(lw_groups.slots));
    memset(&lw_groups.rest, 0, sizeof(lw_groups.rest));
    for (int i = 0; i < n; i++) { /* their references last: dropping them may run code */
        lw_task_group *group = lw_groups.all[i];
        lw_creation *creation = group->creation;
        PyObject *name = group->name;
        PyMem_RawFree(group);
        lw_creation_decref(creation);
        Py_XDECREF(name);
    }
}

/* A record made before counting began, or while it was off, belongs to a group all the same. */
static void
adopt(void)
{
    for (lw_task_loop *loop = lw_task_loops(); loop != NULL; loop = loop->next) {
        for (lw_task_record *record = loop->newest; record != NULL; record = record->older) {
            if (record->group == NULL && record->task != NULL) {
                lw_task_group *group = group_for(record->creation, coroutine_name(record->task));
                record->group = group;
                group->held++;
            }
        }
    }
}

int
lw_taskstats_need(int delta)
{
    lw_groups.needed += delta;
    if (lw_groups.needed == 1 && delta > 0) {
        lw_layout_asyncio();
        (void)lw_futurestate_learn();
        adopt();
        lw_task_born_hook = born;
        lw_task_died_hook = died;
        lw_task_unlink_hook = unlinked;
    }
    else if (lw_groups.needed == 0) {
        lw_task_born_hook = NULL;
        lw_task_died_hook = NULL;
        lw_task_unlink_hook = NULL;
        forget_groups();
    }
    return 0;
}

static PyObject *
taskstats_need(PyObject *Py_UNUSED(module), PyObject *arg)
{
    long delta = PyLong_AsLong(arg);
    if (delta == -1 && PyErr_Occurred()) {
        return NULL;
    }
    if ((delta != 1 && delta != -1) || lw_groups.needed + delta < 0) {
        return PyErr_Format(PyExc_ValueError, "count_tasks() takes 1 or -1, and no more -1 than 1; got %ld", delta);
    }
    (void)lw_taskstats_need((int)delta);
    Py_RETURN_NONE;
}

/* By whoever is told of it: asyncio resets its mark before the task's own end is seen here. */
static PyObject *
count_unretrieved(PyObject *Py_UNUSED(module), PyObject *task)
{
    lw_task_record *record = lw_groups.needed ? lw_task_record_of(task) : NULL;
    if (record == NULL || record->group == NULL) {
        Py_RETURN_FALSE;
    }
    record->group->unretrieved++;
    Py_RETURN_TRUE;
}

static PyMethodDef functions[] = {
    {"count_unretrieved", count_unretrieved, METH_O, "count_unretrieved(task): nobody asked for its exception"},
    {"count_tasks", taskstats_need, METH_O,
     "count_tasks(1): count by coroutine from now on; count_tasks(-1): no longer"},
    {NULL, NULL, 0, NULL},
};

int
lw_taskstats_init(PyObject *module)
{
    return PyModule_AddFunctions(module, functions);
}
