/* loopstats.c: see loopstats.h. */
#include "loopstats.h"

#include "../core/clock.h"
#include "loopqueue.h"

PyTypeObject *lw_loopstats_type;
static lw_loopstats *listed; /* borrowed: all that are counted now, the one asked for last first */

lw_loopstats *
lw_loopstats_of(PyObject *loop)
{
    for (lw_loopstats **at = &listed; *at != NULL; at = &(*at)->next) {
        lw_loopstats *s = *at;
        if (s->loop == loop) {
            if (s != listed) {
                *at = s->next;
                s->next = listed;
                listed = s;
            }
            return s;
        }
    }
    return NULL;
}

void
lw_loopstats_list(lw_loopstats *s, int delta)
{
    if (delta > 0) {
        s->next = listed;
        listed = s;
        return;
    }
    for (lw_loopstats **at = &listed; *at != NULL; at = &(*at)->next) {
        if (*at == s) {
            *at = s->next;
            break;
        }
    }
    s->next = NULL;
    Py_CLEAR(s->loop);
}

lw_loopstats *
lw_loopstats_new(PyObject *loop)
{
    lw_loopstats *s = PyObject_GC_New(lw_loopstats, lw_loopstats_type);
    if (s != NULL) {
        memset((char *)s + sizeof(PyObject), 0, sizeof(*s) - sizeof(PyObject));
        s->loop = Py_NewRef(loop);
        s->since_ns = lw_now_ns();
        PyObject_GC_Track(s);
    }
    return s;
}

static PyObject *
histogram(const lw_hist *from)
{
    lw_hist_copy *copy = PyMem_Malloc(sizeof(*copy));
    PyObject *buckets = PyList_New(0), *pair = NULL, *result = NULL;
    if (copy == NULL || buckets == NULL) {
        if (copy == NULL) {
            PyErr_NoMemory();
        }
        goto done;
    }
    lw_hist_read(from, copy);
    for (int i = 0; i < LW_HIST_BUCKETS; i++) {
        if (copy->bucket[i] == 0) {
            continue;
        }
        pair = Py_BuildValue("(KK)", (unsigned long long)lw_hist_upper(i), (unsigned long long)copy->bucket[i]);
        if (pair == NULL || PyList_Append(buckets, pair) < 0) {
            goto done;
        }
        Py_CLEAR(pair);
    }
    result = Py_BuildValue("{s:K,s:K,s:K,s:O}", "count", (unsigned long long)copy->count, "sum_ns",
                           (unsigned long long)copy->sum, "max_ns", (unsigned long long)copy->max, "buckets", buckets);
done:
    Py_XDECREF(pair);
    Py_XDECREF(buckets);
    PyMem_Free(copy);
    return result;
}

/* How many wait in QUEUE, whose reference is taken, or None where it is NULL: unknown. */
static PyObject *
length_of(PyObject *queue)
{
    Py_ssize_t length = queue ? PyObject_Size(queue) : -1;
    Py_XDECREF(queue);
    PyErr_Clear();
    return length < 0 ? Py_NewRef(Py_None) : PyLong_FromSsize_t(length);
}

static PyObject *
loopstats_read(lw_loopstats *self, PyObject *Py_UNUSED(unused))
{
    PyObject *lag = histogram(&self->lag), *callbacks = lag ? histogram(&self->callbacks) : NULL;
    PyObject *ready = callbacks ? length_of(self->loop ? lw_loop_ready(self->loop) : NULL) : NULL;
    PyObject *timers = ready ? length_of(self->loop ? lw_loop_timers(self->loop) : NULL) : NULL;
    PyObject *result = NULL;
    if (timers != NULL) {
        result = Py_BuildValue("{s:O,s:O,s:O,s:O,s:K,s:K,s:O}", "lag", lag, "callbacks", callbacks, "ready", ready,
                               "timers", timers, "since_ns", (unsigned long long)self->since_ns, "now_ns",
                               (unsigned long long)lw_now_ns(), "open", self->open > 0 ? Py_True : Py_False);
    }
    Py_XDECREF(timers);
    Py_XDECREF(ready);
    Py_XDECREF(callbacks);
    Py_XDECREF(lag);
    return result;
}

static PyObject *
loopstats_get_loop(lw_loopstats *self, void *Py_UNUSED(unused))
{
    return Py_NewRef(self->loop ? self->loop : Py_None);
}

static int
loopstats_traverse(lw_loopstats *self, visitproc visit, void *arg)
{
    Py_VISIT(Py_TYPE(self));
    Py_VISIT(self->loop);
    return 0;
}

static void
loopstats_dealloc(lw_loopstats *self)
{
    PyTypeObject *type = Py_TYPE(self);
    PyObject_GC_UnTrack(self);
    Py_XDECREF(self->loop);
    type->tp_free(self);
    Py_DECREF(type);
}

static PyMethodDef loopstats_methods[] = {
    {"read", (PyCFunction)loopstats_read, METH_NOARGS, "What was counted so far."},
    {NULL, NULL, 0, NULL},
};
static PyGetSetDef loopstats_getset[] = {
    {"loop", (getter)loopstats_get_loop, NULL, "The loop; None once it is no longer counted.", NULL},
    {NULL, NULL, NULL, NULL, NULL},
};
static PyType_Slot loopstats_slots[] = {
    {Py_tp_doc, "Histograms of one loop's spans and callbacks."},
    {Py_tp_traverse, loopstats_traverse},
    {Py_tp_dealloc, loopstats_dealloc},
    {Py_tp_methods, loopstats_methods},
    {Py_tp_getset, loopstats_getset},
    {0, NULL},
};
static PyType_Spec loopstats_spec = {"loopwatch._core.LoopStats", sizeof(lw_loopstats), 0,
                                     Py_TPFLAGS_DEFAULT | Py_TPFLAGS_HAVE_GC | Py_TPFLAGS_IMMUTABLETYPE
                                         | Py_TPFLAGS_DISALLOW_INSTANTIATION,
                                     loopstats_slots};

int
lw_loopstats_init(PyObject *module)
{
    lw_loopstats_type = (PyTypeObject *)PyType_FromModuleAndSpec(module, &loopstats_spec, NULL);
    return lw_loopstats_type == NULL ? -1 : 0;
}
