/* graph.c: see graph.h. */
#include "graph.h"

#include "../core/saferead.h"
#include "frames.h"
#include "layout.h"
#include "links.h"

static inline uintptr_t
load(uintptr_t at)
{
    return *(const uintptr_t *)at;
}

static int
make_table(lw_graph *g)
{
    size_t size = 1024;
    while (size < (size_t)g->room * 2) {
        size *= 2;
    }
    uint32_t *table = PyMem_RawMalloc(size * sizeof(*table));
    if (table == NULL) {
        return -1;
    }
    memset(table, 0xff, size * sizeof(*table));
    PyMem_RawFree(g->table);
    g->table = table;
    g->mask = size - 1;
    for (uint32_t i = 0; i < g->n; i++) {
        size_t slot = lw_graph_slot(g, g->nodes[i].object);
        while (g->table[slot] != LW_NO_NODE) {
            slot = (slot + 1) & g->mask;
        }
        g->table[slot] = i;
    }
    return 0;
}

static int
more_room(lw_graph *g, uint32_t room)
{
    lw_node *nodes = room < LW_NO_NODE / 2 ? PyMem_RawRealloc(g->nodes, room * sizeof(*nodes)) : NULL;
    if (nodes == NULL) {
        return -1;
    }
    g->nodes = nodes;
    g->room = room;
    return 0;
}

int
lw_graph_init(lw_graph *g, uint32_t room)
{
    memset(g, 0, sizeof(*g));
    if (more_room(g, room) < 0 || make_table(g) < 0) {
        lw_graph_free(g);
        return -1;
    }
    return 0;
}

static void
fill(lw_node *node, PyObject *object)
{
    int suspended, running = 0;
    node->object = object;
    node->outside = Py_REFCNT(object);
    node->extra = 0;
    node->flags = 0;
    if (lw_is_frame_owner(object) && lw_frame_state(object, &suspended, &running) == 0 && running) {
        node->flags = LW_NODE_RUNNING;
    }
}

uint32_t
lw_graph_add(lw_graph *g, PyObject *object)
{
    size_t slot = lw_graph_slot(g, object);
    for (; g->table[slot] != LW_NO_NODE; slot = (slot + 1) & g->mask) {
        if (g->nodes[g->table[slot]].object == object) {
            return g->table[slot];
        }
    }
    if (g->n == g->room) {
        if (more_room(g, g->room * 2) < 0 || make_table(g) < 0) {
            return LW_NO_NODE;
        }
        slot = lw_graph_slot(g, object);
        while (g->table[slot] != LW_NO_NODE) {
            slot = (slot + 1) & g->mask;
        }
    }
    fill(&g->nodes[g->n], object);
    g->table[slot] = g->n;
    return g->n++;
}

static int
note(PyObject *object, void *arg)
{
    lw_graph *g = arg;
    if (g->n == g->room && more_room(g, g->room * 2) < 0) {
        g->mask = 1; /* no memory */
        return 0;
    }
    g->nodes[g->n++].object = object;
    return !lw_graph_is_late(g);
}

int
lw_graph_take(lw_graph *g, uint64_t deadline)
{
    PyObject *list = NULL;
    memset(g, 0, sizeof(*g));
    g->deadline = deadline;
    if (more_room(g, 1 << 16) < 0) {
        PyErr_NoMemory();
        return -1;
    }
    if (lw_visit_gc_objects(note, g, &list) < 0) {
        goto fail;
    }
    if (g->late && g->mask != 1) {
        return 0;
    }
    if (g->mask == 1 || (g->n + 1024 > g->room && more_room(g, g->n + 1024) < 0) || make_table(g) < 0) {
        PyErr_NoMemory();
        goto fail;
    }
    if (list != NULL) { /* gc.get_objects()' own, gone by now */
        uint32_t at = lw_graph_find(g, list);
        if (at != LW_NO_NODE) {
            g->nodes[at] = g->nodes[--g->n];
            if (make_table(g) < 0) {
                PyErr_NoMemory();
                goto fail;
            }
        }
    }
    /* only now: while they were visited, somebody else held them too */
    for (uint32_t i = 0; i < g->n && !lw_graph_is_late(g); i++) {
        fill(&g->nodes[i], g->nodes[i].object);
    }
    return 0;
fail:
    lw_graph_free(g);
    return -1;
}

void
lw_graph_free(lw_graph *g)
{
    PyMem_RawFree(g->table);
    PyMem_RawFree(g->nodes);
    memset(g, 0, sizeof(*g));
}

/* ---- counting --------------------------------------------------------------------------------------------------- */

static int
count_edge(PyObject *object, void *arg)
{
    lw_graph *g = arg;
    uint32_t at = object ? lw_graph_find(g, object) : LW_NO_NODE;
    if (at != LW_NO_NODE) {
        g->nodes[at].outside--;
    }
    return lw_graph_is_late(g);
}

static int
uncount_edge(PyObject *object, void *arg)
{
    lw_graph *g = arg;
    uint32_t at = lw_graph_find(g, object);
    if (at != LW_NO_NODE) {
        g->nodes[at].outside++;
    }
    return 0;
}

void
lw_graph_borrowed(PyObject *generator, visitproc visit, void *arg)
{
    uintptr_t frame = (uintptr_t)generator + lw_lay.gen_frame;
    int suspended = 0, running = 0;
    (void)lw_frame_state(generator, &suspended, &running);
    if (!suspended || lw_lay.fr_stack_top == 0) {
        return;
    }
    for (uintptr_t at = frame + lw_lay.fr_locals; at < load(frame + lw_lay.fr_stack_top); at += sizeof(void *)) {
        if (lw_slot_borrows(load(at))) {
            (void)visit((PyObject *)lw_untag(load(at)), arg);
        }
    }
}

void
lw_graph_count(lw_graph *g)
{
    for (uint32_t i = 0; i < g->n && !g->late; i++) {
        PyObject *object = g->nodes[i].object;
        if (Py_TYPE(object)->tp_traverse != NULL && !(g->nodes[i].flags & LW_NODE_RUNNING)) {
            (void)Py_TYPE(object)->tp_traverse(object, count_edge, g);
            if (lw_is_frame_owner(object)) {
                lw_graph_borrowed(object, uncount_edge, g);
            }
        }
    }
}

/* ---- running frames --------------------------------------------------------------------------------------------- */

static int
read_word(uintptr_t at, uintptr_t *out)
{
    return lw_mem_read((const void *)at, out, sizeof(*out));
}

int
lw_graph_frames(int (*visit)(const lw_running_frame *, void *), void *arg)
{
    PyThreadState *own = PyThreadState_Get();
    int status = 0;
    for (PyThreadState *ts = PyInterpreterState_ThreadHead(PyThreadState_GetInterpreter(own));
         ts != NULL && status == 0; ts = PyThreadState_Next(ts)) {
        lw_running_frame at = {.own = ts == own, .ident = ts->thread_id};
        uintptr_t frame = 0;
        if (read_word((uintptr_t)ts + lw_lay.ts_frame, &frame) < 0
            || (lw_lay.ts_frame_indirect && (frame == 0 || read_word(frame + lw_lay.cf_frame, &frame) < 0))) {
            continue;
        }
        for (int steps = 0; frame != 0 && steps < 100000 && status == 0; steps++) {
            char head[LW_FRAME_HEAD];
            uintptr_t code, type;
            if (lw_mem_read((const void *)frame, head, lw_lay.fr_locals) < 0) {
                break;
            }
            code = lw_untag(*(uintptr_t *)(head + lw_lay.fr_code));
            if (*(signed char *)(head + lw_lay.fr_owner) < lw_lay.fr_first_foreign_owner
                && read_word(code + offsetof(PyObject, ob_type), &type) == 0 && type == (uintptr_t)&PyCode_Type) {
                at.frame = frame;
                at.code = (PyCodeObject *)code;
                status = visit(&at, arg);
                at.depth++;
            }
            frame = *(uintptr_t *)(head + lw_lay.fr_previous);
        }
    }
    return status;
}
