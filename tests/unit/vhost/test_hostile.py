# SPDX-FileCopyrightText: 2026 The doorbelld authors
# SPDX-License-Identifier: GPL-2.0-or-later
"""Front-ends that do what they may not: each loses its own connection, is told off once, and nobody else notices."""

from __future__ import annotations

import gc
import os
import signal
import struct
import subprocess
import sys
import threading
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest
from doorbelld.ring.driver import DESC_INDIRECT, DESC_NEXT, DriverQueue
from doorbelld.vhost import backend as backend_module
from doorbelld.vhost import channel as channel_module
from doorbelld.vhost.events import FrontendDetached, FrontendRefused, State
from doorbelld.vhost.frontend import GUEST_BASE, BackendFailed, Frontend
from doorbelld.wire.vhost_messages import U64, Flags, ProtocolFeature, VringFd, VringState
from doorbelld.wire.vhost_requests import FrontendRequest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from support.devicesite import DEADLINE, DeviceSite, Echo
from support.fdcount import open_fds

R = FrontendRequest
HEADER = struct.Struct("=III")


def test_a_truncated_message(watched: DeviceSite) -> None:
    backend = watched.open()
    f = watched.connect(backend)
    f.send_raw(HEADER.pack(R.SET_FEATURES, Flags.VERSION, 8) + b"abc")
    f.close()
    assert watched.farewell().reason == "it closed its connection in the middle of a message"
    watched.wait_state(backend, State.LISTENING)


@pytest.mark.parametrize(
    ("data", "said"),
    [
        (b"\xff" * 64, "request 4294967295"),
        (HEADER.pack(R.SET_FEATURES, 0, 8) + bytes(8), "flags"),
        (HEADER.pack(R.SET_FEATURES, Flags.VERSION | Flags.REPLY, 8) + bytes(8), "flags"),
        (
            HEADER.pack(R.SET_MEM_TABLE, Flags.VERSION, 40) + struct.pack("=II4Q", 9, 0, 1, 2, 3, 4),
            "table of 9 regions",
        ),
        (HEADER.pack(R.GET_VRING_BASE, Flags.VERSION, 8) + struct.pack("=II", 200, 0), "no ring 200"),
        (HEADER.pack(R.SET_VRING_ENABLE, Flags.VERSION, 8) + struct.pack("=II", 0, 7), "neither 0"),
    ],
)
def test_messages_that_are_none(watched: DeviceSite, data: bytes, said: str) -> None:
    backend = watched.open()
    watched.connect(backend).send_raw(data)
    watched.told_off(backend, said)


def test_descriptors_in_floods(watched: DeviceSite) -> None:
    backend = watched.open()
    f = watched.connect(backend)
    before = len(open_fds())
    with pytest.raises(BackendFailed):
        for _ in range(100):
            f.send_raw(HEADER.pack(R.SET_VRING_ERR, Flags.VERSION, 8)[:1], [f.memfd.fileno()] * 250)
    watched.farewell()
    gc.collect()
    assert len(open_fds()) <= before
    watched.wait_state(backend, State.LISTENING)


def test_requests_in_floods_keep_nobody_from_their_turn(watched: DeviceSite) -> None:
    backend = watched.open()
    f = watched.connect(backend)
    stop = threading.Event()

    def flood() -> None:
        f.sock.settimeout(DEADLINE)
        while not stop.is_set():
            f.sock.sendall(HEADER.pack(R.GET_FEATURES, Flags.VERSION, 0) * 64)
            left = 64 * 20
            while left:
                left -= len(f.sock.recv(left))

    flooding = threading.Thread(target=flood)
    flooding.start()
    try:
        other = watched.open()
        peer = watched.connect(other)
        peer.start()
        for _ in range(20):
            assert peer.request(peer.queues[0], b"x", 1) == b"x"
            assert watched.call(lambda: backend.state) is State.CONNECTED
    finally:
        stop.set()
        flooding.join()


def test_answers_that_are_not_read_hold_up_nobody(watched: DeviceSite) -> None:
    backend = watched.open()
    f = watched.connect(backend)
    f.sock.setblocking(False)
    with pytest.raises(BlockingIOError):
        while True:
            f.sock.send(HEADER.pack(R.GET_FEATURES, Flags.VERSION, 0) * 64)
    watched.wait_state(backend, State.CONNECTED)
    watched.call(backend.disconnect, "it does not read")
    assert watched.farewell().reason == "it does not read"


@pytest.mark.parametrize("said", [b"", HEADER.pack(R.SET_FEATURES, Flags.VERSION, 8) + b"half"])
def test_one_that_keeps_others_out_and_says_nothing(watched: DeviceSite, said: bytes) -> None:
    """The other is told off, as long as nobody sends the first away."""
    backend = watched.open()
    silent = watched.connect(backend)
    if said:
        silent.send_raw(said)
    watched.wait_state(backend, State.CONNECTED)
    with pytest.raises(BackendFailed):
        watched.connect(backend).ask_number(R.GET_FEATURES)
    watched.wait(lambda: watched.of(FrontendRefused))
    assert "serves one at a time" in watched.of(FrontendRefused)[0].reason
    watched.call(backend.disconnect, "it says nothing")
    assert watched.farewell().reason == "it says nothing"
    assert watched.connect(backend).ask_number(R.GET_FEATURES)


class Dribbler(Frontend):
    """Sends one byte at a time, descriptors with the first."""

    def send_raw(self, data: bytes, fds: Sequence[int] = ()) -> None:
        for place in range(len(data)):
            super().send_raw(data[place : place + 1], fds if not place else ())


def test_one_that_sends_byte_by_byte(watched: DeviceSite) -> None:
    backend = watched.open()
    with Dribbler.connect(backend.spec.socket, timeout=DEADLINE) as f:
        f.start(2)
        f.open_channel()
        assert f.request(f.queues[1], b"slow", 4) == b"slow"
        assert f.stop(1) == 1


def test_two_threads_that_send_at_once(watched: DeviceSite) -> None:
    """Their messages come whole, for each is one send; each is answered, in the order in which they came."""
    backend = watched.open()
    f = watched.connect(backend)
    f.start(2)

    def talk(index: int) -> None:
        for number in range(200):
            f.send(R.SET_VRING_ENABLE, VringState(index, number % 2))
            f.send(R.GET_VRING_BASE, VringState(index, 0))

    threads = [threading.Thread(target=talk, args=(index,)) for index in range(2)]
    for thread in threads:
        thread.start()
    bases = [f.answer().payload for _ in range(400)]
    for thread in threads:
        thread.join()
    assert sorted(base.index for base in bases if isinstance(base, VringState)) == [0] * 200 + [1] * 200
    assert all(backend.queue(index).enabled for index in range(2))


def test_one_that_comes_and_goes_at_once_again_and_again(watched: DeviceSite) -> None:
    backend = watched.open()
    for round_ in range(100):
        with Frontend.connect(backend.spec.socket, timeout=DEADLINE) as f:
            if round_ % 2:
                f.send(R.GET_FEATURES)
    assert watched.connect(backend).ask_number(R.GET_FEATURES)
    assert not any(end.broken for end in watched.of(FrontendDetached))


def test_rings_that_are_started_and_stopped_all_the_time(watched: DeviceSite) -> None:
    backend = watched.open()
    f = watched.connect(backend)
    (queue,) = f.start()
    done, source = 0, f.take(16)
    for _ in range(100):
        if queue.free:
            queue.add([(source, 1)], [])
        f.connect_fds(0)
        os.eventfd_write(queue.kick_fd, 1)
        base = f.stop(0)
        done += len(queue.reap())
        assert base == done  # whether or not it got as far as starting
    assert not backend.queue(0).started and not backend.queue(0).broken
    assert f.ask_number(R.GET_FEATURES)


def test_protocol_features_that_change_while_rings_run(watched: DeviceSite) -> None:
    class Inband(Echo):
        protocol_features = ProtocolFeature.INBAND_NOTIFICATIONS

    backend = watched.open(Inband)
    f = watched.connect(backend)
    f.negotiate()
    f.open_channel()
    f.share()
    queue = f.make_queue(0)
    f.place(0)
    f.enable(0)
    all_of_them = f.protocol_features
    f.tell(R.VRING_KICK, VringState(0, 0))
    watched.wait(lambda: backend.queue(0).started)
    for accepted in (ProtocolFeature.REPLY_ACK, all_of_them, ProtocolFeature.REPLY_ACK):
        f.send(R.SET_PROTOCOL_FEATURES, U64(accepted))
        f.tell(R.SET_VRING_KICK, VringFd(0), [queue.kick_fd])
        f.tell(R.SET_VRING_CALL, VringFd(0), [queue.call_fd])
        assert f.request(queue, b"a", 1) == b"a"
        f.try_to_tell(R.VRING_KICK, VringState(0, 0))
    assert f.stop(0) == 3


def test_a_backwards_start(watched: DeviceSite) -> None:
    backend = watched.open()
    f = watched.connect(backend)
    f.negotiate()
    queue = f.make_queue(0)
    f.connect_fds(0)
    f.enable(0)
    os.eventfd_write(queue.kick_fd, 1)
    f.tell(R.SET_VRING_BASE, VringState(0, 9))
    assert f.try_to_tell(R.SET_VRING_ADDR, f.addresses(0)) != 0  # no size, no memory
    assert f.stop(0) == 9
    assert backend.state is State.CONNECTED


def ahead(f: Frontend, queue: DriverQueue) -> None:
    queue.set_available_index(1000)


def loop(f: Frontend, queue: DriverQueue) -> None:
    queue.put_descriptor(0, GUEST_BASE, 1, DESC_NEXT, 1)
    queue.put_descriptor(1, GUEST_BASE, 1, DESC_NEXT, 0)
    publish(queue, 0)


def beyond(f: Frontend, queue: DriverQueue) -> None:
    publish(queue, 64)


def nested(f: Frontend, queue: DriverQueue) -> None:
    table = f.take(64)
    queue.put_descriptor(0, table, 16, DESC_INDIRECT)
    queue.put_descriptor(0, GUEST_BASE, 16, DESC_INDIRECT, table=table)
    publish(queue, 0)


def odd(f: Frontend, queue: DriverQueue) -> None:
    queue.put_descriptor(0, f.take(64), 17, DESC_INDIRECT)
    publish(queue, 0)


def publish(queue: DriverQueue, head: int) -> None:
    queue.put_available(queue.available_index & (queue.num - 1), head)
    queue.set_available_index(queue.available_index + 1)


@pytest.mark.parametrize(
    ("spoil", "said"),
    [
        (ahead, "available index went to 1000"),
        (loop, "loops"),
        (beyond, "descriptor 64"),
        (nested, "indirect table holds another"),
        (odd, "multiple of 16"),
    ],
)
@pytest.mark.parametrize("kind", [Echo, "rng"])
def test_hostile_rings(
    watched: DeviceSite, kind: type[Echo] | str, spoil: Callable[[Frontend, DriverQueue], None], said: str
) -> None:
    backend = watched.open(kind)
    f = watched.connect(backend)
    (queue,) = f.start()
    f.request(queue, room=8)
    spoil(f, queue)
    err = os.eventfd(0, os.EFD_NONBLOCK)
    try:
        f.tell(R.SET_VRING_ERR, VringFd(0), [err])
        os.eventfd_write(queue.kick_fd, 1)
        end = watched.farewell()
        assert end.broken and said in end.reason
        assert os.eventfd_read(err) == 1
    finally:
        os.close(err)
    watched.wait_state(backend, State.LISTENING)
    fresh = watched.connect(backend)
    fresh.start()
    assert fresh.request(fresh.queues[0], room=8) is not None


def test_a_broken_queue_that_is_stopped_in_time_is_forgiven(
    watched: DeviceSite, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(backend_module, "GRACE", 0.2)
    backend = watched.open()
    f = watched.connect(backend)
    (queue,) = f.start()
    f.request(queue, b"x", 1)
    queue.set_available_index(1000)
    os.eventfd_write(queue.kick_fd, 1)
    watched.wait(lambda: backend.queue(0).broken)
    f.stop(0)
    passed = threading.Event()
    watched.loop.call_soon_threadsafe(watched.loop.call_later, 0.4, passed.set)
    assert passed.wait(DEADLINE)
    assert f.ask_number(R.GET_FEATURES) and backend.state is State.CONNECTED


@pytest.mark.parametrize("kind", [Echo, "rng"])
def test_memory_that_is_truncated_under_a_device(watched: DeviceSite, kind: type[Echo] | str) -> None:
    backend = watched.open(kind)
    f = watched.connect(backend, memory_size=1 << 22)
    (queue,) = f.start()
    f.request(queue, b"x", 8)
    target = GUEST_BASE + (1 << 21)
    os.ftruncate(f.memfd.fileno(), 1 << 21)
    queue.add([], [(target, 64)])
    source = f.take(16)
    queue.add([(source, 4)], [(target, 64)])
    queue.kick()
    assert "truncated" in watched.farewell().reason
    watched.wait_state(backend, State.LISTENING)


def test_a_handler_that_raises(watched: DeviceSite) -> None:
    backend = watched.open()
    f = watched.connect(backend)
    (queue,) = f.start()
    f.request(queue, b"x", 1)
    with pytest.raises(BackendFailed):
        f.timeout = 0.1
        f.request(queue, b"raise", 1)
    watched.told_off(backend, "ValueError: so be it")


def test_a_back_end_channel_that_is_never_answered(watched: DeviceSite, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(channel_module, "ANSWER_TIMEOUT", 0.05)
    backend = watched.open()
    f = watched.connect(backend)
    f.start()
    f.open_channel()
    f.request(f.queues[0], b"x", 1)
    backend.device.config_changed()
    watched.told_off(backend, "did not answer CONFIG_CHANGE_MSG")


def test_a_back_end_channel_that_answers_what_was_not_asked(watched: DeviceSite) -> None:
    backend = watched.open()
    f = watched.connect(backend)
    f.negotiate()
    f.open_channel()
    assert f.channel is not None
    f.channel.sendall(HEADER.pack(2, Flags.VERSION | Flags.REPLY, 8) + bytes(8))
    watched.told_off(backend, "CONFIG_CHANGE_MSG, which was not asked")


def test_a_back_end_channel_that_is_no_socket(watched: DeviceSite) -> None:
    watched.open()
    f = watched.connect()
    f.negotiate()
    assert f.try_to_tell(R.SET_BACKEND_REQ_FD, None, [f.memfd.fileno()]) != 0


@pytest.mark.parametrize("request_", [R.SET_VRING_KICK, R.SET_VRING_CALL, R.SET_VRING_ERR], ids=str)
def test_descriptors_of_the_wrong_kind(watched: DeviceSite, request_: R) -> None:
    backend = watched.open()
    f = watched.connect(backend)
    f.start()
    f.try_to_tell(request_, VringFd(0), [f.memfd.fileno()])
    assert f.ask_number(R.GET_FEATURES)
    f.try_to_tell(request_, VringFd(0), [f.sock.fileno()])


_MESSAGES = st.lists(
    st.tuples(
        st.sampled_from([int(each) for each in R] + [0, 99]),
        st.sampled_from([1, 9, 5, 0]),
        st.one_of(
            st.binary(max_size=64),
            st.builds(struct.pack, st.just("=Q"), st.integers(0, 2**64 - 1)),
            st.builds(struct.pack, st.just("=II"), st.integers(0, 3), st.integers(0, 300)),
            st.builds(struct.pack, st.just("=IIQQQQ"), st.integers(0, 3), st.just(0), *[st.integers(0, 2**64 - 1)] * 4),
        ),
        st.integers(0, 3),
    ),
    max_size=12,
)


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(messages=_MESSAGES, start=st.booleans())
def test_any_messages_at_all(watched: DeviceSite, messages: list[tuple[int, int, bytes, int]], start: bool) -> None:
    backend = watched.backends[1] if len(watched.backends) > 1 else watched.open()
    before = len(watched.of(FrontendDetached))
    with Frontend.connect(backend.spec.socket, timeout=DEADLINE) as f:
        if start:
            f.start(2)
        try:
            for request, flags, payload, fds in messages:
                f.send_raw(HEADER.pack(request, flags, len(payload)) + payload, [f.memfd.fileno()] * fds)
        except BackendFailed:
            pass
    watched.wait(lambda: len(watched.of(FrontendDetached)) == before + 1)
    watched.wait_state(backend, State.LISTENING)


_LOAD = """
import sys
from doorbelld.vhost.frontend import Frontend
f = Frontend.connect(sys.argv[1], timeout=10)
queue, = f.start()
target = f.take(4096)
print("up", flush=True)
while True:
    queue.drive([((), ((target, 4096),))], 1000, 16)
"""


def test_front_ends_that_are_killed_under_load_leave_nothing_behind(watched: DeviceSite) -> None:
    backend = watched.open("rng")
    root = Path(__file__).parents[3] / "daemon"
    resident = 0
    for round_ in range(100):
        load = subprocess.Popen(
            [sys.executable, "-c", _LOAD, backend.spec.socket],
            stdout=subprocess.PIPE,
            env={**os.environ, "PYTHONPATH": str(root)},
        )
        try:
            assert load.stdout is not None and load.stdout.readline() == b"up\n"
            watched.wait(lambda: backend.queue(0).requests > 0 and backend.state is State.RUNNING)
        finally:
            load.send_signal(signal.SIGKILL)
            load.wait()
            if load.stdout is not None:
                load.stdout.close()
        watched.wait_state(backend, State.LISTENING)
        watched.farewell(round_ + 1)
        if round_ == 9:
            fds, threads, resident = len(open_fds()), threading.active_count(), _resident()
    assert (len(open_fds()), threading.active_count()) == (fds, threads)
    assert _resident() - resident < 8 << 20
    f = watched.connect(backend)
    f.start()
    assert len(f.request(f.queues[0], room=64)) == 64


def _resident() -> int:
    """Return the bytes of memory that are ours now."""
    gc.collect()
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGESIZE")
