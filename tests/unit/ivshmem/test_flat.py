# SPDX-FileCopyrightText: 2026 The doorbelld authors
# SPDX-License-Identifier: GPL-2.0-or-later
"""The flat device: its registers and its line, alone; against our region, a second server, and servers that lie."""

from __future__ import annotations

import os
import re
import socket
import threading
from array import array
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import pytest
from doorbelld.errors import (
    InvalidRegister,
    MemoryUnavailable,
    NoSuchPeer,
    NoSuchVector,
    ProtocolBroken,
    ServerClosed,
    ServerUnavailable,
)
from doorbelld.fds import eventfd
from doorbelld.fds.bells import Bells
from doorbelld.fds.owned import Fd
from doorbelld.ivshmem.client import Client, Rung
from doorbelld.ivshmem.events import Rung as HostRung
from doorbelld.ivshmem.flat import FlatDevice, Register, doorbell, register_at
from doorbelld.ivshmem.flatguest import FlatGuest
from doorbelld.ivshmem.membership import Membership, PeerLeft, StrayLeave, VectorAdded
from doorbelld.wire.ivshmem import OutOfPlace, ProtocolError, TooManyVectors, WrongVersion
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule
from support.fdcount import no_leaks
from support.otherserver import LIES, OtherServer, cut, greeting, message, play

DEADLINE = 20.0
OWN = 3


class Line:
    """An interrupt line, and who is told of a guest's errors."""

    def __init__(self) -> None:
        self.pulses: list[tuple[int, int]] = []
        self.told: list[str] = []

    def irq(self, vector: int, count: int) -> None:
        self.pulses.append((vector, count))

    def options(self) -> dict[str, Any]:
        return {"irq": self.irq, "trouble": self.told.append}


class Board:
    """A device on eventfds of its own: peer 1 with two vectors, ourselves (3) with one."""

    def __init__(self, own: int | None = OWN) -> None:
        self.bells = Bells()
        self.bells.own_id = own
        self.eventfds = {peer: eventfd.make(count) for peer, count in ((1, 2), (OWN, 1))}
        self.bells.doorbells = {peer: fds.array for peer, fds in self.eventfds.items()}
        self.line = Line()
        self.device = FlatDevice(self.bells, **self.line.options())

    def rung(self) -> dict[int, list[int]]:
        return {peer: [eventfd.pending(fd) for fd in fds] for peer, fds in self.eventfds.items()}


UNRUNG = {1: [0, 0], OWN: [0]}


@pytest.fixture
def board() -> Board:
    return Board()


def until(guest: FlatGuest, condition: Callable[[], object]) -> None:
    guest.wait_for(condition, DEADLINE)


@contextmanager
def played(script: Any, *, vectors_max: int = 64) -> Iterator[tuple[FlatGuest, Line, socket.socket]]:
    """Give a guest, adopted by a server that has sent *script*, its line, and the server's end."""
    theirs, ours = socket.socketpair()
    line = Line()
    with theirs:
        play(theirs, script)
        with FlatGuest(Client.adopt(ours, vectors_max=vectors_max), **line.options()) as guest:
            yield guest, line, theirs


# The registers


def test_the_registers_are_four_of_32_bits() -> None:
    assert {register.name: int(register) for register in Register} == {
        "INTMASK": 0,
        "INTSTATUS": 4,
        "IVPOSITION": 8,
        "DOORBELL": 12,
    }


def test_ivposition_is_our_id(board: Board) -> None:
    assert board.device.read(Register.IVPOSITION) == OWN
    board.bells.own_id = 65535
    assert board.device.read(8) == 65535


def test_ivposition_is_0_before_there_is_an_id() -> None:
    assert Board(own=None).device.read(Register.IVPOSITION, strict=True) == 0


@pytest.mark.parametrize("register", [Register.INTMASK, Register.INTSTATUS])
def test_intmask_and_intstatus_read_0_and_ignore_writes(board: Board, register: Register) -> None:
    board.device.write(register, 0xFFFFFFFF, strict=True)
    assert board.device.read(register, strict=True) == 0
    assert (board.device.guest_errors, board.line.told, board.rung()) == (0, [], UNRUNG)


def test_doorbell_rings_and_reads_0(board: Board) -> None:
    for value in (doorbell(1, 1), 0x0001_0001, doorbell(OWN, 0)):
        board.device.write(Register.DOORBELL, value, strict=True)
    assert board.rung() == {1: [0, 2], OWN: [1]}
    assert board.device.read(Register.DOORBELL) == 0
    assert board.device.guest_errors == 0


def test_only_32_bits_are_written(board: Board) -> None:
    board.device.write(Register.DOORBELL, 0xABCD_0001_0000)
    assert board.rung() == {1: [1, 0], OWN: [0]}


def test_ivposition_can_only_be_read(board: Board) -> None:
    board.device.write(Register.IVPOSITION, 9)
    assert board.device.read(Register.IVPOSITION) == OWN
    assert board.device.guest_errors == 1
    assert board.line.told == ["guest writes 0x9: IVPOSITION at 0x8 is read-only; DOORBELL at 0xc rings"]
    with pytest.raises(InvalidRegister, match="read-only"):
        board.device.write(Register.IVPOSITION, 9, strict=True)


@pytest.mark.parametrize("offset", [1, 2, 3, 5, 9, 11, 13, 15, 16, 0x100, 1 << 32, -4])
def test_where_no_register_begins(board: Board, offset: int) -> None:
    assert board.device.read(offset) == 0
    board.device.write(offset, doorbell(1, 0))
    assert board.rung() == UNRUNG
    assert board.device.guest_errors == len(board.line.told) == 2
    for access in (
        lambda: board.device.read(offset, strict=True),
        lambda: board.device.write(offset, 1, strict=True),
        lambda: register_at(offset),
    ):
        with pytest.raises(InvalidRegister, match="INTMASK at 0x0, INTSTATUS at 0x4, IVPOSITION at 0x8, DOORBELL at"):
            access()


@pytest.mark.parametrize(
    "value", [doorbell(2, 0), doorbell(1, 2), doorbell(1, 64), doorbell(1, 256), doorbell(1, 65535), 0xFFFFFFFF]
)
def test_a_doorbell_that_is_not_there_is_told_and_no_exception(board: Board, value: int) -> None:
    board.device.write(Register.DOORBELL, value)
    assert board.rung() == UNRUNG
    assert (board.device.guest_errors, len(board.line.told)) == (1, 1)
    with pytest.raises(LookupError):
        board.device.write(Register.DOORBELL, value, strict=True)


def test_a_doorbell_that_is_none_is_told_and_no_exception(board: Board) -> None:
    reading, writing = os.pipe()
    board.bells.doorbells[7] = array("i", [reading])  # what a server that lies may send
    board.device.write(Register.DOORBELL, doorbell(7, 0))
    assert board.line.told == ["guest writes 0x70000: [Errno 9] Bad file descriptor"]
    with pytest.raises(OSError, match="Bad file descriptor"):
        board.device.write(Register.DOORBELL, doorbell(7, 0), strict=True)
    del board.bells.doorbells[7]
    os.close(reading)
    os.close(writing)


def test_nobody_need_listen() -> None:
    device = FlatDevice(Board().bells)
    device.write(Register.DOORBELL, doorbell(9, 9))
    device.interrupt(0)
    assert (device.guest_errors, device.interrupts) == (1, {0: 1})


def test_one_line_for_each_own_vector(board: Board) -> None:
    for vector in range(64):
        board.device.interrupt(vector, vector + 1)
    board.device.interrupt(5)
    assert board.line.pulses == [(vector, vector + 1) for vector in range(64)] + [(5, 1)]
    assert board.device.interrupts == Counter({vector: vector + 1 for vector in range(64)}) + Counter({5: 1})


def test_a_memory_of_another_size_is_refused(board: Board) -> None:
    board.device.check_memory(12345)  # it was told none
    device = FlatDevice(board.bells, memory_size=1 << 22)
    device.check_memory(1 << 22)
    for size in (1 << 21, 1 << 23, (1 << 22) + 1, 0):
        with pytest.raises(MemoryUnavailable, match=f"{size} bytes, the device 4194304"):
            device.check_memory(size)


# Messages


@pytest.mark.parametrize("at", range(8))
def test_messages_in_pieces(at: int) -> None:
    """The core over a `Membership`, and the guest; each message cut after *at* bytes."""
    script = [*greeting(OWN), *[message(1, "eventfd")] * 2, message(OWN, "eventfd"), message(OWN, "full")]
    with no_leaks():
        membership, line = Membership(), Line()
        bells = Bells()
        device = FlatDevice(bells, **line.options())
        bells.doorbells = membership.doorbells
        theirs, ours = socket.socketpair()
        changes = []
        with theirs, ours:
            for piece in cut(script, at):
                play(theirs, [piece])
                data, fds, _, _ = socket.recv_fds(ours, 64, 4)
                for change in membership.feed(data, [Fd(fd) for fd in fds]):
                    changes.append(change)
                    bells.own_id = membership.id
        assert [type(change) for change in changes].count(VectorAdded) == 4
        assert device.read(Register.IVPOSITION) == OWN
        device.write(Register.DOORBELL, doorbell(1, 1))
        assert [eventfd.pending(fd) for fd in membership.peers[1].eventfds] == [0, 1]
        membership.close()
        with played(greeting(OWN)) as (guest, line, theirs):
            for piece in cut([*script[3:], message(1)], at):
                play(theirs, [piece])
                guest.poll(0)
            assert line.pulses == [(1, (1 << 64) - 2)]
            assert not guest.client.peers


@pytest.mark.parametrize("split", range(1, 8))
def test_a_server_that_cuts_each_message(folder: str, split: int) -> None:
    with no_leaks(), OtherServer(f"{folder}/s", vectors=3, split=split) as server:
        one, two = Line(), Line()
        with FlatDevice.connect(server.path, **one.options()) as first:
            until(first, lambda: first.client.vectors == 3)
            with FlatDevice.connect(server.path, **two.options()) as second:
                until(second, lambda: second.client.vectors == 3)
                assert (first.read(8), second.read(8)) == (0, 1)
                second.write(12, doorbell(0, 2), strict=True)
                until(first, lambda: one.pulses)
                until(first, lambda: 1 in first.client.peers and first.client.peers[1].vectors == 3)
                first.write(12, doorbell(1, 1), strict=True)
                until(second, lambda: two.pulses)
            until(first, lambda: not first.client.peers)
            assert (one.pulses, two.pulses) == ([(2, 1)], [(1, 1)])
            assert one.told == two.told == []


@pytest.mark.parametrize("ours", [True, False], ids=["our region", "another server"])
def test_all_64_vectors_interrupt(site: Any, folder: str, ours: bool) -> None:
    with OtherServer(f"{folder}/s", vectors=64) as server:
        path = site.open(vectors=64).spec.socket if ours else server.path
        line = Line()
        size = 1 << 16
        with (
            FlatDevice.connect(path, **line.options(), memory_size=size) as device,
            FlatDevice.connect(path) as other,
        ):
            until(other, lambda: other.client.vectors == 64)
            until(device, lambda: other.read(8) in device.client.peers)
            for vector in range(64):
                other.write(Register.DOORBELL, doorbell(device.read(8), vector), strict=True)
            until(device, lambda: len(line.pulses) >= 64)
            assert sorted(line.pulses) == [(vector, 1) for vector in range(64)]
            assert device.interrupts == {vector: 1 for vector in range(64)}
            other.write(Register.DOORBELL, doorbell(device.read(8), 64))
            assert other.guest_errors == 1
            other.memory[0:5] = b"hello"
            assert (device.memory[0:5], len(device.memory)) == (b"hello", size)
            device.close()
            until(other, lambda: not other.client.peers)
            with pytest.raises(NoSuchPeer):
                other.write(Register.DOORBELL, doorbell(0, 0), strict=True)


def test_65_vectors_are_one_too_many_unless_told(folder: str) -> None:
    with no_leaks(), OtherServer(f"{folder}/s", vectors=65) as server:
        with FlatDevice.connect(server.path) as device:
            with pytest.raises(ProtocolBroken, match="more than 64 vectors") as caught:
                until(device, lambda: False)
            assert isinstance(caught.value.__cause__, TooManyVectors)
        line = Line()
        with FlatDevice.connect(server.path, vectors_max=65, **line.options()) as device:
            until(device, lambda: device.client.vectors == 65)
            device.write(Register.DOORBELL, doorbell(device.read(8), 64), strict=True)
            until(device, lambda: line.pulses == [(64, 1)])


def test_a_leave_of_somebody_unknown_is_nothing() -> None:
    with no_leaks(), played([*greeting(OWN), message(OWN, "eventfd"), message(77)]) as (guest, line, _):
        seen: list[object] = []
        while StrayLeave(77) not in seen:
            seen += (events := guest.poll(DEADLINE))
            assert events
        guest.write(Register.DOORBELL, doorbell(OWN, 0), strict=True)
        assert guest.poll(DEADLINE) == [Rung(0, 1)]
        assert line.pulses == [(0, 1)]


def test_a_peer_that_left_can_not_be_rung() -> None:
    script = [*greeting(OWN), message(1, "eventfd"), message(1)]
    with no_leaks(), played(script) as (guest, line, _):
        seen: list[object] = []
        while not any(isinstance(event, PeerLeft) for event in seen):
            seen += (events := guest.poll(DEADLINE))
            assert events
        guest.write(Register.DOORBELL, doorbell(1, 0))
        assert line.told == ["guest writes 0x10000: no peer 1; there is: nobody else (and we are 3)"]


def test_a_vector_that_is_not_there_is_named() -> None:
    with no_leaks(), played([*greeting(OWN), message(1, "eventfd")]) as (guest, line, _):
        until(guest, lambda: guest.client.peers)
        guest.write(Register.DOORBELL, doorbell(1, 64))
        assert line.told == ["guest writes 0x10040: peer 1 has vectors 0 to 0, not 64"]
        with pytest.raises(NoSuchVector):
            guest.write(Register.DOORBELL, doorbell(1, 1), strict=True)


def test_a_server_that_closes(folder: str) -> None:
    line = Line()
    with (
        no_leaks(),
        OtherServer(f"{folder}/s") as server,
        FlatDevice.connect(server.path, **line.options()) as device,
    ):
        until(device, lambda: device.client.vectors == 4)
        device.write(Register.DOORBELL, doorbell(0, 3), strict=True)
        server.kick(0)
        with pytest.raises(ServerClosed):
            until(device, lambda: False)
        assert line.pulses == [(3, 1)]
        assert device.read(Register.IVPOSITION) == 0
        device.write(Register.DOORBELL, doorbell(0, 0))
        assert line.told == ["guest writes 0x0: no peer 0: not connected to a server; connect first"]
        device.join()
        assert device.read(Register.IVPOSITION) == 1
        assert device.interrupts == {3: 1}


def test_a_callback_that_fails_loses_no_other_interrupt() -> None:
    def fail(vector: int, count: int) -> None:
        raise RuntimeError(f"vector {vector}")

    with no_leaks(), played([*greeting(OWN), *[message(OWN, "eventfd")] * 2]) as (guest, line, _):
        until(guest, lambda: guest.client.vectors == 2)
        guest.irq = fail
        guest.write(12, doorbell(OWN, 0))
        guest.write(12, doorbell(OWN, 1))
        with pytest.raises(RuntimeError):
            guest.poll(DEADLINE)
        guest.irq = line.irq
        guest.poll(DEADLINE)
        assert len(line.pulses) == 1


def test_the_memory_s_size_is_checked(folder: str) -> None:
    with no_leaks(), OtherServer(f"{folder}/s", size=65536) as server:
        with pytest.raises(MemoryUnavailable, match="65536 bytes, the device 131072"):
            FlatDevice.connect(server.path, memory_size=131072)
        server.wait_for(lambda: server.accepted == 1 and server.connections == 0)
        with FlatDevice.connect(server.path, memory_size=65536) as device:
            assert len(device.memory) == 65536


def test_no_server(folder: str) -> None:
    with no_leaks(), pytest.raises(ServerUnavailable):
        FlatDevice.connect(f"{folder}/nobody")


def test_it_can_be_waited_for(folder: str) -> None:
    import select

    with no_leaks(), OtherServer(f"{folder}/s") as server, FlatDevice.connect(server.path) as device:
        until(device, lambda: device.client.vectors == 4)
        assert not select.select([device], [], [], 0)[0]
        device.write(Register.DOORBELL, 0, strict=True)
        assert select.select([device], [], [], DEADLINE)[0]
        assert device.poll(0) == [Rung(0, 1)]


def test_the_guest_of_the_documentation(site: Any, folder: str, capsys: pytest.CaptureFixture[str]) -> None:
    path = site.open(host_peer=True).spec.socket
    text = (Path(__file__).parents[3] / "docs" / "flat.md").read_text()
    (example,) = re.findall(r"^```python\n(.*?)^```", text, re.M | re.S)
    assert "/run/doorbelld/demo/socket" in example

    def ring_back() -> None:
        site.wait(lambda: HostRung(site.regions[0], 0, 1) in site.events)
        with suppress(NoSuchPeer):  # the example may have ended, with another event
            site.call(site.regions[0].notify, 0, 3)

    host = threading.Thread(target=ring_back)
    host.start()
    exec(example.replace("/run/doorbelld/demo/socket", path), {})
    host.join()
    assert capsys.readouterr().out.startswith("we are peer 0\n")
    with FlatDevice.connect(path) as device:
        assert device.memory[0:5] == b"hello"


# Servers that lie

CAUSES: dict[str, type[ProtocolError]] = {
    "version 1": WrongVersion,
    "-1 without fd": OutOfPlace,
    "id 70000": OutOfPlace,
    "1,000 vectors": TooManyVectors,
    "1,000 own vectors": TooManyVectors,
    "-1 again": OutOfPlace,
    "peer 70000": OutOfPlace,
    "we left": OutOfPlace,
    "two fds": OutOfPlace,
}


@pytest.mark.parametrize("lie", LIES)
def test_a_server_that_lies(folder: str, lie: str) -> None:
    silent = lie in ("silence", "half a version")
    with no_leaks(), OtherServer(f"{folder}/s", script=LIES[lie]) as server:
        for _ in range(2):
            with (
                pytest.raises((ProtocolBroken, ServerUnavailable, ServerClosed)) as caught,
                FlatDevice.connect(server.path, timeout=0.05 if silent else DEADLINE) as device,
            ):
                until(device, lambda: False)
            assert isinstance(caught.value.__cause__, CAUSES.get(lie, object))
        server.wait_for(lambda: server.accepted == 2 and server.connections == 0)


# A model


class Machine(RuleBasedStateMachine):
    """A guest against a model of lists and numbers; the server's side and both ends of the eventfds are ours."""

    def __init__(self) -> None:
        super().__init__()
        self.theirs, ours = socket.socketpair()
        play(self.theirs, greeting(OWN))
        self.line = Line()
        self.guest = FlatGuest(Client.adopt(ours), **self.line.options())
        self.eventfds: dict[int, list[int]] = {}
        self.counts: dict[int, list[int]] = {}
        self.pulses: list[tuple[int, int]] = []
        self.errors = 0

    def say(self, value: int, gifts: list[int], at: int) -> None:
        for piece in cut([message(value, *gifts)], at):
            play(self.theirs, [piece])
            self.guest.poll(0)

    @rule(peer=st.sampled_from([0, 1, 2, OWN, 65535]), vectors=st.integers(1, 3), at=st.integers(0, 7))
    def vectors(self, peer: int, vectors: int, at: int) -> None:
        for _ in range(vectors):
            fd = os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC)
            self.eventfds.setdefault(peer, []).append(fd)
            self.counts.setdefault(peer, []).append(0)
            self.say(peer, [fd], at)

    @rule(peer=st.sampled_from([0, 1, 2, 7, 65535]), at=st.integers(0, 7))
    def leave(self, peer: int, at: int) -> None:
        self.say(peer, [], at)
        self.counts.pop(peer, None)
        for fd in self.eventfds.pop(peer, ()):
            os.close(fd)

    @rule(data=st.data(), count=st.integers(1, 9))
    def rung(self, data: st.DataObject, count: int) -> None:
        if own := self.eventfds.get(OWN):
            vector = data.draw(st.integers(0, len(own) - 1))
            os.eventfd_write(own[vector], count)
            self.guest.poll(0)
            self.pulses.append((vector, count))

    @rule(offset=st.integers(-1, 17))
    def read(self, offset: int) -> None:
        assert self.guest.read(offset) == (OWN if offset == 8 else 0)
        self.errors += offset not in (0, 4, 8, 12)

    @rule(
        offset=st.integers(-1, 17) | st.just(12),
        peer=st.sampled_from([0, 1, 2, 7, OWN, 65535]),
        vector=st.integers(0, 4) | st.integers(0, 65535),
        more=st.integers(0, 3),
    )
    def write(self, offset: int, peer: int, vector: int, more: int) -> None:
        self.guest.write(offset, more << 32 | peer << 16 | vector)
        if offset == 12 and vector < len(self.counts.get(peer, ())):
            if peer == OWN:
                self.pulses.append((vector, 1))
                self.guest.poll(0)
            else:
                self.counts[peer][vector] += 1
        elif offset not in (0, 4):
            self.errors += 1

    @invariant()
    def agrees(self) -> None:
        assert self.line.pulses == self.pulses
        assert self.guest.interrupts == sum((Counter({v: n}) for v, n in self.pulses), Counter())
        assert self.guest.guest_errors == len(self.line.told) == self.errors
        others = {peer: fds for peer, fds in self.eventfds.items() if peer != OWN}
        for peer, fds in others.items():
            assert [eventfd.pending(fd) for fd in fds] == self.counts[peer]
        assert {peer.id: peer.vectors for peer in self.guest.client} == {peer: len(fds) for peer, fds in others.items()}

    def teardown(self) -> None:
        self.guest.close()
        self.theirs.close()
        for fds in self.eventfds.values():
            for fd in fds:
                os.close(fd)


Machine.TestCase.settings = settings(max_examples=60, stateful_step_count=25, deadline=None)
TestModel = Machine.TestCase
