/* linknames.c: see linknames.h. */
#include "linknames.h"

#include "../core/saferead.h"
#include "links.h"
#include "ownstack.h"
#include "layout.h"

static PyObject *
link_of(const char *kind, PyObject *name)
{
    return Py_BuildValue("(sOO)", kind, name ? name : Py_None, Py_None);
}

static PyObject *
link_named(const char *kind, const char *name)
{
    return Py_BuildValue("(ssO)", kind, name, Py_None);
}

static PyObject *
link_at(const char *kind, Py_ssize_t index)
{
    return Py_BuildValue("(snO)", kind, index, Py_None);
}

PyObject *
lw_frame_variable_name(uintptr_t frame, PyCodeObject *code, PyObject *to)
{
    for (int i = 0; i < code->co_nlocalsplus; i++) {
        uintptr_t slot = 0;
        if (lw_mem_read((const void *)(frame + lw_lay.fr_locals + (size_t)i * sizeof(slot)), &slot, sizeof(slot)) == 0
            && (PyObject *)lw_untag(slot) == to) {
            return PyTuple_GET_ITEM(code->co_localsplusnames, i);
        }
    }
    return NULL;
}

PyObject *
lw_frame_place(uintptr_t frame, PyCodeObject *code)
{
    uintptr_t instr = 0;
    (void)lw_mem_read((const void *)(frame + lw_lay.fr_instr), &instr, sizeof(instr));
    intptr_t offset = (intptr_t)(instr - (uintptr_t)code - lw_lay.co_code);
    return lw_code_frame(code, offset < 0 || offset > INT_MAX ? -1 : (int)offset);
}

static PyObject *
by_frame(uintptr_t frame, PyObject *to)
{
    PyObject *code = (PyObject *)lw_untag(*(uintptr_t *)(frame + lw_lay.fr_code)), *place = NULL, *name = NULL;
    if (!PyCode_Check(code)) {
        return NULL;
    }
    name = lw_frame_variable_name(frame, (PyCodeObject *)code, to);
    place = lw_frame_place(frame, (PyCodeObject *)code);
    const char *kind = name != NULL ? "local"
                       : lw_is_frame_owner(to) || PyObject_TypeCheck(to, (PyTypeObject *)lw_alay.task_type)
                               || Py_TYPE(to)->tp_as_async != NULL
                           ? "await"
                       : PyFunction_Check(to) ? "function"
                                              : "stack";
    return place == NULL ? NULL : Py_BuildValue("(sON)", kind, name ? name : Py_None, place);
}

static PyObject *
by_dict(PyObject *dict, PyObject *to, const char *kind)
{
    PyObject *key, *value;
    Py_ssize_t at = 0;
    while (PyDict_Next(dict, &at, &key, &value)) {
        if (value == to) {
            return link_of(kind, key);
        }
    }
    at = 0;
    while (PyDict_Next(dict, &at, &key, &value)) {
        if (key == to) {
            return link_named("as_key", NULL);
        }
    }
    return NULL;
}

static PyObject *
by_sequence(PyObject *from, PyObject *to)
{
    if (PyList_Check(from) || PyTuple_Check(from)) {
        for (Py_ssize_t i = 0; i < Py_SIZE(from); i++) {
            PyObject *item = PyList_Check(from) ? PyList_GET_ITEM(from, i) : PyTuple_GET_ITEM(from, i);
            if (item == to) {
                return link_at("index", i);
            }
        }
    }
    else if (strcmp(Py_TYPE(from)->tp_name, "collections.deque") == 0) {
        Py_ssize_t length = PySequence_Size(from);
        for (Py_ssize_t i = 0; i < length; i++) {
            PyObject *item = PySequence_GetItem(from, i);
            Py_XDECREF(item); /* the deque holds it */
            if (item == to) {
                return link_at("index", i);
            }
        }
    }
    return NULL;
}

static PyObject *
by_member(PyObject *from, PyObject *to)
{
    for (PyTypeObject *type = Py_TYPE(from); type != NULL; type = type->tp_base) {
        for (PyMemberDef *m = type->tp_members; m != NULL && m->name != NULL; m++) {
            if ((m->type == T_OBJECT || m->type == T_OBJECT_EX) && *(PyObject **)((char *)from + m->offset) == to) {
                return link_named("attribute", m->name);
            }
        }
    }
    return NULL;
}

static PyObject *
by_future(PyObject *from, PyObject *to)
{
    static const char *const names[] = {"_coro", "_fut_waiter", "_result", "_exception", "_loop", "_cancel_message"};
    for (size_t i = 0; i < sizeof(names) / sizeof(names[0]); i++) {
        PyObject *descr = lw_type_lookup(Py_TYPE(from), names[i]), *value = NULL;
        if (descr != NULL && Py_IS_TYPE(descr, &PyGetSetDescr_Type)
            && strncmp(PyDescr_TYPE(descr)->tp_name, "_asyncio.", 9) == 0) {
            PyGetSetDef *get = ((PyGetSetDescrObject *)descr)->d_getset;
            value = get->get(from, get->closure);
            Py_XDECREF(value); /* the future holds it */
        }
        PyErr_Clear();
        if (value == to) {
            return link_named("attribute", names[i]);
        }
    }
    return PyContext_CheckExact(to) ? link_named("attribute", "its context") : link_named("callback", NULL);
}

/* Of what the interpreter makes itself. */
static PyObject *
by_kind(PyObject *from, PyObject *to)
{
    if (PyAnySet_Check(from)) {
        return link_named("element", NULL);
    }
    if (PyCell_Check(from)) {
        return link_named("cell", NULL);
    }
    if (PyFunction_Check(from)) {
        PyFunctionObject *f = (PyFunctionObject *)from;
        return f->func_closure == to       ? link_named("attribute", "__closure__")
               : f->func_globals == to     ? link_named("attribute", "__globals__")
               : f->func_defaults == to    ? link_named("attribute", "__defaults__")
               : f->func_kwdefaults == to  ? link_named("attribute", "__kwdefaults__")
               : f->func_annotations == to ? link_named("attribute", "__annotations__")
               : f->func_dict == to        ? link_named("attribute", "__dict__")
                                           : NULL;
    }
    if (PyTraceBack_Check(from)) {
        return link_named("attribute",
                          (PyObject *)((PyTracebackObject *)from)->tb_frame == to ? "tb_frame" : "tb_next");
    }
    if (PyFrame_Check(from)) {
        uintptr_t frame = lw_frame_of_object(from);
        PyCodeObject *code = PyFrame_GetCode((PyFrameObject *)from);
        PyObject *found =
            lw_untag(*(uintptr_t *)(frame + lw_lay.fr_code)) == (uintptr_t)code ? by_frame(frame, to) : NULL;
        Py_DECREF(code); /* the frame holds it */
        return PyFrame_Check(to) ? (Py_XDECREF(found), link_named("attribute", "f_back")) : found;
    }
    if (lw_is_frame_owner(from)) {
        return by_frame((uintptr_t)from + lw_lay.gen_frame, to);
    }
    if (PyExceptionInstance_Check(from)) {
        PyBaseExceptionObject *e = (PyBaseExceptionObject *)from;
        const char *name = e->args == to        ? "args"
                           : e->traceback == to ? "__traceback__"
                           : e->cause == to     ? "__cause__"
                           : e->context == to   ? "__context__"
                                                : NULL;
        return name == NULL ? NULL : link_named("attribute", name);
    }
    if (PyCFunction_Check(from)) {
        return link_named("attribute", "__self__");
    }
    if (PyWeakref_Check(from)) {
        return link_named("attribute", "__callback__");
    }
    return NULL;
}

static PyObject *
by_attributes(PyObject *from, PyObject *to)
{
    PyTypeObject *type = Py_TYPE(from);
    PyObject *dict = NULL, *found = NULL;
    if (PyModule_Check(from)) {
        dict = Py_XNewRef(PyModule_GetDict(from));
    }
    else if (PyType_Check(from)) {
        dict = Py_XNewRef(((PyTypeObject *)from)->tp_dict);
        if (to == ((PyTypeObject *)from)->tp_mro) {
            found = link_named("attribute", "__mro__");
        }
        else if (to == ((PyTypeObject *)from)->tp_bases) {
            found = link_named("attribute", "__bases__");
        }
    }
    else if (type->tp_dictoffset != 0 || lw_has_managed_dict(type)) {
        dict = PyObject_GenericGetDict(from, NULL);
    }
    PyErr_Clear();
    if (found == NULL && dict != NULL && PyDict_Check(dict)) {
        found = dict == to ? link_named("attribute", "__dict__") : by_dict(dict, to, "attribute");
    }
    Py_XDECREF(dict);
    return found;
}

PyObject *
lw_link_name(PyObject *from, PyObject *to)
{
    PyObject *found = NULL;
    if (to == (PyObject *)Py_TYPE(from)) {
        return link_named("class", NULL);
    }
    if (PyDict_Check(from)) {
        found = by_dict(from, to, "key");
    }
    if (found == NULL && !PyErr_Occurred()) {
        found = by_sequence(from, to);
    }
    if (found == NULL && !PyErr_Occurred()) {
        found = by_kind(from, to);
    }
    if (found == NULL && !PyErr_Occurred()) {
        found = by_member(from, to);
    }
    if (found == NULL && !PyErr_Occurred()) {
        found = by_attributes(from, to);
    }
    if (found == NULL && !PyErr_Occurred() && lw_type_lookup(Py_TYPE(from), "_asyncio_future_blocking") != NULL) {
        found = by_future(from, to);
    }
    return found == NULL && !PyErr_Occurred() ? link_named("c", NULL) : found;
}
