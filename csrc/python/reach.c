/* reach.c: see reach.h. */
#include "reach.h"

#include "layout.h"
#include "links.h"
#include "reachgraph.h"

/* ---- the snapshot ----------------------------------------------------------------------------------------------- */

static getter
getter_of(PyTypeObject *type, const char *name)
{
    PyObject *descr = lw_type_lookup(type, name);
    return descr != NULL && Py_IS_TYPE(descr, &PyGetSetDescr_Type) ? ((PyGetSetDescrObject *)descr)->d_getset->get
                                                                   : NULL;
}

static void
set_flag(lw_reach *g, PyObject *object, uint32_t flag)
{
    uint32_t at = object ? lw_reach_node(g, object) : NONE;
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
flags_of_type(lw_reach *g, PyTypeObject *type)
{
    size_t slot = ((uintptr_t)type >> 5) & (LW_REACH_TYPES - 1);
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
look_at_task(lw_reach *g, uint32_t at)
{
    PyObject *task = g->all.nodes[at].object, *state = g->get_state(task, NULL), *future = g->get_waiter(task, NULL),
             *must_cancel = g->get_must_cancel(task, NULL), *coro = g->get_coro(task, NULL);
    PyErr_Clear();
    if (state != NULL && PyUnicode_Check(state) && PyUnicode_CompareWithASCIIString(state, "PENDING") == 0) {
        g->all.nodes[at].flags |= LIVE_TASK;
        if (future != NULL && future != Py_None && must_cancel == Py_False) {
            waiting *w = &g->tasks[g->ntasks];
            w->task = at;
            w->future = lw_reach_node(g, future);
            w->future_object = future;
            w->coro = coro ? lw_reach_node(g, coro) : NONE;
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
leave_out_generators(lw_reach *g, PyObject *loop)
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
free_graph(lw_reach *g)
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
take_snapshot(lw_reach *g)
{
    size_t ntasks = 0, nweakrefs = 0;
    if (lw_graph_take(&g->all, g->deadline) < 0) {
        return -1;
    }
    if (lw_reach_is_late(g)) {
        return 0;
    }
    g->room = 4096;
    g->stack = PyMem_RawMalloc(g->room * sizeof(*g->stack));
    if (g->stack == NULL) {
        PyErr_NoMemory();
        return -1;
    }
    lw_graph_count(&g->all);
    if (lw_reach_is_late(g)) {
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

/* ---- for Python ------------------------------------------------------------------------------------------------- */

/* asyncio's registries of all tasks are not followed. */
static int
find_asyncio(lw_reach *g, PyObject **kept, PyObject **registries)
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
reason(const lw_reach *g, const waiting *w)
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
    lw_reach g = {0};
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
    if (!g.failed) {
        set_flag(&g, asked, BARRIER);
        set_flag(&g, kept, BARRIER);
        set_flag(&g, registries, BARRIER);
        for (Py_ssize_t i = 0; i < PyList_GET_SIZE(registries); i++) {
            set_flag(&g, PyList_GET_ITEM(registries, i), BARRIER);
        }
        lw_reach_mark(&g);
    }
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
