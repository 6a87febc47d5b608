/* tasks.c: the records themselves (see tasks.h): made, kept in their order, dropped.  taskfactory.c has them made,
 * taskrecord.c shows them. */
#include "tasks.h"

#include "../core/clock.h"
#include "layout.h"
#include "tasklist.h"

void (*lw_task_born_hook)(lw_task_record *record, PyObject *task);
void (*lw_task_died_hook)(lw_task_record *record, PyObject *corpse);
void (*lw_task_unlink_hook)(lw_task_record *record);

static PyObject *died_callback; /* owned */
static PyObject *current_task;  /* owned: asyncio's */
static uint64_t orders;
uint64_t lw_tasks_seq;

/* Where tasks that just died were created.  The garbage collector clears weak references before it runs finalizers: a
 * task that is destroyed while pending, in a cycle, has lost its record when asyncio reports it. */
#define DEAD_KEPT 64
static struct {
    PyObject *task;        /* an address, for comparing only */
    lw_creation *creation; /* owned, or NULL */
} dead[DEAD_KEPT];
static size_t deaths;

static void
bury(PyObject *task, lw_creation *creation)
{
    size_t i = deaths++ % DEAD_KEPT;
    lw_creation *old = dead[i].creation;
    lw_creation_incref(creation);
    dead[i].task = task;
    dead[i].creation = creation;
    lw_creation_decref(old);
}

uint64_t
lw_tasks_mark(void)
{
    return orders;
}

lw_task_record *
lw_task_record_of(PyObject *task)
{
    PyTypeObject *type = Py_TYPE(task);
    if (type->tp_weaklistoffset == 0) {
        return NULL;
    }
    PyWeakReference *ref = *(PyWeakReference **)PyObject_GET_WEAKREFS_LISTPTR(task);
    for (; ref != NULL; ref = ref->wr_next) {
        if (Py_IS_TYPE(ref, lw_task_record_type) && ((lw_task_record *)ref)->home != NULL) {
            return (lw_task_record *)ref;
        }
    }
    return NULL;
}

/* The task's name, or the number an unnamed one will be called by, without running code; NULL if not known. */
static PyObject *
raw_name(PyObject *task)
{
    if (lw_alay.task_name == 0 || !PyObject_TypeCheck(task, (PyTypeObject *)lw_alay.task_type)) {
        return NULL;
    }
    PyObject *name = *(PyObject **)((char *)task + lw_alay.task_name);
    return name != NULL && (PyUnicode_Check(name) || PyLong_Check(name)) ? Py_NewRef(name) : NULL;
}

/* The task that runs now in this thread in LOOP: an owned reference, or NULL. */
static PyObject *
running_task(PyObject *loop)
{
    PyObject *task = NULL;
    if (lw_loop_runs_here(loop)) {
        return Py_XNewRef(*(PyObject **)((char *)PyThreadState_Get() + lw_alay.ts_task));
    }
    if (lw_alay.current_tasks != 0) {
        task = Py_XNewRef(PyDict_GetItemWithError((PyObject *)lw_alay.current_tasks, loop));
    }
    else {
        task = PyObject_CallOneArg(current_task, loop);
    }
    PyErr_Clear();
    return task;
}

static void
set_parent(lw_task_record *record, PyObject *loop)
{
    PyObject *parent = loop ? running_task(loop) : NULL;
    if (parent != NULL && parent != Py_None && parent != record->task) {
        lw_task_record *own = lw_task_record_of(parent);
        record->parent_name = raw_name(parent);
        record->parent_seq = own ? own->seq : 0;
    }
    Py_XDECREF(parent);
}

/* ---- making ---- */

/* Records whose tasks are dead, to be used again: owned.  Where tasks come and go, making and freeing weak references
 * would be most of what tracking costs. */
#define SPARE_RECORDS 16
static lw_task_record *spare[SPARE_RECORDS];
static int nspare;

/* Whether the dead RECORD was kept, with the reference that its loop had. */
static int
keep_spare(lw_task_record *record)
{
    if (nspare == SPARE_RECORDS || (record->flags & LW_TASK_LISTED) || record->ref.wr_callback != NULL) {
        return 0;
    }
    spare[nspare++] = record;
    return 1;
}

/* A kept record that nobody else has, emptied, or NULL. */
static lw_task_record *
take_spare(void)
{
    lw_task_record *record = NULL;
    while (record == NULL && nspare > 0) {
        record = spare[--nspare];
        if (Py_REFCNT(record) != 1) { /* it is somebody else's now */
            Py_DECREF(record);
            record = NULL;
        }
    }
    if (record != NULL) {
        lw_creation *creation = record->creation;
        PyObject *parent_name = record->parent_name;
        memset((char *)record + sizeof(record->ref), 0, sizeof(*record) - sizeof(record->ref));
        lw_creation_decref(creation);
        Py_XDECREF(parent_name);
    }
    return record;
}

/* A dead record made a weak reference to TASK, or NULL. */
static lw_task_record *
spare_record(PyObject *task)
{
    lw_task_record *record = Py_TYPE(task)->tp_weaklistoffset == 0 ? NULL : take_spare();
    if (record != NULL) {
        lw_weakref_revive(&record->ref, task, died_callback);
    }
    return record;
}

void
lw_tasks_forget_dead(void)
{
    while (nspare > 0) {
        Py_DECREF(spare[--nspare]);
    }
    for (size_t i = 0; i < DEAD_KEPT; i++) {
        lw_creation *old = dead[i].creation;
        dead[i].task = NULL;
        dead[i].creation = NULL;
        lw_creation_decref(old);
    }
}

/* A weak reference of our type with our callback. */
static lw_task_record *
new_record(PyObject *task)
{
    lw_task_record *record = spare_record(task);
    if (record == NULL) {
        PyObject *args = PyTuple_Pack(2, task, died_callback);
        record = args ? (lw_task_record *)_PyWeakref_RefType.tp_new(lw_task_record_type, args, NULL) : NULL;
        Py_XDECREF(args);
    }
    return record;
}

lw_task_record *
lw_task_record_new(lw_task_loop *home, PyObject *task, uint64_t seq, uint32_t flags)
{
    lw_task_record *record = new_record(task);
    if (record == NULL) {
        PyErr_Clear();
        home->refused++;
        return NULL;
    }
    record->task = task;
    record->seq = seq;
    record->flags = flags;
    record->born_ns = lw_clock_ns(CLOCK_MONOTONIC_COARSE);
    if (!(flags & LW_TASK_UNSEEN)) {
        record->creation = lw_creation_here(0);
        set_parent(record, home->loop);
    }
    record->order = ++orders;
    record->home = home;
    record->older = home->newest;
    *(home->newest ? &home->newest->newer : &home->oldest) = record;
    home->newest = record;
    home->alive++;
    home->born += !(flags & LW_TASK_ADOPTED);
    if (lw_task_born_hook != NULL) {
        lw_task_born_hook(record, task);
    }
    return record;
}

static void
take_out(lw_task_record *record)
{
    lw_task_loop *home = record->home;
    if (lw_task_unlink_hook != NULL) {
        lw_task_unlink_hook(record);
    }
    *(record->older ? &record->older->newer : &home->oldest) = record->newer;
    *(record->newer ? &record->newer->older : &home->newest) = record->older;
    record->older = record->newer = NULL;
    record->home = NULL;
    home->alive--;
}

static PyObject *
task_died(PyObject *Py_UNUSED(self), PyObject *arg)
{
    lw_task_record *record = (lw_task_record *)arg;
    if (!Py_IS_TYPE(arg, lw_task_record_type)) {
        Py_RETURN_NONE;
    }
    Py_INCREF(record); /* who calls a weak reference's callback holds none, and the set's may be the last */
    if (record->flags & LW_TASK_LISTED) {
        lw_tasklist_left(arg);
    }
    if (record->home != NULL) {
        if (lw_task_died_hook != NULL) {
            lw_task_died_hook(record, record->task);
        }
        bury(record->task, record->creation);
        record->task = NULL;
        take_out(record);
        if (!keep_spare(record)) {
            Py_DECREF(record);
        }
    }
    Py_DECREF(record);
    Py_RETURN_NONE;
}

static PyMethodDef died_method = {"task_died", task_died, METH_O, NULL};

void
lw_tasks_forget(lw_task_loop *home)
{
    lw_task_record *record;
    while ((record = home->newest) != NULL) {
        take_out(record);
        if ((record->flags & LW_TASK_LISTED)
            && Py_REFCNT(record) == 2) { /* it stays with its task, as a plain weakref */
            lw_creation *creation = record->creation;
            record->creation = NULL;
            lw_creation_decref(creation);
            Py_CLEAR(record->parent_name);
        }
        Py_DECREF(record); /* may run code, which may make or drop others: so one at a time */
    }
}

int
lw_tasks_visit(lw_task_loop *home, uint64_t since, int (*visit)(lw_task_record *, PyObject *, void *), void *arg)
{
    struct pair {
        lw_task_record *record;
        PyObject *task;
    } *found = NULL;
    size_t n = 0, room = 0;
    int status = 0;

    for (lw_task_loop *l = home ? home : lw_task_loops(); l != NULL; l = home ? NULL : l->next) {
        for (lw_task_record *r = l->newest; r != NULL && r->order > since; r = r->older) {
            if (r->ref.wr_object != r->task || Py_REFCNT(r->task) <= 0) {
                continue; /* it is being torn down right now */
            }
            if (n == room) {
                struct pair *more = PyMem_Realloc(found, (room = room ? room * 2 : 64) * sizeof(*found));
                if (more == NULL) {
                    status = -1;
                    PyErr_NoMemory();
                    goto done;
                }
                found = more;
            }
            found[n].record = (lw_task_record *)Py_NewRef(r);
            found[n++].task = Py_NewRef(r->task);
        }
    }
done:
    for (size_t i = 0; i < n; i++) {
        if (status == 0) {
            status = visit(found[i].record, found[i].task, arg);
        }
        Py_DECREF(found[i].task);
        Py_DECREF(found[i].record);
    }
    PyMem_Free(found);
    return status;
}

lw_creation *
lw_tasks_creation_of(PyObject *task)
{
    lw_task_record *record = lw_task_record_of(task);
    if (record != NULL) {
        return record->creation;
    }
    for (size_t i = 1; i <= DEAD_KEPT && i <= deaths; i++) {
        if (dead[(deaths - i) % DEAD_KEPT].task == task) {
            return dead[(deaths - i) % DEAD_KEPT].creation;
        }
    }
    return NULL;
}

int
lw_tasks_init(PyObject *Py_UNUSED(module))
{
    PyObject *tasks = PyImport_ImportModule("asyncio.tasks");
    current_task = tasks ? PyObject_GetAttrString(tasks, "current_task") : NULL;
    Py_XDECREF(tasks);
    PyErr_Clear();
    died_callback = PyCFunction_New(&died_method, NULL);
    return died_callback == NULL ? -1 : 0;
}
