# SPDX-FileCopyrightText: 2026 The doorbelld authors
# SPDX-License-Identifier: GPL-2.0-or-later
from __future__ import annotations

import os
import socket
from collections.abc import Iterator

import pytest
from doorbelld.fds.ledger import LedgerFull
from doorbelld.fds.vault import SO_PEEK_OFF
from doorbelld.ivshmem import clientjournal as module
from doorbelld.ivshmem.client_events import ClientUnkept
from doorbelld.ivshmem.clientjournal import TOO_LARGE, runs, take_exactly
from doorbelld.ivshmem.link import ClientState
from doorbelld.wire.ivshmem import OutOfPlace
from support.clientbench import ClientBench
from support.fdcount import no_leaks


@pytest.fixture
def bench() -> Iterator[ClientBench]:
    made = ClientBench()
    yield made
    made.close()


def test_places_in_runs() -> None:
    assert runs([]) == []
    assert runs([(1, 0), (1, 1), (2, 2), (1, 3), (1, 5), (1, 6)]) == [[1, 0, 2], [2, 2, 1], [1, 3, 1], [1, 5, 2]]


def test_the_kernel_counts_what_is_taken() -> None:
    """What the journal stands on: the offset of peeks moves back with what is taken, in whatever pieces."""
    with no_leaks():
        ours, theirs = socket.socketpair()
        fd = os.eventfd(0)
        for value in range(4):
            socket.send_fds(theirs, [bytes([value]) * 8], [fd])
        ours.setsockopt(socket.SOL_SOCKET, SO_PEEK_OFF, 0)
        for value in range(3):
            data, *_ = ours.recvmsg(100, 0, socket.MSG_PEEK)
            assert data == bytes([value]) * 8
        assert ours.getsockopt(socket.SOL_SOCKET, SO_PEEK_OFF) == 24
        for size, left in ((8, 16), (3, 13), (10, 3), (3, 0)):
            take_exactly(ours, size)
            assert ours.getsockopt(socket.SOL_SOCKET, SO_PEEK_OFF) == left
        assert take_exactly(ours, 8) == b"\3" * 8
        assert ours.getsockopt(socket.SOL_SOCKET, SO_PEEK_OFF) == 0
        for end in (False, True):
            if end:
                theirs.close()
            with pytest.raises(OutOfPlace, match="can't be read again"):
                take_exactly(ours, 1)
        ours.close()
        os.close(fd)


def test_somebody_else_reads_the_same_socket(bench: ClientBench, monkeypatch: pytest.MonkeyPatch) -> None:
    """A stream that is not what it was a moment ago ends the connection."""
    bench.accept()
    bench.settle()
    monkeypatch.setattr(module, "take_exactly", lambda sock, size: sock.recv(size)[::-1])
    bench.add(1)
    bench.deliver()
    bench.until(lambda: bench.client.state is ClientState.BROKEN)
    assert "something else than it had sent" in bench.client.reason


@pytest.mark.parametrize("of", ["append", "rewrite"])
def test_a_ledger_that_is_full(bench: ClientBench, of: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The client goes on, without being kept."""
    bench.accept()
    bench.settle()
    journal = bench.client._journal
    assert journal is not None

    def full(_: bytes) -> None:
        raise LedgerFull

    monkeypatch.setattr(journal._ledger, of, full)
    if of == "rewrite":
        monkeypatch.setattr(module, "_LINES_MAX", 0)
    bench.add(1)
    bench.add(7)
    bench.ring(0, 3)
    bench.settle()
    assert [event.reason for event in bench.events if isinstance(event, ClientUnkept)] == [TOO_LARGE]
    assert not bench.client.kept
    assert not bench.keeper.copies
