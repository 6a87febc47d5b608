/* ownfiles.c: see ownfiles.h. */
#include "ownfiles.h"

static PyObject *library_folders; /* owned tuple of str, or NULL */
#define FILES 256
static struct {
    PyObject *file; /* not owned: only compared, together with its hash */
    Py_hash_t hash;
    int kind; /* LW_FILE_… */
} files[FILES];

int
lw_file_kind(PyObject *file)
{
    Py_hash_t hash = PyObject_Hash(file);
    size_t slot = ((uintptr_t)file >> 4) % FILES;
    if (files[slot].file == file && files[slot].hash == hash) {
        return files[slot].kind;
    }
    const char *path = PyUnicode_AsUTF8(file);
    int kind = path == NULL || path[0] == '<';
    if (path == NULL) {
        PyErr_Clear();
    }
    else if (strstr(path, "/asyncio/") != NULL) {
        kind = LW_FILE_ASYNCIO;
    }
    else if (strstr(path, "/site-packages/") != NULL || strstr(path, "/dist-packages/") != NULL) {
        kind = LW_FILE_LIBRARY;
    }
    else if (library_folders != NULL) {
        for (Py_ssize_t i = 0; kind == 0 && i < PyTuple_GET_SIZE(library_folders); i++) {
            Py_ssize_t length;
            const char *folder = PyUnicode_AsUTF8AndSize(PyTuple_GET_ITEM(library_folders, i), &length);
            kind = folder != NULL && strncmp(path, folder, (size_t)length) == 0;
        }
        PyErr_Clear();
    }
    files[slot].file = file;
    files[slot].hash = hash;
    files[slot].kind = kind;
    return kind;
}

static PyObject *
set_library_folders(PyObject *Py_UNUSED(module), PyObject *folders)
{
    if (!PyTuple_Check(folders)) {
        return PyErr_Format(PyExc_TypeError, "folders must be a tuple of str, got %.200s", Py_TYPE(folders)->tp_name);
    }
    for (Py_ssize_t i = 0; i < PyTuple_GET_SIZE(folders); i++) {
        if (!PyUnicode_Check(PyTuple_GET_ITEM(folders, i))) {
            return PyErr_Format(PyExc_TypeError, "folders must be a tuple of str, item %zd is %.200s", i,
                                Py_TYPE(PyTuple_GET_ITEM(folders, i))->tp_name);
        }
    }
    Py_XSETREF(library_folders, Py_NewRef(folders));
    memset(files, 0, sizeof(files));
    Py_RETURN_NONE;
}

static PyMethodDef functions[] = {
    {"set_library_folders", set_library_folders, METH_O, "Which folders hold no code of the program's own."},
    {NULL, NULL, 0, NULL},
};

int
lw_ownfiles_init(PyObject *module)
{
    return PyModule_AddFunctions(module, functions);
}
