# SPDX-FileCopyrightText: 2026 The doorbelld authors
# SPDX-License-Identifier: GPL-2.0-or-later
"""Front-ends that connect and say nothing: they are told of, and give way to another one."""

from __future__ import annotations

import os
import socket
from collections.abc import Iterator
from contextlib import contextmanager

import pytest
from doorbelld.vhost import silence
from doorbelld.vhost.backend import Backend
from doorbelld.vhost.events import FaultChanged, FrontendAttached, FrontendRefused, FrontendSilent, State
from doorbelld.vhost.frontend import BackendFailed
from doorbelld.wire.vhost_requests import FrontendRequest as R
from support.devicesite import DEADLINE, DeviceSite

SHORT = 0.05
QUESTION = "it has said nothing since it connected; is it an ivshmem device, or a chardev that no device uses?"


@pytest.fixture(autouse=True)
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(silence, "SILENCE", 2 * SHORT)


@contextmanager
def mute(backend: Backend) -> Iterator[socket.socket]:
    """Connect, and say nothing."""
    with socket.socket(socket.AF_UNIX) as sock:
        sock.settimeout(DEADLINE)
        sock.connect(backend.spec.socket)
        yield sock


def until_told(site: DeviceSite, count: int = 1) -> None:
    site.wait(lambda: len(site.of(FrontendSilent)) == count)


@pytest.mark.parametrize("said", [b"", b"\1\0\0\0"])
def test_silent_front_end_is_told_of_until_it_leaves(site: DeviceSite, said: bytes) -> None:
    backend = site.open()
    with mute(backend) as sock:
        sock.sendall(said)  # a part of a message is none
        until_told(site)
        (event,) = site.of(FrontendSilent)
        assert (event.who.pid, event.reason) == (os.getpid(), QUESTION)
        assert backend.fault == f"front-end pid {os.getpid()}: {QUESTION}"
        assert backend.state is State.CONNECTED
    site.farewell()
    site.wait_state(backend, State.LISTENING)
    assert backend.fault == "" and len(site.of(FaultChanged)) == 2


def test_front_end_that_speaks_late_is_no_fault_any_more(site: DeviceSite) -> None:
    backend = site.open()
    f = site.connect()
    until_told(site)
    assert f.ask_number(R.GET_FEATURES)
    assert backend.fault == "" and len(site.of(FrontendSilent)) == 1


def test_front_end_that_spoke_is_not_told_of(site: DeviceSite) -> None:
    spoken, _ = site.open(), site.open()
    f = site.connect(spoken)
    assert f.ask_number(R.GET_FEATURES)
    with mute(site.backends[1]):
        until_told(site)
    assert site.of(FrontendSilent)[0].device is site.backends[1] and spoken.fault == ""


def test_silent_front_end_gives_way_after_its_time(site: DeviceSite) -> None:
    backend = site.open(**{"silence-timeout": SHORT})
    with mute(backend) as sock:
        until_told(site)
        f = site.connect()
        f.start()
        assert f.request(f.queues[0], b"hello", 5) == b"hello"
        assert sock.recv(1) == b""
    end = site.farewell()
    assert (end.reason, end.broken) == ("it said nothing for 0.05 s, and another one came (silence-timeout)", False)
    assert backend.fault == "" and not site.of(FrontendRefused)


def test_silent_front_end_gives_way_to_one_only(site: DeviceSite) -> None:
    backend = site.open(**{"silence-timeout": SHORT})
    with mute(backend):
        until_told(site)
        both = [site.connect(), site.connect()]
        answers = []
        for f in both:
            try:
                answers.append(f.ask_number(R.GET_QUEUE_NUM))
            except BackendFailed:
                answers.append(0)
        assert answers == [2, 0]
        assert len(site.of(FrontendAttached)) == 2


@pytest.mark.parametrize("timeout", ["1h", "never"])
def test_silent_front_end_keeps_the_device_for_its_time(site: DeviceSite, timeout: str) -> None:
    backend = site.open(**{"silence-timeout": timeout})
    with mute(backend):
        until_told(site)
        with pytest.raises(BackendFailed):
            site.connect().ask_number(R.GET_FEATURES)
        site.wait(lambda: site.of(FrontendRefused))
        (refused,) = site.of(FrontendRefused)
        assert f"front-end pid {os.getpid()} has the device" in refused.reason
        assert "it has said nothing yet, and silence-timeout of the device is how long it may" in refused.reason
        assert backend.state is State.CONNECTED
    site.farewell()


def test_front_end_that_spoke_once_keeps_the_device(site: DeviceSite) -> None:
    """A guest that is paused, or has not loaded its driver yet."""
    backend = site.open(**{"silence-timeout": 0.001})
    f = site.connect()
    assert f.ask_number(R.GET_FEATURES)
    with pytest.raises(BackendFailed):
        site.connect().ask_number(R.GET_FEATURES)
    site.wait(lambda: site.of(FrontendRefused))
    assert "has said nothing" not in site.of(FrontendRefused)[0].reason
    assert f.ask_number(R.GET_FEATURES) == backend.offered_features


def test_silent_listener_is_told_of_and_kept(site: DeviceSite) -> None:
    """It may be one that did not accept yet; and nobody else can come."""
    path = f"{site.folder}/front"
    with socket.socket(socket.AF_UNIX) as listening:
        listening.bind(path)
        listening.listen()
        backend = site.open(socket=path, connect=True, **{"silence-timeout": 0.001})
        until_told(site)
        assert backend.fault.endswith(f"is it a front-end that listens at {path}?")
        accepted, _ = listening.accept()
        with accepted:
            assert backend.state is State.CONNECTED
            site.run(backend.close())
