# SPDX-FileCopyrightText: 2026 The doorbelld authors
# SPDX-License-Identifier: GPL-2.0-or-later
"""Our own front-end, where a back-end does not do what it should."""

from __future__ import annotations

import socket
from collections.abc import Iterator

import pytest
from doorbelld.vhost.frontend import BackendFailed, Frontend
from doorbelld.wire.vhost import Decoder, ProtocolError, encode
from doorbelld.wire.vhost_messages import U64, VringState
from doorbelld.wire.vhost_requests import FrontendRequest as R
from support.devicesite import DeviceSite
from support.fdcount import no_leaks


@pytest.fixture
def ends() -> Iterator[tuple[Frontend, socket.socket]]:
    """A front-end and the back-end's end of its connection."""
    with no_leaks():
        ours, theirs = socket.socketpair()
        with Frontend(ours, timeout=0.05) as frontend, theirs:
            yield frontend, theirs


def test_silence(ends: tuple[Frontend, socket.socket]) -> None:
    with pytest.raises(BackendFailed, match="said nothing"):
        ends[0].ask(R.GET_FEATURES)


def test_the_end(ends: tuple[Frontend, socket.socket]) -> None:
    ends[0].send(R.GET_FEATURES)
    ends[1].close()
    with pytest.raises(BackendFailed, match="ended the connection"):
        ends[0].answer()
    with pytest.raises(BackendFailed, match="takes nothing"):
        ends[0].send(R.GET_FEATURES)


def test_an_answer_to_something_else(ends: tuple[Frontend, socket.socket]) -> None:
    frontend, theirs = ends
    frontend.send(R.GET_QUEUE_NUM)
    (message,) = Decoder(R).feed(theirs.recv(100))
    theirs.send(encode(message.reply(U64(1)))[0])
    with pytest.raises(BackendFailed, match="asked for GET_FEATURES, the reply is to GET_QUEUE_NUM"):
        frontend.ask(R.GET_FEATURES)


def test_an_answer_that_is_none(ends: tuple[Frontend, socket.socket]) -> None:
    ends[1].send(b"\xff" * 12)
    with pytest.raises(ProtocolError):
        ends[0].answer()


def test_a_refusal(site: DeviceSite) -> None:
    site.open()
    f = site.connect()
    f.negotiate()
    with pytest.raises(BackendFailed, match="refused SET_VRING_NUM with 1"):
        f.tell(R.SET_VRING_NUM, VringState(0, 3))


def test_there_is_no_more_memory_than_there_is(site: DeviceSite) -> None:
    site.open()
    f = site.connect(memory_size=1 << 16)
    with pytest.raises(MemoryError, match="no 65537 bytes left"):
        f.take((1 << 16) + 1)


def test_requests_that_are_not_done(site: DeviceSite) -> None:
    _, f = site.started()
    f.enable(0, False)
    f.timeout = 0.05
    with pytest.raises(BackendFailed, match="no request was done"):
        f.request(f.queues[0], b"x")


def test_nothing_is_heard_without_a_channel(site: DeviceSite) -> None:
    site.open()
    with pytest.raises(BackendFailed, match="no back-end channel"):
        site.connect().hear()
