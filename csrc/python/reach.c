/* reach.c: see reach.h. */
#include "reach.h"

#include "links.h"
#include "graph.h"
#include "layout.h"

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
#define TYPES 1024 /* a power of two */

typedef struct {
    lw_graph all; /* a suspended task's `extra` is its place in `tasks` */
    struct {
        PyTypeObject *type;
        uint32_t flags;
    } types[TYPES]; /* by address: what their objects get as flags */
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
} graph;

static inline uint32_t
find(const graph *g, const PyObject *object)
{
    return lw_graph_find(&g->all, object);
}

static inline int
is_late(graph *g)
{
    if (lw_graph_is_late(&g->all) && !g->failed) {
        g->failed = NO_TIME;
    }
    return g->failed == NO_TIME;
}

static inline uintptr_t
load(uintptr_t at)
{
    return *(const uintptr_t *)at;
}

/* What the calling thread's local variables hold is held from outside, but known: *held counts it by number. */
static void
count_own_locals(const graph *g, uint32_t *held)
{
    uintptr_t frame = load((uintptr_t)PyThreadState_Get() + lw_lay.ts_frame);
    if (lw_lay.ts_frame_indirect) {
        frame = load(frame + lw_lay.cf_frame);
    }
    for (; frame != 0; frame = load(frame + lw_lay.fr_previous)) {
        if (*(const signed char *)(frame + lw_lay.fr_owner) >= lw_lay.fr_first_foreign_owner) {
            continue;
        }
        PyCodeObject *code = (PyCodeObject *)lw_untag(load(frame + lw_lay.fr_code));
        for (int i = 0; i < code->co_nlocalsplus; i++) {
            uintptr_t slot = load(frame + lw_lay.fr_locals + (size_t)i * sizeof(void *));
            uint32_t at = lw_slot_owns(slot) ? find(g, (PyObject *)lw_untag(slot)) : NONE;
            if (at != NONE) {
                held[at]++;
            }
        }
    }
}

/* ---- marking ---------------------------------------------------------------------------------------------------- */

static void
reach(graph *g, uint32_t at, int bits)
{
    uint32_t *flags = &g->all.nodes[at].flags;
    if ((*flags & (uint32_t)bits) == (uint32_t)bits) {
        return;
    }
    *flags |= (uint32_t)bits;
    if (g->depth == g->room) {
        size_t room = g->room * 2;
        uint32_t *stack = PyMem_RawRealloc(g->stack, room * sizeof(*stack));
        if (stack == NULL) {
            g->failed = NO_MEMORY;
            return;
        }
        g->stack = stack;
        g->room = room;
    }
    g->stack[g->depth++] = at;
}

static int
mark_edge(PyObject *object, void *arg)
{
    graph *g = arg;
    uint32_t at = object ? find(g, object) : NONE;
    if (is_late(g)) {
        return 1;
    }
    if (at != NONE) {
        reach(g, at, g->bits & UNDER_WAY && g->all.nodes[at].flags & COMMON ? REACHED : g->bits);
    }
    return 0;
}

/* From a suspended task: not into its coroutine, F, its callbacks.  Each is left out once: an attribute that holds the
 * same object counts. */
static int
mark_task_edge(PyObject *object, void *arg)
{
    graph *g = arg;
    waiting *w = &g->tasks[g->all.nodes[g->current].extra];
    PyObject *const left_out[] = {w->coro_object, w->future_object, w->callback};
    for (int i = 0; i < 3; i++) {
        if (object != NULL && object == left_out[i] && !(w->seen & (1 << i))) {
            w->seen |= 1 << i;
            return 0;
        }
    }
    if (object != NULL && PyList_CheckExact(object) && PyList_GET_SIZE(object) > 0 && w->callback_tuple != NULL
        && PyList_GET_ITEM(object, 0) == w->callback_tuple) {
        return 0;
    }
    return mark_edge(object, arg);
}

static void
go_into(graph *g, uint32_t at)
{
    lw_node *x = &g->all.nodes[at];
    PyTypeObject *type = Py_TYPE(x->object);
    visitproc visit = mark_edge;

    if (x->flags & (BARRIER | LW_NODE_RUNNING | OURS)) {
        return;
    }
    if (x->flags & UNDER_WAY && x->flags & SUSPENDED) {
        x->flags |= LIVE_TASK;
    }
    if (x->flags & SUSPENDED && !(x->flags & LIVE_TASK)) {
        g->tasks[x->extra].seen = 0;
        visit = mark_task_edge;
    }
    if (x->flags & HANDLE) {
        x->flags |= REACHED | UNDER_WAY;
    }
    g->current = at;
    g->bits = (int)(x->flags & (REACHED | UNDER_WAY));
    if (PyWeakref_Check(x->object)) {
        PyObject *referent = ((PyWeakReference *)x->object)->wr_object;
        if (referent != NULL) {
            mark_edge(referent, g);
        }
    }
    if (type->tp_traverse != NULL) {
        (void)type->tp_traverse(x->object, visit, g);
    }
}

static void
drain(graph *g)
{
    while (g->depth > 0 && !g->failed) {
        go_into(g, g->stack[--g->depth]);
    }
}

static int
future_is_live(const graph *g, const waiting *w)
{
    if (w->future == NONE) {
        return 1; /* not tracked: anybody may hold it */
    }
    const lw_node *future = &g->all.nodes[w->future];
    if (!(future->flags & TASK)) {
        return (future->flags & REACHED) != 0;
    }
    return !(future->flags & SUSPENDED) || future->flags & LIVE_TASK; /* rule 3 */
}

/* Rules 1 to 5, until nothing changes. */
static void
settle(graph *g)
{
    int changed = 1;
    while (changed && !g->failed) {
        changed = 0;
        drain(g);
        for (uint32_t i = 0; i < g->ntasks; i++) {
            const waiting *w = &g->tasks[i];
            lw_node *task = &g->all.nodes[w->task];
            if (task->flags & LIVE_TASK) {
                continue;
            }
            if (future_is_live(g, w) || w->coro == NONE || g->all.nodes[w->coro].flags & REACHED) {
                task->flags = (task->flags | LIVE_TASK) & ~(uint32_t)(REACHED | UNDER_WAY);
                reach(g, w->task, REACHED | UNDER_WAY);
                changed = 1;
            }
        }
        for (uint32_t i = 0; i < g->nweakrefs; i++) {
            const lw_node *ref = &g->all.nodes[g->weakrefs[i]];
            PyObject *referent = ((PyWeakReference *)ref->object)->wr_object;
            uint32_t at = ref->flags & REACHED || referent == Py_None ? NONE : find(g, referent);
            if (at != NONE && g->all.nodes[at].flags & REACHED) {
                reach(g, g->weakrefs[i], REACHED);
                changed = 1;
            }
        }
    }
}

/* ---- rule 6 ----------------------------------------------------------------------------------------------------- */

static int
keep_edge(PyObject *object, void *arg)
{
    graph *g = arg;
    uint32_t at = object ? find(g, object) : NONE;
    if (at != NONE && !(g->all.nodes[at].flags & REACHED)) {
        reach(g, at, KEPT);
    }
    return is_late(g);
}

static int
may_act_when_finalized(const graph *g, PyObject *object)
{
    PyTypeObject *type = Py_TYPE(object);
    int suspended = 1, running = 0;
    if (lw_is_frame_owner(object)) {
        return lw_frame_state(object, &suspended, &running) < 0 || suspended;
    }
    return (type->tp_finalize != NULL || type->tp_del != NULL) && type != g->task_type && type != g->future_type;
}

static int
finalizable_garbage(graph *g)
{
    int found = 0;
    for (uint32_t i = 0; i < g->ntasks; i++) {
        if (!(g->all.nodes[g->tasks[i].task].flags & LIVE_TASK)) {
            reach(g, g->tasks[i].task, KEPT);
        }
    }
    while (g->depth > 0 && !g->failed) {
        PyObject *object = g->all.nodes[g->stack[--g->depth]].object;
        (void)Py_TYPE(object)->tp_traverse(object, keep_edge, g);
    }
    for (uint32_t i = 0; i < g->all.n && !g->failed; i++) {
        if (!(g->all.nodes[i].flags & (REACHED | KEPT)) && may_act_when_finalized(g, g->all.nodes[i].object)) {
            reach(g, i, REACHED | UNDER_WAY);
            found = 1;
        }
    }
    for (uint32_t i = 0; i < g->nweakrefs && !g->failed; i++) { /* and whose callback fires when garbage goes */
        const lw_node *ref = &g->all.nodes[g->weakrefs[i]];
        PyObject *referent = ((PyWeakReference *)ref->object)->wr_object;
        uint32_t at = referent == Py_None ? NONE : find(g, referent);
        if (ref->flags & KEPT && !(ref->flags & REACHED) && at != NONE
            && !(g->all.nodes[at].flags & (REACHED | KEPT))) {
            reach(g, g->weakrefs[i], REACHED);
            found = 1;
        }
    }
    return found;
}

/* ---- the snapshot ----------------------------------------------------------------------------------------------- */

static getter
getter_of(PyTypeObject *type, const char *name)
{
    PyObject *descr = lw_type_lookup(type, name);
    return descr != NULL && Py_IS_TYPE(descr, &PyGetSetDescr_Type) ? ((PyGetSetDescrObject *)descr)->d_getset->get
                                                                   : NULL;
}

static void
set_flag(graph *g, PyObject *object, uint32_t flag)
{
    uint32_t at = object ? find(g, object) : NONE;
    if (at != NONE) {
        g->all.nodes[at].flags |= flag;
    }
}

static int
is_our_type(PyTypeObject *type)
{
    PyObject *module = type->tp_flags & Py_TPFLAGS_HEAPTYPE ? lw_type_lookup(type, "__module__") : NULL;
    const char *name = module != NULL && PyUnicode_Check(module) ? PyUnicode_AsUTF8(module) : NULL;
    return name != NULL && (strcmp(name, "loopwatch") == 0 || strncmp(name, "loopwatch.", 10) == 0);
}

static uint32_t
flags_of_type(graph *g, PyTypeObject *type)
{
    size_t slot = ((uintptr_t)type >> 5) & (TYPES - 1);
    if (g->types[slot].type != type) {
        uint32_t flags = is_our_type(type) ? OURS : 0;
        if (PyType_IsSubtype(type, g->task_type)) {
            flags |= TASK;
        }
        if (PyType_IsSubtype(type, g->handle_type) || strcmp(type->tp_name, "uvloop.loop.Handle") == 0
            || strcmp(type->tp_name, "uvloop.loop.TimerHandle") == 0) {
            flags |= HANDLE;
        }
        if (PyType_IsSubtype(type, g->loop_type) || PyType_IsSubtype(type, &PyType_Type)
            || PyType_IsSubtype(type, &PyModule_Type)) {
            flags |= COMMON;
        }
        g->types[slot].type = type;
        g->types[slot].flags = flags;
    }
    return g->types[slot].flags;
}

/* ALL, a reference taken over: None, or a list of tuples (callback, context), the first made for us, the others those of
 * the task's own list; or, without a first one, that list itself. */
static void
note_callbacks(waiting *w, PyObject *all)
{
    if (all != NULL && PyList_CheckExact(all) && PyList_GET_SIZE(all) > 0) {
        PyObject *first = PyList_GET_ITEM(all, 0), *second = PyList_GET_SIZE(all) > 1 ? PyList_GET_ITEM(all, 1) : NULL;
        if (Py_REFCNT(all) > 1) { /* the list itself */
            w->callback_tuple = first;
        }
        else {
            w->callback = PyTuple_CheckExact(first) ? PyTuple_GET_ITEM(first, 0) : NULL;
            w->callback_tuple = second;
        }
    }
    PyErr_Clear();
    Py_XDECREF(all);
}

/* Is this task suspended?  Then note what it waits for. */
static void
look_at_task(graph *g, uint32_t at)
{
    PyObject *task = g->all.nodes[at].object, *state = g->get_state(task, NULL), *future = g->get_waiter(task, NULL),
             *must_cancel = g->get_must_cancel(task, NULL), *coro = g->get_coro(task, NULL);
    PyErr_Clear();
    if (state != NULL && PyUnicode_Check(state) && PyUnicode_CompareWithASCIIString(state, "PENDING") == 0) {
        g->all.nodes[at].flags |= LIVE_TASK;
        if (future != NULL && future != Py_None && must_cancel == Py_False) {
            waiting *w = &g->tasks[g->ntasks];
            w->task = at;
            w->future = find(g, future);
            w->future_object = future;
            w->coro = coro ? find(g, coro) : NONE;
            w->coro_object = coro;
            note_callbacks(w, g->get_callbacks(task, NULL));
            g->all.nodes[at].flags = (g->all.nodes[at].flags & ~(uint32_t)LIVE_TASK) | SUSPENDED;
            g->all.nodes[at].extra = g->ntasks++; /* the count is over */
        }
    }
    Py_XDECREF(coro); /* the task holds all of them */
    Py_XDECREF(must_cancel);
    Py_XDECREF(future);
    Py_XDECREF(state);
}

/* A loop's weak set of its async generators is a registry, too: it only closes them. */
static void
leave_out_generators(graph *g, PyObject *loop)
{
    PyObject *set = NULL, *data = NULL;
    if (lw_type_lookup(Py_TYPE(loop), "_asyncgens") == NULL && g->str_asyncgens != NULL && g->str_data != NULL) {
        set = PyObject_GenericGetAttr(loop, g->str_asyncgens);
        data = set ? PyObject_GenericGetAttr(set, g->str_data) : NULL;
        set_flag(g, data, BARRIER); /* they outlive this: the loop holds them */
    }
    PyErr_Clear();
    Py_XDECREF(data);
    Py_XDECREF(set);
}

static void
free_graph(graph *g)
{
    Py_XDECREF(g->str_data);
    Py_XDECREF(g->str_asyncgens);
    PyMem_RawFree(g->weakrefs);
    PyMem_RawFree(g->tasks);
    PyMem_RawFree(g->stack);
    lw_graph_free(&g->all);
}

/* All nodes, what holds each from outside, and the flags.  0, also when it is late, or -1 with an exception. */
static int
take_snapshot(graph *g)
{
    size_t ntasks = 0, nweakrefs = 0;
    if (lw_graph_take(&g->all) < 0) {
        return -1;
    }
    g->room = 4096;
    g->stack = PyMem_RawMalloc(g->room * sizeof(*g->stack));
    if (g->stack == NULL) {
        PyErr_NoMemory();
        return -1;
    }
    g->all.deadline = g->deadline;
    lw_graph_count(&g->all);
    if (is_late(g)) {
        return 0;
    }
    for (uint32_t i = 0; i < g->all.n; i++) {
        PyObject *object = g->all.nodes[i].object;
        g->all.nodes[i].flags |= flags_of_type(g, Py_TYPE(object));
        ntasks += (g->all.nodes[i].flags & TASK) != 0;
        nweakrefs += PyWeakref_Check(object) && ((PyWeakReference *)object)->wr_callback != NULL;
    }
    g->tasks = PyMem_RawCalloc(ntasks + 1, sizeof(*g->tasks));
    g->weakrefs = PyMem_RawCalloc(nweakrefs + 1, sizeof(*g->weakrefs));
    if (g->tasks == NULL || g->weakrefs == NULL) {
        PyErr_NoMemory();
        return -1;
    }
    for (uint32_t i = 0; i < g->all.n; i++) {
        PyObject *object = g->all.nodes[i].object;
        if (PyFunction_Check(object)) {
            set_flag(g, PyFunction_GET_GLOBALS(object), COMMON);
        }
        else if (PyModule_Check(object)) {
            set_flag(g, PyModule_GetDict(object), COMMON);
        }
        else if (PyWeakref_Check(object) && ((PyWeakReference *)object)->wr_callback != NULL) {
            g->weakrefs[g->nweakrefs++] = i;
        }
        else if (g->all.nodes[i].flags & TASK) {
            look_at_task(g, i);
        }
        else if (g->all.nodes[i].flags & COMMON && PyObject_TypeCheck(object, g->loop_type)) {
            leave_out_generators(g, object);
        }
    }
    return 0;
}

static int
mark_roots(graph *g)
{
    uint32_t *held = PyMem_RawCalloc(g->all.n + 1, sizeof(*held));
    if (held == NULL) {
        return -1;
    }
    count_own_locals(g, held);
    for (uint32_t i = 0; i < g->all.n; i++) {
        const lw_node *x = &g->all.nodes[i];
        if (x->outside != 0) { /* less than none is more edges than references: somebody's count cannot be trusted */
            /* a running frame holds its function, too */
            int known = (x->outside > 0 && x->outside <= (Py_ssize_t)held[i]) || PyFunction_Check(x->object);
            reach(g, i, known || x->flags & COMMON ? REACHED : REACHED | UNDER_WAY);
        }
        if (x->flags & LIVE_TASK) {
            reach(g, i, REACHED | UNDER_WAY);
        }
    }
    PyMem_RawFree(held);
    return 0;
}

/* ---- for Python ------------------------------------------------------------------------------------------------- */

/* asyncio's registries of all tasks are not followed. */
static int
find_asyncio(graph *g, PyObject **kept, PyObject **registries)
{
    static const char *const names[] = {"_all_tasks", "_scheduled_tasks", "_eager_tasks"};
    PyObject *tasks = PyImport_ImportModule("asyncio.tasks"), *events = PyImport_ImportModule("asyncio.events"),
             *c_module = PyImport_ImportModule("_asyncio");
    *kept = PyList_New(0);
    *registries = PyList_New(0);
    if (tasks == NULL || events == NULL || c_module == NULL || *kept == NULL || *registries == NULL) {
        goto end;
    }
    struct {
        PyObject *module;
        const char *name;
        PyTypeObject **into;
    } types[] = {{c_module, "Task", &g->task_type},
                 {c_module, "Future", &g->future_type},
                 {events, "Handle", &g->handle_type},
                 {events, "AbstractEventLoop", &g->loop_type}};
    for (int i = 0; i < 4; i++) {
        PyObject *type = PyObject_GetAttrString(types[i].module, types[i].name);
        if (type == NULL || !PyType_Check(type) || PyList_Append(*kept, type) < 0) {
            Py_XDECREF(type);
            goto end;
        }
        *types[i].into = (PyTypeObject *)type;
        Py_DECREF(type); /* kept in the list */
    }
    for (int i = 0; i < 3; i++) {
        PyObject *set = PyObject_GetAttrString(tasks, names[i]), *data = NULL;
        if (set != NULL) {
            data = PyAnySet_Check(set) ? Py_NewRef(set) : PyObject_GetAttrString(set, "data");
        }
        PyErr_Clear();
        if (data != NULL && PyList_Append(*registries, data) < 0) {
            PyErr_Clear();
        }
        Py_XDECREF(data);
        Py_XDECREF(set);
    }
    g->get_state = getter_of(g->task_type, "_state");
    g->get_waiter = getter_of(g->task_type, "_fut_waiter");
    g->get_must_cancel = getter_of(g->task_type, "_must_cancel");
    g->get_coro = getter_of(g->task_type, "_coro");
    g->get_loop = getter_of(g->task_type, "_loop");
    g->get_callbacks = getter_of(g->task_type, "_callbacks");
    if (g->get_state == NULL || g->get_waiter == NULL || g->get_must_cancel == NULL || g->get_coro == NULL
        || g->get_loop == NULL || g->get_callbacks == NULL) {
        PyErr_SetString(PyExc_RuntimeError,
                        "asyncio's Task lacks one of _state, _fut_waiter, _must_cancel, _coro, _loop, _callbacks");
    }
end:
    Py_XDECREF(c_module);
    Py_XDECREF(events);
    Py_XDECREF(tasks);
    return PyErr_Occurred() ? -1 : 0;
}

static PyObject *
reason(const graph *g, const waiting *w)
{
    const char *held = g->all.nodes[w->task].flags & REACHED
                           ? "only cancel() can end this"
                           : "only cancel() can end this, and nothing but asyncio's own registry knows the task";
    if (w->future != NONE && g->all.nodes[w->future].flags & SUSPENDED) {
        return PyUnicode_FromFormat("it waits for a task that nothing alive can wake: %s", held);
    }
    return PyUnicode_FromFormat("nothing alive holds the %s it waits for: %s",
                                Py_TYPE(w->future_object) == g->future_type ? "future" : "object", held);
}

/* [(task, reason)] of the stuck ones, of those in ASKED or of LOOP; NULL means all.  None when that takes more CPU time
 * than NANOSECONDS; 0: no limit. */
static PyObject *
judge(PyObject *asked, PyObject *loop, long long nanoseconds)
{
    graph g = {0};
    PyObject *kept = NULL, *registries = NULL, *result = NULL;
    int was_enabled = 0;

    int unused;
    lw_layout_asyncio();
    if (find_asyncio(&g, &kept, &registries) < 0) {
        goto end;
    }
    if (lw_frame_state(Py_None, &unused, &unused) < 0) {
        PyErr_Format(PyExc_RuntimeError, "what is reachable cannot be decided on this interpreter: %s",
                     lw_layout_text());
        goto end;
    }
    g.str_asyncgens = PyUnicode_InternFromString("_asyncgens");
    g.str_data = PyUnicode_InternFromString("data");
    g.deadline = nanoseconds > 0 ? lw_clock_ns(CLOCK_THREAD_CPUTIME_ID) + (uint64_t)nanoseconds : 0;
    was_enabled = PyGC_Disable();
    if (take_snapshot(&g) < 0) {
        goto end;
    }
    set_flag(&g, asked, BARRIER);
    set_flag(&g, kept, BARRIER);
    set_flag(&g, registries, BARRIER);
    for (Py_ssize_t i = 0; i < PyList_GET_SIZE(registries); i++) {
        set_flag(&g, PyList_GET_ITEM(registries, i), BARRIER);
    }
    if (!g.failed && mark_roots(&g) < 0) {
        PyErr_NoMemory();
        goto end;
    }
    do {
        settle(&g);
    } while (!g.failed && finalizable_garbage(&g));
    if (g.failed == NO_MEMORY) {
        PyErr_NoMemory();
        goto end;
    }
    result = PyList_New(0);
    for (uint32_t i = g.failed ? g.ntasks : 0; result != NULL && i < g.ntasks; i++) {
        PyObject *task = g.all.nodes[g.tasks[i].task].object, *entry, *of = NULL;
        if (g.all.nodes[g.tasks[i].task].flags & LIVE_TASK) {
            continue;
        }
        if (loop != NULL) {
            of = g.get_loop(task, NULL);
            Py_XDECREF(of); /* the task holds it */
            if (of != loop) {
                continue;
            }
        }
        entry = Py_BuildValue("(ON)", task, reason(&g, &g.tasks[i]));
        if (entry == NULL || PyList_Append(result, entry) < 0) {
            Py_CLEAR(result);
        }
        Py_XDECREF(entry);
    }
end:
    free_graph(&g);
    if (was_enabled) {
        PyGC_Enable();
    }
    Py_XDECREF(registries);
    Py_XDECREF(kept);
    return result;
}

static PyObject *
stuck_tasks(PyObject *Py_UNUSED(module), PyObject *loop)
{
    return judge(NULL, loop == Py_None ? NULL : loop, 0);
}

static PyObject *
stuck(PyObject *Py_UNUSED(module), PyObject *args)
{
    PyObject *asked, *found = NULL, *result = NULL;
    long long nanoseconds = 0;
    if (!PyArg_ParseTuple(args, "O|L:stuck", &asked, &nanoseconds)) {
        return NULL;
    }
    if (!PyList_Check(asked) && !PyTuple_Check(asked) && !PyAnySet_Check(asked) && !PyDict_Check(asked)) {
        return PyErr_Format(PyExc_TypeError, "expected a list, tuple, set or dict of tasks, got %.200s",
                            Py_TYPE(asked)->tp_name);
    }
    found = judge(asked, NULL, nanoseconds);
    result = found ? PyDict_New() : NULL;
    for (Py_ssize_t i = 0; result != NULL && i < PyList_GET_SIZE(found); i++) {
        PyObject *pair = PyList_GET_ITEM(found, i);
        int inside = PySequence_Contains(asked, PyTuple_GET_ITEM(pair, 0));
        if (inside < 0
            || (inside && PyDict_SetItem(result, PyTuple_GET_ITEM(pair, 0), PyTuple_GET_ITEM(pair, 1)) < 0)) {
            Py_CLEAR(result);
        }
    }
    Py_XDECREF(found);
    return result;
}

static PyMethodDef functions[] = {
    {"stuck_tasks", stuck_tasks, METH_O, "stuck_tasks(loop or None) -> [(task, reason)]"},
    {"stuck", stuck, METH_VARARGS, "stuck(list, tuple, set or dict of tasks, nanoseconds) -> {task: reason}"},
    {NULL, NULL, 0, NULL},
};

int
lw_reach_init(PyObject *module)
{
    return PyModule_AddFunctions(module, functions);
}
