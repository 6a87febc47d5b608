/* taskname.c: see taskname.h.  Offsets come from layout.h. */
#include "taskname.h"

#include "../core/saferead.h"
#include "layout.h"

static long
read_int_local(uintptr_t frame, int slot)
{
    uintptr_t ref;
    PyLongObject copy;
    if (slot < 0 || lw_read_ptr(frame + lw_lay.fr_locals + (size_t)slot * sizeof(void *), &ref) < 0 || ref == 0
        || lw_mem_read((const void *)lw_untag(ref), &copy, sizeof(copy)) < 0
        || Py_TYPE((PyObject *)&copy) != &PyLong_Type) {
        return -1;
    }
    return lw_small_int(&copy);
}

/* The task that asyncio says runs in LOOP, or 0. */
static uintptr_t
running_task(uintptr_t tstate, uintptr_t loop)
{
    struct {
        uintptr_t hash, key, value;
    } entries[32];
    uintptr_t keys, task = 0;
    uint8_t index_bits;
    Py_ssize_t count;

    if (lw_alay.ts_task != 0) {
        uintptr_t at_hand = 0;
        (void)lw_read_ptr(tstate + lw_alay.ts_task - sizeof(loop), &at_hand);
        return at_hand == loop && lw_read_ptr(tstate + lw_alay.ts_task, &task) == 0 ? task : 0;
    }
    if (lw_alay.current_tasks == 0 || lw_read_ptr(lw_alay.current_tasks + offsetof(PyDictObject, ma_keys), &keys) < 0
        || lw_mem_read((const void *)(keys + lw_lay.dk_index_bits), &index_bits, sizeof(index_bits)) < 0
        || lw_mem_read((const void *)(keys + lw_lay.dk_count), &count, sizeof(count)) < 0 || index_bits > 24) {
        return 0;
    }
    uintptr_t at = keys + lw_lay.dk_entries + ((uintptr_t)1 << index_bits);
    for (Py_ssize_t i = 0; i < count && i < 4096; i += 32) {
        size_t n = (size_t)(count - i < 32 ? count - i : 32);
        if (lw_mem_read((const void *)(at + (size_t)i * sizeof(entries[0])), entries, n * sizeof(entries[0])) < 0) {
            return 0;
        }
        for (size_t j = 0; j < n; j++) {
            if (entries[j].key == loop) {
                task = entries[j].value != 0 ? entries[j].value : task;
            }
        }
    }
    return task;
}

static uintptr_t
read_local(uintptr_t frame, int slot)
{
    uintptr_t ref = 0;
    if (slot >= 0) {
        (void)lw_read_ptr(frame + lw_lay.fr_locals + (size_t)slot * sizeof(void *), &ref);
    }
    return lw_untag(ref);
}

static void
where_in_run_once(uintptr_t frame, lw_callback *out)
{
    long total = read_int_local(frame, lw_alay.local_ntodo);
    long index = read_int_local(frame, lw_alay.local_i);
    if (total < 0 || index < 0 || index >= total) {
        return; /* not in the loop over callbacks */
    }
    out->total = (int)total;
    out->index = (int)index;
    out->handle = read_local(frame, lw_alay.local_handle);
}

void
lw_callback_where(const lw_walk *walk, uintptr_t tstate, uintptr_t loop, lw_callback *out)
{
    memset(out, 0, sizeof(*out));
    out->index = out->total = -1;
    for (int i = 0; i < walk->n; i++) {
        uintptr_t code = walk->raw[i].code;
        if (code != 0 && code == lw_alay.run_once_code) {
            where_in_run_once(walk->raw[i].frame, out);
            return;
        }
        if (code != 0 && code == lw_alay.trio_code) {
            out->named = LW_BY_TRIO_TASK;
            out->handle = read_local(walk->raw[i].frame, lw_alay.trio_task);
            return;
        }
    }
    if (loop != 0) {
        out->named = LW_BY_TASK;
        out->handle = running_task(tstate, loop);
    }
}

static uintptr_t
type_of(uintptr_t object)
{
    uintptr_t type = 0;
    if (object == 0 || lw_read_ptr(object + offsetof(PyObject, ob_type), &type) < 0) {
        return 0;
    }
    return type;
}

/* Whether a type is asyncio's C Task, or made from it. */
static int
is_task_type(uintptr_t type)
{
    for (int hops = 0; type != 0 && hops < 8; hops++) {
        if (type == lw_alay.task_type) {
            return 1;
        }
        if (lw_read_ptr(type + offsetof(PyTypeObject, tp_base), &type) < 0) {
            return 0;
        }
    }
    return 0;
}

#define NAME 64

/* The C string that stands AT a place: its beginning, if it is long or its end cannot be read. */
static void
read_name(uintptr_t at, char name[NAME])
{
    memset(name, 0, NAME);
    for (size_t i = 0; i + 8 <= NAME; i += 8) { /* by words: a name may end at a page's end */
        if (lw_mem_read((const void *)(at + i), name + i, 8) < 0 || memchr(name + i, 0, 8) != NULL) {
            break;
        }
    }
    name[NAME - 1] = 0;
}

static int
type_name_ends(uintptr_t type, const char *suffix)
{
    uintptr_t at;
    char name[NAME];
    size_t want = strlen(suffix);
    if (lw_read_ptr(type + offsetof(PyTypeObject, tp_name), &at) < 0) {
        return 0;
    }
    read_name(at, name);
    size_t len = strlen(name);
    return len >= want && strcmp(name + len - want, suffix) == 0;
}

/* The qualified name of the coroutine that a task keeps at OFFSET. */
static void
name_coroutine(uintptr_t task, size_t offset, lw_callback *out, lw_textbuf *text)
{
    uintptr_t coro, qualname;
    if (offset != 0 && lw_alay.coro_qualname != 0 && lw_read_ptr(task + offset, &coro) == 0
        && type_of(coro) == (uintptr_t)&PyCoro_Type && lw_read_ptr(coro + lw_alay.coro_qualname, &qualname) == 0) {
        out->callback = lw_textbuf_str(text, qualname);
    }
}

static void
name_task(uintptr_t task, lw_callback *out, lw_textbuf *text)
{
    uintptr_t name;
    PyLongObject number;
    char buf[32];

    if (lw_alay.task_name != 0 && lw_read_ptr(task + lw_alay.task_name, &name) == 0 && name != 0) {
        if (type_of(name) == (uintptr_t)&PyLong_Type) { /* 3.12 +: "Task-N" is made when asked for */
            if (lw_mem_read((const void *)name, &number, sizeof(number)) == 0 && lw_small_int(&number) >= 0) {
                snprintf(buf, sizeof(buf), "Task-%ld", lw_small_int(&number));
                out->task = lw_textbuf_add(text, buf);
            }
        }
        else {
            out->task = lw_textbuf_str(text, name);
        }
    }
    name_coroutine(task, lw_alay.task_coro, out, text);
}

static void
name_trio_task(uintptr_t task, lw_callback *out, lw_textbuf *text)
{
    uintptr_t name;
    if (lw_alay.trio_name != 0 && lw_read_ptr(task + lw_alay.trio_name, &name) == 0) {
        out->task = lw_textbuf_str(text, name);
        name_coroutine(task, lw_alay.trio_coro, out, text);
    }
}

/* A C function: by its name, and its module's or the type's of the object that it is a method of. */
static void
name_c_function(uintptr_t function, uintptr_t bound, lw_callback *out, lw_textbuf *text)
{
    uintptr_t method, at, type = type_of(bound);
    unsigned long flags = 0;
    char name[NAME], owner[NAME] = "";
    if (lw_read_ptr(function + offsetof(PyCFunctionObject, m_ml), &method) < 0
        || lw_read_ptr(method + offsetof(PyMethodDef, ml_name), &at) < 0) {
        return;
    }
    read_name(at, name);
    if (type == (uintptr_t)&PyModule_Type || type == 0) {
        uint32_t module = 0;
        if (lw_read_ptr(function + offsetof(PyCFunctionObject, m_module), &at) == 0 && at != 0) {
            module = lw_textbuf_str(text, at);
        }
        snprintf(owner, sizeof(owner), "%s", module ? text->base + module : "");
    }
    else if (lw_mem_read((const void *)(type + offsetof(PyTypeObject, tp_flags)), &flags, sizeof(flags)) == 0
             && lw_read_ptr((flags & Py_TPFLAGS_TYPE_SUBCLASS ? bound : type) + offsetof(PyTypeObject, tp_name), &at)
                    == 0) {
        read_name(at, owner); /* of a type's own method, such as dict.fromkeys, that type's */
    }
    char whole[2 * NAME];
    snprintf(whole, sizeof(whole), "%s%s%s", owner, owner[0] ? "." : "", name);
    for (char *c = whole; *c != 0; c++) {
        if (*c < ' ' || *c > '~') {
            return; /* not what it seemed to be */
        }
    }
    out->callback = name[0] ? lw_textbuf_add(text, whole) : 0;
    out->is_c = out->callback != 0;
}

void
lw_callback_names(lw_callback *out, lw_textbuf *text)
{
    uintptr_t callback, next, type;

    if (out->named != LW_BY_HANDLE) {
        if (out->named == LW_BY_TRIO_TASK) {
            name_trio_task(out->handle, out, text);
        }
        else if (is_task_type(type_of(out->handle))) {
            name_task(out->handle, out, text);
        }
        return;
    }
    if (out->handle == 0 || lw_alay.handle_callback == 0
        || lw_read_ptr(out->handle + lw_alay.handle_callback, &callback) < 0) {
        return;
    }
    for (int hops = 0; hops < 4; hops++) { /* through partial(partial(…)) and bound methods */
        type = type_of(callback);
        if (type == 0) {
            return;
        }
        if (type == (uintptr_t)&PyFunction_Type) {
            if (lw_read_ptr(callback + offsetof(PyFunctionObject, func_qualname), &next) == 0) {
                out->callback = lw_textbuf_str(text, next);
            }
            return;
        }
        if (type == (uintptr_t)&PyMethod_Type) {
            if (lw_read_ptr(callback + offsetof(PyMethodObject, im_func), &next) < 0) {
                return;
            }
        }
        else if (type == (uintptr_t)&PyCFunction_Type) {
            if (lw_read_ptr(callback + offsetof(PyCFunctionObject, m_self), &next) < 0) {
                return;
            }
            if (next != 0 && is_task_type(type_of(next))) {
                name_task(next, out, text);
            }
            else {
                name_c_function(callback, next, out, text);
            }
            return;
        }
        else if (type_name_ends(type, "TaskStepMethWrapper") || type_name_ends(type, "TaskWakeupMethWrapper")) {
            if (lw_read_ptr(callback + sizeof(PyObject), &next) == 0 && is_task_type(type_of(next))) {
                name_task(next, out, text);
            }
            return;
        }
        else if (type_name_ends(type, "partial")) {
            if (lw_read_ptr(callback + sizeof(PyObject), &next) < 0) {
                return;
            }
        }
        else {
            return;
        }
        callback = next;
    }
}
