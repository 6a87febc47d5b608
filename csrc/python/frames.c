/* frames.c: see frames.h.
 *
 * Cost: one system call a frame to walk; three to six more for a frame whose
 * code object's names were not met in this span.  Callers compare (code,
 * instruction) pairs with the previous sample and decode only what differs. */
#include "frames.h"

#include "../core/linetable.h"
#include "../core/saferead.h"
#include "layout.h"

#define RECHECKS 24
#define MAX_LINETABLE (256 * 1024)

int
lw_read_ptr(uintptr_t at, uintptr_t *out)
{
    return at == 0 ? -1 : lw_mem_read((const void *)at, out, sizeof(*out));
}

void
lw_textbuf_init(lw_textbuf *t, char *base, size_t cap)
{
    memset(t->seen, 0, sizeof(t->seen));
    t->base = base;
    t->cap = (uint32_t)cap;
    t->used = 2;
    memcpy(base, "?", 2);
}

uint32_t
lw_textbuf_add(lw_textbuf *t, const char *text)
{
    size_t len = strlen(text) + 1;
    if (t->used + len > t->cap) {
        return 0;
    }
    uint32_t at = t->used;
    memcpy(t->base + at, text, len);
    t->used += (uint32_t)len;
    return at;
}

static size_t
put_utf8(char *dst, uint32_t c)
{
    if (c < 0x80) {
        dst[0] = (char)c;
        return 1;
    }
    if (c < 0x800) {
        dst[0] = (char)(0xC0 | (c >> 6));
        dst[1] = (char)(0x80 | (c & 0x3F));
        return 2;
    }
    if (c >= 0xD800 && c < 0xE000) {
        c = 0xFFFD; /* a lone surrogate has no UTF-8 */
    }
    if (c < 0x10000) {
        dst[0] = (char)(0xE0 | (c >> 12));
        dst[1] = (char)(0x80 | ((c >> 6) & 0x3F));
        dst[2] = (char)(0x80 | (c & 0x3F));
        return 3;
    }
    dst[0] = (char)(0xF0 | ((c >> 18) & 7));
    dst[1] = (char)(0x80 | ((c >> 12) & 0x3F));
    dst[2] = (char)(0x80 | ((c >> 6) & 0x3F));
    dst[3] = (char)(0x80 | (c & 0x3F));
    return 4;
}

uint32_t
lw_textbuf_str(lw_textbuf *t, uintptr_t unicode)
{
    PyASCIIObject head;
    union {
        unsigned char b1[LW_MAX_TEXT];
        uint16_t b2[LW_MAX_TEXT];
        uint32_t b4[LW_MAX_TEXT];
    } data;
    size_t slot = (unicode >> 4) % LW_TEXT_SLOTS;
    size_t len, n = 0;

    for (int i = 0; i < 4; i++, slot = (slot + 1) % LW_TEXT_SLOTS) {
        if (t->seen[slot].key == unicode) {
            return t->seen[slot].at;
        }
        if (t->seen[slot].key == 0) {
            break;
        }
    }
    if (unicode == 0 || lw_mem_read((const void *)unicode, &head, sizeof(head)) < 0
        || Py_TYPE((PyObject *)&head) != &PyUnicode_Type || !head.state.compact || head.length < 0) {
        return 0;
    }
    unsigned kind = head.state.kind;
    if (kind != 1 && kind != 2 && kind != 4) {
        return 0;
    }
    len = (size_t)head.length < LW_MAX_TEXT / 4 ? (size_t)head.length : LW_MAX_TEXT / 4;
    uintptr_t from = unicode + (head.state.ascii ? sizeof(PyASCIIObject) : sizeof(PyCompactUnicodeObject));
    size_t skip = (size_t)head.length - len; /* of a long path the end tells most */
    if (lw_mem_read((const void *)(from + skip * kind), &data, len * kind) < 0 || t->used + len * 4 + 1 > t->cap) {
        return 0;
    }
    char *dst = t->base + t->used;
    for (size_t i = 0; i < len; i++) {
        n += put_utf8(dst + n, kind == 1 ? data.b1[i] : kind == 2 ? data.b2[i] : data.b4[i]);
    }
    dst[n] = 0;
    uint32_t at = t->used;
    t->used += (uint32_t)n + 1;
    if (t->seen[slot].key == 0) {
        t->seen[slot].key = unicode;
        t->seen[slot].at = at;
    }
    return at;
}

static int
newest_frame(uintptr_t tstate, uintptr_t *frame)
{
    uintptr_t at;
    if (lw_read_ptr(tstate + lw_lay.ts_frame, &at) < 0) {
        return -1;
    }
    if (lw_lay.ts_frame_indirect) {
        return lw_read_ptr(at + lw_lay.cf_frame, frame);
    }
    *frame = at;
    return 0;
}

int
lw_walk_stack(uintptr_t tstate, lw_walk *walk)
{
    uintptr_t frame, first, first_instr = 0, again, instr_again = 0;
    unsigned char head[LW_FRAME_HEAD];
    int seen = 0;

    walk->n = walk->omitted = walk->moved = 0;
    if (newest_frame(tstate, &frame) < 0) {
        return -1;
    }
    first = frame;
    while (frame != 0 && walk->n < LW_MAX_WALK && seen++ < 2 * LW_MAX_WALK) {
        lw_rawframe *raw = &walk->raw[walk->n];
        uintptr_t code, previous;
        if (lw_mem_read((const void *)frame, head, lw_lay.fr_size) < 0) {
            walk->moved = 1;
            break;
        }
        memcpy(&code, head + lw_lay.fr_code, sizeof(code));
        memcpy(&previous, head + lw_lay.fr_previous, sizeof(previous));
        memcpy(&raw->instr, head + lw_lay.fr_instr, sizeof(raw->instr));
        raw->code = lw_untag(code);
        raw->frame = frame;
        if (frame == first) {
            first_instr = raw->instr;
        }
        if ((signed char)head[lw_lay.fr_owner] < lw_lay.fr_first_foreign_owner) {
            raw->from_c = lw_lay.fr_entry != 0 && head[lw_lay.fr_entry] != 0;
            walk->n++;
        }
        else if (walk->n > 0) {
            walk->raw[walk->n - 1].from_c = 1;
        }
        if (previous == frame) {
            walk->moved = 1;
            break;
        }
        frame = previous;
    }
    for (int i = 0; i < RECHECKS && !walk->moved; i++) { /* a short loop may be at the same place by chance */
        walk->moved =
            newest_frame(tstate, &again) < 0 || again != first
            || (first != 0 && (lw_read_ptr(first + lw_lay.fr_instr, &instr_again) < 0 || instr_again != first_instr));
    }
    walk->first = first;
    walk->first_instr = first_instr;
    if (walk->n > LW_MAX_FRAMES) {
        walk->omitted = walk->n - LW_MAX_FRAMES;
        memmove(&walk->raw[LW_KEEP_INNER], &walk->raw[walk->n - LW_KEEP_OUTER], LW_KEEP_OUTER * sizeof(walk->raw[0]));
        walk->n = LW_MAX_FRAMES;
    }
    return 0;
}

void
lw_walk_again(uintptr_t tstate, lw_walk *walk)
{
    uintptr_t frame, instr;
    if (walk->n > 0 && !walk->moved && newest_frame(tstate, &frame) == 0) {
        walk->moved =
            frame != walk->first
            || (frame != 0 && lw_read_ptr(frame + lw_lay.fr_instr, &instr) == 0 && instr != walk->first_instr);
    }
}

int
lw_decode_frame(const lw_rawframe *raw, lw_frame *out, lw_textbuf *text)
{
    static unsigned char table[MAX_LINETABLE];
    unsigned char head[LW_CODE_HEAD];
    uintptr_t type, filename, qualname, linetable;
    PyBytesObject bytes;
    int first_line;
    lw_pos pos = {0, 0, -1, -1};

    if (lw_mem_read((const void *)raw->code, head, lw_lay.co_size) < 0) {
        return -1;
    }
    memcpy(&type, head + offsetof(PyObject, ob_type), sizeof(type));
    if (type != (uintptr_t)&PyCode_Type) {
        return -1;
    }
    memcpy(&filename, head + lw_lay.co_filename, sizeof(filename));
    memcpy(&qualname, head + lw_lay.co_qualname, sizeof(qualname));
    memcpy(&linetable, head + lw_lay.co_linetable, sizeof(linetable));
    memcpy(&first_line, head + lw_lay.co_firstlineno, sizeof(first_line));
    memcpy(&out->code_flags, head + lw_lay.co_flags, sizeof(out->code_flags));
    out->marks = 0;
    out->code = raw->code;
    out->instr = out->at = raw->instr;
    out->frame = raw->frame;
    out->file = lw_textbuf_str(text, filename);
    out->name = lw_textbuf_str(text, qualname);
    intptr_t index = ((intptr_t)raw->instr - (intptr_t)(raw->code + lw_lay.co_code)) / 2;
    if (lw_mem_read((const void *)linetable, &bytes, sizeof(bytes)) == 0 && Py_TYPE((PyObject *)&bytes) == &PyBytes_Type
        && Py_SIZE((PyObject *)&bytes) > 0 && Py_SIZE((PyObject *)&bytes) <= MAX_LINETABLE && index < (1 << 28)) {
        size_t len = (size_t)Py_SIZE((PyObject *)&bytes);
        if (lw_mem_read((const void *)(linetable + offsetof(PyBytesObject, ob_sval)), table, len) == 0) {
            if (index < 0 || lw_linetable_find(table, len, first_line, (int)index, &pos) < 0) {
                pos = (lw_pos){first_line, first_line, -1, -1};
            }
        }
    }
    out->line = pos.line > 0 ? pos.line : 0;
    out->end_line = pos.end_line > 0 ? pos.end_line : 0;
    out->col = pos.col;
    out->end_col = pos.end_col;
    return 0;
}
