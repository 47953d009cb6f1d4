# SPDX-FileCopyrightText: 2026 The doorbelld authors
# SPDX-License-Identifier: GPL-2.0-or-later
"""The table of a relay: a record for each pair, in memory that outlives us.

A record says who the two are, on which terms the one rings the other, and what was counted, by vector (`lanes.pxd` has
the layout). It counts from the moment at which its sender is written, which is one store, and the last one. A record
may stand for a member itself (sender and target are the same): it keeps what was counted with those who are gone.
"""

from libc.string cimport memset

from .lanes cimport (
    CHANNEL, DELIVERIES, FORBIDDEN, HEAD, PASSED, PLACE, RATE, REFUSED, RINGS, SENDER, TARGET, settle_memory,
)  # fmt: skip

cdef extern from "barriers.h" nogil:
    uint64_t load64(const uint64_t *at)

RATE_MAX = 1_000_000_000
"""Deliveries a second that a limit may be."""


def record_size(int vectors):
    """Tell the bytes of a lane's record."""
    return (HEAD + CHANNEL * vectors + 7) // 8 * 64


cdef class Table:
    """Records of `record_size` bytes in *memory*, which is all zero at first; they are known by their index."""

    def __init__(self, unsigned char[::1] memory not None, int vectors):
        self.words = record_size(vectors) // 8
        self.vectors = vectors
        self.capacity = len(memory) // (self.words * 8)
        self.memory = memory

    def open(self, Py_ssize_t index, uint64_t sender, uint64_t target, uint64_t rate=0, bint permitted=True,
             uint64_t place=0):
        """Write a new record; it counts from the end of this call on."""
        cdef uint64_t *record = self._record(index)
        if record[SENDER]:
            raise ValueError(f"record {index} is in use")
        # SAFETY: a record has that many words (`_record`).
        memset(record, 0, self.words * 8)
        record[TARGET] = target
        record[RATE] = rate
        record[FORBIDDEN] = not permitted
        record[PLACE] = place
        settle_memory()
        record[SENDER] = sender + 1

    def read(self, Py_ssize_t index):
        """Tell of whom a record is: ``(sender, target, place)``, or None if it is free."""
        cdef uint64_t *record = self._record(index)
        return (record[SENDER] - 1, record[TARGET], record[PLACE]) if record[SENDER] else None

    def place(self, Py_ssize_t index, uint64_t place):
        """Note where in its vault the first proxy of a lane is."""
        self._record(index)[PLACE] = place

    def erase(self, Py_ssize_t index):
        """Make a record free; no lane goes by it any more."""
        self._record(index)[SENDER] = 0

    def counts(self, Py_ssize_t index):
        """Tell what a record has counted: ``(rings, deliveries, refused, passed)``, sums over all vectors."""
        cdef uint64_t *channel = self._record(index) + HEAD
        cdef uint64_t rings = 0, deliveries = 0, refused = 0, passed = 0
        cdef int i
        # SAFETY: a record has a channel for each vector (`record_size`).
        for i in range(self.vectors):
            rings += load64(&channel[RINGS])
            deliveries += load64(&channel[DELIVERIES])
            refused += load64(&channel[REFUSED])
            passed += load64(&channel[PASSED])
            channel += CHANNEL
        return rings, deliveries, refused, passed

    def credit(self, Py_ssize_t index, uint64_t rings, uint64_t passed):
        """Add to what the own lane *index* keeps: rings that its member sent, and that it was passed."""
        cdef uint64_t *channel = self._record(index) + HEAD
        channel[RINGS] += rings
        channel[PASSED] += passed

    def terms(self, Py_ssize_t index):
        """Tell a lane's rate and whether it is permitted."""
        cdef uint64_t *record = self._record(index)
        return record[RATE], not record[FORBIDDEN]

    cdef uint64_t *_record(self, Py_ssize_t index) except NULL:
        if self.memory is None or not 0 <= index < self.capacity:
            raise IndexError(f"there is no record {index}")
        # SAFETY: within the table, which is mapped memory and so aligned.
        return <uint64_t *>&self.memory[0] + index * self.words
