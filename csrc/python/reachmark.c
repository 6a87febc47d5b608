/* reachmark.c: the rules of reach.h, applied until nothing changes (see reachgraph.h). */
#include "layout.h"
#include "links.h"
#include "reachgraph.h"

static inline uintptr_t
load(uintptr_t at)
{
    return *(const uintptr_t *)at;
}

/* What the calling thread's local variables hold is held from outside, but known: *held counts it by number. */
static void
count_own_locals(const lw_reach *g, uint32_t *held)
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
            uint32_t at = lw_slot_owns(slot) ? lw_reach_node(g, (PyObject *)lw_untag(slot)) : NONE;
            if (at != NONE) {
                held[at]++;
            }
        }
    }
}

static void
reach(lw_reach *g, uint32_t at, int bits)
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
    lw_reach *g = arg;
    uint32_t at = object ? lw_reach_node(g, object) : NONE;
    if (lw_reach_is_late(g)) {
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
    lw_reach *g = arg;
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
go_into(lw_reach *g, uint32_t at)
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
drain(lw_reach *g)
{
    while (g->depth > 0 && !g->failed) {
        go_into(g, g->stack[--g->depth]);
    }
}

static int
future_is_live(const lw_reach *g, const waiting *w)
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
settle(lw_reach *g)
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
            uint32_t at = ref->flags & REACHED || referent == Py_None ? NONE : lw_reach_node(g, referent);
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
    lw_reach *g = arg;
    uint32_t at = object ? lw_reach_node(g, object) : NONE;
    if (at != NONE && !(g->all.nodes[at].flags & REACHED)) {
        reach(g, at, KEPT);
    }
    return lw_reach_is_late(g);
}

static int
may_act_when_finalized(const lw_reach *g, PyObject *object)
{
    PyTypeObject *type = Py_TYPE(object);
    int suspended = 1, running = 0;
    if (lw_is_frame_owner(object)) {
        return lw_frame_state(object, &suspended, &running) < 0 || suspended;
    }
    return (type->tp_finalize != NULL || type->tp_del != NULL) && type != g->task_type && type != g->future_type;
}

static int
finalizable_garbage(lw_reach *g)
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
        uint32_t at = referent == Py_None ? NONE : lw_reach_node(g, referent);
        if (ref->flags & KEPT && !(ref->flags & REACHED) && at != NONE
            && !(g->all.nodes[at].flags & (REACHED | KEPT))) {
            reach(g, g->weakrefs[i], REACHED);
            found = 1;
        }
    }
    return found;
}

static void
mark_roots(lw_reach *g)
{
    uint32_t *held = PyMem_RawCalloc(g->all.n + 1, sizeof(*held));
    if (held == NULL) {
        g->failed = NO_MEMORY;
        return;
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
}

void
lw_reach_mark(lw_reach *g)
{
    if (!g->failed) {
        mark_roots(g);
    }
    do {
        settle(g);
    } while (!g->failed && finalizable_garbage(g));
}
