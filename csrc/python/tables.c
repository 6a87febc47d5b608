/* tables.c: see tables.h. */
#include "tables.h"

#include "../core/children.h"
#include "../core/fdtable.h"

#define ON_STACK 256

/* The table as bytes: a new reference. */
static PyObject *
snapshot(void)
{
    lw_fd few[ON_STACK];
    int n = lw_fdtable_read(few, ON_STACK);
    if (n < 0) {
        PyErr_SetString(PyExc_RuntimeError, "open descriptors cannot be listed: /proc/self/fd cannot be read");
        return NULL;
    }
    if (n <= ON_STACK) {
        return PyBytes_FromStringAndSize((const char *)few, n * (Py_ssize_t)sizeof(lw_fd));
    }
    for (;;) { /* other threads may open more meanwhile */
        int cap = n + 64;
        PyObject *bytes = PyBytes_FromStringAndSize(NULL, cap * (Py_ssize_t)sizeof(lw_fd));
        if (bytes == NULL) {
            return NULL;
        }
        n = lw_fdtable_read((lw_fd *)(void *)PyBytes_AS_STRING(bytes), cap);
        if (n >= 0 && n <= cap) {
            (void)_PyBytes_Resize(&bytes, n * (Py_ssize_t)sizeof(lw_fd));
            return bytes;
        }
        Py_DECREF(bytes);
        if (n < 0) {
            PyErr_SetString(PyExc_RuntimeError, "open descriptors cannot be listed: /proc/self/fd cannot be read");
            return NULL;
        }
    }
}

static PyObject *
descriptors(PyObject *Py_UNUSED(module), PyObject *Py_UNUSED(unused))
{
    return snapshot();
}

static PyObject *
descriptors_since(PyObject *Py_UNUSED(module), PyObject *arg)
{
    if (!PyBytes_Check(arg) || PyBytes_GET_SIZE(arg) % (Py_ssize_t)sizeof(lw_fd) != 0) {
        return PyErr_Format(PyExc_TypeError, "expected what descriptors() returned, got %R", arg);
    }
    PyObject *now = snapshot(), *list = now != NULL ? PyList_New(0) : NULL, *item = NULL;
    if (list == NULL) {
        goto fail;
    }
    const lw_fd *old = (const lw_fd *)(const void *)PyBytes_AS_STRING(arg);
    const lw_fd *old_end = old + PyBytes_GET_SIZE(arg) / (Py_ssize_t)sizeof(lw_fd);
    const lw_fd *here = (const lw_fd *)(const void *)PyBytes_AS_STRING(now);
    const lw_fd *end = here + PyBytes_GET_SIZE(now) / (Py_ssize_t)sizeof(lw_fd);
    for (; here < end; here++) {
        while (old < old_end && old->fd < here->fd) {
            old++;
        }
        if (old < old_end && old->fd == here->fd && old->dev == here->dev && old->ino == here->ino) {
            continue;
        }
        item = Py_BuildValue("(iIKK)", (int)here->fd, (unsigned)here->mode, (unsigned long long)here->dev,
                             (unsigned long long)here->ino);
        if (item == NULL || PyList_Append(list, item) < 0) {
            goto fail;
        }
        Py_CLEAR(item);
    }
    Py_DECREF(now);
    return list;
fail:
    Py_XDECREF(item);
    Py_XDECREF(list);
    Py_XDECREF(now);
    return NULL;
}

static PyObject *
children_mark(PyObject *Py_UNUSED(module), PyObject *Py_UNUSED(unused))
{
    lw_children_mark mark;
    lw_children_now(&mark);
    return Py_BuildValue("(iKi)", mark.any, (unsigned long long)mark.tick, (int)mark.last_pid);
}

static PyObject *
children_since(PyObject *Py_UNUSED(module), PyObject *args)
{
    unsigned long long tick;
    int any, last_pid, cap = ON_STACK, n;
    lw_child few[ON_STACK], *all = few;
    PyObject *list = NULL, *item = NULL;
    if (!PyArg_ParseTuple(args, "(iKi):children_since", &any, &tick, &last_pid)) {
        return NULL;
    }
    lw_children_mark mark = {any, tick, (pid_t)last_pid};
    if (!lw_children_any()) {
        return PyList_New(0);
    }
    for (;;) {
        n = lw_children_list(all, cap);
        if (n <= cap) {
            break;
        }
        cap = n + 64;
        lw_child *more = PyMem_Realloc(all == few ? NULL : all, (size_t)cap * sizeof(*more));
        if (more == NULL) {
            PyErr_NoMemory();
            goto fail;
        }
        all = more;
    }
    if (n < 0) {
        PyErr_SetString(PyExc_RuntimeError, "child processes cannot be listed: /proc cannot be read");
        goto fail;
    }
    list = PyList_New(0);
    for (int i = 0; list != NULL && i < n; i++) {
        if (!lw_child_is_new(&all[i], &mark)) {
            continue;
        }
        item = Py_BuildValue("(iCKN)", (int)all[i].pid, all[i].state, (unsigned long long)all[i].start,
                             PyUnicode_DecodeUTF8(all[i].comm, (Py_ssize_t)strlen(all[i].comm), "replace"));
        if (item == NULL || PyList_Append(list, item) < 0) {
            Py_CLEAR(list);
        }
        Py_CLEAR(item);
    }
fail:
    if (all != few) {
        PyMem_Free(all);
    }
    return list;
}

static PyMethodDef functions[] = {
    {"descriptors", descriptors, METH_NOARGS, "descriptors() -> bytes: a snapshot"},
    {"descriptors_since", descriptors_since, METH_O, "descriptors_since(snapshot) -> list[(fd, mode, dev, ino)]"},
    {"children_mark", children_mark, METH_NOARGS, "children_mark() -> tuple: a moment"},
    {"children_since", children_since, METH_VARARGS, "children_since(mark) -> list[(pid, state, start, comm)]"},
    {NULL, NULL, 0, NULL},
};

int
lw_tables_init(PyObject *module)
{
    return PyModule_AddFunctions(module, functions);
}
