/* frames.h: another thread's Python stack, read from outside.
 *
 * lw_walk_stack() follows a thread state's frame chain by safe reads: a bad
 * pointer is an error, never a crash, and the depth is bounded.  It takes
 * (code, instruction) pairs only; lw_decode_frame() turns a pair into file,
 * name, line and columns, after checking that the code object's type is
 * PyCode_Type.  Neither needs the GIL, allocates, or takes a lock.
 *
 * What a walk of a running thread sees may be torn: `moved` says that the
 * newest frame or its instruction changed while we walked, which is also how
 * Python code is told from a C call.  A thread that sits in a C function or a
 * system call does not move, so its stack is right.
 *
 * Text goes to a lw_textbuf that the caller owns; frames hold offsets into it.
 * The decoder's static buffer belongs to whoever holds the reading lock
 * (registry.h), as every walk of another thread is made under it. */
#ifndef LW_FRAMES_H
#define LW_FRAMES_H

#include <stddef.h>
#include <stdint.h>

#define LW_MAX_WALK 4096   /* frames followed */
#define LW_KEEP_INNER 100  /* of a deeper stack, the newest frames kept … */
#define LW_KEEP_OUTER 28   /* … and the oldest */
#define LW_MAX_FRAMES (LW_KEEP_INNER + LW_KEEP_OUTER)
#define LW_MAX_TEXT 1024   /* bytes of one name */
#define LW_FRAME_HEAD 256
#define LW_CODE_HEAD 512

typedef struct {
    uintptr_t code;  /* borrowed, foreign: may dangle, only ever read safely */
    uintptr_t instr;
    uintptr_t frame;
    int from_c; /* C code called it, not the frame below */
} lw_rawframe;

typedef struct {
    int n;       /* frames kept, newest first */
    int omitted; /* frames left out between the inner and the outer part */
    int moved;
    uintptr_t first, first_instr; /* newest frame of all, and its instruction, when the walk began */
    lw_rawframe raw[LW_MAX_WALK];
} lw_walk;

typedef struct {
    uintptr_t code, instr;
    int line, end_line, col, end_col;
    uint32_t file, name; /* offsets into the text buffer */
    int code_flags;      /* CO_COROUTINE and the like */
    /* Of the newest sample of a segment (sampler.h); zero elsewhere. */
    uint32_t marks;
    uintptr_t frame, at; /* the frame's address, and its instruction then */
} lw_frame;

/* Strings, deduplicated by the address of the str they came from. */
#define LW_TEXT_SLOTS 512
typedef struct {
    char *base; /* borrowed */
    uint32_t cap, used;
    struct {
        uintptr_t key;
        uint32_t at;
    } seen[LW_TEXT_SLOTS];
} lw_textbuf;

void lw_textbuf_init(lw_textbuf *t, char *base, size_t cap); /* offset 0 is "?" */
uint32_t lw_textbuf_str(lw_textbuf *t, uintptr_t unicode);   /* 0 when unreadable or full */
uint32_t lw_textbuf_add(lw_textbuf *t, const char *text);

int lw_walk_stack(uintptr_t tstate, lw_walk *walk);          /* -1: not readable at all */
/* Look once more, later: sets walk->moved if the newest frame or its instruction is another one now. */
void lw_walk_again(uintptr_t tstate, lw_walk *walk);
int lw_decode_frame(const lw_rawframe *raw, lw_frame *out, lw_textbuf *text); /* -1: not Python code */
int lw_read_ptr(uintptr_t at, uintptr_t *out);

#endif
