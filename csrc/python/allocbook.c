/* allocbook.c: see allocbook.h. */
#include "allocbook.h"

#include <stdlib.h>

#define SLOTS (LW_ALLOC_MAX * 2) /* half full at most */
#define GRAVES 4096

uint8_t lw_alloc_filter[1 << LW_ALLOC_FILTER_BITS];

static struct {
    lw_alloc_sample *slots; /* owned, SLOTS of them, malloc; open addressing by address */
    size_t live;
    struct {
        lw_creation *creation;
        PyObject *coroutine;
    } graves[GRAVES]; /* owned last references, to be dropped where Python code may run */
    int ngraves;
} book;

static size_t
find(uintptr_t at)
{
    size_t i = (lw_alloc_mix(at) >> 24) & (SLOTS - 1);
    while (book.slots[i].at != 0 && book.slots[i].at != at) {
        i = (i + 1) & (SLOTS - 1);
    }
    return i;
}

void
lw_allocbook_dig(void)
{
    while (book.ngraves > 0) {
        lw_creation *creation = book.graves[--book.ngraves].creation;
        PyObject *coroutine = book.graves[book.ngraves].coroutine;
        lw_creation_decref(creation);
        Py_XDECREF(coroutine);
    }
}

static int
dig_later(void *Py_UNUSED(unused))
{
    lw_allocbook_dig();
    return 0;
}

static void
bury(lw_alloc_sample *s)
{
    lw_creation *creation = lw_creation_decref_shared(s->creation) ? NULL : s->creation;
    PyObject *coroutine = s->coroutine;
    if (coroutine != NULL && Py_REFCNT(coroutine) > 1) {
        Py_CLEAR(coroutine);
    }
    if ((creation != NULL || coroutine != NULL) && book.ngraves < GRAVES) {
        book.graves[book.ngraves].creation = creation;
        book.graves[book.ngraves++].coroutine = coroutine;
        if ((book.ngraves & (GRAVES / 8 - 1)) == 0) {
            (void)Py_AddPendingCall(dig_later, NULL);
        }
    } /* a full yard keeps them for good: better than running code of the program's inside its own free() */
    s->creation = NULL;
    s->coroutine = NULL;
}

void
lw_allocbook_strike_out(uintptr_t at)
{
    size_t i = find(at), hole, next;
    if (book.slots[i].at == 0) {
        return; /* another address with the same hash */
    }
    uint8_t *count = lw_alloc_filter_at(at);
    *count -= *count < 255;
    bury(&book.slots[i]);
    book.live--;
    for (hole = i, next = (i + 1) & (SLOTS - 1); book.slots[next].at != 0; next = (next + 1) & (SLOTS - 1)) {
        size_t home = (lw_alloc_mix(book.slots[next].at) >> 24) & (SLOTS - 1);
        if (((next - home) & (SLOTS - 1)) >= ((next - hole) & (SLOTS - 1))) { /* it may move up */
            book.slots[hole] = book.slots[next];
            hole = next;
        }
    }
    book.slots[hole].at = 0;
}

void
lw_allocbook_put(const lw_alloc_sample *new_steal)
{
    uint8_t *count = lw_alloc_filter_at(new_steal->at);
    book.slots[find(new_steal->at)] = *new_steal;
    *count += *count < 255;
    book.live++;
}

size_t
lw_allocbook_live(void)
{
    return book.live;
}

lw_alloc_sample *
lw_allocbook_copy(size_t *n_out)
{
    lw_alloc_sample *copy = malloc((book.live ? book.live : 1) * sizeof(*copy));
    size_t n = 0;
    for (size_t i = 0; copy != NULL && i < SLOTS; i++) {
        if (book.slots[i].at != 0) {
            copy[n] = book.slots[i];
            lw_creation_incref(copy[n].creation);
            Py_XINCREF(copy[n++].coroutine);
        }
    }
    *n_out = n;
    return copy;
}

int
lw_allocbook_open(void)
{
    if (book.slots == NULL) {
        book.slots = calloc(SLOTS, sizeof(*book.slots));
    }
    return book.slots == NULL ? -1 : 0;
}

void
lw_allocbook_blind(void)
{
    memset(lw_alloc_filter, 0, sizeof(lw_alloc_filter));
}

void
lw_allocbook_clear(void)
{
    for (size_t i = 0; book.slots != NULL && i < SLOTS; i++) {
        if (book.slots[i].at != 0) {
            book.slots[i].at = 0;
            bury(&book.slots[i]);
            if (book.ngraves == GRAVES) {
                lw_allocbook_dig();
            }
        }
    }
    book.live = 0;
}

void
lw_allocbook_free(void)
{
    free(book.slots);
    book.slots = NULL;
}
