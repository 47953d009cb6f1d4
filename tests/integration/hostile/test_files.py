# SPDX-FileCopyrightText: 2026 The doorbelld authors
# SPDX-License-Identifier: GPL-2.0-or-later
"""Files whose server never answers, behind devices and regions: they fail, and nothing else waits."""

from __future__ import annotations

import os
from contextlib import ExitStack, closing
from pathlib import Path

import pytest
from support.daemon import Daemon
from support.dbusclient import Client, ErrorReply, until
from support.fuse import SIZE, HangingFiles
from support.heartbeat import Attack, under_way, watched
from support.needs import require
from support.rawclient import RawClient

NO_ANSWER = "no answer within 10"
WHERE = {"region": "CreateRegion", "device": "CreateDevice"}


@pytest.fixture(autouse=True)
def bus() -> None:
    require("dbus-daemon", "dbus-daemon")


@pytest.fixture(autouse=True)
def everybody_may_pass(short_path: Path) -> None:
    short_path.chmod(0o755)


def create(address: str, kind: str, name: str, path: str) -> None:
    """Ask for a region or a device, and print what came of it."""
    with Client(address) as client:
        under_way()
        try:
            if kind == "region":
                client.call("", "Manager", "CreateRegion", "sa{sv}", name, {"backing": ("s", f"file:{path}")})
            else:
                client.call("", "Manager", "CreateDevice", "ssa{sv}", name, "blk", {"path": ("s", path)})
        except ErrorReply as error:
            print(str(error), flush=True)
        else:
            print("made", flush=True)


def test_image_or_backing_file_that_hangs_fails_alone_and_can_be_retried(short_path: Path) -> None:
    wanted = [
        ("device", "LOOKUP", "DeviceUnavailable"),
        ("device", "OPEN", "DeviceUnavailable"),
        ("device", "GETATTR", "DeviceUnavailable"),
        ("device", "SETLK", "DeviceUnavailable"),
        ("region", "OPEN", "MemoryUnavailable"),
        ("region", "GETATTR", "MemoryUnavailable"),
    ]
    with watched(short_path) as site, ExitStack() as mounts:  # which end first: who hangs can't even be killed
        files, attacks = [], []
        for kind, operation, _ in wanted:
            files.append(mounts.enter_context(HangingFiles(short_path / f"{kind}-{operation}", operation)))
            attacks.append(
                mounts.enter_context(Attack(create, site.daemon.bus, kind, f"{kind}-{operation}", files[-1].path()))
            )
        for (_, _, error), attack, file in zip(wanted, attacks, files, strict=True):
            said = attack.line()
            assert f".{error}: " in said and file.path() in said and NO_ANSWER in said
            assert said.endswith("see to that file system (a server, a network), then reload or try again")
        for (kind, operation, _), file in zip(wanted, files, strict=True):
            file.close()
            Path(file.path()).write_bytes(b"" if kind == "region" else bytes(SIZE))
            with Attack(create, site.daemon.bus, kind, f"{kind}-{operation}", file.path()) as again:
                assert again.line() == "made"
        with Client(site.daemon.bus) as client:
            for kind, operation, _ in wanted:
                client.call(
                    "", "Manager", "RemoveRegion" if kind == "region" else "RemoveDevice", "s", f"{kind}-{operation}"
                )


def test_daemon_starts_without_the_device_whose_image_hangs(short_path: Path) -> None:
    file = HangingFiles(short_path / "fuse", "OPEN")
    config = f'[region.demo]\n[device.disk]\ntype = "blk"\npath = "{file.path()}"\n'
    with Daemon(short_path, config) as daemon, closing(file), Client(daemon.bus) as client:
        assert NO_ANSWER in daemon.log
        assert client.call("", "Manager", "ListDevices")[0] == []
        file.close()
        Path(file.path()).write_bytes(bytes(SIZE))
        client.call("", "Manager", "Reload")
        assert len(client.call("", "Manager", "ListDevices")[0]) == 1


def test_image_that_hangs_later_delays_neither_refresh_of_others_nor_removal(short_path: Path) -> None:
    with (
        watched(short_path) as site,
        Client(site.daemon.bus) as client,
        HangingFiles(short_path / "fuse") as file,
    ):
        client.call("", "Manager", "CreateDevice", "ssa{sv}", "disk", "blk", {"path": ("s", file.path())})
        file.hang("GETATTR")
        file.hang("FLUSH")
        with pytest.raises(ErrorReply, match=f"DeviceUnavailable.*path {file.path()}: {NO_ANSWER}"):
            client.call("/device/disk", "Device", "Refresh")
        client.call("", "Manager", "RemoveDevice", "s", "disk")


def test_pid_file_that_hangs_delays_only_whom_it_may_name(short_path: Path) -> None:
    path = short_path / "fuse"
    config = f'[region.open]\n[region.named]\n[[region.named.peer]]\nmatch = {{ pid-file = "{path}/file" }}\n'
    with (
        watched(short_path, config) as site,
        HangingFiles(path, "READ"),
        RawClient(str(site.daemon.socket("named"))) as refused,
    ):
        with RawClient(str(site.daemon.socket("open"))) as welcome:
            welcome.greet(4)
        refused.until_eof()


@pytest.mark.parametrize("kind", ["fifo", "link", "device", "directory"])
def test_pid_file_that_is_no_file_names_nobody(short_path: Path, kind: str) -> None:
    path = short_path / "pid"
    rules = f'[[region.demo.peer]]\nmatch = {{ pid-file = "{path}" }}\n'
    if kind == "fifo":
        os.mkfifo(path)
    elif kind == "directory":
        path.mkdir()
    else:
        (short_path / "real").write_text(f"{os.getpid()}\n")
        path.symlink_to("/dev/zero" if kind == "device" else short_path / "real")
    with Daemon(short_path, f"[region.demo]\n{rules}") as daemon:
        with RawClient(str(daemon.socket())) as refused:
            refused.until_eof()
        until(lambda: "no rule of region" in daemon.log, "the refusal")
        if kind == "link":
            os.replace(short_path / "real", path)
            with RawClient(str(daemon.socket())) as welcome:
                welcome.greet(4)
