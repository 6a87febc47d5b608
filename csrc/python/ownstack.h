/* ownstack.h: the calling thread's own stack, as places.
 *
 * A place is a code object and where it was in it.  The caller holds the GIL
 * and walks its own frames, so they cannot change meanwhile: plain loads at the
 * offsets that layout.h proved, no reference is taken, and nothing is made.
 * What walks for each task that is made is inline, here: two loads a frame.
 *
 * lw_own_gather() takes the whole stack, newest first; of one deeper than
 * LW_MAX_FRAMES the inner and the outer part.  Where the layout is not proved it
 * asks the public frame API, which makes a frame object of each frame and gives
 * the same places, with plain byte offsets in the place of addresses.
 *
 * Code objects are borrowed from the frames: good until this thread runs on.
 * Whoever keeps a place takes a reference, and then its address names one
 * instruction and no other for as long as it is kept.
 *
 * Here, too, is what a place says: lw_place_frame() finds its line. */
#ifndef LW_OWNSTACK_H
#define LW_OWNSTACK_H

#include "frames.h"
#include "layout.h"

typedef struct {
    PyObject *code;  /* borrowed from its frame, or owned by who keeps it */
    uintptr_t instr; /* its address, or the plain byte offset where the layout is not known */
} lw_place;

typedef struct {
    lw_place at[LW_MAX_FRAMES]; /* newest first */
    int n, omitted;             /* places, and frames left out between the inner and the outer part */
    uint64_t hash;              /* of all places */
} lw_own_stack;

/* The Python frames of this thread, one after the other.  Only where the layout is proved. */
typedef struct {
    uintptr_t frame; /* where it is; 0: none is left */
    size_t previous, owner;
    signed char foreign;
} lw_own_walk;

static inline uintptr_t
lw_own_load(uintptr_t at)
{
    return *(const uintptr_t *)at;
}

/* Goes on from w->frame to the next Python frame, which may be itself; 0 if there is none. */
static inline int
lw_own_any(lw_own_walk *w)
{
    while (w->frame != 0 && *(const signed char *)(w->frame + w->owner) >= w->foreign) {
        w->frame = lw_own_load(w->frame + w->previous);
    }
    return w->frame != 0;
}

static inline void
lw_own_step(lw_own_walk *w)
{
    w->frame = lw_own_load(w->frame + w->previous);
}

/* Begins behind the SKIP innermost ones. */
static inline lw_own_walk
lw_own_begin(int skip)
{
    lw_own_walk w = {
        .frame = lw_own_load((uintptr_t)PyThreadState_Get() + lw_lay.ts_frame),
        .previous = lw_lay.fr_previous,
        .owner = lw_lay.fr_owner,
        .foreign = (signed char)lw_lay.fr_first_foreign_owner,
    };
    if (lw_lay.ts_frame_indirect) {
        w.frame = lw_own_load(w.frame + lw_lay.cf_frame);
    }
    for (; skip > 0 && lw_own_any(&w); skip--) {
        lw_own_step(&w);
    }
    return w;
}

static inline uint64_t
lw_own_mix(uint64_t hash, uintptr_t word)
{
    return (hash ^ word) * 0x9E3779B97F4A7C15ull;
}

int lw_own_gather(lw_own_stack *found, int skip); /* how many places; 0: no Python frame */

/* One RawFrame: the place of an instruction, by its byte offset (-1: not known) in its code. */
PyObject *lw_code_frame(PyCodeObject *code, int offset);
PyObject *lw_place_frame(const lw_place *at);
/* Whether it is what the interpreter puts between a class and its __init__ (3.13 and later). */
int lw_place_is_shim(const lw_place *at);

#endif
