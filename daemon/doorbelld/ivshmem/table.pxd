# SPDX-FileCopyrightText: 2026 The doorbelld authors
# SPDX-License-Identifier: GPL-2.0-or-later
from libc.stdint cimport uint64_t


cdef class Table:
    cdef unsigned char[::1] memory
    cdef int vectors
    cdef Py_ssize_t words  # of a record
    cdef readonly Py_ssize_t capacity

    cdef uint64_t *_record(self, Py_ssize_t index) except NULL
