/* ownfiles.h: which files are the program's own.
 *
 * A stack leads through asyncio, through libraries and through the program; the
 * line to name is the program's.  A file is told by its path: below a folder
 * named asyncio, below site-packages or the standard library (whose folders
 * Python tells once, by set_library_folders()), or the program's own.
 *
 * Answers are kept by the address of the file name's str together with its
 * hash: a str that came to lie where another one was has another hash, or the
 * same text.  New folders forget all answers.
 *
 * Cost: a comparison where the name was asked for before.  Under the GIL. */
#ifndef LW_OWNFILES_H
#define LW_OWNFILES_H

#include "compat.h"

enum { LW_FILE_OWN, LW_FILE_LIBRARY, LW_FILE_ASYNCIO };

int lw_file_kind(PyObject *file);
int lw_ownfiles_init(PyObject *module);

#endif
