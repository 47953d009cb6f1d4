# SPDX-FileCopyrightText: 2026 The doorbelld authors
# SPDX-License-Identifier: GPL-2.0-or-later
from __future__ import annotations

import contextlib
import fcntl
import mmap
import os
import threading
from array import array
from collections.abc import Callable, Iterator

import pytest
from doorbelld.fds import eventfd
from doorbelld.fds.owned import FdSet
from doorbelld.ivshmem.forwarder import Forwarder
from doorbelld.ivshmem.table import RATE_MAX, Table, record_size
from hypothesis import example, given, settings
from hypothesis import strategies as st
from support.crash import doomed, spin, watch
from support.fdcount import no_leaks
from support.overrun import overrun
from support.rawclient import DEADLINE

MS = 1_000_000
SECOND = 1000 * MS
FULL = (1 << 64) - 2
NONE = array("i")
RECORDS = 64


class Lane:
    """A lane and both sides of it."""

    def __init__(self, site: Site, index: int, sinks: FdSet) -> None:
        self.site = site
        self.index = index
        self.proxies = eventfd.make(site.vectors)
        self.sinks = sinks

    def ring(self, vector: int = 0, count: int = 1) -> None:
        os.eventfd_write(self.proxies[vector], count)

    def heard(self, vector: int = 0) -> int:
        """Take what the target's doorbell has."""
        try:
            return os.eventfd_read(self.sinks[vector])
        except BlockingIOError:
            return 0

    @property
    def counts(self) -> tuple[int, int, int, int]:
        return self.site.forwarder.counts(self.index)


class Site:
    """A forwarder without a thread, and time that goes by as the test says."""

    def __init__(self, vectors: int = 2, memory: mmap.mmap | None = None) -> None:
        self.vectors = vectors
        self.memory = memory or mmap.mmap(-1, RECORDS * record_size(vectors))
        self.forwarder = Forwarder(memoryview(self.memory), vectors)
        self.now = 1000 * SECOND
        self.lanes: list[Lane] = []
        self.sinks: dict[int, FdSet] = {}

    def target(self, seq: int) -> FdSet:
        """Make a member that can be rung; its own lane has the index of its number."""
        self.forwarder.open(seq, seq, seq)
        self.forwarder.start(seq, seq, NONE, NONE)
        self.sinks[seq] = eventfd.make(self.vectors)
        return self.sinks[seq]

    def lane(self, target: int = 0, rate: int = 0, permitted: bool = True) -> Lane:
        """Make a lane from somebody to *target*."""
        if target not in self.sinks:
            self.target(target)
        lane = Lane(self, 10 + len(self.lanes), self.sinks[target])
        self.forwarder.open(lane.index, 1000 + lane.index, target, rate, permitted)
        self.forwarder.start(lane.index, target, lane.proxies.array, lane.sinks.array)
        self.lanes.append(lane)
        return lane

    def turn(self, after: int = 0) -> int:
        self.now += after
        return self.forwarder.turn(self.now)

    def close(self) -> None:
        self.forwarder.close()
        for fds in (*(lane.proxies for lane in self.lanes), *self.sinks.values()):
            fds.close()


@pytest.fixture
def site() -> Iterator[Site]:
    with no_leaks():
        made = Site()
        yield made
        made.close()


def block(fd: int) -> None:
    """Do what a hostile sharer does: make writing to a full one, and reading from an empty one, wait for ever."""
    fcntl.fcntl(fd, fcntl.F_SETFL, fcntl.fcntl(fd, fcntl.F_GETFL) & ~os.O_NONBLOCK)


def test_rings_arrive_and_are_counted(site: Site) -> None:
    lane = site.lane()
    lane.ring(0)
    lane.ring(1, 5)
    lane.ring(1, 2)
    assert site.turn() == 2
    assert (lane.heard(0), lane.heard(1)) == (1, 7)
    assert lane.counts == (8, 2, 0, 8)
    assert site.turn() == 0
    lane.ring(1)
    site.turn()
    assert lane.counts == (9, 3, 0, 9)


def test_two_senders_add_up_at_one_target(site: Site) -> None:
    one, two, other = site.lane(), site.lane(), site.lane(target=1)
    one.ring(0, 3)
    two.ring(0, 4)
    other.ring(0, 5)
    site.turn()
    assert (one.heard(), other.heard()) == (7, 5)
    assert [lane.counts[0] for lane in site.lanes] == [3, 4, 5]


def test_more_channels_than_a_batch(site: Site) -> None:
    lanes = [site.lane() for _ in range(40)]
    for lane in lanes:
        lane.ring(0)
        lane.ring(1)
    assert site.turn() + site.turn() == 80
    assert lanes[0].heard(0) == lanes[0].heard(1) == 40


def test_a_million_rings_and_none_is_lost() -> None:
    """Through the thread, from four senders at a time, and the sums of the eventfds' counts are right."""
    rings, senders = 250_000, 4
    with no_leaks():
        site = Site()
        lanes = [site.lane() for _ in range(senders)]
        thread = threading.Thread(target=site.forwarder.run)
        thread.start()

        def send(lane: Lane) -> None:
            for turn in range(rings):
                lane.ring(turn & 1)

        threads = [threading.Thread(target=send, args=(lane,)) for lane in lanes]
        for one in threads:
            one.start()
        heard = [0, 0]
        while any(one.is_alive() for one in threads) or sum(heard) < rings * senders:
            for vector in range(2):
                heard[vector] += lanes[0].heard(vector)
            assert all(one.is_alive() for one in (thread,))
        for one in threads:
            one.join()
        site.forwarder.end()
        thread.join(DEADLINE)
        assert heard == [rings * senders // 2] * 2
        assert [lane.counts[0] for lane in lanes] == [lane.counts[3] for lane in lanes] == [rings] * senders
        site.close()


# Limits


def test_a_limited_lane_is_limited_and_loses_nothing(site: Site) -> None:
    limited, free = site.lane(rate=10), site.lane()
    limited.ring()
    free.ring()
    site.turn()
    assert limited.heard() == 2  # theirs are the same doorbells
    for _ in range(99):  # 990 ms
        limited.ring()
        free.ring()
        site.turn(10 * MS)
    assert free.counts[:2] == (100, 100)
    rings, deliveries, _, passed = limited.counts
    assert deliveries == 10 == 1 + 9
    assert rings == passed == 91
    site.turn(10 * MS)
    assert limited.counts == (100, 11, 0, 100)
    assert site.turn(SECOND) == 0


@pytest.mark.parametrize(("rate", "burst"), [(1, 1), (19, 1), (100, 10), (1000, 100), (1_000_000, 1000)])
def test_a_burst_is_a_tenth_of_a_second_worth_of_tokens(site: Site, rate: int, burst: int) -> None:
    lane = site.lane(rate=rate)
    for _ in range(1000):
        lane.ring()
        site.turn()
    assert lane.counts[1] == burst


def test_what_waits_costs_no_turns(site: Site) -> None:
    lane = site.lane(rate=1)
    lane.ring()
    assert site.turn() == 1
    lane.ring()
    assert site.turn() == 1  # finds no token
    for _ in range(10):
        lane.ring()
        assert site.turn(MS) == 0
    assert eventfd.pending(lane.proxies[0]) == 11
    assert site.turn(SECOND) == 1
    assert lane.heard() == 12


def test_vectors_of_a_limited_lane_take_turns(site: Site) -> None:
    lane = site.lane(rate=1)
    lane.ring(0)
    site.turn()
    order = []
    for _ in range(6):
        lane.ring(0)
        lane.ring(1)
        site.turn()
        site.turn(SECOND)
        order += [vector for vector in range(2) if lane.heard(vector)]
    assert order == [0, 1] * 3


def test_a_token_that_nobody_needs_is_given_back(site: Site) -> None:
    """The sender takes its ring back (it may: the proxy is shared); the token is there for the next."""
    lane = site.lane(rate=1)
    lane.ring()
    site.turn()
    lane.ring()
    site.turn()  # a token is put aside for it
    os.eventfd_read(lane.proxies[0])
    site.turn(SECOND)
    assert lane.counts[1] == 1
    lane.ring()
    site.turn()
    assert lane.counts[1] == 2


@settings(max_examples=40, deadline=None)
@given(st.lists(st.tuples(st.integers(1, 19), st.booleans()), max_size=24))
@example([(6, True), (15, True), (5, True), (2, False), (6, True), (17, False), (17, True)])
def test_those_that_wait_are_served_in_time_whoever_leaves_meanwhile(waiting: list[tuple[int, bool]]) -> None:
    site = Site(vectors=1)
    lanes = [site.lane(rate=rate) for rate, _ in waiting]
    for _ in range(2):
        for lane in lanes:
            lane.ring()
        site.turn()
    start = site.now
    for lane, (_, stays) in zip(lanes, waiting, strict=True):
        if not stays:
            site.forwarder.stop(lane.index)
    staying = [(SECOND // rate, lane) for lane, (rate, stays) in zip(lanes, waiting, strict=True) if stays]
    for due, _ in sorted(staying, key=lambda one: one[0]):
        site.turn(start + due - site.now)
        assert all(lane.counts[1] == 1 + (other <= due) for other, lane in staying)
    site.close()


def test_a_new_limit_holds_at_once(site: Site) -> None:
    lane = site.lane(rate=1)
    for _ in range(3):
        lane.ring()
        site.turn()
    assert lane.counts[1] == 1
    site.forwarder.change(lane.index, 0, True)
    site.turn()
    assert lane.counts == (3, 2, 0, 3)
    site.forwarder.change(lane.index, 1, True)
    for _ in range(3):
        lane.ring()
        site.turn()
    assert lane.counts == (4, 3, 0, 4)
    assert site.forwarder.terms(lane.index) == (1, True)
    with pytest.raises(ValueError, match="more than"):
        site.forwarder.change(lane.index, RATE_MAX + 1, True)


@settings(max_examples=60, deadline=None)
@given(st.integers(1, 2000), st.lists(st.tuples(st.integers(0, 1), st.integers(0, 40)), max_size=120))
def test_any_course_of_ringing_keeps_to_the_limit(rate: int, course: list[tuple[int, int]]) -> None:
    site = Site()
    lane = site.lane(rate=rate)
    start, rung = site.now, 0
    for vector, pause in course:
        lane.ring(vector)
        rung += 1
        site.turn(pause * MS)
        elapsed = site.now - start
        assert lane.counts[1] <= elapsed * rate // SECOND + max(rate // 10, 1)
    for _ in range(3):
        site.turn(2 * SECOND)
    assert lane.counts[0] == lane.counts[3] == lane.heard(0) + lane.heard(1) == rung
    site.close()


# Permission


def test_a_forbidden_lane(site: Site) -> None:
    lane, other = site.lane(permitted=False), site.lane()
    lane.ring(0, 7)
    other.ring(1)
    site.turn()
    assert (lane.heard(0), lane.heard(1)) == (0, 1)
    assert lane.counts == (7, 0, 7, 0)
    for _ in range(10):
        lane.ring(0)
        assert site.turn() == 0  # it is left alone for a while: a storm costs us nothing
    site.turn(MS)
    assert lane.counts == (17, 0, 17, 0)


def test_what_was_rung_while_forbidden_never_arrives(site: Site) -> None:
    lane = site.lane()
    lane.ring()
    site.turn()
    site.forwarder.change(lane.index, 0, False)
    lane.ring(0, 2)
    site.turn()
    lane.ring(0, 4)
    site.forwarder.change(lane.index, 0, True)
    lane.ring(0, 8)
    site.turn()
    assert lane.heard() == 9
    assert lane.counts == (15, 2, 6, 9)
    assert site.forwarder.terms(lane.index) == (0, True)


def test_what_was_taken_but_not_delivered_while_forbidden_never_arrives(site: Site) -> None:
    lane = site.lane()
    os.eventfd_write(lane.sinks[0], FULL)
    lane.ring(0, 2)
    site.turn()
    site.forwarder.change(lane.index, 0, False)
    site.forwarder.change(lane.index, 0, True)
    assert lane.heard() == FULL
    site.turn(SECOND)
    assert lane.heard() == 0
    assert lane.counts == (2, 0, 2, 0)


# Hostile sharers


@pytest.mark.parametrize("flags", [True, False], ids=["blocking", "nonblocking"])
def test_a_target_whose_doorbell_is_full(site: Site, flags: bool) -> None:
    """Its senders' rings wait for it, nobody waits in a call, and others are served."""
    lane, other = site.lane(target=0), site.lane(target=1)
    os.eventfd_write(lane.sinks[0], FULL)
    if flags:
        block(lane.sinks[0])
    for turn in range(50):
        lane.ring(0, 2)
        other.ring(0)
        site.turn()
        assert other.heard() == 1
        assert site.forwarder.turns == turn + 1
    assert lane.counts == (2, 0, 0, 0)
    assert site.turn(100) == 0  # it is tried again after a while only
    assert os.eventfd_read(lane.sinks[0]) == FULL
    os.set_blocking(lane.sinks[0], False)
    site.turn(SECOND)
    assert site.turn() == 1
    assert lane.heard() == 100
    assert lane.counts == (100, 2, 0, 100)


def test_a_doorbell_that_was_full_for_long_is_soon_tried_again_the_next_time(site: Site) -> None:
    lane = site.lane()
    os.eventfd_write(lane.sinks[0], FULL)
    lane.ring()
    for _ in range(12):
        site.turn(SECOND)
    assert lane.heard() == FULL
    site.turn(SECOND)
    assert lane.heard() == 1
    os.eventfd_write(lane.sinks[0], FULL)
    lane.ring(0, 2)
    site.turn()
    assert lane.heard() == FULL
    site.turn(MS)
    assert lane.heard() == 2


def test_a_count_that_does_not_fit_waits(site: Site) -> None:
    """poll(2) says that there is room, and there is: for less."""
    lane = site.lane()
    os.eventfd_write(lane.sinks[0], FULL - 3)
    block(lane.sinks[0])
    lane.ring(0, 10)
    site.turn()
    site.turn(10 * MS)
    assert lane.counts == (10, 0, 0, 0)
    assert not os.get_blocking(lane.sinks[0]), "who made us wait once is looked after before the second time"
    assert os.eventfd_read(lane.sinks[0]) == FULL - 3
    os.set_blocking(lane.sinks[0], False)
    site.turn(SECOND)
    assert lane.heard() == 10


def test_a_sender_that_fills_its_proxy(site: Site) -> None:
    lane, other = site.lane(target=0), site.lane(target=0)
    for _ in range(3):
        lane.ring(0, FULL)
        site.turn(SECOND)
        other.ring(1)
        site.turn()
        assert other.heard(1) == 1
    assert lane.heard() == FULL
    site.turn(SECOND)
    assert lane.heard() == FULL


def test_a_sender_that_makes_its_proxy_block(site: Site) -> None:
    lane = site.lane()
    block(lane.proxies[0])
    lane.ring()
    os.eventfd_read(lane.proxies[0])
    site.turn()  # woken, and nothing is there
    lane.ring(0, 3)
    site.turn()
    assert lane.heard() == 3


def test_a_proxy_that_was_overrun(site: Site) -> None:
    """Its count is more than anybody can write, so we take one off."""
    lane = site.lane()
    overrun(lane.proxies[0])
    site.turn()
    assert lane.heard() == FULL
    assert lane.counts == (FULL, 1, 0, FULL)


def test_overrun_proxies_do_not_keep_the_thread_awake() -> None:
    """epoll(7) reports them whether they are watched or not."""
    with no_leaks():
        site = Site()
        full, limited, forbidden = site.lane(target=1), site.lane(rate=1), site.lane(target=2, permitted=False)
        os.eventfd_write(full.sinks[0], FULL)
        thread = threading.Thread(target=site.forwarder.run)
        thread.start()
        watch(lambda: [lane.ring() for lane in site.lanes] and full.counts[0] and forbidden.counts[2])
        watch(lambda: limited.ring() or eventfd.pending(limited.proxies[0]) > 1)
        for lane in site.lanes:
            with contextlib.suppress(BlockingIOError):
                os.eventfd_read(lane.proxies[0])
            overrun(lane.proxies[0])
        before = site.forwarder.turns
        for _ in range(20_000):
            eventfd.pending(limited.proxies[0])
        assert site.forwarder.turns - before < 5000, "it wakes for what it holds back"
        site.forwarder.end()
        thread.join(DEADLINE)
        site.close()


def test_others_are_served_while_a_target_does_all_it_can() -> None:
    """It keeps its counter nearly full and makes every write wait, at full speed; nobody else's rings are lost."""
    with no_leaks():
        site = Site()
        bad, good = site.lane(target=0), site.lane(target=1)

        def torment() -> None:
            while True:
                os.set_blocking(bad.sinks[0], False)
                with contextlib.suppress(BlockingIOError):
                    os.eventfd_write(bad.sinks[0], FULL - 1)
                for _ in range(20):
                    block(bad.sinks[0])

        thread = threading.Thread(target=site.forwarder.run)
        thread.start()
        rung = heard = 0

        def arrived() -> bool:
            nonlocal heard
            heard += good.heard()
            return heard == rung

        with doomed(torment):
            while rung < 300:
                bad.ring(0, 5)
                good.ring()
                rung += 1
                watch(arrived)
        while bad.counts[3] < 1500:
            os.set_blocking(bad.sinks[0], False)
            bad.heard()
        assert bad.counts[0] == bad.counts[3] == 1500
        site.forwarder.end()
        thread.join(DEADLINE)
        site.close()


# Coming and going


def test_stop_delivers_what_waits_if_asked_to(site: Site) -> None:
    limited, plain, refused = site.lane(rate=1), site.lane(target=1), site.lane(target=2, permitted=False)
    for lane in (limited, plain, refused):
        lane.ring(0)
        site.turn()
        lane.ring(0, 3)
    site.turn()
    limited.ring(1, 5)
    plain.ring(1)
    assert site.forwarder.stop(limited.index, True) == (9, 3, 0, 9)
    assert site.forwarder.stop(refused.index, True) == (4, 0, 4, 0)
    assert site.forwarder.stop(plain.index) == (4, 2, 0, 4)
    assert (limited.heard(0), limited.heard(1)) == (4, 5)
    assert (plain.heard(0), plain.heard(1)) == (4, 0)
    for lane in site.lanes:
        lane.ring(0)
    assert site.turn() == 0
    with pytest.raises(IndexError):
        site.forwarder.stop(plain.index)


@pytest.mark.parametrize("fill", [FULL, FULL - 1])
def test_stop_never_blocks(site: Site, fill: int) -> None:
    lane = site.lane()
    os.eventfd_write(lane.sinks[0], fill)
    block(lane.sinks[0])
    lane.ring(0, 2)
    assert site.forwarder.stop(lane.index, True) == (2, 0, 0, 2)  # who is rung already gets nothing more
    assert os.eventfd_read(lane.sinks[0]) == fill


def test_lanes_come_and_go_while_the_thread_runs() -> None:
    with no_leaks():
        site = Site()
        thread = threading.Thread(target=site.forwarder.run)
        thread.start()
        site.target(0)
        for _ in range(200):
            lane = site.lane(rate=5)
            lane.ring(0)
            lane.ring(1, 2)
            rings, _, _, passed = site.forwarder.stop(lane.index, True)
            assert rings == passed == 3
            site.forwarder.erase(lane.index)
            site.lanes.clear()
            lane.proxies.close()
        assert lane.heard(0) == 200
        site.forwarder.end()
        thread.join(DEADLINE)
        site.close()


def test_a_record_is_used_once(site: Site) -> None:
    lane = site.lane()
    with pytest.raises(ValueError, match="in use"):
        site.forwarder.open(lane.index, 1, 2)
    with pytest.raises(ValueError, match="not as it should be"):
        site.forwarder.start(lane.index, 0, lane.proxies.array, lane.sinks.array)
    with pytest.raises(ValueError, match="one for each vector"):
        site.forwarder.start(lane.index, 0, lane.proxies.array[:1], lane.sinks.array[:1])
    for index in (-1, RECORDS):
        with pytest.raises(IndexError):
            site.forwarder.read(index)
    assert site.forwarder.read(lane.index) == (1000 + lane.index, 0, 0)
    assert site.forwarder.read(RECORDS - 1) is None


def test_a_descriptor_that_can_not_be_watched(site: Site) -> None:
    site.target(0)
    site.forwarder.open(5, 1, 0)
    with open("/dev/null") as null, pytest.raises(OSError):
        bad = array("i", [site.sinks[0][0], null.fileno()])
        site.forwarder.start(5, 0, bad, site.sinks[0].array)
    site.lane().ring()
    assert site.turn() == 1


def test_a_descriptor_that_can_not_be_watched_after_one_that_waits(site: Site) -> None:
    """Nothing is left of the lane, though a predecessor had taken rings for it."""
    lane = site.lane()
    site.forwarder.stop(lane.index)
    with words(site, lane) as channel:
        channel[0] = 3
    with open("/dev/null") as null, pytest.raises(OSError):
        bad = array("i", [lane.proxies[0], null.fileno()])
        site.forwarder.start(lane.index, 0, bad, lane.sinks.array)
    assert site.turn() == 0
    site.forwarder.start(lane.index, 0, lane.proxies.array, lane.sinks.array)
    assert site.turn() == 1
    assert lane.heard() == 3


# The end of the process


def words(site: Site, lane: Lane) -> memoryview:
    """The first channel of a lane's record: taken, rings, passed, refused, deliveries."""
    at = lane.index * record_size(site.vectors)
    return memoryview(site.memory)[at + 64 : at + 64 + 40].cast("Q")


def again(site: Site, lane: Lane) -> Site:
    """Make what comes after *site*, with the same table and descriptors."""
    after = Site(site.vectors, site.memory)
    after.sinks = {0: FdSet(map(os.dup, site.sinks[0]))}
    made = Lane(after, lane.index, after.sinks[0])
    made.proxies.close()
    made.proxies = FdSet(map(os.dup, lane.proxies))
    after.lanes.append(made)
    after.forwarder.start(0, 0, NONE, NONE)
    after.forwarder.start(made.index, 0, made.proxies.array, made.sinks.array)
    return after


@pytest.mark.parametrize(
    ("record", "permitted", "arrives", "counts"),
    [
        ((3, 10, 10, 0, 4), True, 3, (13, 5, 0, 13)),  # taken, and that is all
        ((3, 13, 10, 0, 4), True, 3, (13, 5, 0, 13)),  # and counted
        ((3, 13, 10, 0, 5), True, 3, (13, 6, 0, 13)),  # and delivered: once more
        ((0, 13, 10, 0, 5), True, 0, (13, 5, 0, 13)),  # and cleared
        ((0, 13, 13, 0, 5), True, 0, (13, 5, 0, 13)),
        ((3, 13, 10, 0, 4), False, 0, (13, 4, 3, 10)),
        ((0, 13, 10, 0, 4), False, 0, (13, 4, 3, 10)),
        ((0, 13, 10, 3, 4), False, 0, (13, 4, 3, 10)),
        ((FULL + 1, 0, 0, 0, 0), True, FULL, (FULL, 1, 0, FULL)),  # the sender had overrun its proxy
    ],
)
def test_killed_between_two_steps(
    site: Site,
    record: tuple[int, ...],
    permitted: bool,
    arrives: int,
    counts: tuple[int, ...],
) -> None:
    lane = site.lane(permitted=permitted)
    with words(site, lane) as channel:
        for word, value in enumerate(record):
            channel[word] = value
    after = again(site, lane)
    after.turn()
    assert after.lanes[0].heard() == arrives
    assert after.lanes[0].counts == counts
    assert after.turn() == 0
    after.lanes[0].ring(1)
    after.turn(SECOND)
    assert after.lanes[0].counts[0] == counts[0] + 1
    after.close()


def test_what_waited_while_nobody_forwarded_arrives(site: Site) -> None:
    lane = site.lane(rate=1)
    for _ in range(2):
        lane.ring()
        site.turn()
    lane.ring(1, 5)
    after = again(site, lane)
    lane.ring(0, 2)
    after.turn()
    after.turn(SECOND)
    assert (after.lanes[0].heard(0), after.lanes[0].heard(1)) == (1 + 3, 5)
    assert after.lanes[0].counts[0] == 9
    after.close()


@pytest.mark.parametrize("moment", range(25))
def test_killed_at_any_moment_nothing_is_lost(moment: int) -> None:
    """Counts that arrive are what was rung, or that and the one count that was taken when the end came, once more."""
    with no_leaks():
        site = Site()
        lane = site.lane()
        rung = heard = 0

        def lives() -> int:
            nonlocal rung, heard
            lane.ring()
            rung += 1
            heard += lane.heard()
            return heard

        with doomed(site.forwarder.run):
            watch(lives)
            for turn in range(200 + moment * 7):
                lane.ring(0, 1 + turn % 3)
                rung += 1 + turn % 3
                if turn % 16 == 0:
                    spin(moment * 11)
        with words(site, lane) as channel:
            taken = channel[0]
        after = again(site, lane)
        while after.turn():  # what was taken comes first, then what is in the proxy
            pass
        heard += lane.heard()
        assert heard in (rung, rung + taken)
        assert after.lanes[0].counts[0] == after.lanes[0].counts[3] == rung
        after.close()
        site.close()


# The thread


def run(forwarder: Forwarder, check: Callable[[], object]) -> None:
    thread = threading.Thread(target=forwarder.run)
    thread.start()
    try:
        watch(check)
    finally:
        forwarder.end()
        thread.join(DEADLINE)
        assert not thread.is_alive()


@pytest.mark.parametrize("poll_us", [0, 100])
def test_the_thread_delivers_limited_rings_in_time(site: Site, poll_us: int) -> None:
    lane = site.lane(rate=100)
    site.forwarder.poll_us = poll_us
    assert site.forwarder.poll_us == poll_us
    for vector in range(2):
        lane.ring(vector, 5)
    heard = 0

    def done() -> bool:
        nonlocal heard
        lane.ring(0)
        heard += lane.heard(0) + lane.heard(1)
        return lane.counts[1] > 30

    run(site.forwarder, done)
    rings, _, _, passed = lane.counts
    assert rings == passed >= heard


def test_the_thread_sleeps_while_what_it_has_is_held() -> None:
    """Neither a limited lane under a storm, nor a full doorbell, nor a forbidden one keep it awake."""
    with no_leaks():
        site = Site()
        limited, full, forbidden = site.lane(rate=1), site.lane(target=1), site.lane(target=2, permitted=False)
        os.eventfd_write(full.sinks[0], FULL)
        block(full.sinks[0])
        thread = threading.Thread(target=site.forwarder.run)
        thread.start()
        watch(lambda: [lane.ring() for lane in site.lanes] and full.counts[0] and forbidden.counts[2])
        before, rung = site.forwarder.turns, 0
        while rung < 200_000:
            for lane in (limited, full, forbidden):
                lane.ring()
            rung += 1
        woken = site.forwarder.turns - before
        assert woken < rung / 10, "it woke for rings that it holds back"
        site.forwarder.end()
        thread.join(DEADLINE)
        site.close()


def test_a_table_holds_what_it_is_told() -> None:
    memory = mmap.mmap(-1, 4 * record_size(3))
    table = Table(memoryview(memory), 3)
    assert table.capacity == 4
    table.open(2, 7, 8, 9, False, 10)
    assert table.read(2) == (7, 8, 10)
    assert table.terms(2) == (9, False)
    table.place(2, 11)
    table.credit(2, 5, 3)
    again = Table(memoryview(memory), 3)
    assert again.read(2) == (7, 8, 11)
    assert again.counts(2) == (5, 0, 0, 3)
    again.erase(2)
    assert table.read(2) is None
    table.open(2, 1, 1)
    assert table.counts(2) == (0, 0, 0, 0)
