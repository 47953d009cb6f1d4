# SPDX-FileCopyrightText: 2026 The doorbelld authors
# SPDX-License-Identifier: GPL-2.0-or-later
"""System calls that are made in bulk, or on descriptors that a hostile peer shares with us.

Theory of operation
-------------------
*Sending.* An ivshmem message is 8 bytes with at most one descriptor, and two can't be merged, so a greeting of
P peers x V vectors is P x V messages. `send_messages` hands them to the kernel by the hundred with sendmmsg(2).
The socket is never allowed to block (MSG_DONTWAIT), whatever a peer does to its flags.

*Sending, so that a crash leaves no doubt.* Between sendmmsg(2) and the next line of ours the process can be killed,
and then nobody knows how many messages went out. But the kernel itself writes each message's ``msg_len`` as soon as
that message is sent, inside the call, where no signal kills. So where a send slot is given, the array of message headers
lies in it: in memory that others hold too and that outlives us (`ledger`). `count_sent` reads it afterwards. The slot's
first word says how many messages went out in earlier calls of the same batch (upper half) and how many headers count
(lower half); it is one store, so it is never half written. `drain` does the same with a counter that is taken.

*Ringing.* An eventfd is shared with every peer that may ring it, and O_NONBLOCK belongs to the open file, not to
the descriptor: any of them can clear the flag, fill the counter, and so make the next write(2) of ours block for
ever (or drain it and make our read(2) block). Reading has an answer to that, preadv2(2) with RWF_NOWAIT; writing has
none. So `ring` looks with poll(2) first, and a counter found full is not written to; what is left is the moment
between the two. For that one it runs under a guard (`guard.h`): a blocked call returns EINTR within 10 ms, and we set
the flag anew.

Invariants
----------
1. No function here takes ownership of a descriptor.
2. No function blocks longer than the guard's period times the number of descriptors whose sharers win that race.
3. What a system call says is returned as errno values, not raised: the caller decides whose fault it is.
"""

from cpython cimport array
from libc.errno cimport EAGAIN, EINTR, errno
from libc.stdint cimport int64_t, uint64_t
from libc.string cimport memcpy, memset

cdef extern from "<sys/socket.h>" nogil:
    ctypedef unsigned int socklen_t
    struct iovec:
        void *iov_base
        size_t iov_len
    struct msghdr:
        iovec *msg_iov
        size_t msg_iovlen
        void *msg_control
        size_t msg_controllen
    struct mmsghdr:
        msghdr msg_hdr
        unsigned int msg_len
    struct cmsghdr:
        size_t cmsg_len
        int cmsg_level
        int cmsg_type
    int sendmmsg(int fd, mmsghdr *messages, unsigned int count, int flags)
    cmsghdr *CMSG_FIRSTHDR(msghdr *message)
    unsigned char *CMSG_DATA(cmsghdr *header)
    size_t CMSG_LEN(size_t length)
    enum: SOL_SOCKET, SCM_RIGHTS, MSG_DONTWAIT, MSG_NOSIGNAL

cdef extern from "<sys/uio.h>" nogil:
    enum: RWF_NOWAIT
    ssize_t preadv2(int fd, const iovec *vectors, int count, long offset, int flags)

cdef extern from "<poll.h>" nogil:
    struct pollfd:
        int fd
        short events
        short revents
    enum: POLLOUT
    int poll(pollfd *fds, unsigned long count, int timeout)

cdef extern from "<unistd.h>" nogil:
    ssize_t write(int fd, const void *data, size_t count)

cdef extern from "<fcntl.h>" nogil:
    enum: F_GETFL, F_SETFL, O_NONBLOCK
    int fcntl(int fd, int command, ...)

cdef extern from "guard.h" nogil:
    int guard_arm(long period_ns)
    void guard_disarm()
    void guard_delete()
    void settle_memory()
    enum: GUARD_SIGNAL
    long GUARD_PERIOD_NS

cdef extern from *:
    """
    #include <sys/uio.h>

    union rights { struct cmsghdr header; char space[CMSG_SPACE(sizeof(int))]; };
    """
    ctypedef struct rights "union rights":
        pass

cdef enum:
    RING_BATCH = 64  # eventfds in one poll(2)
    BATCH = 256  # messages in one sendmmsg(2); a UNIX stream socket takes about 278 before it is full

cdef struct Slot:
    uint64_t progress  # messages sent by earlier calls << 32 | headers that count
    uint64_t key  # whose batch; the ledger's business, as is the next
    uint64_t position
    mmsghdr messages[BATCH]


SLOT_SIZE = sizeof(Slot)
"""Bytes of a send slot."""
GUARD = GUARD_SIGNAL
"""The signal of the guard: a thread that blocks it can't ring."""


def send_messages(int sock, array.array values not None, array.array fds not None, unsigned char[::1] slot=None):
    """Send ivshmem messages in order, without blocking, until all are sent or the socket takes no more.

    Args:
        sock: a connected UNIX stream socket.
        values: ``array('q')`` of message values.
        fds: ``array('i')`` of the same length; the descriptor that goes with each, or -1.
        slot: `SLOT_SIZE` bytes of memory, aligned to 8, in which `count_sent` finds how far this came.

    Returns:
        ``(sent, error)``: how many went out whole, and 0 or the errno value that stopped the rest.
    """
    cdef Py_ssize_t count = len(values)
    if values.typecode != "q" or fds.typecode != "i" or len(fds) != count:
        raise ValueError("values must be array('q') and fds array('i') of the same length")
    if slot is not None and len(slot) != SLOT_SIZE:
        raise ValueError(f"a send slot has {SLOT_SIZE} bytes")
    cdef Py_ssize_t sent = 0
    cdef int error = 0
    cdef int taken
    cdef Slot *record = <Slot *>&slot[0] if slot is not None else NULL
    cdef Slot scratch
    cdef volatile uint64_t *progress = &record.progress if record else &scratch.progress
    cdef mmsghdr *messages = &record.messages[0] if record else &scratch.messages[0]
    cdef unsigned int count_now
    # SAFETY: the slot is as large as a Slot and kept alive by our reference. Both arrays are kept alive by our references and are not resized while the GIL is released: their only
    # user is the caller, which waits for us.
    with nogil:
        while sent < count and not error:
            count_now = <unsigned int>min(count - sent, BATCH)
            progress[0] = <uint64_t>sent << 32  # no header counts while they are made
            settle_memory()
            memset(messages, 0, count_now * sizeof(mmsghdr))
            settle_memory()
            progress[0] |= count_now
            taken = _send_some(sock, messages, <int64_t *>values.data.as_longlongs + sent, fds.data.as_ints + sent,
                               count_now, &error)
            sent += taken
    return sent, error


def count_sent(const unsigned char[::1] slot not None):
    """Tell how many messages of the batch that *slot* is of went out."""
    if len(slot) != SLOT_SIZE:
        raise ValueError(f"a send slot has {SLOT_SIZE} bytes")
    # SAFETY: the slot is as large as a Slot; the number of headers is held against what fits.
    cdef const Slot *record = <const Slot *>&slot[0]
    cdef uint64_t sent = record.progress >> 32
    cdef Py_ssize_t i
    for i in range(<Py_ssize_t>min(record.progress & 0xffffffff, <uint64_t>BATCH)):
        if record.messages[i].msg_len:
            sent += 1
    return sent


cdef int _send_some(int sock, mmsghdr *messages, int64_t *values, int *fds, unsigned int count,
                    int *error) noexcept nogil:
    cdef iovec vectors[BATCH]
    cdef rights controls[BATCH]
    cdef msghdr *message
    cdef cmsghdr *header
    cdef unsigned int i
    cdef int taken
    # SAFETY: count <= BATCH (the caller's min), so every index below is inside these arrays, of which the caller gave
    # messages, zeroed; the kernel reads the values and writes only msg_len. The protocol is little-endian, as is every
    # host that we build for.
    for i in range(count):
        vectors[i].iov_base = &values[i]
        vectors[i].iov_len = sizeof(int64_t)
        message = &messages[i].msg_hdr
        message.msg_iov = &vectors[i]
        message.msg_iovlen = 1
        if fds[i] >= 0:
            message.msg_control = &controls[i]
            message.msg_controllen = sizeof(rights)
            header = CMSG_FIRSTHDR(message)
            header.cmsg_level = SOL_SOCKET
            header.cmsg_type = SCM_RIGHTS
            header.cmsg_len = CMSG_LEN(sizeof(int))
            memcpy(CMSG_DATA(header), &fds[i], sizeof(int))
    while True:
        taken = sendmmsg(sock, messages, count, MSG_DONTWAIT | MSG_NOSIGNAL)
        if taken >= 0:
            return taken
        if errno != EINTR:
            error[0] = errno
            return 0


def ring(array.array fds not None):
    """Add one to each eventfd in *fds* (``array('i')``).

    A counter that is full counts as rung: the interrupt is pending already.

    Returns:
        0, or the errno value of the first that failed for another reason; the others are rung all the same.
    """
    cdef Py_ssize_t start
    cdef Py_ssize_t count = len(fds)
    cdef int failed = 0
    cdef int error = guard_arm(GUARD_PERIOD_NS)
    if error:
        return error
    for start in range(0, count, RING_BATCH):
        error = _ring(fds.data.as_ints + start, <int>min(count - start, RING_BATCH))
        failed = failed or error
    guard_disarm()
    return failed


def look_up(dict doorbells not None, targets not None):
    """Find the eventfds of many (ID, index) pairs in *doorbells*, a dict of ``array('i')`` by ID.

    Returns:
        The eventfds as ``array('i')``, borrowed.

    Raises:
        LookupError: its argument is the first pair that is not there.
    """
    cdef list pairs = list(targets)
    cdef array.array found = array.array("i", bytes(len(pairs) * sizeof(int)))
    cdef array.array of
    cdef Py_ssize_t i = 0
    # SAFETY: i < len(pairs), for which found was made; the index is checked against the array that it is used on.
    for pair in pairs:
        entry = doorbells.get(pair[0])
        if entry is None:
            raise LookupError(pair)
        of = entry
        if not 0 <= pair[1] < len(of):
            raise LookupError(pair)
        found.data.as_ints[i] = of.data.as_ints[<Py_ssize_t>pair[1]]
        i += 1
    return found


def ring_one(int fd):
    """Add one to the eventfd *fd*; like `ring`, for the most common number of them."""
    cdef int error = guard_arm(GUARD_PERIOD_NS)
    if not error:
        error = _ring(&fd, 1)
        guard_disarm()
    return error


def end_guard():
    """End the guard of this thread, which is about to end itself."""
    guard_delete()


def drain(int fd, unsigned char[::1] slot=None):
    """Take the counter of the eventfd *fd*: how often it was rung since the last time.

    With *slot*, 8 bytes aligned to 8, the kernel puts what it took there, in the same moment as it takes it.

    Returns:
        ``(count, error)``: 0 where there was nothing to take.
    """
    cdef uint64_t count = 0
    cdef iovec vector
    if slot is not None and len(slot) != sizeof(count):
        raise ValueError("a counter has 8 bytes")
    vector.iov_base = &slot[0] if slot is not None else <unsigned char *>&count
    vector.iov_len = sizeof(count)
    # SAFETY: the slot and count are as large as what an eventfd writes there.
    if preadv2(fd, &vector, 1, -1, RWF_NOWAIT) == sizeof(count):
        return (<uint64_t *>vector.iov_base)[0], 0
    return 0, _forgive(fd)


cdef int _ring(int *fds, int count) noexcept nogil:
    """Ring *count* eventfds, at most RING_BATCH; 0, or the errno value of the first that failed."""
    cdef uint64_t one = 1
    cdef pollfd looks[RING_BATCH]
    cdef int failed = 0
    cdef int error
    cdef int i
    # SAFETY: count <= RING_BATCH (the caller's min), so every index is inside looks; the kernel reads 8 bytes from a
    # variable of 8 bytes.
    for i in range(count):
        looks[i].fd = fds[i]
        looks[i].events = POLLOUT
        looks[i].revents = 0
    poll(looks, count, 0)
    for i in range(count):
        if looks[i].revents and write(fds[i], &one, sizeof(one)) != sizeof(one):
            error = _forgive(fds[i])
            failed = failed or error
    return failed


cdef int _forgive(int fd) noexcept nogil:
    """Turn the errno of a call that would have blocked into 0, after making *fd* non-blocking again."""
    cdef int error = errno
    if error == EINTR:
        fcntl(fd, F_SETFL, fcntl(fd, F_GETFL) | O_NONBLOCK)
        return 0
    return 0 if error == EAGAIN else error
