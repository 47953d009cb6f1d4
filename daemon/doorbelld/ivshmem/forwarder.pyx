# SPDX-FileCopyrightText: 2026 The doorbelld authors
# SPDX-License-Identifier: GPL-2.0-or-later
"""The forwarder: takes rings from proxy eventfds and passes them on to real doorbells, without the GIL.

Theory of operation
-------------------
In a relayed region each pair of a sender and a target has a *lane*, with a *channel* for each of the target's vectors:
a proxy eventfd, which the sender rings, and the target's doorbell. One thread waits for all proxies with epoll(7),
edge-triggered. It takes a proxy's count and adds it to the doorbell, so rings that came together arrive together, and
none is lost.

*The table.* Each lane goes by a record in memory that outlives us (`table`). preadv2(2) takes the count, and the kernel
itself puts it into the record's ``taken``, in the same moment. It is cleared when it was written to the doorbell. So
whoever is killed in between leaves a count that says: deliver me, perhaps once more. The other numbers are written in
such an order that a successor gets them exactly right::

    taken = count           by the kernel
    rings += taken          the sum of all counts
    write(doorbell)         and deliveries += 1
    taken = 0
    passed = rings - refused

*Limits.* A lane with a limit has a token bucket, kept as one number: when the next token would be due if all came
evenly (the generic cell rate algorithm). A channel that has no token reserves the next one and is *held*: its proxy is
not watched, so ringing on costs us nothing, its rings wait there, and the channel is in a heap by the time when it is
due. A lane that is forbidden has its rings taken, counted as refused, and thrown away, at most a thousand times a
second.

*Hostile sharers.* Senders and targets hold these eventfds too: they may clear O_NONBLOCK and fill counters. Taking
never blocks (RWF_NOWAIT). A count that has gone over (by aio(7), say) is reported whether we watch or not, so even what
is not watched is edge-triggered. Writing is done under a guard (`guard.h`) of half a millisecond. A doorbell that does not
take the count leaves it in ``taken``; the channel is held and tries again, after twice the time each time. Whoever made
a write block once is not trusted again: its doorbells are looked at with poll(2) and made non-blocking before each
write, and should that be lost in a race, they are left alone for longer.

Invariants
----------
1. Lanes, heap and table are touched with the mutex held; the thread waits without it, and lets others go first.
2. A channel is in the heap, or watched, never both. Its ``taken`` is 0 unless it is in the heap or being served.
3. No function takes ownership of a descriptor; `stop` comes before they are closed.
4. A member's own lane is started before any lane towards it, and stopped after the last of them.
"""

import os

from cpython cimport array
from libc.errno cimport EAGAIN, EINTR, errno
from libc.stdint cimport UINT64_MAX, uint32_t, uint64_t
from libc.stdlib cimport calloc, free
from libc.string cimport memset

from .table import RATE_MAX

from .lanes cimport (
    CHANNEL, DELIVERIES, FORBIDDEN, HEAD, PASSED, RATE, REFUSED, RINGS, SECOND_NS, SENDER, TAKEN, Channel, Heap, Lane,
    free_lane, heap_due, heap_grow, hold, refuse, set_rate, settle, take, unhold,
)  # fmt: skip
from .table cimport Table

cdef extern from "guard.h" nogil:
    int guard_arm(long period_ns)
    void guard_disarm()
    void guard_delete()

cdef extern from "barriers.h" nogil:
    int load_flag(const int *at)
    void store_flag(int *at, int value)
    uint64_t load64(const uint64_t *at)
    void store64(uint64_t *at, uint64_t value)

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

cdef extern from "<sched.h>" nogil:
    int sched_yield()

cdef extern from "<time.h>" nogil:
    struct timespec:
        long tv_sec
        long tv_nsec
    struct itimerspec:
        timespec it_interval
        timespec it_value
    enum: CLOCK_MONOTONIC
    int clock_gettime(int clock, timespec *now)

cdef extern from "<sys/timerfd.h>" nogil:
    enum: TFD_NONBLOCK, TFD_CLOEXEC, TFD_TIMER_ABSTIME
    int timerfd_create(int clock, int flags)
    int timerfd_settime(int fd, int flags, const itimerspec *value, itimerspec *old)

cdef extern from "<pthread.h>" nogil:
    ctypedef struct pthread_mutex_t:
        pass
    int pthread_mutex_init(pthread_mutex_t *, void *)
    int pthread_mutex_destroy(pthread_mutex_t *)
    int pthread_mutex_lock(pthread_mutex_t *)
    int pthread_mutex_unlock(pthread_mutex_t *)

cdef extern from "<sys/epoll.h>" nogil:
    ctypedef union epoll_data_t:
        uint64_t u64
    struct epoll_event:
        uint32_t events
        epoll_data_t data
    enum: EPOLL_CLOEXEC, EPOLL_CTL_ADD, EPOLL_CTL_MOD, EPOLL_CTL_DEL
    uint32_t EPOLLIN, EPOLLET
    int epoll_create1(int flags)
    int epoll_ctl(int epoll, int what, int fd, epoll_event *event)
    int epoll_wait(int epoll, epoll_event *events, int count, int timeout)

cdef enum:
    BATCH = 64  # channels served with the mutex held
    GUARD_NS = 500_000
    RETRY_FIRST_NS = 1_000_000  # a doorbell that is full is tried again after so long, at first
    RETRY_LAST_NS = 256_000_000  # and after so long in the end
    PENALTY_NS = 1_000_000_000  # one that made us block although it was looked at before
    YIELDS = 100  # turns that the thread gives up for somebody who waits for the mutex

cdef uint64_t CONTROL_KEY = UINT64_MAX
cdef uint64_t TIMER_KEY = UINT64_MAX - 1

cdef uint64_t _clock() noexcept nogil:
    cdef timespec now
    clock_gettime(CLOCK_MONOTONIC, &now)
    return <uint64_t>now.tv_sec * SECOND_NS + <uint64_t>now.tv_nsec


cdef class Forwarder(Table):
    """Forwards for one region; `run` is for a thread of its own, `turn` for one step at a given time.

    A lane is known by the index of its record. The record of a member itself has a lane without channels.
    """

    cdef Lane **lanes
    cdef Heap heap
    cdef Py_ssize_t channels
    cdef int epoll
    cdef int control
    cdef int timer
    cdef int stopping
    cdef int waiting  # somebody else wants the mutex
    cdef uint64_t poll_ns
    cdef uint64_t next_due
    cdef uint64_t turns_taken
    cdef bint guarded
    cdef pthread_mutex_t mutex
    cdef bint made

    def __cinit__(self):
        self.epoll = self.control = self.timer = -1

    def __init__(self, unsigned char[::1] memory not None, int vectors, *, int poll_us=0):
        """Make one without lanes, whose table is in *memory*.

        Raises:
            OSError: there are no descriptors left.
        """
        Table.__init__(self, memory, vectors)
        self.poll_us = poll_us
        # SAFETY: plain initialisation; what is made here goes with the object (`__dealloc__`, `close`).
        self.lanes = <Lane **>calloc(self.capacity, sizeof(Lane *))
        if self.lanes == NULL:
            raise MemoryError
        pthread_mutex_init(&self.mutex, NULL)
        self.made = True
        try:
            self.epoll = _made(epoll_create1(EPOLL_CLOEXEC))
            self.control = os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)
            self.timer = _made(timerfd_create(CLOCK_MONOTONIC, TFD_NONBLOCK | TFD_CLOEXEC))
            self._watch(self.control, CONTROL_KEY)
            self._watch(self.timer, TIMER_KEY)
        except BaseException:
            self.close()
            raise

    def __dealloc__(self):
        cdef Py_ssize_t index
        # SAFETY: nobody refers to us any more, so no thread is in `run`.
        if self.lanes != NULL:
            for index in range(self.capacity):
                free_lane(self.lanes[index])
            free(self.lanes)
        free(self.heap.at)
        if self.made:
            pthread_mutex_destroy(&self.mutex)

    def close(self):
        """Let go of everything; `run` has returned. A second time does nothing."""
        for fd in (self.epoll, self.control, self.timer):
            if fd >= 0:
                os.close(fd)
        self.epoll = self.control = self.timer = -1
        for index in range(self.capacity):
            if self.lanes[index] != NULL:
                free_lane(self.lanes[index])
                self.lanes[index] = NULL
        self.heap.held = self.channels = 0
        self.memory = None

    @property
    def poll_us(self):
        """Microseconds that the thread looks for more before it sleeps; may be set at any time."""
        return load64(&self.poll_ns) // 1000

    @poll_us.setter
    def poll_us(self, int value):
        store64(&self.poll_ns, <uint64_t>value * 1000)

    @property
    def turns(self):
        """How often the thread woke."""
        return load64(&self.turns_taken)

    # Lanes

    def start(self, Py_ssize_t index, Py_ssize_t own, array.array sources not None, array.array sinks not None):
        """Begin to forward as record *index* says, from *sources* to *sinks*; goes on where a predecessor was killed.

        *own* is the index of the target's own lane. With no sources, this is an own lane itself.

        Raises:
            OSError: the kernel takes no more; nothing is begun then.
        """
        cdef uint64_t *record = self._record(index)
        cdef int count = <int>len(sources)
        cdef int error
        cdef Lane *lane
        if sources.typecode != "i" or sinks.typecode != "i" or len(sinks) != count or count not in (0, self.vectors):
            raise ValueError("sources and sinks must be array('i'), one for each vector")
        self._record(own)
        if not record[SENDER] or self.lanes[index] != NULL or (count and self.lanes[own] == NULL):
            raise ValueError(f"record {index} or {own} is not as it should be")
        lane = <Lane *>calloc(1, sizeof(Lane))
        if lane != NULL:
            lane.channels = <Channel *>calloc(count + 1, sizeof(Channel))
        if lane == NULL or lane.channels == NULL:
            free_lane(lane)
            raise MemoryError
        lane.record = record
        lane.target = self.lanes[own] if count else lane
        lane.count = count
        set_rate(lane)
        # SAFETY: the arrays have a descriptor for each channel, and are not resized: their only user waits for us.
        with nogil:
            self._lock()
            error = heap_grow(&self.heap, self.channels + count)
            if not error:
                error = self._start(lane, index, sources.data.as_ints, sinks.data.as_ints)
            if not error:
                self.lanes[index] = lane
                self.channels += count
            self._unlock()
        if error:
            free_lane(lane)
            raise OSError(error, os.strerror(error))
        if self.heap.held:
            self._prod()

    def stop(self, Py_ssize_t index, bint flush=False):
        """End a lane; with *flush*, what its proxies hold is delivered first, whatever its limit. Gives `counts`.

        The record stays; `erase` makes it free.
        """
        cdef Lane *lane = self._lane(index)
        cdef int i
        cdef Channel *channel
        # SAFETY: the lane is ours until it is freed here; the thread uses it with the mutex only.
        with nogil:
            self._lock()
            guard_arm(GUARD_NS)
            for i in range(lane.count):
                channel = &lane.channels[i]
                if channel.place >= 0:
                    unhold(&self.heap, channel)
                epoll_ctl(self.epoll, EPOLL_CTL_DEL, channel.source, NULL)
                if flush:
                    self._flush(channel)
            guard_disarm()
            self.lanes[index] = NULL
            self.channels -= lane.count
            self._unlock()
            free_lane(lane)
        return self.counts(index)

    def change(self, Py_ssize_t index, uint64_t rate, bint permitted):
        """Set a lane's rate, deliveries a second (0: no limit), and whether it is permitted; live."""
        cdef Lane *lane = self._lane(index)
        cdef Channel *channel
        cdef int i
        if rate > <uint64_t>RATE_MAX:
            raise ValueError(f"{rate} deliveries a second are more than {RATE_MAX}")
        # SAFETY: as in `stop`.
        with nogil:
            self._lock()
            for i in range(lane.count):
                channel = &lane.channels[i]
                if lane.record[FORBIDDEN] and (channel.record[TAKEN] or take(channel)):
                    refuse(channel)  # it was rung before it is permitted
                if channel.place >= 0 and not channel.record[TAKEN]:  # waits for a token of the old kind
                    unhold(&self.heap, channel)
                    hold(&self.heap, channel, 0, False)
            lane.record[RATE] = rate
            set_rate(lane)
            lane.record[FORBIDDEN] = not permitted
            self._unlock()
        self._prod()

    # Forwarding

    def turn(self, uint64_t now):
        """Serve what is ready at time *now*, in nanoseconds; gives how many channels that were."""
        cdef int served
        with nogil:
            self._arm()
            served = self._round(0, now)
            self._disarm()
        if served < 0 and served != -EINTR:
            raise OSError(-served, os.strerror(-served))
        return max(served, 0)

    def run(self):
        """Serve until `end` is called.

        Raises:
            OSError: it can't go on.
        """
        cdef int error
        with nogil:
            error = self._run()
            guard_delete()
        if error:
            raise OSError(error, os.strerror(error))

    def end(self):
        """Have `run` return, from any thread."""
        store_flag(&self.stopping, 1)
        self._prod()

    cdef int _run(self) noexcept nogil:
        cdef uint64_t active = 0
        cdef uint64_t armed_for = 0
        cdef uint64_t due, patience
        cdef int served, timeout
        cdef itimerspec alarm
        while not load_flag(&self.stopping):
            due = load64(&self.next_due)
            patience = load64(&self.poll_ns)
            timeout = -1
            if (due or patience) and (_clock() - active < patience or (due and due <= _clock())):
                timeout = 0
            elif due != armed_for:
                # SAFETY: plain values; a time of 0 would turn the timer off, so one that has passed is not 0.
                memset(&alarm, 0, sizeof(alarm))
                alarm.it_value.tv_sec = <long>(due // SECOND_NS)
                alarm.it_value.tv_nsec = <long>(due % SECOND_NS)
                timerfd_settime(self.timer, TFD_TIMER_ABSTIME, &alarm, NULL)
                armed_for = due
            served = self._round(timeout, 0)
            if served > 0:
                if patience:
                    active = _clock()
            elif served == -EINTR:
                self._disarm()  # a whole period without a ring, or nearly
            elif served < 0:
                self._disarm()
                return -served
        self._disarm()
        return 0

    cdef int _round(self, int timeout, uint64_t now) noexcept nogil:
        """Wait, and serve what is ready; how many channels that were, or the errno value, negative."""
        cdef epoll_event events[BATCH]
        cdef int count, i
        cdef int served = 0
        cdef int yields = 0
        cdef uint64_t key
        cdef uint64_t index
        cdef Lane *lane
        cdef Channel *channel
        # SAFETY: a key names a lane and a channel by numbers; lanes are looked up with the mutex held, and one that has
        # ended meanwhile is not there. A new one in its place is served in vain.
        while load_flag(&self.waiting) and yields < YIELDS:
            sched_yield()
            yields += 1
        count = epoll_wait(self.epoll, events, BATCH, timeout)
        if count < 0:
            return -errno
        if count == 0 and not load64(&self.next_due):
            return 0
        pthread_mutex_lock(&self.mutex)
        store64(&self.turns_taken, self.turns_taken + 1)
        if not now:
            now = _clock()
        self._arm()
        for i in range(count):
            key = events[i].data.u64
            if key == CONTROL_KEY or key == TIMER_KEY:
                continue
            index = key // <uint64_t>self.vectors
            lane = self.lanes[index]
            if lane == NULL or not lane.count:
                continue
            channel = &lane.channels[key % <uint64_t>self.vectors]
            if channel.place < 0:
                self._serve(channel, now, False)
                served += 1
        while self.heap.held and self.heap.at[0].due <= now and served < 2 * BATCH:
            channel = self.heap.at[0]
            unhold(&self.heap, channel)
            self._serve(channel, now, channel.granted)
            if channel.place < 0:
                self._rearm(channel, EPOLLIN | EPOLLET)
            served += 1
        store64(&self.next_due, heap_due(&self.heap))
        pthread_mutex_unlock(&self.mutex)
        return served

    cdef void _serve(self, Channel *channel, uint64_t now, bint granted) noexcept nogil:
        """Deliver what a channel has, or hold it."""
        cdef Lane *lane = channel.lane
        cdef uint64_t *record = channel.record
        cdef bint forbidden = lane.record[FORBIDDEN] != 0
        cdef uint64_t start
        if not record[TAKEN]:
            if lane.interval and not forbidden and not granted:
                start = max(lane.next, now)
                lane.next = start + lane.interval
                if start > now + lane.slack:
                    hold(&self.heap, channel, start - lane.slack, True)
                    self._rearm(channel, EPOLLET)
                    return
                granted = True
            if not take(channel):
                if granted and lane.interval:
                    lane.next -= lane.interval  # nobody rang after all
                return
        if forbidden:
            refuse(channel)
            hold(&self.heap, channel, now + RETRY_FIRST_NS, False)  # so that ringing on costs us little
            self._rearm(channel, EPOLLET)
        elif not self._deliver(channel, now):
            self._rearm(channel, EPOLLET)

    cdef bint _deliver(self, Channel *channel, uint64_t now) noexcept nogil:
        """Write what was taken; False if that can't be now, and the channel is held."""
        cdef Lane *target = channel.lane.target
        cdef pollfd look
        cdef bint wary = target.wary or not self.guarded
        cdef int error = EAGAIN
        look.fd = channel.sink
        look.events = POLLOUT
        look.revents = 0
        # SAFETY: the kernel reads the 8 bytes of one word of the record.
        if not wary or poll(&look, 1, 0) > 0:
            if wary:
                fcntl(channel.sink, F_SETFL, fcntl(channel.sink, F_GETFL) | O_NONBLOCK)
            if write(channel.sink, &channel.record[TAKEN], sizeof(uint64_t)) == sizeof(uint64_t):
                channel.record[DELIVERIES] += 1
                settle(channel)
                channel.wait = 0
                return True
            error = errno
        channel.wait = min(max(channel.wait * 2, <uint64_t>RETRY_FIRST_NS), <uint64_t>RETRY_LAST_NS)
        if error == EINTR:  # it blocked, until the guard struck
            target.wary = True
            if wary:
                channel.wait = PENALTY_NS
        hold(&self.heap, channel, now + channel.wait, False)
        return False

    cdef void _flush(self, Channel *channel) noexcept nogil:
        """Deliver what a channel has, or give it up: a doorbell that is full is rung already."""
        cdef pollfd look
        if not channel.record[TAKEN] and not take(channel):
            return
        if channel.lane.record[FORBIDDEN]:
            refuse(channel)
            return
        look.fd = channel.sink
        look.events = POLLOUT
        look.revents = 0
        # SAFETY: as in `_deliver`.
        if poll(&look, 1, 0) > 0:
            fcntl(channel.sink, F_SETFL, fcntl(channel.sink, F_GETFL) | O_NONBLOCK)
            if write(channel.sink, &channel.record[TAKEN], sizeof(uint64_t)) == sizeof(uint64_t):
                channel.record[DELIVERIES] += 1
        settle(channel)

    cdef int _start(self, Lane *lane, uint64_t index, const int *sources, const int *sinks) noexcept nogil:
        """Make the channels of *lane* and watch them; 0, or an errno value and nothing is watched."""
        cdef int i, error
        cdef Channel *channel
        cdef uint64_t *record
        cdef epoll_event event
        # SAFETY: sources, sinks, channels and the record have an element for each vector.
        for i in range(lane.count):
            channel = &lane.channels[i]
            channel.lane = lane
            channel.record = record = lane.record + HEAD + i * CHANNEL
            channel.key = index * <uint64_t>self.vectors + <uint64_t>i
            channel.source = sources[i]
            channel.sink = sinks[i]
            channel.place = -1
            event.events = EPOLLET if record[TAKEN] else EPOLLIN | EPOLLET
            event.data.u64 = channel.key
            if epoll_ctl(self.epoll, EPOLL_CTL_ADD, channel.source, &event):
                error = errno
                for i in range(i):
                    epoll_ctl(self.epoll, EPOLL_CTL_DEL, lane.channels[i].source, NULL)
                    if lane.channels[i].place >= 0:
                        unhold(&self.heap, &lane.channels[i])
                return error
            if record[TAKEN]:  # a predecessor was killed before it could deliver, or before it knew that it had
                record[TAKEN] = min(record[TAKEN], UINT64_MAX - 1)  # as `take` does
                if record[RINGS] == record[PASSED] + record[REFUSED]:
                    record[RINGS] += record[TAKEN]
                hold(&self.heap, channel, 0, False)
            elif lane.record[FORBIDDEN]:
                record[REFUSED] = record[RINGS] - record[PASSED]
            else:
                record[PASSED] = record[RINGS] - record[REFUSED]
        return 0

    # Watching and holding

    def _watch(self, int fd, uint64_t key):
        cdef epoll_event event
        event.events = EPOLLIN | EPOLLET  # nobody reads them: each new edge is news
        event.data.u64 = key
        _made(epoll_ctl(self.epoll, EPOLL_CTL_ADD, fd, &event))

    cdef void _rearm(self, Channel *channel, uint32_t events) noexcept nogil:
        """Watch a channel's proxy again, whatever came meanwhile, or (EPOLLET alone) no longer."""
        cdef epoll_event event
        event.events = events
        event.data.u64 = channel.key
        epoll_ctl(self.epoll, EPOLL_CTL_MOD, channel.source, &event)

    cdef void _arm(self) noexcept nogil:
        if not self.guarded:
            self.guarded = not guard_arm(GUARD_NS)

    cdef void _disarm(self) noexcept nogil:
        if self.guarded:
            guard_disarm()
            self.guarded = False

    cdef void _lock(self) noexcept nogil:
        store_flag(&self.waiting, 1)
        pthread_mutex_lock(&self.mutex)
        store_flag(&self.waiting, 0)

    cdef void _unlock(self) noexcept nogil:
        """After a change: the heap's first may be another."""
        store64(&self.next_due, heap_due(&self.heap))
        pthread_mutex_unlock(&self.mutex)

    def _prod(self):
        """Have the thread look at what has changed."""
        cdef uint64_t one = 1
        # SAFETY: the eventfd is ours alone and never blocks.
        write(self.control, &one, sizeof(one))

    cdef Lane *_lane(self, Py_ssize_t index) except NULL:
        self._record(index)
        if self.lanes[index] == NULL:
            raise IndexError(f"there is no lane {index}")
        return self.lanes[index]


def _made(int result):
    """Raise what a system call says by *result*, if it failed."""
    if result < 0:
        raise OSError(errno, os.strerror(errno))
    return result
