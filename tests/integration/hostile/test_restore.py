# SPDX-FileCopyrightText: 2026 The doorbelld authors
# SPDX-License-Identifier: GPL-2.0-or-later
"""Restores that fail for a passing reason, or by a bug of ours: what was kept is there at the next start."""

from __future__ import annotations

import contextlib
import json
import os
import shlex
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest
from support.daemon import BIN, Daemon
from support.dbusclient import Client, until
from support.fakesystemd import FakeSystemd
from support.needs import require
from support.rawclient import RawClient

from ..test_ctl import Ctl

VECTORS = 2
CONFIG = f"[region.demo]\nvectors = {VECTORS}\n[region.other]\nvectors = {VECTORS}\n"
BUG = """
import os
if os.path.exists({marker!r}):
    import doorbelld.ivshmem.revival as there
    plain = there._rejoin_one
    def planted(region, *rest):
        if region.name == "demo":
            {bug}
        return plain(region, *rest)
    there._rejoin_one = planted
"""


class Site:
    """A daemon under a service manager, whose next start can be spoiled."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.marker = directory / "spoiled"
        packages = directory / "packages"
        packages.mkdir()
        self.plant("region.an_attribute_of_the_next_version")
        self.daemon = Daemon(directory, CONFIG)
        self.script = directory / "start"
        self.write("true")
        self.systemd = FakeSystemd(
            directory,
            ["sh", self.script],
            environment={"PYTHONPATH": f"{packages}:{os.environ.get('PYTHONPATH', '')}"},
        )

    def plant(self, bug: str) -> None:
        """Have *bug* happen in the restore of region demo, if the start is spoiled."""
        (self.directory / "packages/sitecustomize.py").write_text(BUG.format(marker=str(self.marker), bug=bug))

    def write(self, before: str) -> None:
        """Have the daemon started after the shell command *before*."""
        words = [str(BIN / "doorbelld"), "--config", str(self.daemon.config), "--bus", "private"]
        self.script.write_text(f"{before}\nexec {shlex.join(words)}\n")

    def join(self, region: str = "demo", *, keep: bool = True) -> RawClient:
        peer = RawClient(str(self.daemon.socket(region)), keep=keep)
        return peer.greet(VECTORS)


@pytest.fixture
def site(short_path: Path) -> Iterator[Site]:
    require("dbus-daemon", "dbus-daemon")
    made = Site(short_path)
    with made.systemd:
        yield made


def restart(site: Site) -> str:
    """Kill the daemon and start it again; gives what it logged since."""
    seen = len(site.systemd.log)
    site.systemd.end(signal.SIGKILL)
    site.systemd.start()
    return site.systemd.log[seen:]


def agree(site: Site, first: RawClient, second: RawClient) -> None:
    """See that two peers of before a restart have each other, and that somebody new gets to know them."""
    with site.join() as third:
        assert third.id is not None
        for peer in (first, second):
            while third.id not in peer.doorbells or len(peer.doorbells[third.id]) < VECTORS:
                assert peer.message() is not None, "the connection was kept"


@pytest.mark.parametrize(
    ("bug", "said_of_it"),
    [
        ("region.an_attribute_of_the_next_version", "an_attribute_of_the_next_version"),
        ("raise KeyError('a key of the next version')", "a key of the next version"),
        ("raise ValueError('a member can not be who it is')", "a member can not be who it is"),
        ("raise AssertionError('never')", "never"),
    ],
    ids=["AttributeError", "KeyError", "ValueError", "AssertionError"],
)
def test_bug_in_the_code_that_restores_costs_no_region(site: Site, bug: str, said_of_it: str) -> None:
    site.plant(bug)
    site.systemd.start()
    with site.join() as first, site.join() as second, site.join("other") as stranger:
        before = [name for name, _ in site.systemd.entries]
        site.marker.touch()
        said = restart(site)
        assert "restore failed; what was kept stays kept" in said
        assert "Traceback" in said and said_of_it in said
        assert [name for name, _ in site.systemd.entries] == before
        until(lambda: "not restored: demo" in site.systemd.status)
        with site.join("other") as newcomer:
            assert newcomer.id is not None and stranger.message() is not None, "all else is served"
        for _ in range(2):  # as often as it is started
            assert "restore failed" in restart(site)
        site.marker.unlink()
        assert "restore failed" not in restart(site)
        agree(site, first, second)


def test_restore_with_too_few_descriptors_loses_nothing(site: Site) -> None:
    site.systemd.start()
    with contextlib.ExitStack() as stack:
        peers = [stack.enter_context(site.join(keep=False)) for _ in range(30)]
        site.write("ulimit -n 80")
        said = restart(site)
        assert "restore failed; what was kept stays kept" in said and "Too many open files" in said
        site.write("true")
        assert "restore failed" not in restart(site)
        agree(site, peers[0], peers[-1])
        with Client(site.daemon.bus) as client:
            assert client.get("/region/demo", "Region", "PeerCount") >= len(peers)


def test_region_that_was_not_restored_can_be_given_up(site: Site) -> None:
    site.systemd.start()
    with site.join() as first:
        site.marker.touch()
        restart(site)
        ctl = Ctl(site.daemon.bus)
        assert "not restored: region demo: " in ctl() and "what it had is kept" in ctl()
        done = ctl.run("doctor", "--json")
        (found,) = (each for each in json.loads(done.stdout)["findings"] if each["check"] == "restart")
        assert (done.returncode, found["level"]) == (1, "wrong")
        assert found["cure"].endswith("doorbellctl remove --kind region demo")
        with Client(site.daemon.bus) as client:
            ((kind, name, why),) = client.get("", "Manager", "Unrestored")
            assert (kind, name) == ("region", "demo") and "an_attribute_of_the_next_version" in why
            client.call(
                "", "Manager", "CreateDevice", "ssa{sv}", "demo", "rng", {"socket": ("s", str(site.directory / "rng"))}
            )
            assert '"demo" is a device and a region; say which' in ctl.refused("remove", "demo")
            assert ctl("remove", "--kind", "region", "demo") == "removed region demo\n"
            assert client.get("", "Manager", "Unrestored") == []
            until(lambda: not any(name.startswith("r1.") for name, _ in site.systemd.entries))
        first.until_eof()
        site.marker.unlink()
        restart(site)
        with site.join() as again:
            assert again.id == 0
