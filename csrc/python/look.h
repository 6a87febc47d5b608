/* look.h: one walk of the watchdog over all watched loops.
 *
 * An idle loop costs a few atomic reads.  A busy one is left alone until its
 * span is as old as a quarter of its smallest threshold, then sampled at its
 * interval, and reported when it hangs.  A loop without a probe is asked for
 * first: whether its thread sits in its poll.
 *
 * However many loops are busy, the watchdog uses half of a CPU at most: it
 * samples for a slice of time, leaves the rest to the next walk, which begins
 * where this one stopped, and rests as long as it looked.  The run-delay that
 * tells starvation is read for some loops a walk, in turn.
 *
 * Runs on the watchdog's thread; each watch under its slot's lock, samples
 * under the reading lock too (registry.h).  What settings there are is guarded
 * by the reading lock. */
#ifndef LW_LOOK_H
#define LW_LOOK_H

#include "watchdog.h"

uint64_t lw_look_at_all(void); /* when to look again */
int lw_look_stress(uint64_t *next); /* whether a stress test asks for samples; takes one, and brings *next forward */
void lw_look_set_stress(uintptr_t tstate, int tid, uint64_t interval);
void lw_look_fork(void);

#endif
