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

void
lw_callback_where(const lw_walk *walk, lw_callback *out)
{
    memset(out, 0, sizeof(*out));
    out->index = out->total = -1;
    if (lw_alay.run_once_code == 0) {
        return;
    }
    for (int i = 0; i < walk->n; i++) {
        if (walk->raw[i].code != lw_alay.run_once_code) {
            continue;
        }
        uintptr_t frame = walk->raw[i].frame, ref;
        long total = read_int_local(frame, lw_alay.local_ntodo);
        long index = read_int_local(frame, lw_alay.local_i);
        if (total < 0 || index < 0 || index >= total) {
            return; /* not in the loop over callbacks */
        }
        out->total = (int)total;
        out->index = (int)index;
        if (lw_alay.local_handle >= 0
            && lw_read_ptr(frame + lw_lay.fr_locals + (size_t)lw_alay.local_handle * sizeof(void *), &ref) == 0) {
            out->handle = lw_untag(ref);
        }
        return;
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

static int
type_name_ends(uintptr_t type, const char *suffix)
{
    uintptr_t at;
    char name[64] = {0};
    size_t want = strlen(suffix);
    if (lw_read_ptr(type + offsetof(PyTypeObject, tp_name), &at) < 0) {
        return 0;
    }
    for (size_t i = 0; i + 8 <= sizeof(name); i += 8) { /* by words: a name may end at a page's end */
        if (lw_mem_read((const void *)(at + i), name + i, 8) < 0 || memchr(name + i, 0, 8) != NULL) {
            break;
        }
    }
    name[sizeof(name) - 1] = 0;
    size_t len = strlen(name);
    return len >= want && strcmp(name + len - want, suffix) == 0;
}

static void
name_task(uintptr_t task, lw_callback *out, lw_textbuf *text)
{
    uintptr_t name, coro, qualname;
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
    if (lw_alay.task_coro != 0 && lw_alay.coro_qualname != 0 && lw_read_ptr(task + lw_alay.task_coro, &coro) == 0
        && type_of(coro) == (uintptr_t)&PyCoro_Type && lw_read_ptr(coro + lw_alay.coro_qualname, &qualname) == 0) {
        out->callback = lw_textbuf_str(text, qualname);
    }
}

void
lw_callback_names(lw_callback *out, lw_textbuf *text)
{
    uintptr_t callback, next, type;

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
            if (lw_read_ptr(callback + offsetof(PyCFunctionObject, m_self), &next) == 0 && next != 0
                && type_of(next) == lw_alay.task_type) {
                name_task(next, out, text);
            }
            return;
        }
        else if (type_name_ends(type, "TaskStepMethWrapper") || type_name_ends(type, "TaskWakeupMethWrapper")) {
            if (lw_read_ptr(callback + sizeof(PyObject), &next) == 0 && type_of(next) == lw_alay.task_type) {
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
