/* ownstack.c: see ownstack.h. */
#include "ownstack.h"

/* Puts a place that comes after SEEN others: the inner part stays, the rest goes round in a ring until the outer part is
 * left. */
static inline void
collect(lw_own_stack *found, int seen, PyObject *code, uintptr_t instr)
{
    int i = seen < LW_KEEP_INNER ? seen : LW_KEEP_INNER + (seen - LW_KEEP_INNER) % LW_KEEP_OUTER;
    found->at[i].code = code;
    found->at[i].instr = instr;
}

/* Brings the ring of the outer part into order, once all SEEN places are collected. */
static void
collected(lw_own_stack *found, int seen)
{
    if (seen <= LW_MAX_FRAMES) {
        found->n = seen;
        found->omitted = 0;
        return;
    }
    lw_place outer[LW_KEEP_OUTER];
    for (int i = 0; i < LW_KEEP_OUTER; i++) {
        outer[i] = found->at[LW_KEEP_INNER + (seen - LW_KEEP_INNER + i) % LW_KEEP_OUTER];
    }
    memcpy(&found->at[LW_KEEP_INNER], outer, sizeof(outer));
    found->n = LW_MAX_FRAMES;
    found->omitted = seen - LW_MAX_FRAMES;
}

/* How many frames were seen.  What does not fit is collected in the general way, from where the quick one stopped. */
static int
walk_own_frames(lw_own_stack *found, int skip, uint64_t *hash_out)
{
    lw_own_walk w = lw_own_begin(skip);
    const size_t code = lw_lay.fr_code, instr = lw_lay.fr_instr;
    uint64_t hash = 0;
    int n = 0;
    for (; n < LW_MAX_FRAMES && lw_own_any(&w); lw_own_step(&w), n++) {
        found->at[n].code = (PyObject *)lw_untag(lw_own_load(w.frame + code));
        found->at[n].instr = lw_own_load(w.frame + instr);
        hash = lw_own_mix(hash, found->at[n].instr);
    }
    *hash_out = hash;
    for (; lw_own_any(&w); lw_own_step(&w), n++) {
        collect(found, n, (PyObject *)lw_untag(lw_own_load(w.frame + code)), lw_own_load(w.frame + instr));
    }
    return n;
}

/* The same by the public API: makes a frame object of each frame. */
static int
walk_frame_objects(lw_own_stack *found, int skip)
{
    PyFrameObject *frame = PyThreadState_GetFrame(PyThreadState_Get()), *back; /* owned, both */
    int n = 0;
    for (; frame != NULL; frame = back) {
        if (skip-- <= 0) {
            PyCodeObject *code = PyFrame_GetCode(frame);
            collect(found, n++, (PyObject *)code, (uintptr_t)PyFrame_GetLasti(frame));
            Py_DECREF(code); /* the frame, which is on the stack, holds it */
        }
        back = PyFrame_GetBack(frame);
        Py_DECREF(frame);
    }
    return n;
}

int
lw_own_gather(lw_own_stack *found, int skip)
{
    uint64_t hash = 0;
    int exact = lw_layout_ok();

    collected(found, exact ? walk_own_frames(found, skip, &hash) : walk_frame_objects(found, skip));
    if (found->omitted > 0 || !exact) {
        hash = 0;
        for (int i = 0; i < found->n; i++) { /* offsets alone say little */
            hash = lw_own_mix(exact ? hash : lw_own_mix(hash, (uintptr_t)found->at[i].code), found->at[i].instr);
        }
    }
    found->hash = hash ^ hash >> 32;
    return found->n;
}

PyObject *
lw_code_frame(PyCodeObject *code, int offset)
{
    int line = 0, col = -1, end_line = 0, end_col = -1;
    if (offset < 0 || !PyCode_Addr2Location(code, offset, &line, &col, &end_line, &end_col)) {
        line = code->co_firstlineno;
        end_line = col = end_col = -1;
    }
    return Py_BuildValue("(OOiiii)", code->co_filename, code->co_qualname, line > 0 ? line : 0,
                         end_line > 0 ? end_line : 0, col, end_col);
}

PyObject *
lw_place_frame(const lw_place *at)
{
    intptr_t offset = (intptr_t)at->instr;
    if (lw_layout_ok()) {
        offset -= (intptr_t)at->code + (intptr_t)lw_lay.co_code;
    }
    return lw_code_frame((PyCodeObject *)at->code, offset < 0 || offset > INT_MAX ? -1 : (int)offset);
}

int
lw_place_is_shim(const lw_place *at)
{
    PyCodeObject *code = (PyCodeObject *)at->code;
    return code->co_filename == code->co_name && PyUnicode_CompareWithASCIIString(code->co_name, "__init__") == 0;
}
