/* loopqueue.c: see loopqueue.h. */
#include "loopqueue.h"

static PyTypeObject *deque_type; /* owned */
size_t lw_deque_state;

typedef struct {
    PyObject *deque;  /* borrowed while the loop is traversed, then owned */
    int deques;
    PyObject *sets[16]; /* the same */
    int nsets, too_many;
} fields;

static int
visit(PyObject *object, void *arg)
{
    fields *found = arg;
    if (Py_IS_TYPE(object, deque_type)) {
        found->deque = object;
        found->deques++;
    }
    else if (PySet_CheckExact(object)) {
        if (found->nsets == (int)Py_ARRAY_LENGTH(found->sets)) {
            found->too_many = 1;
        }
        else {
            found->sets[found->nsets++] = object;
        }
    }
    return 0;
}

/* Of uvloop's LOOP, or of a subclass's; what is in FOUND is owned then.  0: another kind of loop. */
static int
read_fields(PyObject *loop, fields *found)
{
    PyTypeObject *type = Py_TYPE(loop);
    memset(found, 0, sizeof(*found));
    while (type != NULL && strcmp(type->tp_name, "uvloop.loop.Loop") != 0) {
        type = type->tp_base;
    }
    if (type == NULL || type->tp_traverse == NULL) {
        return 0;
    }
    (void)type->tp_traverse(loop, visit, found); /* only visits: nothing can go meanwhile */
    found->deque = found->deques == 1 ? Py_NewRef(found->deque) : NULL;
    for (int i = 0; i < found->nsets; i++) {
        Py_INCREF(found->sets[i]);
    }
    return 1;
}

static void
drop_fields(fields *found)
{
    Py_XDECREF(found->deque);
    for (int i = 0; i < found->nsets; i++) {
        Py_DECREF(found->sets[i]);
    }
}

static int
holds_timers(PyObject *set)
{
    PyObject *all = PyObject_GetIter(set), *first = all ? PyIter_Next(all) : NULL;
    int found = first != NULL && strcmp(Py_TYPE(first)->tp_name, "uvloop.loop.TimerHandle") == 0;
    Py_XDECREF(first);
    Py_XDECREF(all);
    PyErr_Clear();
    return found;
}

static PyObject *
attribute(PyObject *loop, const char *name)
{
    PyObject *found = PyObject_GetAttrString(loop, name);
    PyErr_Clear();
    return found;
}

PyObject *
lw_loop_ready(PyObject *loop)
{
    fields found;
    if (!read_fields(loop, &found)) {
        return attribute(loop, "_ready");
    }
    PyObject *ready = Py_XNewRef(found.deque);
    drop_fields(&found);
    return ready;
}

PyObject *
lw_loop_timers(PyObject *loop)
{
    PyObject *timers = NULL;
    fields found;
    if (!read_fields(loop, &found)) {
        return attribute(loop, "_scheduled");
    }
    for (int i = 0; i < found.nsets && timers == NULL; i++) {
        timers = holds_timers(found.sets[i]) ? Py_NewRef(found.sets[i]) : NULL;
    }
    if (timers == NULL && found.nsets > 0 && !found.too_many) {
        timers = PySet_New(NULL);
    }
    drop_fields(&found);
    PyErr_Clear();
    return timers;
}

int
lw_queue_is_counted(PyObject *queue)
{
    return queue != NULL && lw_deque_state != 0 && Py_IS_TYPE(queue, deque_type);
}

/* The only word of a deque that grows by one with every change. */
static size_t
find_state(void)
{
    static const char *const changes[] = {"append", "append", "popleft", "append", "popleft", "popleft"};
    PyObject *deque = PyObject_CallNoArgs((PyObject *)deque_type), *result;
    size_t words = (size_t)deque_type->tp_basicsize / sizeof(size_t), found = 0, candidates = 0;
    size_t first = sizeof(PyVarObject) / sizeof(size_t), before[32];
    int wrong[32] = {0};
    if (deque == NULL || words > Py_ARRAY_LENGTH(before)) {
        goto done;
    }
    for (size_t i = 0; i < Py_ARRAY_LENGTH(changes); i++) {
        memcpy(before, deque, words * sizeof(size_t));
        result = changes[i][0] == 'a' ? PyObject_CallMethod(deque, changes[i], "O", Py_None)
                                      : PyObject_CallMethod(deque, changes[i], NULL);
        if (result == NULL) {
            goto done;
        }
        Py_DECREF(result);
        for (size_t word = first; word < words; word++) {
            wrong[word] |= ((const size_t *)deque)[word] != before[word] + 1;
        }
    }
    for (size_t word = first; word < words; word++) {
        found = wrong[word] ? found : word * sizeof(size_t);
        candidates += !wrong[word];
    }
done:
    Py_XDECREF(deque);
    PyErr_Clear();
    return candidates == 1 ? found : 0;
}

static PyObject *
loop_timers(PyObject *Py_UNUSED(module), PyObject *loop)
{
    PyObject *timers = lw_loop_timers(loop), *list = NULL;
    if (timers != NULL && (PyList_Check(timers) || PyAnySet_Check(timers))) {
        list = PySequence_List(timers);
    }
    else {
        list = Py_NewRef(Py_None);
    }
    Py_XDECREF(timers);
    return list;
}

static PyObject *
loop_ready(PyObject *Py_UNUSED(module), PyObject *loop)
{
    PyObject *ready = lw_loop_ready(loop);
    return ready != NULL ? ready : Py_NewRef(Py_None);
}

static PyMethodDef functions[] = {
    {"loop_ready", loop_ready, METH_O, "loop_ready(loop) -> its queue of callbacks | None: unknown"},
    {"loop_timers", loop_timers, METH_O, "loop_timers(loop) -> list of its timers' handles | None: unknown"},
    {NULL, NULL, 0, NULL},
};

int
lw_loopqueue_init(PyObject *module)
{
    if (deque_type == NULL) {
        PyObject *collections = PyImport_ImportModule("collections");
        deque_type = collections ? (PyTypeObject *)PyObject_GetAttrString(collections, "deque") : NULL;
        Py_XDECREF(collections);
        lw_deque_state = deque_type ? find_state() : 0;
    }
    return deque_type == NULL ? -1 : PyModule_AddFunctions(module, functions);
}
