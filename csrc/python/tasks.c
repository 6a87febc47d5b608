/* tasks.c: the records themselves (see tasks.h); taskfactory.c makes them. */
#include "tasks.h"

#include "../core/clock.h"
#include "layout.h"
#include "tasklist.h"

PyTypeObject *lw_task_record_type;
PyObject *lw_scope_var;
void (*lw_task_born_hook)(lw_task_record *record, PyObject *task);
void (*lw_task_died_hook)(lw_task_record *record, PyObject *corpse);
void (*lw_task_unlink_hook)(lw_task_record *record);

static PyObject *died_callback; /* owned */
static PyObject *current_task;  /* owned: asyncio's */
static uint64_t seqs, orders;

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

void
lw_tasks_forget_dead(void)
{
    for (size_t i = 0; i < DEAD_KEPT; i++) {
        lw_creation *old = dead[i].creation;
        dead[i].task = NULL;
        dead[i].creation = NULL;
        lw_creation_decref(old);
    }
}

uint64_t
lw_tasks_next_seq(void)
{
    return ++seqs;
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
    if (lw_alay.ts_task != 0) { /* the thread state has it, behind the loop that runs */
        PyObject **place = (PyObject **)((char *)PyThreadState_Get() + lw_alay.ts_task);
        if (place[-1] == loop) {
            return Py_XNewRef(place[0]);
        }
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

/* A weak reference of our type with our callback. */
static lw_task_record *
new_record(PyObject *task)
{
    static PyObject *spare; /* owned: the arguments, to be used again */
    PyObject *args = spare, *record = NULL;
    spare = NULL; /* an allocation may run the garbage collector, and that finalizers that make tasks */
    if (args != NULL) {
        PyTuple_SET_ITEM(args, 0, Py_NewRef(task));
    }
    else {
        args = PyTuple_Pack(2, task, died_callback);
    }
    if (args != NULL) {
        PyObject_GC_UnTrack(args); /* nobody may come upon it with a hole in it */
        record = _PyWeakref_RefType.tp_new(lw_task_record_type, args, NULL);
    }
    if (args != NULL && Py_REFCNT(args) == 1 && spare == NULL) {
        PyTuple_SET_ITEM(args, 0, NULL);
        Py_DECREF(task);
        spare = args;
    }
    else {
        Py_XDECREF(args);
    }
    return (lw_task_record *)record;
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
        Py_DECREF(record);
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

static void
record_dealloc(PyObject *self)
{
    lw_task_record *record = (lw_task_record *)self;
    PyTypeObject *type = Py_TYPE(self);
    lw_creation *creation = record->creation;
    PyObject *parent_name = record->parent_name;
    _PyWeakref_RefType.tp_dealloc(self);
    lw_creation_decref(creation);
    Py_XDECREF(parent_name);
    Py_DECREF(type);
}

/* ---- looking ---- */

/* The value of VAR in the context that TASK runs in: None where there is none. */
static PyObject *
value_in_context(PyObject *task, PyObject *var)
{
    PyObject *value = NULL, *context = NULL;
    if (lw_alay.task_context != 0 && PyObject_TypeCheck(task, (PyTypeObject *)lw_alay.task_type)) {
        context = Py_XNewRef(*(PyObject **)((char *)task + lw_alay.task_context));
    }
    else {
        context = PyObject_CallMethod(task, "get_context", NULL);
    }
    if (context != NULL && PyContext_CheckExact(context)) {
        value = PyObject_CallMethod(context, "get", "O", var);
    }
    Py_XDECREF(context);
    PyErr_Clear(); /* a stranger's task-like object */
    return value ? value : Py_NewRef(Py_None);
}

static PyObject *
task_token(PyObject *Py_UNUSED(module), PyObject *task)
{
    return value_in_context(task, lw_scope_var);
}

static PyObject *
task_value(PyObject *Py_UNUSED(module), PyObject *args)
{
    PyObject *task, *var;
    if (!PyArg_ParseTuple(args, "OO!:task_value", &task, &PyContextVar_Type, &var)) {
        return NULL;
    }
    return value_in_context(task, var);
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

static int
ends_with(PyObject *text, const char *end)
{
    Py_ssize_t size, length = (Py_ssize_t)strlen(end);
    const char *bytes = PyUnicode_AsUTF8AndSize(text, &size);
    if (bytes == NULL) {
        PyErr_Clear();
        return 0;
    }
    return size >= length && memcmp(bytes + size - length, end, (size_t)length) == 0;
}

static int
is_create_task(PyCodeObject *code)
{
    return PyUnicode_CompareWithASCIIString(code->co_name, "create_task") == 0
           && (ends_with(code->co_filename, "/asyncio/base_events.py")
               || ends_with(code->co_filename, "/asyncio/tasks.py")
               || ends_with(code->co_filename, "/asyncio/taskgroups.py"));
}

/* How many of the innermost frames belong to asyncio's create_task() and to what it calls, such as a factory: the rest
 * ends with whoever called it. */
static int
frames_of_create_task(const lw_creation *creation)
{
    int cut = 0;
    PyCodeObject *code;
    for (int i = 0; i < 8 && (code = lw_creation_code(creation, i)) != NULL; i++) {
        if (code->co_flags & (CO_COROUTINE | CO_ITERABLE_COROUTINE | CO_ASYNC_GENERATOR)) {
            break; /* a coroutine that runs: what is further out did not make this task */
        }
        if (is_create_task(code)) {
            cut = i + 1;
        }
        else if (cut > 0) {
            break;
        }
    }
    return cut;
}

static PyObject *
frames_of(lw_creation *creation)
{
    if (creation == NULL) {
        Py_RETURN_NONE;
    }
    lw_creation_incref(creation);
    PyObject *frames = lw_creation_frames_from(creation, frames_of_create_task(creation));
    lw_creation_decref(creation);
    return frames;
}

static PyObject *
record_frames(PyObject *self, PyObject *Py_UNUSED(unused))
{
    return frames_of(((lw_task_record *)self)->creation);
}

static PyObject *
task_frames(PyObject *Py_UNUSED(module), PyObject *task)
{
    lw_task_record *record = lw_task_record_of(task);
    lw_creation *creation = record ? record->creation : NULL;
    for (size_t i = 1; record == NULL && i <= DEAD_KEPT && i <= deaths; i++) {
        if (dead[(deaths - i) % DEAD_KEPT].task == task) {
            creation = dead[(deaths - i) % DEAD_KEPT].creation;
            break;
        }
    }
    return frames_of(creation);
}

static PyObject *
record_parent(PyObject *self, void *Py_UNUSED(unused))
{
    PyObject *name = ((lw_task_record *)self)->parent_name;
    if (name == NULL) {
        Py_RETURN_NONE;
    }
    return PyUnicode_Check(name) ? Py_NewRef(name) : PyUnicode_FromFormat("Task-%S", name);
}

static PyObject *
record_adopted(PyObject *self, void *Py_UNUSED(unused))
{
    return PyBool_FromLong(((lw_task_record *)self)->flags & LW_TASK_ADOPTED);
}

static PyObject *
record_past(PyObject *self, void *Py_UNUSED(unused))
{
    return PyBool_FromLong(((lw_task_record *)self)->flags & LW_TASK_PAST);
}

static PyObject *
record_omitted(PyObject *self, void *Py_UNUSED(unused))
{
    return PyLong_FromLong(lw_creation_omitted(((lw_task_record *)self)->creation));
}

static PyGetSetDef record_getset[] = {
    {"parent", record_parent, NULL, NULL, NULL},
    {"adopted", record_adopted, NULL, NULL, NULL},
    {"past_factory", record_past, NULL, NULL, NULL},
    {"omitted", record_omitted, NULL, NULL, NULL},
    {NULL},
};

static PyMemberDef record_members[] = {
    {"seq", T_ULONGLONG, offsetof(lw_task_record, seq), READONLY, NULL},
    {"order", T_ULONGLONG, offsetof(lw_task_record, order), READONLY, NULL},
    {"parent_seq", T_ULONGLONG, offsetof(lw_task_record, parent_seq), READONLY, NULL},
    {"born_ns", T_ULONGLONG, offsetof(lw_task_record, born_ns), READONLY, NULL},
    {NULL},
};

static PyMethodDef record_methods[] = {
    {"frames", record_frames, METH_NOARGS, "The creation stack as a list of RawFrame, or None."},
    {NULL},
};

static PyObject *
record_new(PyTypeObject *Py_UNUSED(type), PyObject *Py_UNUSED(args), PyObject *Py_UNUSED(kwargs))
{
    PyErr_SetString(PyExc_TypeError, "task records are made by loopwatch only");
    return NULL;
}

static PyType_Slot record_slots[] = {
    {Py_tp_dealloc, record_dealloc}, {Py_tp_getset, record_getset}, {Py_tp_members, record_members},
    {Py_tp_methods, record_methods}, {Py_tp_new, record_new},       {0, NULL},
};
static PyType_Spec record_spec = {
    "loopwatch._core.TaskRecord", sizeof(lw_task_record), 0, Py_TPFLAGS_DEFAULT, record_slots,
};

/* ---- for Python ---- */

static PyObject *
task_record(PyObject *Py_UNUSED(module), PyObject *task)
{
    lw_task_record *record = lw_task_record_of(task);
    return Py_NewRef(record ? (PyObject *)record : Py_None);
}

static PyObject *
task_mark(PyObject *Py_UNUSED(module), PyObject *Py_UNUSED(unused))
{
    return PyLong_FromUnsignedLongLong(orders);
}

typedef struct {
    PyObject *list, *done; /* owned; borrowed */
    int pending;
} gathering;

static int
gather(lw_task_record *record, PyObject *task, void *arg)
{
    gathering *g = arg;
    if (g->pending) {
        PyObject *done = PyObject_CallMethodNoArgs(task, g->done);
        int is_done = done ? PyObject_IsTrue(done) : -1;
        Py_XDECREF(done);
        if (is_done < 0) {
            PyErr_Clear(); /* a stranger's task-like object: let whoever asks look at it */
        }
        else if (is_done) {
            return 0;
        }
    }
    PyObject *pair = PyTuple_Pack(2, task, record);
    int status = pair ? PyList_Append(g->list, pair) : -1;
    Py_XDECREF(pair);
    return status;
}

static PyObject *
task_records(PyObject *Py_UNUSED(module), PyObject *args)
{
    PyObject *home;
    unsigned long long since;
    gathering g = {NULL, NULL, 0};
    if (!PyArg_ParseTuple(args, "OKp:task_records", &home, &since, &g.pending)) {
        return NULL;
    }
    if (home != Py_None && !Py_IS_TYPE(home, lw_task_factory_type)) {
        return PyErr_Format(PyExc_TypeError, "task_records() takes a TaskFactory or None, got %R", home);
    }
    g.done = PyUnicode_InternFromString("done");
    g.list = g.done ? PyList_New(0) : NULL;
    if (g.list != NULL && lw_tasks_visit(home == Py_None ? NULL : (lw_task_loop *)home, since, gather, &g) != 0) {
        Py_CLEAR(g.list);
    }
    Py_XDECREF(g.done);
    if (g.list != NULL && PyList_Reverse(g.list) < 0) {
        Py_CLEAR(g.list);
    }
    return g.list;
}

static PyMethodDef methods[] = {
    {"task_record", task_record, METH_O, "task_record(task) -> TaskRecord or None"},
    {"task_frames", task_frames, METH_O, "task_frames(task) -> its creation stack, also while it is being destroyed"},
    {"task_token", task_token, METH_O, "task_token(task) -> the value of SCOPE in its context, or None"},
    {"task_value", task_value, METH_VARARGS,
     "task_value(task, var) -> the value of a ContextVar in its context, or None"},
    {"task_mark", task_mark, METH_NOARGS, "The order of the newest record."},
    {"task_records", task_records, METH_VARARGS, "task_records(factory or None, since, pending_only)"},
    {NULL, NULL, 0, NULL},
};

int
lw_tasks_init(PyObject *module)
{
    PyObject *tasks = NULL, *base = (PyObject *)&_PyWeakref_RefType;
    lw_task_record_type = (PyTypeObject *)PyType_FromSpecWithBases(&record_spec, base);
    died_callback = PyCFunction_New(&died_method, NULL);
    lw_scope_var = PyContextVar_New("loopwatch_scope", NULL);
    if (lw_task_record_type == NULL || died_callback == NULL || lw_scope_var == NULL) {
        return -1;
    }
    tasks = PyImport_ImportModule("asyncio.tasks");
    current_task = tasks ? PyObject_GetAttrString(tasks, "current_task") : NULL;
    Py_XDECREF(tasks);
    PyErr_Clear();
    if (PyModule_AddObjectRef(module, "TaskRecord", (PyObject *)lw_task_record_type) < 0
        || PyModule_AddObjectRef(module, "SCOPE", lw_scope_var) < 0) {
        return -1;
    }
    return PyModule_AddFunctions(module, methods);
}
