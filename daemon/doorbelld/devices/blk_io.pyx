# SPDX-FileCopyrightText: 2026 The doorbelld authors
# SPDX-License-Identifier: GPL-2.0-or-later
"""The fast part of blk: requests of one queue, served in a worker's thread (VIRTIO 1.2, 5.2.6).

Theory of operation
-------------------
A request is a chain: 16 bytes that say what is wanted, then data to write, then room for data to read and for one byte of
status. How that is spread over buffers is the driver's affair: the header is copied out of, and the status byte cut
off, the list of pieces that the chain has of its own, and what is left of that list is what preadv2(2) and pwritev2(2) take.

*Inline.* What the page cache has is copied at once: preadv2 with RWF_NOWAIT, one system call, no waiting. Where the kernel
says that it would have to wait (EAGAIN), or that it can't tell (EOPNOTSUPP, ext4's buffered writes for one), the request is
*deferred*. A file in memory (tmpfs) has no such flag and needs none.

*Deferred* requests become jobs (jobs.h), which io_uring does, or a few threads where io_uring is not to be had (aio.h).
Each holds a slot in `requests`, of which there are as many as the ring has entries, but no more than `DEFERRED_MAX`: when all are
in use the rest of the ring waits. A request may take several jobs: short reads and writes are continued, ranges to discard come one after the other, and direct I/O that guest memory is not
aligned for goes through a bounce buffer by the piece. It is pushed when it is done, in whatever order that happens.

A sweep (`serve`) pops what is there, takes the jobs that are done, and publishes. New jobs are submitted by the handful,
so that the disk begins while we still look at the rest. If a sweep is long, what is done in its first half is published
by itself: driver and device then work at the same time, each on its half. More often would only wake the driver more often.

*Guest memory that is gone* is EFAULT from the kernel. We then touch the buffers, so that the SIGBUS guard notes it.

What is reported as written (the length in the used ring) begins at the first byte of the chain. So a request that failed
says 0 if there was data to come before the status byte.

Invariants
----------
1. ``disk.fd`` stays open as long as a DiskQueue lives, and a worker that may use one holds it.
2. A slot in ``requests`` is in use exactly from `defer` until `finish`; its job is under way all that time. Slots that are not are
   in the list ``idle``, or were never used: those from ``touched`` on.
3. ``deferred`` counts those in use; while it is 0 nothing but `serve` touches guest memory.
4. A chain is popped only while there is a slot for it.
"""

import os
from collections import namedtuple

from libc.errno cimport EAGAIN, EFAULT, EINTR, EOPNOTSUPP, errno
from libc.stdint cimport int64_t, uint8_t, uint32_t, uint64_t
from libc.stdlib cimport calloc, free, malloc
from libc.string cimport memset

from doorbelld.ring.loop cimport PROCESS_DONE, PROCESS_MORE, PROCESS_WAIT
from doorbelld.ring.memory cimport iovec
from doorbelld.ring.queue cimport POP_FAULT, VirtQueue, chain_free, chain_t
from doorbelld.ring.worker cimport Worker

from .disk cimport INLINE_NEVER, INLINE_NOWAIT, VIRTIO_BLK_ID_BYTES, Disk, disk_t, flag_get, flag_set, word_get, word_set

cdef extern from "aio.h" nogil:
    enum job_kind: JOB_READ, JOB_WRITE, JOB_SYNC, JOB_ALLOCATE
    struct job_t "job":
        job_kind kind
        int fd
        const iovec *pieces
        uint32_t count
        uint32_t flags
        uint64_t offset
        uint64_t length
        int64_t result
    ssize_t file_read(int fd, const iovec *pieces, uint32_t count, uint64_t offset, uint32_t flags)
    ssize_t file_write(int fd, const iovec *pieces, uint32_t count, uint64_t offset, uint32_t flags)
    void job_run(job_t *)
    struct aio_t "aio":
        uint32_t fresh
    void aio_init(aio_t *)
    int aio_open(aio_t *, int pooled, uint32_t room)
    void aio_close(aio_t *)
    int aio_fd(const aio_t *)
    void aio_clear(aio_t *)
    void aio_push(aio_t *, job_t *)
    void aio_submit(aio_t *)
    job_t *aio_reap(aio_t *)

cdef extern from "pieces.h" nogil:
    void pieces_skip(iovec **pieces, uint32_t *count, uint64_t length)
    void pieces_read(const iovec *pieces, void *to, uint64_t length)
    void pieces_write(const iovec *pieces, const void *source, uint64_t length)
    void pieces_touch(const iovec *pieces, uint32_t count)

cdef extern from *:
    """
    #include <linux/falloc.h>

    typedef volatile uint8_t volatile_byte;
    """
    ctypedef uint8_t volatile_byte
    enum: RWF_NOWAIT, RWF_DSYNC
    enum: FALLOC_FL_KEEP_SIZE, FALLOC_FL_PUNCH_HOLE, FALLOC_FL_ZERO_RANGE

cdef extern from "<stdlib.h>" nogil:
    int posix_memalign(void **made, size_t alignment, size_t size)

cdef enum:  # VIRTIO 1.2, 5.2.6
    VIRTIO_BLK_T_IN = 0
    VIRTIO_BLK_T_OUT = 1
    VIRTIO_BLK_T_FLUSH = 4
    VIRTIO_BLK_T_GET_ID = 8
    VIRTIO_BLK_T_DISCARD = 11
    VIRTIO_BLK_T_WRITE_ZEROES = 13
    VIRTIO_BLK_S_OK = 0
    VIRTIO_BLK_S_IOERR = 1
    VIRTIO_BLK_S_UNSUPP = 2
    VIRTIO_BLK_WRITE_ZEROES_FLAG_UNMAP = 1

cdef enum:
    DEFERRED_MAX = 1024  # requests of a queue
    BUDGET = 64  # requests in a sweep
    HALF = 32  # requests after which a sweep publishes, unless more sweeps follow
    HALF_BYTES = 256 * 1024  # bytes after which any does
    HANDFUL = 4  # jobs
    PIECES_AT_ONCE = 1024  # of a system call (UIO_MAXIOV)
    BOUNCE_SIZE = 256 * 1024
    ZEROES_SIZE = 1024 * 1024
    SECTOR_BITS = 9
    SECTOR_SIZE = 512
    SEGMENTS = 32

cdef enum:  # how a range becomes zeroes
    BY_HOLE
    BY_RANGE
    BY_WRITING

SECTOR = SECTOR_SIZE
ID_BYTES = VIRTIO_BLK_ID_BYTES
SEGMENTS_MAX = SEGMENTS
"""Ranges in a request to discard or to write zeroes."""
RANGE_SECTORS_MAX = 1 << 21
"""Sectors in one of them: 1 GiB."""

cdef uint64_t RANGE_MAX = RANGE_SECTORS_MAX
cdef uint8_t[ZEROES_SIZE] ZEROES  # never written to

Served = namedtuple("Served", "inline deferred")

cdef struct header_t:  # struct virtio_blk_req, as far as it is the driver's
    uint32_t type
    uint32_t ioprio
    uint64_t sector

cdef struct segment_t:  # struct virtio_blk_discard_write_zeroes
    uint64_t sector
    uint32_t num_sectors
    uint32_t flags

cdef struct request_t:
    job_t job  # first: a job is its request
    chain_t chain
    uint8_t *status
    iovec *pieces  # what is left of the data
    uint32_t count
    uint32_t type
    uint64_t left  # bytes
    uint64_t written  # what to report if all goes well
    uint64_t unwritten  # and if not
    iovec single  # of the bounce buffer, or of zeroes
    uint8_t *bounce  # NULL: not needed
    segment_t *segments
    uint32_t segments_count
    uint32_t segment  # the current one
    int by
    request_t *next  # in the list of idle ones


def uring_permitted():
    """Tell whether this process may use io_uring."""
    cdef aio_t tried
    aio_init(&tried)
    error = aio_open(&tried, 0, 1)
    aio_close(&tried)
    return error == 0


cdef class DiskQueue:
    """One queue of a disk."""

    cdef readonly Disk disk
    cdef readonly VirtQueue queue
    cdef disk_t *state
    cdef chain_t chain  # the one that was popped last, unless it was deferred
    cdef request_t *requests
    cdef request_t *idle
    cdef uint32_t slots
    cdef uint32_t touched
    cdef uint32_t deferred
    cdef uint64_t copied  # bytes since the last time that something was published
    cdef uint64_t inline_count
    cdef uint64_t deferred_count
    cdef aio_t backend

    def __cinit__(self):
        aio_init(&self.backend)

    def __init__(self, Disk disk not None, VirtQueue queue not None, *, bint threads=False):
        """Serve *queue*, which runs, from *disk*; *threads* do what would have to wait, or else io_uring.

        Raises:
            OSError: io_uring is not permitted, or there is no memory or no descriptor left.
        """
        self.disk = disk
        self.queue = queue
        self.state = &disk.state
        self.slots = min(queue.num, <uint32_t>DEFERRED_MAX)
        # SAFETY: freed with the object.
        self.requests = <request_t *>calloc(self.slots, sizeof(request_t))
        if self.requests == NULL:
            raise MemoryError
        error = aio_open(&self.backend, threads, self.slots)
        if error:
            raise OSError(error, os.strerror(error))

    def __dealloc__(self):
        cdef uint32_t i
        # SAFETY: no worker holds us, so nothing is in flight (invariants 1 and 2); touched <= slots.
        for i in range(self.touched):
            chain_free(&self.requests[i].chain)
        free(self.requests)
        chain_free(&self.chain)
        with nogil:  # threads may end slowly
            aio_close(&self.backend)

    def attach(self, Worker worker not None):
        """Have *worker* serve the queue."""
        # SAFETY: the worker holds us as long as it uses the pointer.
        worker.watch_native(aio_fd(&self.backend), _event, <void *>self, self)
        try:
            worker.attach_native(self.queue, _process, _busy, <void *>self, self)
        except BaseException:
            worker.unwatch(aio_fd(&self.backend))
            raise

    def detach(self, Worker worker not None):
        """End that, when nothing is in flight; errors as for `Worker.detach`."""
        worker.detach(self.queue)
        worker.unwatch(aio_fd(&self.backend))

    @property
    def served(self):
        """How many requests were served inline, and how many were deferred."""
        return Served(word_get(&self.inline_count), word_get(&self.deferred_count))

    # -- the worker's thread

    cdef int serve(self) noexcept nogil:
        """Make a sweep; what `process` returns."""
        cdef int number
        cdef int half = BUDGET
        cdef int got
        cdef int said = PROCESS_MORE
        for number in range(BUDGET):
            if not self.has_room():
                said = PROCESS_WAIT
                break
            got = self.queue.pop_chain(&self.chain)
            if got <= 0:
                said = PROCESS_DONE
                break
            if number == 0 and self.queue.backlog() < BUDGET:
                half = HALF
            self.begin(got == POP_FAULT)
            if number + 1 == half or self.copied >= HALF_BYTES:
                self.publish()
            if self.backend.fresh >= HANDFUL:
                aio_submit(&self.backend)
        self.settle()
        if said == PROCESS_WAIT and self.has_room():  # what is done by now is announced by nobody
            said = PROCESS_MORE
        return said

    cdef inline bint has_room(self) noexcept nogil:
        """Tell whether one more request can be deferred."""
        return self.idle != NULL or self.touched < self.slots

    cdef void publish(self) noexcept nogil:
        """Let the driver see what was given back."""
        self.copied = 0
        self.queue.publish()

    cdef void settle(self) noexcept nogil:
        """Submit, take what is done, go on with it, and publish."""
        cdef job_t *done
        # SAFETY: a job is the first member of a request in `requests` (invariant 2).
        while True:
            aio_submit(&self.backend)
            done = aio_reap(&self.backend)
            if done == NULL:
                break
            while done != NULL:
                self.go_on(<request_t *>done)
                done = aio_reap(&self.backend)
        self.publish()

    cdef void begin(self, bint faulty) noexcept nogil:
        """Serve the request that was popped, or defer it."""
        cdef chain_t *chain = &self.chain
        cdef iovec *readable = chain.readable
        cdef iovec *writable = chain.writable
        cdef uint32_t readable_count = chain.readable_count
        cdef uint32_t writable_count = chain.writable_count
        cdef header_t header
        cdef uint8_t *status
        cdef iovec *last
        cdef uint64_t room
        if writable_count == 0:  # nowhere to say what is wrong
            self.queue.count_error()
            self.queue.push_chain(chain, 0)
            return
        # SAFETY: there is a piece, and pieces are not empty. A chain that is faulty lacks some; then this may be a byte of
        # data, of a request that fails.
        last = &writable[writable_count - 1]
        last.iov_len -= 1
        status = <uint8_t *>last.iov_base + last.iov_len
        writable_count -= last.iov_len == 0
        room = chain.writable_bytes - 1
        if faulty or chain.readable_bytes < sizeof(header_t):
            self.end(chain, status, VIRTIO_BLK_S_IOERR, room == 0)
            return
        # SAFETY: the pieces that are read have as many bytes as the header.
        pieces_read(readable, &header, sizeof(header_t))
        pieces_skip(&readable, &readable_count, sizeof(header_t))
        if header.type == VIRTIO_BLK_T_IN:
            self.transfer(&header, status, writable, writable_count, room, room + 1)
        elif header.type == VIRTIO_BLK_T_OUT:
            self.transfer(&header, status, readable, readable_count, chain.readable_bytes - sizeof(header_t), room == 0)
        elif header.type == VIRTIO_BLK_T_FLUSH:
            self.flush(status, room == 0)
        elif header.type == VIRTIO_BLK_T_GET_ID:
            self.identify(status, writable, room)
        elif header.type == VIRTIO_BLK_T_WRITE_ZEROES or (
            header.type == VIRTIO_BLK_T_DISCARD and self.state.discard
        ):
            self.clear(&header, status, readable, chain.readable_bytes - sizeof(header_t), room == 0)
        else:
            self.end(chain, status, VIRTIO_BLK_S_UNSUPP, room == 0)

    cdef void transfer(
        self, header_t *header, uint8_t *status, iovec *pieces, uint32_t count, uint64_t left, uint64_t written
    ) noexcept nogil:
        """IN and OUT (5.2.6.2): what is in the page cache is done here."""
        cdef uint64_t capacity = word_get(&self.state.capacity)
        cdef uint64_t offset = header.sector << SECTOR_BITS
        cdef bint writing = header.type == VIRTIO_BLK_T_OUT
        cdef bint through = writing and flag_get(&self.state.writethrough)
        cdef int *how = &self.state.writes if writing else &self.state.reads
        cdef int inline = INLINE_NEVER if through else flag_get(how)
        cdef uint32_t flags = RWF_NOWAIT if inline == INLINE_NOWAIT else 0
        cdef uint64_t unwritten = written if writing else left == 0
        cdef request_t *request
        cdef ssize_t got
        if left & (SECTOR_SIZE - 1) or header.sector > capacity or left >> SECTOR_BITS > capacity - header.sector or (
            writing and self.state.read_only
        ):
            self.end(&self.chain, status, VIRTIO_BLK_S_IOERR, unwritten)
            return
        # SAFETY: the pieces are ours, what they point to is guest memory with left bytes; the kernel fails where it is gone.
        while left and inline != INLINE_NEVER:
            if writing:
                got = file_write(self.state.fd, pieces, min(count, <uint32_t>PIECES_AT_ONCE), offset, flags)
            else:
                got = file_read(self.state.fd, pieces, min(count, <uint32_t>PIECES_AT_ONCE), offset, flags)
            if got > 0:
                left -= got
                offset += got
                if left:
                    pieces_skip(&pieces, &count, got)
            elif got < 0 and errno == EAGAIN:
                break
            elif got < 0 and errno == EOPNOTSUPP:
                flag_set(how, INLINE_NEVER)
                break
            elif got == 0 or errno != EINTR:
                if got < 0 and errno == EFAULT:
                    pieces_touch(pieces, count)
                self.end(&self.chain, status, VIRTIO_BLK_S_IOERR, unwritten)
                return
        if not left:
            word_set(&self.inline_count, self.inline_count + 1)
            self.copied += offset - (header.sector << SECTOR_BITS)
            self.end(&self.chain, status, VIRTIO_BLK_S_OK, written)
            return
        request = self.defer(header.type, status, written, unwritten)
        request.job.kind = JOB_WRITE if writing else JOB_READ
        request.job.flags = RWF_DSYNC if through else 0
        request.job.offset = offset
        request.pieces = pieces
        request.count = count
        request.left = left
        if self.state.direct and not self.is_aligned(pieces, count):
            if posix_memalign(<void **>&request.bounce, 4096, min(left, <uint64_t>BOUNCE_SIZE)):
                request.bounce = NULL
                self.finish(request, VIRTIO_BLK_S_IOERR)
                return
        self.issue(request)

    cdef bint is_aligned(self, const iovec *pieces, uint32_t count) noexcept nogil:
        """Tell whether direct I/O can go straight to the pieces."""
        cdef uint32_t i
        for i in range(count):
            if <size_t>pieces[i].iov_base & (self.state.memory_align - 1) or pieces[i].iov_len & (self.state.block - 1):
                return False
        return True

    cdef void flush(self, uint8_t *status, uint64_t written) noexcept nogil:
        """FLUSH: what was written before, and is done, is on the disk afterwards."""
        cdef request_t *request = self.defer(VIRTIO_BLK_T_FLUSH, status, written, written)
        request.job.kind = JOB_SYNC
        aio_push(&self.backend, &request.job)

    cdef void identify(self, uint8_t *status, const iovec *pieces, uint64_t room) noexcept nogil:
        """GET_ID: a string, of which the end is marked only if it is shorter than its room."""
        cdef uint64_t count = min(room, <uint64_t>VIRTIO_BLK_ID_BYTES)
        # SAFETY: the pieces have room bytes.
        pieces_write(pieces, self.state.serial, count)
        self.end(&self.chain, status, VIRTIO_BLK_S_OK, count + (count == room))

    cdef void clear(
        self, header_t *header, uint8_t *status, const iovec *pieces, uint64_t bytes, uint64_t written
    ) noexcept nogil:
        """DISCARD and WRITE_ZEROES: the data is ranges, all of which are checked before one is touched."""
        cdef uint64_t capacity = word_get(&self.state.capacity)
        cdef uint32_t count = <uint32_t>(bytes // sizeof(segment_t))
        cdef uint32_t allowed = VIRTIO_BLK_WRITE_ZEROES_FLAG_UNMAP if header.type == VIRTIO_BLK_T_WRITE_ZEROES else 0
        cdef request_t *request
        cdef segment_t *segments
        cdef segment_t *segment
        cdef uint32_t i
        if self.state.read_only or count == 0 or bytes % sizeof(segment_t) or count > SEGMENTS:
            self.end(&self.chain, status, VIRTIO_BLK_S_IOERR, written)
            return
        # SAFETY: room for count segments, and the pieces have so many bytes.
        segments = <segment_t *>malloc(count * sizeof(segment_t))
        if segments == NULL:
            self.end(&self.chain, status, VIRTIO_BLK_S_IOERR, written)
            return
        pieces_read(pieces, segments, count * sizeof(segment_t))
        for i in range(count):
            segment = &segments[i]
            if segment.flags & ~allowed or segment.sector > capacity or segment.num_sectors > min(
                capacity - segment.sector, RANGE_MAX
            ):
                self.end(
                    &self.chain, status, VIRTIO_BLK_S_UNSUPP if segment.flags & ~allowed else VIRTIO_BLK_S_IOERR, written
                )
                free(segments)
                return
        request = self.defer(header.type, status, written, written)
        request.segments = segments
        request.segments_count = count
        self.next_range(request)

    cdef request_t *defer(self, uint32_t kind, uint8_t *status, uint64_t written, uint64_t unwritten) noexcept nogil:
        """Move the chain that was popped last to its slot."""
        cdef request_t *request = self.idle
        cdef chain_t spare
        # SAFETY: there is a slot (invariant 4): an idle one, or else touched < slots. The array of pieces moves along with
        # the chain; the slot's own becomes the next one to pop into.
        if request != NULL:
            self.idle = request.next
        else:
            request = &self.requests[self.touched]
            self.touched += 1
        spare = request.chain
        memset(request, 0, sizeof(request_t))
        request.chain = self.chain
        self.chain = spare
        request.job.fd = self.state.fd
        request.type = kind
        request.status = status
        request.written = written
        request.unwritten = unwritten
        self.deferred += 1
        word_set(&self.deferred_count, self.deferred_count + 1)
        return request

    cdef void issue(self, request_t *request) noexcept nogil:
        """Push the next job of an IN or OUT."""
        # SAFETY: the bounce buffer has so many bytes, and the pieces at least.
        if request.bounce != NULL:
            request.single.iov_base = request.bounce
            request.single.iov_len = min(request.left, <uint64_t>BOUNCE_SIZE)
            if request.job.kind == JOB_WRITE:
                pieces_read(request.pieces, request.bounce, request.single.iov_len)
            request.job.pieces = &request.single
            request.job.count = 1
        else:
            request.job.pieces = request.pieces
            request.job.count = min(request.count, <uint32_t>PIECES_AT_ONCE)
        aio_push(&self.backend, &request.job)

    cdef void go_on(self, request_t *request) noexcept nogil:
        """Take the result of a job, and push the next one or finish the request."""
        if request.job.result == -EAGAIN or request.job.result == -EINTR:
            job_run(&request.job)  # the kernel would not wait for it; we do, rather than ask again and again
        if request.segments != NULL and request.job.kind != JOB_SYNC:
            self.range_done(request)
        elif request.job.result < 0:
            if request.job.result == -EFAULT:
                pieces_touch(request.pieces, request.count)
            self.finish(request, VIRTIO_BLK_S_IOERR)
        elif request.job.kind == JOB_SYNC:
            self.finish(request, VIRTIO_BLK_S_OK)
        elif request.job.result == 0:  # the file ends here
            self.finish(request, VIRTIO_BLK_S_IOERR)
        else:
            self.transferred(request, request.job.result)

    cdef void transferred(self, request_t *request, uint64_t count) noexcept nogil:
        """Go on after *count* bytes were read or written."""
        # SAFETY: no more than the job asked for, which is no more than what is left.
        if request.bounce != NULL and request.job.kind == JOB_READ:
            pieces_write(request.pieces, request.bounce, count)
        request.left -= count
        request.job.offset += count
        if not request.left:
            self.finish(request, VIRTIO_BLK_S_OK)
            return
        pieces_skip(&request.pieces, &request.count, count)
        self.issue(request)

    cdef void next_range(self, request_t *request) noexcept nogil:
        """Begin with the next range, or end the request after the last."""
        cdef segment_t *segment
        cdef bint zeroes = request.type == VIRTIO_BLK_T_WRITE_ZEROES
        # SAFETY: segment is below the number of segments.
        while request.segment < request.segments_count:
            segment = &request.segments[request.segment]
            request.job.offset = segment.sector << SECTOR_BITS
            request.job.length = request.left = <uint64_t>segment.num_sectors << SECTOR_BITS
            request.by = BY_RANGE if zeroes and not (
                segment.flags & VIRTIO_BLK_WRITE_ZEROES_FLAG_UNMAP and self.state.discard
            ) else BY_HOLE
            if request.left and self.issue_range(request):
                return
            request.segment += 1
        if zeroes and flag_get(&self.state.writethrough):
            request.job.kind = JOB_SYNC
            aio_push(&self.backend, &request.job)
        else:
            self.finish(request, VIRTIO_BLK_S_OK)

    cdef bint issue_range(self, request_t *request) noexcept nogil:
        """Push a job that clears what is left of the range; False if it can't be discarded, which is no error."""
        if request.by == BY_HOLE and flag_get(&self.state.no_holes):
            if request.type == VIRTIO_BLK_T_DISCARD:
                return False
            request.by = BY_RANGE
        if request.by == BY_RANGE and flag_get(&self.state.no_ranges):
            request.by = BY_WRITING
        if request.by == BY_WRITING:
            request.job.kind = JOB_WRITE
            request.single.iov_base = ZEROES
            request.single.iov_len = min(request.left, <uint64_t>ZEROES_SIZE)
            request.job.pieces = &request.single
            request.job.count = 1
            request.job.flags = 0
        else:
            request.job.kind = JOB_ALLOCATE
            request.job.flags = FALLOC_FL_KEEP_SIZE | (
                FALLOC_FL_PUNCH_HOLE if request.by == BY_HOLE else FALLOC_FL_ZERO_RANGE
            )
        aio_push(&self.backend, &request.job)
        return True

    cdef void range_done(self, request_t *request) noexcept nogil:
        """Take the result of a job that cleared a range, or a part of it."""
        cdef int64_t result = request.job.result
        if result == -EOPNOTSUPP and request.job.kind == JOB_ALLOCATE:
            flag_set(&self.state.no_holes if request.by == BY_HOLE else &self.state.no_ranges, 1)
            if self.issue_range(request):
                return
        elif result < 0 or (result == 0 and request.job.kind == JOB_WRITE):
            self.finish(request, VIRTIO_BLK_S_IOERR)
            return
        elif request.job.kind == JOB_WRITE:
            request.left -= result
            request.job.offset += result
            if request.left and self.issue_range(request):
                return
        request.segment += 1
        self.next_range(request)

    cdef void finish(self, request_t *request, uint8_t status) noexcept nogil:
        """Give a deferred request back."""
        self.deferred -= 1
        # SAFETY: each is NULL or what malloc gave.
        free(request.bounce)
        free(request.segments)
        request.bounce = NULL
        request.segments = NULL
        self.end(
            &request.chain, request.status, status,
            request.written if status == VIRTIO_BLK_S_OK else request.unwritten,
        )
        request.next = self.idle
        self.idle = request

    cdef void end(self, const chain_t *chain, uint8_t *status, uint8_t value, uint64_t written) noexcept nogil:
        """Write the status byte and push."""
        # SAFETY: status is the last byte of what the device writes, in guest memory.
        (<volatile_byte *>status)[0] = value
        if value != VIRTIO_BLK_S_OK:
            self.queue.count_error()
        self.queue.push_chain(chain, <uint32_t>min(written, <uint64_t>0xffffffff))


# SAFETY, for all: device is the DiskQueue that `attach` gave, which the worker holds.
cdef int _process(void *device, int queue_index) noexcept nogil:
    return (<DiskQueue>device).serve()


cdef bint _busy(void *device, int queue_index) noexcept nogil:
    return (<DiskQueue>device).deferred != 0


cdef void _event(void *device, int fd) noexcept nogil:
    aio_clear(&(<DiskQueue>device).backend)
    (<DiskQueue>device).settle()
