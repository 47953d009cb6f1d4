# SPDX-FileCopyrightText: 2026 The doorbelld authors
# SPDX-License-Identifier: GPL-2.0-or-later
"""C face of a worker; loop.pxd says what the callbacks have to do."""

from .loop cimport PROCESS_DONE, PROCESS_MORE, PROCESS_WAIT, Loop, busy_t, event_t, process_t, pthread_t
from .queue cimport VirtQueue


cdef class Worker(Loop):
    cdef list held  # by slot: (queue, what the device lives in), or None
    cdef dict watched  # by descriptor: what its device lives in
    cdef object thread
    cdef readonly str name
    cdef readonly bint quiesced
    cdef bint finished
    cdef pthread_t self_id

    cdef int attach_native(
        self, VirtQueue queue, process_t process, busy_t busy, void *device, object keep
    ) except -1
    cdef int watch_native(self, int fd, event_t event, void *device, object keep) except -1

    cdef int _place(
        self, VirtQueue queue, process_t process, busy_t busy, void *device, object keep, bint python
    ) except -1
    cdef int _check_outside(self) except -1
    cdef int _reach(self, int want, int drain, double timeout) except -1
    cdef int _pause(self, int drain, double timeout) except -1
    cdef int _go_on(self) except -1
    cdef int _mark(self, bint running) except -1
    cdef int _slot_of(self, VirtQueue queue) except -1
