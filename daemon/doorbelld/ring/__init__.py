# SPDX-FileCopyrightText: 2026 The doorbelld authors
# SPDX-License-Identifier: GPL-2.0-or-later
"""Guest memory and virtqueues, native.

`memory` maps what a front-end shares and guards against its loss; `split` is the ring itself, in plain C types; `queue`
and `chain` are what Python and native devices see of it; `worker` runs them in a thread (`loop`) without the GIL.
`driver` is the other side of a ring, and `echo` the smallest native device. A native device uses the C faces, the
``.pxd`` files.

This layer knows addresses, rings and eventfds: no socket, no protocol, no event loop of Python's.
"""
