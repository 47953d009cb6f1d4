# SPDX-FileCopyrightText: 2026 The doorbelld authors
# SPDX-License-Identifier: GPL-2.0-or-later
"""polkit decides: a real daemon on a bus like the system's, callers who are strangers, and a polkit that we play."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from doorbelld.bus.client import CallFailed
from doorbelld.bus.client import Client as OurClient
from jeepney import HeaderFields, MessageFlag, MessageType
from support import fakepolkit
from support.busctl import NAME, ROOT
from support.daemon import Daemon
from support.dbusclient import DEADLINE, LIKE_THE_SYSTEM_BUS, BusDaemon, Client, ErrorReply, until
from support.fakepolkit import Asked, FakePolkit, being
from support.needs import require

pytestmark = pytest.mark.skipif(os.getuid() != 0, reason="only root can become somebody else")

DBUS_FILES = Path(__file__).parents[2] / "dbus"
LIBRARIES = ("dbus_next", "dbus_fast")
STRANGER, NEIGHBOUR = 65534, 1  # nobody and daemon: the bus knows only users that have a name
DEMO = "/region/demo"
HOST = 65535
NOTIFY, INSPECT, MANAGE = (f"{NAME}.{action}" for action in ("notify", "inspect", "manage"))
RING = (DEMO, "Region", "Notify", "qq", HOST, 0)
COUNT = (DEMO, "Region", "PeerCount")
POLICY = f"""{LIKE_THE_SYSTEM_BUS}<include>{DBUS_FILES / NAME}.conf</include>
  <policy user="root"><allow own="{fakepolkit.NAME}"/></policy>
  <policy context="default"><allow send_destination="{fakepolkit.NAME}"/>
  <allow receive_sender="{fakepolkit.NAME}"/></policy>"""


@pytest.fixture
def bus(short_path: Path) -> Iterator[BusDaemon]:
    short_path.chmod(0o755)
    with BusDaemon(short_path, POLICY, "system") as running:
        (short_path / "bus").chmod(0o777)
        yield running


@pytest.fixture(params=LIBRARIES)
def daemon(request: pytest.FixtureRequest, short_path: Path, bus: BusDaemon) -> Iterator[Daemon]:
    environment = {"DOORBELLD_DBUS_LIBRARY": request.param, "DBUS_SYSTEM_BUS_ADDRESS": bus.address}
    with Daemon(short_path, bus="system", environment=environment) as running:
        yield running
    assert "Traceback" not in running.log


@contextmanager
def caller(bus: BusDaemon, uid: int = STRANGER) -> Iterator[Client]:
    with being(uid):
        client = Client(bus.address)
    with client:
        yield client


def refused(client: Client, *call: Any) -> ErrorReply:
    with pytest.raises(ErrorReply) as caught:
        client.call(*call)
    return caught.value


def rings(bus: BusDaemon) -> list[int]:
    with Client(bus.address) as root:
        return list(root.get(DEMO, "Region", "HostRings"))


def test_who_is_allowed_may_and_polkit_is_told_what_it_is_about(daemon: Daemon, bus: BusDaemon) -> None:
    with FakePolkit(bus.address) as polkit, caller(bus) as stranger:
        stranger.call(*RING)
        assert stranger.get(*COUNT) == 0
        stranger.call("", "Manager", "CreateRegion", "sa{sv}", "new", {})
        (memory,) = stranger.call(DEMO, "Region", "OpenMemory")
        memory.close()
        (objects,) = stranger.raw(ROOT, "org.freedesktop.DBus.ObjectManager", "GetManagedObjects")
        assert set(objects) == {f"{ROOT}/region/demo", f"{ROOT}/region/new"}
        name = stranger.connection.unique_name
        assert polkit.wait_for(5) == [
            Asked(name, NOTIFY, {"region": "demo"}, False, ""),
            Asked(name, INSPECT, {"region": "demo"}, False, ""),
            Asked(name, MANAGE, {"region": "new"}, False, ""),
            Asked(name, f"{NAME}.open-memory", {"region": "demo"}, False, ""),
            Asked(name, INSPECT, {}, False, ""),
        ]
        until(lambda: rings(bus)[0] == 1, "the ring")


def test_of_a_device_polkit_is_told_that_it_is_one(daemon: Daemon, bus: BusDaemon) -> None:
    with FakePolkit(bus.address) as polkit, caller(bus) as stranger:
        stranger.call("", "Manager", "CreateDevice", "ssa{sv}", "a.b", "rng", {})
        assert refused(stranger, "/device/a_2eb/queue/0", "Queue", "Notify").kind == "NotRunning"
        assert stranger.get("/device/a_2eb", "Device", "State") == "listening"
        name = stranger.connection.unique_name
        assert polkit.wait_for(3) == [
            Asked(name, action, {"device": "a.b"}, False, "") for action in (MANAGE, NOTIFY, INSPECT)
        ]


def test_root_is_never_asked_about(daemon: Daemon, bus: BusDaemon) -> None:
    with FakePolkit(bus.address, fakepolkit.NO) as polkit, Client(bus.address) as root:
        root.call(*RING)
        assert root.get(*COUNT) == 0
        assert polkit.asked == []


def test_who_is_not_allowed_is_told_why(daemon: Daemon, bus: BusDaemon) -> None:
    with FakePolkit(bus.address, fakepolkit.NO) as polkit, caller(bus) as stranger:
        error = refused(stranger, *RING)
        assert (error.kind, error.name.startswith(NAME)) == ("AccessDenied", True)
        assert f"uid {STRANGER} may not notify: polkit does not grant {NOTIFY}" in error.text
        assert (
            f"ask an administrator, join group doorbelld, or see pkaction --verbose --action-id {NOTIFY}" in error.text
        )
        with pytest.raises(ErrorReply, match="may not inspect"):
            stranger.get(*COUNT)
        polkit.answer = fakepolkit.YES  # a no is not kept
        stranger.call(*RING)
    until(lambda: rings(bus)[0] == 1, "one ring")


def test_a_person_is_bothered_only_if_the_call_allows_it(daemon: Daemon, bus: BusDaemon) -> None:
    with FakePolkit(bus.address, fakepolkit.CHALLENGE) as polkit, caller(bus) as stranger:
        error = refused(stranger, *RING)
        assert error.name == "org.freedesktop.DBus.Error.InteractiveAuthorizationRequired"
        assert [asked.interactive for asked in polkit.asked] == [False]
        polkit.asked.clear()

        def interactively() -> Any:
            message = stranger.message(ROOT + DEMO, f"{NAME}.Region", "Notify", "qq", HOST, 0)
            message.header.flags |= MessageFlag.allow_interactive_authorization
            return stranger.receive(stranger.send(message))

        for _ in range(2):  # it is for polkit to remember for how long
            interactively()
        assert [asked.interactive for asked in polkit.asked] == [False, True] * 2
        first, second = (asked.cancellation for asked in polkit.asked if asked.interactive)
        assert first and second and first != second
        for answer, words in (
            (fakepolkit.DISMISSED, "it was dismissed"),
            (fakepolkit.CHALLENGE, "start an authentication agent"),
            (fakepolkit.NO, "polkit does not grant"),
        ):
            polkit.challenged = answer
            with pytest.raises(ErrorReply, match=words) as caught:
                interactively()
            assert caught.value.kind == "AccessDenied"
    until(lambda: rings(bus)[0] == 2, "two rings")


def test_busctl_knows_what_the_error_means(daemon: Daemon, bus: BusDaemon) -> None:
    require("setpriv", "util-linux")
    busctl = require("busctl", "systemd")
    prefix = ["setpriv", f"--reuid={STRANGER}", f"--regid={STRANGER}", "--clear-groups", busctl]
    call = [f"--address={bus.address}", "call", NAME, ROOT + DEMO, f"{NAME}.Region", "Notify", "qq", str(HOST), "0"]
    with FakePolkit(bus.address, fakepolkit.CHALLENGE):
        done = subprocess.run(
            [*prefix, "--allow-interactive-authorization=no", *call],
            capture_output=True,
            text=True,
            timeout=DEADLINE,
            check=False,
        )
        assert done.returncode != 0
        assert f"unless somebody authenticates for {NOTIFY}" in done.stderr
        allowed = [*prefix, "--allow-interactive-authorization=yes", *call]
        subprocess.run(allowed, timeout=DEADLINE, check=True)


async def test_our_client_has_a_person_authenticate_if_it_is_told_how(daemon: Daemon, bus: BusDaemon) -> None:
    with FakePolkit(bus.address, fakepolkit.CHALLENGE) as polkit:
        with being(STRANGER):
            client = await OurClient.connect(bus.address)
        prepared: list[int] = []

        async def prepare() -> None:
            prepared.append(len(polkit.asked))

        async with client:
            call = ROOT + DEMO, f"{NAME}.Region", "Notify", "qq", [HOST, 0]
            with pytest.raises(CallFailed, match="unless somebody authenticates"):
                await client.call(*call)
            client.authenticate = prepare
            assert await client.call(*call) == []
            assert prepared == [2]
            assert [asked.interactive for asked in polkit.asked] == [False, False, False, True]
            polkit.answer = fakepolkit.NO
            with pytest.raises(CallFailed, match="polkit does not grant"):
                await client.call(*call)
            assert len(prepared) == 1


def test_a_yes_holds_for_a_while_unless_something_changes(daemon: Daemon, bus: BusDaemon) -> None:
    with FakePolkit(bus.address) as polkit, caller(bus) as stranger, caller(bus, NEIGHBOUR) as neighbour:
        for _ in range(20):
            assert stranger.get(*COUNT) == 0
        assert len(polkit.asked) < 20, "most are not asked about"
        neighbour.get(*COUNT)
        assert polkit.asked[-1].sender == neighbour.connection.unique_name
        with Client(bus.address) as root:
            root.subscribe(f"type='signal',interface='{fakepolkit.INTERFACE}'")
            polkit.answer = fakepolkit.NO
            polkit.changed()
            root.until_signal("Changed")
        # the bus gave the signal to the daemon before it gave it our next call
        with pytest.raises(ErrorReply, match="may not inspect"):
            stranger.get(*COUNT)


def test_a_polkit_that_hangs_holds_up_only_whom_it_is_asked_about_and_in_order(daemon: Daemon, bus: BusDaemon) -> None:
    with FakePolkit(bus.address, fakepolkit.HANG) as polkit, caller(bus) as stranger, Client(bus.address) as root:
        calls = [
            stranger.message(ROOT, f"{NAME}.Manager", "CreateRegion", "sa{sv}", "new", {}),
            stranger.message(f"{ROOT}/region/demo", f"{NAME}.Region", "Notify", "qq", HOST, 1),
            stranger.message(ROOT, f"{NAME}.Manager", "RemoveRegion", "s", "demo"),
            stranger.message(f"{ROOT}/region/demo", f"{NAME}.Region", "Notify", "qq", HOST, 2),
        ]
        serials = [stranger.send(call) for call in calls]
        polkit.wait_for(1)
        root.call(*RING)
        assert root.get(*COUNT) == 0
        assert len(polkit.asked) == 1, "one question at a time"
        assert [entry[0] for entry in root.call("", "Manager", "ListRegions")[0]] == ["demo"]
        polkit.release()
        with pytest.raises(ErrorReply, match="went away"):  # it was removed by the call before
            stranger.receive(serials[-1])
        assert [asked.action for asked in polkit.asked] == [MANAGE, NOTIFY, MANAGE], "the second ring was granted"
        until(lambda: [e[0] for e in root.call("", "Manager", "ListRegions")[0]] == ["new"], "the regions")


@pytest.mark.parametrize("many", [60])
def test_each_caller_gets_its_answers_in_the_order_of_its_calls(daemon: Daemon, bus: BusDaemon, many: int) -> None:
    with FakePolkit(bus.address) as polkit, caller(bus) as one, caller(bus, NEIGHBOUR) as other:
        answers = [fakepolkit.YES, fakepolkit.NO, fakepolkit.CHALLENGE, fakepolkit.YES, fakepolkit.ERROR]
        sent: dict[Client, list[int]] = {one: [], other: []}
        for number in range(many):
            polkit.answer = answers[number % len(answers)]
            for client in (one, other):
                kind = (number + (client is other)) % 3
                sent[client].append(
                    client.send(
                        client.message(ROOT, f"{NAME}.Manager", "ListRegions")
                        if kind == 0
                        else client.message(f"{ROOT}{DEMO}", f"{NAME}.Region", "Notify", "qq", HOST, 0)
                        if kind == 1
                        else client.message(
                            f"{ROOT}{DEMO}", "org.freedesktop.DBus.Properties", "Get", "ss", f"{NAME}.Region", "Size"
                        )
                    )
                )
        for client in (one, other):
            got = [client.next().header.fields[HeaderFields.reply_serial] for _ in range(many)]
            assert got == sent[client]


def test_without_polkit_looking_is_everybodys_and_the_rest_is_roots(daemon: Daemon, bus: BusDaemon) -> None:
    absent = "polkit is not there; only root and the daemon's own user may change anything"
    with caller(bus) as stranger, Client(bus.address) as root:
        for _ in range(3):
            assert stranger.get(*COUNT) == 0
            error = refused(stranger, *RING)
            assert f"uid {STRANGER} may look, but not notify while polkit is not there" in error.text
            assert "call as root or as the daemon's user (uid 0)" in error.text
        root.call(*RING)
        assert daemon.log.count(absent) == 1
        for _ in range(2):
            with FakePolkit(bus.address) as polkit:
                stranger.call(*RING)
                assert polkit.asked
            assert "polkit is there again" in daemon.log
            refused(stranger, *RING)
        assert daemon.log.count(absent) == 2


def test_a_polkit_that_vanishes_before_it_answers(daemon: Daemon, bus: BusDaemon) -> None:
    with FakePolkit(bus.address, fakepolkit.VANISH), caller(bus) as stranger:
        assert "while polkit is not there" in refused(stranger, *RING).text
        assert stranger.get(*COUNT) == 0


def test_a_polkit_that_does_not_know_our_actions(daemon: Daemon, bus: BusDaemon) -> None:
    with FakePolkit(bus.address, fakepolkit.ERROR) as polkit, caller(bus) as stranger:
        assert "may look, but not notify" in refused(stranger, *RING).text
        assert stranger.get(*COUNT) == 0
        assert "polkit can't tell" in daemon.log
        assert "Action is not registered" in daemon.log
        polkit.answer = fakepolkit.YES
        stranger.call(*RING)


def test_the_bus_is_killed_while_polkit_is_asked(daemon: Daemon, bus: BusDaemon, short_path: Path) -> None:
    with FakePolkit(bus.address, fakepolkit.HANG) as polkit, caller(bus) as stranger:
        for _ in range(3):
            stranger.send(stranger.message(ROOT, f"{NAME}.Manager", "RemoveRegion", "s", "demo"))
        polkit.wait_for(1)
        bus.kill()
    bus.start()
    (short_path / "bus").chmod(0o777)
    with Client(bus.address) as root:
        root.wait_for_daemon()
        assert [entry[0] for entry in root.call("", "Manager", "ListRegions")[0]] == ["demo"]
    with FakePolkit(bus.address) as polkit, caller(bus) as stranger:
        stranger.call(*RING)
        assert len(polkit.asked) == 1


def test_on_another_bus_polkit_is_not_asked(short_path: Path, bus: BusDaemon) -> None:
    with (
        Daemon(short_path, bus=bus.address, environment={"DBUS_SYSTEM_BUS_ADDRESS": "unix:path=/nowhere"}),
        FakePolkit(bus.address) as polkit,
        caller(bus) as stranger,
    ):
        assert stranger.get(*COUNT) == 0
        assert f"uid {STRANGER} may look, but not notify; call as root" in refused(stranger, *RING).text
        assert polkit.asked == []


def test_what_is_quiet_is_asked_about_too(daemon: Daemon, bus: BusDaemon) -> None:
    """A call that wants no reply gets none, whatever polkit says."""
    with FakePolkit(bus.address, fakepolkit.NO) as polkit, caller(bus) as stranger:
        for _ in range(3):
            stranger.send(stranger.message(ROOT, f"{NAME}.Manager", "RemoveRegion", "s", "demo"), quiet=True)
        serial = stranger.send(stranger.message(ROOT, f"{NAME}.Manager", "ListRegions"))
        message = stranger.next()
        assert message.header.fields[HeaderFields.reply_serial] == serial
        assert message.header.message_type is MessageType.error
        assert [asked.action for asked in polkit.asked] == [MANAGE] * 3 + [INSPECT]
    assert daemon.socket().exists()
