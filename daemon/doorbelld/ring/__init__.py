# SPDX-FileCopyrightText: 2026 The doorbelld authors
# SPDX-License-Identifier: GPL-2.0-or-later
"""Guest memory and virtqueues, native.

`memory` maps what a front-end shares and guards against its loss; `split` is the ring itself, in plain C types; `queue`
and `chain` are what Python and native devices see of it; `worker` runs them in a thread (`loop`) without the GIL.
`driver` is the other side of a ring, and `echo` the smallest native device. A native device uses the C faces, the
``.pxd`` files.

What Python touches here is under the GIL, and counts on it: a queue without a native device, a table of memory that
changes, a slot of a worker. An interpreter that is built without a GIL turns one on when it imports these modules,
since they don't say that they can do without; they must not say so before each of those has a lock.

This layer knows addresses, rings and eventfds: no socket, no protocol, no event loop of Python's.
"""
