/* createtask.c: see createtask.h. */
#include "createtask.h"

#include "layout.h"

typedef struct {
    PyObject_HEAD vectorcallfunc call;
    PyObject *loop;     /* owned */
    lw_task_loop *home; /* owned while it stands there, else NULL */
    PyObject *keywords; /* owned, or NULL: {"loop": loop} */
    PyObject *args;     /* owned, or NULL: a tuple for one argument, not tracked, that nobody else has */
    lw_inline_attr factory; /* where the loop keeps its task factory; at NULL: not known */
    PyTypeObject *type; /* borrowed: the loop's, as it was last looked at */
    unsigned int tag;/* its version then; 0: not looked at */
    int plain;          /* what was found */
} create_task;

static PyTypeObject *create_task_type;
static PyObject *tasks_dict, *base_loop; /* owned: of asyncio.tasks; BaseEventLoop */
static PyObject *task_str, *create_str, *closed_str, *factory_str, *name_str, *context_str;
static PyObject *loop_names, *loop_name, *loop_context, *loop_name_context, *loop_context_name; /* owned */
static PyObject *own[2]; /* owned: asyncio's create_task() and _check_closed(); NULL: they are not its own */
static const char *const own_names[] = {"create_task", "_check_closed"};

/* ---- making ---- */

static int dict_is_watched;
static PyObject *known_class; /* owned, or NULL: asyncio.tasks.Task, until the module's dict changes */

#ifdef LW_DICT_EVENT
static int
on_change(LW_DICT_EVENT event, PyObject *dict, PyObject *key, PyObject *value)
{
    Py_CLEAR(known_class);
    return 0;
}
#endif

/* asyncio.tasks.Task as it is now: asyncio looks it up for each task.  Borrowed, or NULL. */
static inline PyObject *
task_class(void)
{
    if (known_class != NULL) {
        return known_class;
    }
    PyObject *found = PyDict_GetItemWithError(tasks_dict, task_str);
    known_class = dict_is_watched ? Py_XNewRef(found) : NULL;
    return found;
}

/* The names of "loop" and of these keywords; an owned reference. */
static PyObject *
all_names(PyObject *kwnames)
{
    Py_ssize_t n = kwnames ? PyTuple_GET_SIZE(kwnames) : 0;
    PyObject *first = n > 0 ? PyTuple_GET_ITEM(kwnames, 0) : NULL,
             *second = n > 1 ? PyTuple_GET_ITEM(kwnames, 1) : NULL;
    if (n == 0) {
        return Py_NewRef(loop_names);
    }
    if (n == 1 && first == name_str) {
        return Py_NewRef(loop_name);
    }
    if (n == 1 && first == context_str) {
        return Py_NewRef(loop_context);
    }
    if (n == 2 && first == name_str && second == context_str) {
        return Py_NewRef(loop_name_context);
    }
    if (n == 2 && first == context_str && second == name_str) {
        return Py_NewRef(loop_context_name);
    }
    return PySequence_Concat(loop_names, kwnames);
}

PyObject *
lw_task_make(PyObject *loop, PyObject *coro, PyObject *const *values, PyObject *kwnames)
{
    Py_ssize_t nkw = kwnames ? PyTuple_GET_SIZE(kwnames) : 0;
    PyObject *type = task_class();
    PyObject *small[9], **args = small, *names = NULL, *task = NULL;

    if (type == NULL) {
        return PyErr_Occurred() ? NULL : PyErr_Format(PyExc_RuntimeError, "asyncio.tasks has no Task");
    }
    Py_INCREF(type);
    names = all_names(kwnames);
    if (names == NULL) {
        goto done;
    }
    if (nkw + 3 > (Py_ssize_t)(sizeof(small) / sizeof(small[0]))) {
        args = PyMem_New(PyObject *, (size_t)nkw + 3);
        if (args == NULL) {
            args = small;
            PyErr_NoMemory();
            goto done;
        }
    }
    args[1] = coro;
    args[2] = loop;
    for (Py_ssize_t i = 0; i < nkw; i++) {
        args[3 + i] = values[i];
    }
    task = PyObject_Vectorcall(type, args + 1, 1 | PY_VECTORCALL_ARGUMENTS_OFFSET, names);
done:
    if (args != small) {
        PyMem_Free(args);
    }
    Py_XDECREF(names);
    Py_DECREF(type);
    return task;
}

/* ---- the callable ---- */

static int
look_at_class(create_task *self, PyTypeObject *type)
{
    self->plain = 1;
    for (int i = 0; i < 2; i++) {
        PyObject *method = own[i] ? PyObject_GetAttrString((PyObject *)type, own_names[i]) : NULL;
        PyErr_Clear();
        self->plain &= method != NULL && method == own[i];
        Py_XDECREF(method);
    }
    self->type = type;
    self->tag = type->tp_version_tag;
    return self->plain;
}

/* Whether the loop's class still has asyncio's own methods. */
static inline int
is_plain(create_task *self)
{
    PyTypeObject *type = Py_TYPE(self->loop);
    int seen = type == self->type && type->tp_version_tag == self->tag && self->tag != 0;
    return seen ? self->plain : look_at_class(self, type);
}

static inline int
attr_is(PyObject *obj, PyObject *name, PyObject *wanted)
{
    PyObject *value = PyObject_GetAttr(obj, name);
    if (value == NULL) {
        PyErr_Clear();
        return 0;
    }
    Py_DECREF(value);
    return value == wanted;
}

/* Whether the loop, as it is now, makes its tasks by Task() and nothing else; one that runs is open. */
static int
is_direct(create_task *self)
{
    lw_task_loop *home = self->home;
    if (home == NULL || home->trackers == 0 || home->below != NULL || !is_plain(self)) {
        return 0;
    }
    if (!lw_loop_runs_here(self->loop) && !attr_is(self->loop, closed_str, Py_False)) {
        return 0;
    }
    if (self->factory.at != NULL && *self->factory.valid == 1) {
        return *self->factory.at == (PyObject *)home;
    }
    return attr_is(self->loop, factory_str, home->installed ? (PyObject *)home : Py_None);
}

static int
known_keywords(PyObject *kwnames)
{
    for (Py_ssize_t i = 0, n = kwnames ? PyTuple_GET_SIZE(kwnames) : 0; i < n; i++) {
        PyObject *name = PyTuple_GET_ITEM(kwnames, i);
        if (name != name_str && name != context_str) {
            return 0;
        }
    }
    return 1;
}

/* The loop's own method, as if we were not there. */
static PyObject *
bound(create_task *self)
{
    PyObject *method = PyObject_GetAttr((PyObject *)Py_TYPE(self->loop), create_str), *result = NULL;
    if (method != NULL) {
        descrgetfunc get = Py_TYPE(method)->tp_descr_get;
        result = get ? get(method, self->loop, (PyObject *)Py_TYPE(self->loop)) : Py_NewRef(method);
    }
    Py_XDECREF(method);
    return result;
}

/* The same as lw_task_make() for asyncio's own Task and no keywords, which needs no new dict and no new tuple. */
static PyObject *
make_plain(create_task *self, PyObject *coro)
{
    PyObject *type = task_class(), *keywords = self->keywords, *args = self->args; /* borrowed; ours now, both */
    PyObject *task = NULL;
    if (type == NULL || (uintptr_t)type != lw_alay.task_type || !Py_IS_TYPE(type, &PyType_Type)) {
        return lw_task_make(self->loop, coro, NULL, NULL);
    }
    self->keywords = self->args = NULL;
    if (keywords == NULL) {
        keywords = PyDict_New();
        if (keywords == NULL || PyDict_SetItemString(keywords, "loop", self->loop) < 0) {
            goto done;
        }
    }
    if (args != NULL) {
        PyTuple_SET_ITEM(args, 0, Py_NewRef(coro));
    }
    else {
        args = PyTuple_Pack(1, coro);
        if (args == NULL) {
            goto done;
        }
        PyObject_GC_UnTrack(args); /* nobody may come upon it with a hole in it */
    }
    task = ((PyTypeObject *)type)->tp_new((PyTypeObject *)type, args, keywords); /* what calling the class does */
    if (task != NULL && PyObject_TypeCheck(task, (PyTypeObject *)type)
        && Py_TYPE(task)->tp_init(task, args, keywords) < 0) {
        Py_CLEAR(task);
    }
    if (Py_REFCNT(args) == 1 && self->args == NULL) {
        PyTuple_SET_ITEM(args, 0, NULL);
        Py_DECREF(coro);
        self->args = args;
        args = NULL;
    }
    if (task != NULL && self->keywords == NULL && Py_REFCNT(keywords) == 1) {
        self->keywords = keywords;
        keywords = NULL;
    }
done:
    Py_XDECREF(args);
    Py_XDECREF(keywords);
    return task;
}

static PyObject *
call_create_task(PyObject *callable, PyObject *const *args, size_t nargsf, PyObject *kwnames)
{
    create_task *self = (create_task *)callable;
    PyObject *task = NULL;

    if (PyVectorcall_NARGS(nargsf) != 1 || !known_keywords(kwnames) || !is_direct(self)) {
        PyObject *method = bound(self);
        if (method != NULL) {
            task = PyObject_Vectorcall(method, args, nargsf & ~PY_VECTORCALL_ARGUMENTS_OFFSET, kwnames);
            Py_DECREF(method);
        }
        return task;
    }
    lw_task_loop *home = (lw_task_loop *)Py_NewRef(self->home);
    uint64_t seq = lw_tasks_next_seq();
    task = kwnames == NULL ? make_plain(self, args[0]) : lw_task_make(self->loop, args[0], args + 1, kwnames);
    if (task != NULL && home->trackers > 0 && (lw_task_is_unreferenced(task) || lw_task_record_of(task) == NULL)) {
        (void)lw_task_record_new(home, task, seq, 0);
    }
    Py_DECREF(home);
    return task;
}

/* ---- coming and going ---- */

PyObject *
lw_createtask_install(lw_task_loop *home)
{
    PyObject *now = NULL, *loop = home->loop;
    create_task *self = NULL;
    if (!PyObject_TypeCheck(loop, (PyTypeObject *)base_loop)) {
        return NULL;
    }
    self = PyObject_GC_New(create_task, create_task_type);
    if (self == NULL) {
        goto fail;
    }
    memset((char *)self + sizeof(PyObject), 0, sizeof(*self) - sizeof(PyObject));
    self->call = call_create_task;
    self->loop = Py_NewRef(loop);
    PyObject_GC_Track(self);
    if (!is_plain(self)) {
        goto fail;
    }
    now = PyObject_GetAttr(loop, create_str);
    if (now == NULL || !PyMethod_Check(now) || PyMethod_GET_FUNCTION(now) != own[0] || PyMethod_GET_SELF(now) != loop
        || PyObject_SetAttr(loop, create_str, (PyObject *)self) < 0) {
        goto fail;
    }
    self->home = (lw_task_loop *)Py_NewRef(home);
    if (!home->installed || !attr_is(loop, factory_str, (PyObject *)home)
        || !lw_find_inline_attr(loop, factory_str, (PyObject *)home, &self->factory)) {
        self->factory.at = NULL;
    }
    Py_DECREF(now);
    return (PyObject *)self;
fail:
    PyErr_Clear();
    Py_XDECREF(now);
    Py_XDECREF(self);
    return NULL;
}

void
lw_createtask_remove(PyObject *installed)
{
    create_task *self = (create_task *)installed;
    if (attr_is(self->loop, create_str, installed)) {
        (void)PyObject_DelAttr(self->loop, create_str);
        PyErr_Clear();
    }
    Py_CLEAR(self->home);
}

/* ---- the type ---- */

static int
create_task_traverse(PyObject *op, visitproc visit, void *arg)
{
    create_task *self = (create_task *)op;
    Py_VISIT(Py_TYPE(op));
    Py_VISIT(self->loop);
    Py_VISIT(self->home);
    Py_VISIT(self->keywords);
    return 0;
}

static void
create_task_dealloc(PyObject *op)
{
    create_task *self = (create_task *)op;
    PyTypeObject *type = Py_TYPE(op);
    PyObject_GC_UnTrack(op);
    Py_CLEAR(self->home);
    Py_CLEAR(self->keywords);
    Py_CLEAR(self->args);
    Py_CLEAR(self->loop);
    PyObject_GC_Del(op);
    Py_DECREF(type);
}

static PyObject *
create_task_getattro(PyObject *op, PyObject *name)
{
    PyObject *value = PyObject_GenericGetAttr(op, name), *method;
    if (value == NULL && PyErr_ExceptionMatches(PyExc_AttributeError)) {
        PyErr_Clear();
        method = bound((create_task *)op);
        value = method ? PyObject_GetAttr(method, name) : NULL;
        Py_XDECREF(method);
    }
    return value;
}

static PyObject *
create_task_wrapped(PyObject *op, void *Py_UNUSED(unused))
{
    return bound((create_task *)op);
}

static PyGetSetDef getset[] = {
    {"__wrapped__", create_task_wrapped, NULL, NULL, NULL}, /* for inspect.signature() */
    {NULL},
};

static PyMemberDef members[] = {
    {"__vectorcalloffset__", T_PYSSIZET, offsetof(create_task, call), READONLY, NULL},
    {NULL},
};

static PyType_Slot slots[] = {
    {Py_tp_dealloc, create_task_dealloc},
    {Py_tp_traverse, create_task_traverse},
    {Py_tp_getset, getset},
    {Py_tp_getattro, create_task_getattro},
    {Py_tp_members, members},
    {Py_tp_call, PyVectorcall_Call},
    {0, NULL},
};
static PyType_Spec spec = {
    "loopwatch._core.CreateTask",
    sizeof(create_task),
    0,
    Py_TPFLAGS_DEFAULT | Py_TPFLAGS_HAVE_GC | Py_TPFLAGS_HAVE_VECTORCALL | Py_TPFLAGS_DISALLOW_INSTANTIATION,
    slots,
};

/* asyncio's own methods, unless somebody replaced them before we came. */
static void
find_own(void)
{
    PyObject *end = PyUnicode_FromString("/asyncio/base_events.py");
    for (int i = 0; i < 2 && end != NULL; i++) {
        PyObject *method = PyObject_GetAttrString(base_loop, own_names[i]);
        PyErr_Clear();
        if (method != NULL && PyFunction_Check(method)) {
            PyCodeObject *code = (PyCodeObject *)PyFunction_GET_CODE(method);
            if (PyUnicode_Tailmatch(code->co_filename, end, 0, PY_SSIZE_T_MAX, 1) == 1
                && PyUnicode_CompareWithASCIIString(code->co_name, own_names[i]) == 0) {
                own[i] = Py_NewRef(method);
            }
        }
        PyErr_Clear();
        Py_XDECREF(method);
    }
    Py_XDECREF(end);
}

int
lw_createtask_init(PyObject *Py_UNUSED(module))
{
    PyObject *tasks = PyImport_ImportModule("asyncio.tasks"), *events = PyImport_ImportModule("asyncio.base_events");
    int status = -1;
    if (tasks == NULL || events == NULL) {
        goto done;
    }
    tasks_dict = Py_NewRef(PyModule_GetDict(tasks));
    base_loop = PyObject_GetAttrString(events, "BaseEventLoop");
    task_str = PyUnicode_InternFromString("Task");
    create_str = PyUnicode_InternFromString("create_task");
    closed_str = PyUnicode_InternFromString("_closed");
    factory_str = PyUnicode_InternFromString("_task_factory");
    name_str = PyUnicode_InternFromString("name");
    context_str = PyUnicode_InternFromString("context");
    loop_names = Py_BuildValue("(s)", "loop");
    loop_name = Py_BuildValue("(ss)", "loop", "name");
    loop_context = Py_BuildValue("(ss)", "loop", "context");
    loop_name_context = Py_BuildValue("(sss)", "loop", "name", "context");
    loop_context_name = Py_BuildValue("(sss)", "loop", "context", "name");
    create_task_type = (PyTypeObject *)PyType_FromSpec(&spec);
    if (!base_loop || !task_str || !create_str || !closed_str || !factory_str || !name_str || !context_str
        || !loop_names || !loop_name || !loop_context || !loop_name_context || !loop_context_name
        || !create_task_type) {
        goto done;
    }
    find_own();
    dict_is_watched = LW_WATCH_DICT(tasks_dict, on_change);
    status = 0;
done:
    Py_XDECREF(events);
    Py_XDECREF(tasks);
    return status;
}
