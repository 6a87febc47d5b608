/* tasksampler.c: how many tasks of each group live, how old they are and where they wait.
 *
 * A sampler goes through the records of all loops that are tracked when it is
 * made, newest first, as long at a time as its caller allows; between two
 * slices the program runs on, tasks are born and die.  It counts what it
 * meets; who dies before it comes by is not counted, who is born meanwhile
 * neither.  Its place is a record; when that one is unlinked the place moves
 * on to the next older one (sampler_unlinked).
 *
 * Each task is looked at, not touched: how it ended (futurestate.h) and where
 * its coroutine waits (awaits.h).  Places are counted in a table of at most
 * LW_SITES; more share one entry without a place. */
#include "taskstats.h"

#include "../core/clock.h"
#include "awaits.h"
#include "futurestate.h"
#include "layout.h"
#include "ownstack.h"

#define LW_SITES 2048
#define EXAMPLES 3
#define BETWEEN_CLOCKS 32 /* records looked at between two clock readings */

typedef struct {
    uint64_t ended[LW_FUTURE_CANCELLED + 1]; /* by enum lw_future_end */
    uint64_t unretrieved, oldest_ns, age_sum_ns;
    uint64_t old, old_retained; /* born before the time asked for: pending, done but held */
    lw_task_record *examples[EXAMPLES]; /* owned: the oldest pending ones, as a ring */
    uint32_t seen;
} tally;

typedef struct {
    int group;
    PyCodeObject *code;   /* owned or NULL */
    int lasti;
    PyTypeObject *waited; /* owned or NULL: type of what is awaited */
    uint64_t count;
} site;

typedef struct TaskSampler {
    PyObject_HEAD PyObject *loops; /* owned list of lw_task_loop */
    Py_ssize_t at_loop;
    lw_task_record *place;         /* borrowed, kept right by sampler_unlinked */
    tally *tallies;                /* owned, room of them, by group number */
    int room, nsites, started;
    site *sites;                   /* owned: LW_SITES * 2 slots, and one for the rest */
    uint64_t generation, now_ns, old_ns, looked_at, lost_sites;
    struct TaskSampler *next;      /* borrowed: all samplers */
} TaskSampler;

static PyTypeObject *sampler_type;
static TaskSampler *samplers; /* borrowed */

void
lw_tasksampler_unlinked(lw_task_record *record)
{
    for (TaskSampler *s = samplers; s != NULL; s = s->next) {
        if (s->place == record) {
            s->place = record->older;
        }
    }
}

static tally *
tally_of(TaskSampler *self, lw_task_group *group)
{
    if (group->number >= self->room) {
        int room = group->number + 256;
        tally *more = PyMem_RawRealloc(self->tallies, (size_t)room * sizeof(*more));
        if (more == NULL) {
            return NULL;
        }
        memset(more + self->room, 0, (size_t)(room - self->room) * sizeof(*more));
        self->tallies = more;
        self->room = room;
    }
    return &self->tallies[group->number];
}

static void
count_site(TaskSampler *self, int group, const lw_await_site_info *info)
{
    PyCodeObject *code = info->user.code;
    PyTypeObject *waited = info->awaited ? Py_TYPE(info->awaited) : NULL;
    int lasti = info->user.lasti;
    uint64_t hash = ((uintptr_t)code >> 4) * 0x9E3779B97F4A7C15u
                    + (uint64_t)(lasti + group * 7919) * 0xC2B2AE3D27D4EB4Fu + ((uintptr_t)waited >> 4);
    size_t i = (hash ^ hash >> 31) & (LW_SITES * 2 - 1);
    for (;; i = (i + 1) & (LW_SITES * 2 - 1)) {
        site *s = &self->sites[i];
        if (s->count == 0) {
            if (self->nsites >= LW_SITES) {
                self->lost_sites++;
                return;
            }
            self->nsites++;
            *s = (site){group, (PyCodeObject *)Py_XNewRef(code), lasti, (PyTypeObject *)Py_XNewRef(waited), 1};
            return;
        }
        if (s->group == group && s->code == code && s->lasti == lasti && s->waited == waited) {
            s->count++;
            return;
        }
    }
}

static int
look_at(TaskSampler *self, lw_task_record *record)
{
    static lw_await_site_info info;
    PyObject *task = record->task;
    int unretrieved = 0;

    if (record->group == NULL || task == NULL || record->ref.wr_object != task || Py_REFCNT(task) <= 0) {
        return 0; /* it is being torn down */
    }
    tally *t = tally_of(self, record->group);
    if (t == NULL) {
        PyErr_NoMemory();
        return -1;
    }
    enum lw_future_end end = lw_future_end_of(task, &unretrieved);
    t->ended[end]++;
    t->unretrieved += unretrieved != 0;
    self->looked_at++;
    uint64_t age = self->now_ns > record->born_ns ? self->now_ns - record->born_ns : 0;
    int old = age >= self->old_ns || (record->flags & LW_TASK_ADOPTED); /* nobody knows how old an adopted one is */
    if (end != LW_FUTURE_PENDING && end != LW_FUTURE_UNKNOWN) {
        t->old_retained += (uint64_t)old;
        return 0;
    }
    t->old += (uint64_t)old;
    t->age_sum_ns += age;
    t->oldest_ns = age > t->oldest_ns ? age : t->oldest_ns;
    lw_task_record **example = &t->examples[t->seen++ % EXAMPLES], *before = *example;
    *example = (lw_task_record *)Py_NewRef(record);
    int number = record->group->number;
    Py_INCREF(task); /* a task that is not asyncio's own is asked by attribute, which may run anything */
    Py_XDECREF(before);
    if (lw_await_site(task, &info) == 0) {
        count_site(self, number, &info);
    }
    Py_DECREF(task);
    PyErr_Clear();
    return 0;
}

/* What will be looked at next comes from memory meanwhile: the walk is little else than waiting for that. */
static inline void
fetch_ahead(const lw_task_record *next)
{
    if (next == NULL) {
        return;
    }
    const lw_task_record *after = next->older;
    if (after != NULL) {
        __builtin_prefetch(after);
        __builtin_prefetch((const char *)after + 64);
        if (after->task != NULL) {
            __builtin_prefetch(after->task);
            __builtin_prefetch((const char *)after->task + 64);
            __builtin_prefetch((const char *)after->task + 128);
        }
        if (after->older != NULL) {
            __builtin_prefetch(&after->older->task);
        }
    }
    if (next->task != NULL && next->ref.wr_object == next->task && lw_alay.task_coro != 0
        && (uintptr_t)Py_TYPE(next->task) == lw_alay.task_type) {
        const char *coro = *(const char *const *)((const char *)next->task + lw_alay.task_coro);
        if (coro != NULL) {
            __builtin_prefetch(coro);
            __builtin_prefetch(coro + 64);
            __builtin_prefetch(coro + 128);
        }
    }
}

static PyObject *
sampler_step(TaskSampler *self, PyObject *arg)
{
    long long budget = PyLong_AsLongLong(arg);
    if (budget == -1 && PyErr_Occurred()) {
        return NULL;
    }
    if (self->generation != lw_groups.generation || lw_groups.needed == 0) {
        PyErr_SetString(PyExc_RuntimeError, "tasks are no longer counted: this sampler has nothing to go through");
        return NULL;
    }
    uint64_t until = lw_now_ns() + (uint64_t)(budget > 0 ? budget : 0);
    while (self->at_loop < PyList_GET_SIZE(self->loops)) {
        lw_task_loop *home = (lw_task_loop *)PyList_GET_ITEM(self->loops, self->at_loop);
        if (!self->started) {
            self->started = 1;
            self->place = home->newest;
        }
        for (int n = 1; self->place != NULL; n++) {
            lw_task_record *record = (lw_task_record *)Py_NewRef(self->place);
            self->place = record->older; /* before anything can unlink it */
            fetch_ahead(self->place);
            int status = look_at(self, record);
            Py_DECREF(record);
            if (status < 0) {
                return NULL;
            }
            if (n % BETWEEN_CLOCKS == 0 && lw_now_ns() >= until) {
                Py_RETURN_FALSE;
            }
        }
        self->at_loop++;
        self->started = 0;
    }
    Py_RETURN_TRUE;
}

static PyObject *
sites_of(TaskSampler *self, int group)
{
    PyObject *list = PyList_New(0), *frame = NULL, *entry = NULL;
    for (int i = 0; list != NULL && i < LW_SITES * 2; i++) {
        site *s = &self->sites[i];
        if (s->count == 0 || s->group != group) {
            continue;
        }
        frame = s->code ? lw_code_frame(s->code, s->lasti) : Py_NewRef(Py_None);
        entry = frame ? Py_BuildValue("(OsK)", frame, s->waited ? s->waited->tp_name : "", (unsigned long long)s->count)
                      : NULL;
        if (entry == NULL || PyList_Append(list, entry) < 0) {
            Py_CLEAR(list);
        }
        Py_CLEAR(entry);
        Py_CLEAR(frame);
    }
    return list;
}

#define NUMBER(x) ((unsigned long long)(x))

static PyObject *
group_result(TaskSampler *self, const lw_task_group *g)
{
    static const tally nothing;
    const tally *t = g->number < self->room ? &self->tallies[g->number] : &nothing;
    PyObject *sites = sites_of(self, g->number), *examples = PyList_New(0), *result = NULL;
    for (int i = 0; examples != NULL && i < EXAMPLES; i++) {
        if (t->examples[i] != NULL && PyList_Append(examples, (PyObject *)t->examples[i]) < 0) {
            Py_CLEAR(examples);
        }
    }
    if (sites != NULL && examples != NULL) {
        result = Py_BuildValue(
            "{s:i,s:O,s:K,s:K,s:K,s:K,s:K,s:K,s:K,s:K,s:K,s:K,s:K,s:K,s:K,s:K,s:K,s:K,s:K,s:O,s:O}", "number",
            g->number, "coro", g->name ? g->name : Py_None, "born", NUMBER(g->born), "pending",
            NUMBER(t->ended[LW_FUTURE_PENDING] + t->ended[LW_FUTURE_UNKNOWN]), "retained",
            NUMBER(t->ended[LW_FUTURE_RETURNED] + t->ended[LW_FUTURE_FAILED] + t->ended[LW_FUTURE_CANCELLED]),
            "returned", NUMBER(g->returned + t->ended[LW_FUTURE_RETURNED]), "failed",
            NUMBER(g->failed + t->ended[LW_FUTURE_FAILED]), "cancelled",
            NUMBER(g->cancelled + t->ended[LW_FUTURE_CANCELLED]), "destroyed", NUMBER(g->destroyed), "unretrieved",
            NUMBER(g->unretrieved), "unretrieved_held", NUMBER(t->unretrieved), "held", NUMBER(g->held), "steps",
            NUMBER(g->steps), "busy_ns", NUMBER(g->busy_ns), "longest_ns", NUMBER(g->longest_ns), "oldest_ns",
            NUMBER(t->oldest_ns), "age_sum_ns", NUMBER(t->age_sum_ns), "old", NUMBER(t->old), "old_retained",
            NUMBER(t->old_retained), "sites", sites, "examples", examples);
    }
    Py_XDECREF(examples);
    Py_XDECREF(sites);
    return result;
}

static PyObject *
sampler_result(TaskSampler *self, PyObject *Py_UNUSED(unused))
{
    PyObject *list = NULL, *entry = NULL;
    if (self->at_loop < PyList_GET_SIZE(self->loops)) {
        PyErr_SetString(PyExc_RuntimeError, "this sampler is not through: call step() until it returns True");
        return NULL;
    }
    if (self->generation != lw_groups.generation) {
        PyErr_SetString(PyExc_RuntimeError, "tasks are no longer counted");
        return NULL;
    }
    list = PyList_New(0);
    for (int i = 0; list != NULL && i <= lw_groups.n; i++) {
        const lw_task_group *g = i < lw_groups.n ? lw_groups.all[i] : &lw_groups.rest;
        if (g == &lw_groups.rest && g->born == 0 && g->held == 0) {
            break;
        }
        entry = group_result(self, g);
        if (entry == NULL || PyList_Append(list, entry) < 0) {
            Py_CLEAR(list);
        }
        Py_CLEAR(entry);
    }
    return list;
}

static void
sampler_drop(TaskSampler *self)
{
    for (TaskSampler **at = &samplers; *at != NULL; at = &(*at)->next) {
        if (*at == self) {
            *at = self->next;
            break;
        }
    }
    self->place = NULL;
    for (int i = 0; i < self->room; i++) {
        for (int k = 0; k < EXAMPLES; k++) {
            Py_CLEAR(self->tallies[i].examples[k]);
        }
    }
    for (int i = 0; self->sites != NULL && i < LW_SITES * 2; i++) {
        Py_CLEAR(self->sites[i].code);
        Py_CLEAR(self->sites[i].waited);
    }
    PyMem_RawFree(self->tallies);
    PyMem_RawFree(self->sites);
    self->tallies = NULL;
    self->sites = NULL;
    self->room = 0;
    Py_CLEAR(self->loops);
}

static void
sampler_dealloc(TaskSampler *self)
{
    PyTypeObject *type = Py_TYPE(self);
    sampler_drop(self);
    type->tp_free(self);
    Py_DECREF(type);
}

static PyObject *
task_sampler(PyObject *Py_UNUSED(module), PyObject *args)
{
    unsigned long long old = 0;
    if (!PyArg_ParseTuple(args, "|K:task_sampler", &old)) {
        return NULL;
    }
    if (lw_groups.needed == 0) {
        PyErr_SetString(PyExc_RuntimeError, "tasks are not counted: call count_tasks(1) first");
        return NULL;
    }
    TaskSampler *self = (TaskSampler *)sampler_type->tp_alloc(sampler_type, 0);
    if (self == NULL) {
        return NULL;
    }
    self->generation = lw_groups.generation;
    self->now_ns = lw_now_ns();
    self->old_ns = old;
    self->loops = PyList_New(0);
    self->sites = PyMem_RawCalloc(LW_SITES * 2, sizeof(site));
    if (self->loops == NULL || self->sites == NULL) {
        goto fail;
    }
    for (lw_task_loop *l = lw_task_loops(); l != NULL; l = l->next) {
        if (PyList_Append(self->loops, (PyObject *)l) < 0) {
            goto fail;
        }
    }
    self->next = samplers;
    samplers = self;
    return (PyObject *)self;
fail:
    if (!PyErr_Occurred()) {
        PyErr_NoMemory();
    }
    Py_DECREF(self);
    return NULL;
}

static PyObject *
task_group_frames(PyObject *Py_UNUSED(module), PyObject *arg)
{
    long number = PyLong_AsLong(arg);
    if (number == -1 && PyErr_Occurred()) {
        return NULL;
    }
    if (number < 1 || number > lw_groups.n || lw_groups.all[number - 1]->creation == NULL) {
        return PyList_New(0);
    }
    lw_creation *creation = lw_groups.all[number - 1]->creation;
    lw_creation_incref(creation);
    PyObject *frames = lw_creation_frames(creation);
    lw_creation_decref(creation);
    return frames;
}

static PyMethodDef sampler_methods[] = {
    {"step", (PyCFunction)sampler_step, METH_O, "step(budget_ns) -> whether all tasks were looked at"},
    {"result", (PyCFunction)sampler_result, METH_NOARGS, "One dict a group."},
    {NULL, NULL, 0, NULL},
};
static PyType_Slot sampler_slots[] = {
    {Py_tp_doc, "Looks at all tasks, slice by slice."},
    {Py_tp_dealloc, sampler_dealloc},
    {Py_tp_methods, sampler_methods},
    {0, NULL},
};
static PyType_Spec sampler_spec = {"loopwatch._core.TaskSampler", sizeof(TaskSampler), 0,
                                   Py_TPFLAGS_DEFAULT | Py_TPFLAGS_IMMUTABLETYPE | Py_TPFLAGS_DISALLOW_INSTANTIATION,
                                   sampler_slots};
static PyMethodDef functions[] = {
    {"task_sampler", task_sampler, METH_VARARGS,
     "task_sampler(old_ns=0) -> a new TaskSampler over all tracked loops; tasks of that age are counted as old"},
    {"task_group_frames", task_group_frames, METH_O, "task_group_frames(number) -> the creation stack of that group"},
    {NULL, NULL, 0, NULL},
};

int
lw_tasksampler_init(PyObject *module)
{
    sampler_type = (PyTypeObject *)PyType_FromModuleAndSpec(module, &sampler_spec, NULL);
    return sampler_type == NULL ? -1 : PyModule_AddFunctions(module, functions);
}
