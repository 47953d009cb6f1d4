# SPDX-FileCopyrightText: 2026 The doorbelld authors
# SPDX-License-Identifier: GPL-2.0-or-later
"""The ledger: what counts, counts whole, whoever is killed whenever."""

from __future__ import annotations

import itertools
import json
import os
import random
import socket
import sys
from array import array
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from doorbelld.errors import StateMismatch
from doorbelld.fds import eventfd, ledger, native
from doorbelld.fds.ledger import AREA, Ledger, LedgerFull, NewerState
from doorbelld.fds.owned import Fd
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule
from support.crash import doomed, spin, watch
from support.fdcount import no_leaks

LINE = st.binary(max_size=40).map(lambda text: text.replace(b"\n", b"").replace(b"\r", b""))


@pytest.fixture
def book() -> Iterator[Ledger]:
    with no_leaks():
        made = Ledger.create("doorbelld:test:state")
        yield made
        made.close()


def adopted(book: Ledger) -> Ledger:
    """Adopt a copy, as the next process would."""
    return Ledger.adopt(book.fd.dup())


def send(slot: memoryview, count: int) -> None:
    """Send *count* messages to somebody who gets them all."""
    ours, theirs = socket.socketpair()
    with ours, theirs:
        assert native.send_messages(ours.fileno(), array("q", [1] * count), array("i", [-1] * count), slot) == (
            count,
            0,
        )


def take(slot: memoryview, count: int) -> None:
    """Take a counter that stands at *count*."""
    bells = eventfd.make(1)
    os.eventfd_write(bells[0], count)
    assert native.drain(bells[0], slot) == (count, 0)
    bells.close()


class LedgerMachine(RuleBasedStateMachine):
    """The model is a list of lines, and what happened since the last one."""

    @initialize()
    def start(self) -> None:
        self.book = Ledger.create("doorbelld:test:state")
        self.model: list[bytes] = []
        self.sent: tuple[int, int] | None = None
        self.drained: tuple[int, int] | None = None

    def line(self) -> None:
        self.sent = self.drained = None

    @rule(lines=st.lists(LINE, min_size=1, max_size=4))
    def rewrite(self, lines: list[bytes]) -> None:
        self.book.rewrite(b"".join(line + b"\n" for line in lines))
        self.model = list(lines)
        self.line()

    @rule(line=LINE)
    def append(self, line: bytes) -> None:
        self.book.append(line + b"\n")
        self.model.append(line)
        self.line()

    @rule(key=st.integers(0, (1 << 64) - 1), count=st.integers(0, 200))
    def sending(self, key: int, count: int) -> None:
        send(self.book.begin_sending(key), count)
        self.sent = (key, count) if count else None

    @rule(key=st.integers(0, (1 << 64) - 1), count=st.integers(0, (1 << 64) - 2))
    def draining(self, key: int, count: int) -> None:
        take(self.book.begin_draining(key), count)
        self.drained = (key, count) if count else None

    @rule()
    def adopt(self) -> None:
        new = adopted(self.book)
        self.book.close()
        self.book = new

    @invariant()
    def the_next_process_finds_what_counts(self) -> None:
        if hasattr(self, "book"):
            found = adopted(self.book)
            for each in (self.book, found):
                assert each.lines() == self.model
                assert each.unfinished() == (self.sent, self.drained)
            found.close()

    def teardown(self) -> None:
        if hasattr(self, "book"):
            self.book.close()


TestLedger = LedgerMachine.TestCase
TestLedger.settings = settings(max_examples=60, stateful_step_count=30, deadline=None)


def test_what_was_unfinished_ends_with_the_next_line_only(book: Ledger) -> None:
    book.rewrite(b"s\n")
    send(book.begin_sending(7), 3)
    take(book.begin_draining(9), 4)
    assert book.unfinished() == adopted(book).unfinished() == ((7, 3), (9, 4))
    book.begin_sending(8)
    assert book.unfinished() == (None, (9, 4))
    book.append(b"x\n")
    assert book.unfinished() == (None, None)
    send(book.begin_sending(7), 3)
    book.rewrite(b"s\n")  # as long as it was: the moment is another all the same
    book.rewrite(b"s\n")
    assert book.unfinished() == (None, None)


def _write(book: Ledger, rewrites: int) -> None:
    """Write lines that grow and shrink, each with its number, until killed; now and then a snapshot takes over."""
    for number in itertools.count():
        text = b"%d %s\n" % (number, b"x" * (number % 301))
        if number % rewrites:
            book.append(text)
        else:
            book.rewrite(text + b"snapshot\n")


def _numbers(book: Ledger, rewrites: int) -> list[int]:
    first, second, *rest = book.lines()
    lines = [first, *rest]
    assert second == b"snapshot"
    numbers = [int(line.split()[0]) for line in lines]
    assert [line.partition(b" ")[2] for line in lines] == [b"x" * (number % 301) for number in numbers]
    assert not numbers[0] % rewrites
    return numbers


@pytest.mark.parametrize("rewrites", [1, 2, 40])
def test_whoever_is_killed_leaves_a_whole_prefix(rewrites: int) -> None:
    dice = random.Random(rewrites)
    lengths = set()
    for _ in range(60):
        with no_leaks():
            book = Ledger.create("doorbelld:test:state")
            with doomed(lambda book=book: _write(book, rewrites)):
                watch(lambda book=book: any(book._words[3:5]))
                spin(dice.randrange(20_000))
            found = adopted(book)
            book.close()
            numbers = _numbers(found, rewrites)
            assert numbers == list(range(numbers[0], numbers[-1] + 1))
            assert len(numbers) <= rewrites
            assert found.unfinished() == (None, None)
            lengths.add(found.length)
            found.append(b"one more\n")  # it can be gone on with
            assert found.lines()[-1] == b"one more"
            found.rewrite(b"anew\n")
            assert found.lines() == [b"anew"]
            found.close()
    assert len(lengths) > 10  # they were killed at different moments


# What is no ledger of ours


def _file(content: bytes, size: int) -> Fd:
    fd = Fd(os.memfd_create("other"))
    os.write(fd.fileno(), content)
    os.ftruncate(fd.fileno(), size)
    return fd


def _words(*words: int) -> bytes:
    return b"".join(word.to_bytes(8, sys.byteorder) for word in words)


SIZE = ledger._SIZE
LENGTH_MAX = (1 << ledger._GENERATION) - 1


@pytest.mark.parametrize(
    ("content", "size", "said"),
    [
        (b"", 0, "none of doorbelld's"),
        (b"door", 4, "none of doorbelld's"),
        (b"{}\n", SIZE, "none of doorbelld's"),
        (_words(ledger.MAGIC), 8, "damaged: format 0, 8 bytes"),
        (_words(ledger.MAGIC, 0), SIZE, "damaged: format 0"),
        (_words(ledger.MAGIC, 1), SIZE - 1, f"damaged: format 1, {SIZE - 1} bytes"),
        (_words(ledger.MAGIC, 1), 16, "damaged: format 1, 16 bytes"),
        (_words(ledger.MAGIC, 1, 2), SIZE, "what counts is outside"),
        (_words(ledger.MAGIC, 1, 1 << 63), SIZE, "damaged"),
        (_words(ledger.MAGIC, 1, 0, AREA + 1), SIZE, "damaged"),
        (_words(ledger.MAGIC, 1, 1, 0, LENGTH_MAX), SIZE, "damaged"),
    ],
)
def test_what_is_no_ledger_is_refused(content: bytes, size: int, said: str) -> None:
    with no_leaks(), _file(content, size) as fd:
        with pytest.raises(StateMismatch, match=said) as caught:
            Ledger.adopt(fd)
        assert type(caught.value) is StateMismatch


@pytest.mark.parametrize("size", [SIZE, 16, SIZE * 2])
def test_one_of_a_newer_version_is_told_apart(size: int) -> None:
    with no_leaks(), _file(_words(ledger.MAGIC, 2), size) as fd:
        said = "format 2, and this doorbelld knows up to 1; start the version that wrote it, or stop the service"
        with pytest.raises(NewerState, match=said):
            Ledger.adopt(fd)
        assert os.pread(fd.fileno(), 8, 8) == _words(2)


def test_what_is_no_file_at_all_is_refused() -> None:
    with no_leaks():
        bells = eventfd.make(1)
        ours, theirs = socket.socketpair()
        with ours, theirs, pytest.raises(StateMismatch, match="the record can't be read: Illegal seek"):
            Ledger.adopt(Fd(os.dup(ours.fileno())))
        with pytest.raises(StateMismatch, match="the record can't be read"):
            Ledger.adopt(Fd(os.dup(bells[0])))
        bells.close()


# Room


def test_a_line_that_does_not_fit_adds_nothing(book: Ledger, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ledger, "AREA", 8192)
    book.rewrite(b"s" * 4095 + b"\n")
    book.append(b"a" * 4094 + b"\n")
    send(book.begin_sending(1), 2)
    with pytest.raises(LedgerFull):
        book.append(b"b\n")
    assert book.lines() == [b"s" * 4095, b"a" * 4094]
    assert book.unfinished() == ((1, 2), None)  # nothing has ended it
    book.append(b"\n")  # to the brim
    assert (book.length, len(book.lines())) == (8192, 3)
    with pytest.raises(LedgerFull):
        book.append(b"\n")
    with pytest.raises(LedgerFull):
        book.rewrite(b"x" * 8192 + b"\n")
    assert (book.length, len(adopted(book).lines())) == (8192, 3)
    book.rewrite(b"x" * 8191 + b"\n")
    assert book.lines() == adopted(book).lines() == [b"x" * 8191]


def test_memory_of_what_counts_no_longer_is_given_back(book: Ledger) -> None:
    big = b"x" * (4 << 20) + b"\n"
    for _ in range(4):
        book.rewrite(big)
        for _ in range(4):
            book.append(big)
        assert os.fstat(book.fd.fileno()).st_blocks * 512 < 5 * len(big) + (1 << 17)
    book.rewrite(b"s\n")
    assert os.fstat(book.fd.fileno()).st_blocks * 512 < 1 << 17


def test_moments_last_longer_than_any_daemon(book: Ledger) -> None:
    """Each snapshot is a new generation, also the last one of a busy decade."""
    for area in (0, 1):
        book._words[3 + area] = 10**11 << ledger._GENERATION
    book._moment = book._words[3]
    book.rewrite(b"s\n")
    book.append(b"a\n")
    assert adopted(book).lines() == [b"s", b"a"]
    assert book._moment >> ledger._GENERATION == 10**11 + 1


# Life and death


def test_a_name_in_proc_for_who_looks(book: Ledger) -> None:
    assert book.name == "doorbelld:test:state"
    link = Path(f"/proc/self/fd/{book.fd.fileno()}").readlink()
    assert str(link) == "/memfd:doorbelld:test:state (deleted)"
    assert not os.get_inheritable(book.fd.fileno())


def test_closing_twice_does_nothing() -> None:
    with no_leaks():
        book = Ledger.create("x")
        book.begin_sending(1)
        book.close()
        book.close()


def test_without_memory_nothing_is_left(monkeypatch: pytest.MonkeyPatch) -> None:
    def none_left(*_: object) -> None:
        raise OSError(12, "Cannot allocate memory")

    with no_leaks():
        monkeypatch.setattr(ledger.mmap, "mmap", none_left)
        with pytest.raises(OSError, match="Cannot allocate"):
            Ledger.create("x")
        monkeypatch.undo()


def test_reopened_it_says_how_things_stood(book: Ledger) -> None:
    book.rewrite(ledger.line({"count": 1}))
    book.append(ledger.line(["+", 2]))
    again, state = ledger.reopen(book.fd.dup(), lambda opened: {"lines": opened.lines()})
    again.close()
    assert state == {"lines": [b'{"count":1}', b'["+",2]']}


@pytest.mark.parametrize(
    ("version", "error", "said"),
    [
        (3, NewerState, "the state has version 3, and this doorbelld knows up to 2; start the version that wrote it"),
        (0, StateMismatch, "the state is damaged .ValueError: 0 is no version"),
        ("2", StateMismatch, "the state is damaged .ValueError: '2' is no version"),
        (None, StateMismatch, "the state is damaged .KeyError: 'version'"),
    ],
)
def test_a_state_of_another_version_is_not_reopened(
    book: Ledger, version: object, error: type[Exception], said: str
) -> None:
    def replay(opened: Ledger) -> dict[str, Any]:
        with ledger.damage_told():
            state: dict[str, Any] = json.loads(opened.lines()[0])
            ledger.check_version(state["version"], 2)
        return state

    book.rewrite(ledger.line({} if version is None else {"version": version}))
    with pytest.raises(error, match=said) as caught:
        ledger.reopen(book.fd.dup(), replay)
    assert type(caught.value) is error
