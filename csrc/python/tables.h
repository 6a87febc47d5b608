/* tables.h: the process's descriptors and children, as Python data.
 *
 * descriptors() is a snapshot, opaque bytes; descriptors_since(snapshot) gives
 * what is open now and was not then, or is another file under the same number.
 * children_mark() is a moment; children_since(mark) gives the children that
 * began after it, running or zombie.  Both reap, close and open nothing that
 * stays.
 *
 * Cost: that of core/fdtable.h and core/children.h; when nothing is left, one
 * comparison a descriptor and no Python object. */
#ifndef LW_TABLES_H
#define LW_TABLES_H

#include "compat.h"

int lw_tables_init(PyObject *module);

#endif
