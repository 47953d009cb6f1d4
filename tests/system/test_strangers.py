# SPDX-FileCopyrightText: 2026 The doorbelld authors
# SPDX-License-Identifier: GPL-2.0-or-later
"""The worst that strangers can do, under a real systemd: user nobody on the system bus, and the front-end of a guest.

Nobody else notices: the process stays the same and feeds its watchdog, who was there stays there and is rung, who comes
is greeted, D-Bus calls are answered and a device serves. How long that takes is held against how long it took before.
"""

from __future__ import annotations

import contextlib
import os
import select
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import pytest
from doorbelld.vhost.frontend import Frontend
from support.busctl import ROOT
from support.dbusclient import Client, until
from support.fuse import HangingFiles
from support.heartbeat import BEATEN, Attack, Footprint, Heartbeat, compare
from support.machine import strangers
from support.machine.service import UNIT, Service
from support.rawclient import RawClient

NOBODY = 65534
VECTORS = 4
CALM = 2.0
"""Seconds for which it is measured how things are without an attack."""
LEAST = 0.5
"""Seconds that anything may take, whatever it took before: with a machine, its bus and its journal on two CPUs."""
FLOODED = 2.0
"""Seconds that the bus may take longer to pass on an answer, while it is flooded."""
WATCHDOG = 5
"""Seconds that the event loop may stand still, in place of the unit's half minute."""
GIVING_UP = 45
"""Seconds after which systemd has given up a process that it can't kill: TimeoutStopSec= several times, and some."""
THREADS = 8
"""How many threads may be left that wait for work."""
CONFIG = f"""
[region.demo]
vectors = {VECTORS}
[device.disk]
type = "rng"
[device.other]
type = "rng"
group = "kvm"
{BEATEN}"""
MANAGED = (ROOT, "org.freedesktop.DBus.ObjectManager", "GetManagedObjects")


class Siege:
    """The service with all who are there before the attack; a `support.heartbeat.Beaten`."""

    def __init__(self, service: Service, stack: ExitStack) -> None:
        self.service, self.machine = service, service.machine
        self.mark = self.machine.journal_end()
        service.start()
        self.bus = f"unix:path={self.machine.path('/run/dbus/system_bus_socket')}"
        self.pid = service.pid
        self.peer = stack.enter_context(RawClient(str(self.socket("demo")), keep=True)).greet(VECTORS)
        self.frontend = stack.enter_context(Frontend.connect(str(self.socket("disk"))))
        (self.queue,) = self.frontend.start(1)
        self.client = stack.enter_context(Client(self.bus))
        self.serves()

    @property
    def log(self) -> str:
        return self.service.log()

    def socket(self, region: str) -> Path:
        return self.service.socket(region)

    def footprint(self) -> Footprint:
        return Footprint.of(self.pid, self.machine.path("/"))

    def serves(self, with_bus: bool = True) -> None:
        """See that who is there is still there, and is served."""
        assert len(self.frontend.request(self.queue, room=64)) == 64
        self.peer.take()
        assert not self.peer.eof
        if with_bus:
            self.rings()

    def rings(self) -> None:
        """Have the host ring the peer, through D-Bus."""
        assert self.peer.id is not None
        self.client.call("/region/demo", "Region", "Notify", "qq", self.peer.id, 2)
        bell = self.peer.fds[self.peer.id][2]
        assert select.select([bell], [], [], 20)[0], "the peer is not rung"
        assert os.eventfd_read(bell) == 1

    @contextmanager
    def attacked(self, bus_slack: float = 0.0, with_bus: bool = True) -> Iterator[None]:
        """Measure how things are, have them attacked in the body, and hold one against the other."""
        calm = Heartbeat(self)
        with contextlib.closing(_Killing(calm)):
            time.sleep(CALM)
            before = calm.stop()
        footprint = self.footprint()
        heart = Heartbeat(self)
        with contextlib.closing(_Killing(heart)):
            yield
            self.serves()
            beats = heart.stop()
        if not with_bus:
            for what in ("the bus answers", "D-Bus answers"):
                beats[what] = before[what]
        print({what: (max(took), max(before[what])) for what, took in beats.items()})
        compare(beats, before, self, bus_slack, LEAST)
        self.lives()
        until(lambda: not self.footprint().exceeds(footprint, THREADS), f"{footprint}, not {self.footprint()}")

    def lives(self) -> None:
        """See that it is the same process, and without a bug that we know of."""
        assert (self.service.pid, self.service.show("NRestarts")) == (self.pid, "0"), self.log
        assert "Traceback" not in self.log

    def attack(self, name: str, *arguments: object, user: tuple[int, int] = (NOBODY, NOBODY)) -> Attack:
        """Make an attack as user nobody, or another *user* (and group)."""
        return Attack(strangers.within, self.machine.pid, *user, name, *arguments)

    def stuck(self) -> int:
        """Say how many descriptors can't be closed."""
        return int(self.client.get("", "Manager", "StuckDescriptors"))


class _Killing:
    def __init__(self, heart: Heartbeat) -> None:
        self.close = heart.kill


@pytest.fixture
def siege(service: Service) -> Iterator[Siege]:
    drop_in = service.machine.path(f"/run/systemd/system/{UNIT}.d/strict.conf")
    drop_in.parent.mkdir(parents=True, exist_ok=True)
    drop_in.write_text(f"[Service]\nWatchdogSec={WATCHDOG}s\n")
    service.machine.systemctl("daemon-reload")
    service.configure(CONFIG)
    try:
        with ExitStack() as stack:
            yield Siege(service, stack)
    finally:
        drop_in.unlink()
        service.machine.systemctl("daemon-reload")


@contextmanager
def hanging_files(siege: Siege, *operations: str) -> Iterator[HangingFiles]:
    """Mount a file system in the machine whose server never answers *operations*."""
    directory = Path("/srv/hanging")
    siege.machine.run("mkdir", "-p", directory)
    with HangingFiles(directory, *operations, init=siege.machine.pid) as files:
        try:
            yield files
        finally:
            files.end_server()
            siege.machine.run("umount", "--lazy", directory)


@contextmanager
def until_the_end_of(files: HangingFiles, attack: Attack) -> Iterator[None]:
    """End the server of *files* before the *attack*, which can't end before that."""
    with attack:
        try:
            yield
        finally:
            files.end_server()


@pytest.mark.parametrize("what", ["lingering", "nested"])
def test_socket_that_lingers_in_a_call_of_nobodys_delays_nobody(siege: Siege, what: str) -> None:
    with siege.attacked(), siege.attack("calls", what, 6):
        for _ in range(20):
            siege.serves()


def test_file_whose_close_hangs_in_a_call_of_nobodys_delays_whom_the_bus_does_not(siege: Siege) -> None:
    """The bus closes the file as well, and hangs: it is lost for everybody. Whoever needs no bus does not notice."""
    with (
        siege.attacked(with_bus=False),
        hanging_files(siege, "FLUSH") as files,
        until_the_end_of(files, siege.attack("calls", files.path(), 1)),
    ):
        siege.machine.await_journal("descriptor can't be closed", f"_SYSTEMD_UNIT={UNIT}", after=siege.mark)
        mark = time.monotonic()
        while time.monotonic() < mark + 2 * WATCHDOG:
            siege.serves(with_bus=False)
            time.sleep(0.01)


@pytest.mark.parametrize("member", ["Explode", "Attach"])
def test_call_of_nobodys_with_31_mib_delays_nobody(siege: Siege, member: str) -> None:
    """Whether or not there is such a method, they may not even look."""
    call = (strangers.BUS, f"{ROOT}/region/beaten", strangers.DBUS.REGION, member, "as", 3)
    with siege.attacked(), siege.attack("large", *call) as attack:
        assert attack.line() == " ".join(["InteractiveAuthorizationRequired"] * 3)


def test_flood_of_calls_of_nobodys_delays_nobody(siege: Siege) -> None:
    callers, times = 5, 100
    with (
        siege.attacked(FLOODED),
        siege.attack("flood", strangers.BUS, MANAGED, "", "", callers, times, True) as attack,
    ):
        assert int(attack.line()) == callers * times


def test_killed_daemon_with_a_close_that_hangs_has_a_successor(siege: Siege) -> None:
    """systemd is not told of the end of a process that has a thread left; what it goes by is the watchdog."""
    service, machine = siege.service, siege.machine
    uid = int(machine.run("id", "--user", "guest").stdout)
    gid = int(machine.run("sh", "-c", "getent group kvm | cut -d: -f3").stdout)
    with (
        hanging_files(siege, "FLUSH") as files,
        until_the_end_of(
            files,
            siege.attack("sockets", ["/run/doorbelld/other/socket"], ["memory"], files.path(), user=(uid, gid)),
        ),
    ):
        until(lambda: siege.stuck() == 1, "a stuck thread")
        siege.serves()
        begun = time.monotonic()
        machine.systemctl("kill", "--signal=KILL", UNIT)
        siege.pid = service.until_back(siege.pid)
        assert time.monotonic() - begun < WATCHDOG + GIVING_UP
        siege.rings()
        for _ in range(3):
            with RawClient(str(siege.socket("demo"))) as newcomer:
                newcomer.greet(VECTORS)
        with Frontend.connect(str(siege.socket("disk"))) as frontend:
            (queue,) = frontend.start(1)
            assert len(frontend.request(queue, room=64)) == 64
