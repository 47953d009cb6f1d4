# SPDX-FileCopyrightText: 2026 The doorbelld authors
# SPDX-License-Identifier: GPL-2.0-or-later
"""A bus of our own: it starts, it comes back at the same address, it ends, and what can go wrong is said."""

from __future__ import annotations

import asyncio
import os
import signal
import socket
from collections.abc import AsyncIterator
from pathlib import Path
from urllib.parse import unquote

import pytest
from doorbelld.bus.private import PrivateBus
from doorbelld.errors import BusUnavailable
from support.needs import require


@pytest.fixture
async def bus(short_path: Path) -> AsyncIterator[PrivateBus]:
    require("dbus-daemon", "dbus-daemon")
    made = PrivateBus(str(short_path / "run"))
    yield made
    await made.stop()


def answers(address: str) -> bool:
    with socket.socket(socket.AF_UNIX) as client:
        client.settimeout(20)
        try:
            client.connect(unquote(address.removeprefix("unix:path=")))
        except OSError:
            return False
        client.sendall(b"\0AUTH\r\n")
        return client.recv(100).startswith(b"REJECTED")


async def test_it_runs_until_it_is_stopped(bus: PrivateBus) -> None:
    address = await bus.ensure()
    assert answers(address)
    assert await bus.ensure() == address
    await bus.stop()
    assert not answers(address)
    assert not os.path.exists(bus.socket)
    await bus.stop()


async def test_it_comes_back_at_the_same_address(bus: PrivateBus) -> None:
    address = await bus.ensure()
    for number in (signal.SIGKILL, signal.SIGTERM):
        process = bus._process
        assert process is not None
        process.send_signal(number)
        async with asyncio.timeout(20):
            await process.wait()
        assert not answers(address)
        assert await bus.ensure() == address
        assert answers(address)


async def test_odd_characters_in_the_directory(short_path: Path) -> None:
    require("dbus-daemon", "dbus-daemon")
    bus = PrivateBus(str(short_path / "a b&c,d=e<f>\u00e4;%"))
    try:
        assert answers(await bus.ensure())
        assert os.path.exists(bus.socket)
    finally:
        await bus.stop()


async def test_another_in_the_same_directory(bus: PrivateBus, short_path: Path) -> None:
    await bus.ensure()
    with pytest.raises(BusUnavailable, match="another doorbelld seems to run there"):
        await PrivateBus(str(short_path / "run")).ensure()
    assert answers(bus.address)


async def test_a_stale_socket_is_no_obstacle(bus: PrivateBus, short_path: Path) -> None:
    (short_path / "run").mkdir()
    with socket.socket(socket.AF_UNIX) as stale:
        stale.bind(bus.socket)
    assert answers(await bus.ensure())


async def test_a_directory_that_can_not_be(short_path: Path) -> None:
    require("dbus-daemon", "dbus-daemon")
    (short_path / "file").touch()
    for name in ("file", "file/below"):
        with pytest.raises(BusUnavailable, match="runtime-directory that it may write to"):
            await PrivateBus(str(short_path / name)).ensure()


async def test_a_path_that_is_too_long(short_path: Path) -> None:
    with pytest.raises(BusUnavailable, match="use a shorter runtime-directory"):
        await PrivateBus(str(short_path / ("x" * 120))).ensure()


async def test_no_dbus_daemon(short_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(short_path))
    with pytest.raises(BusUnavailable, match="install it"):
        await PrivateBus(str(short_path / "run")).ensure()


async def test_a_dbus_daemon_that_does_not_start(short_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    program = short_path / "dbus-daemon"
    program.write_text("#!/bin/sh\necho my words >&2\nexit 1\n")
    program.chmod(0o755)
    monkeypatch.setenv("PATH", str(short_path), prepend=os.pathsep)
    bus = PrivateBus(str(short_path / "run"))
    with pytest.raises(BusUnavailable, match=r"did not start; .*bus\.log has its words"):
        await bus.ensure()
    assert "my words" in (short_path / "run" / "bus.log").read_text()
