# SPDX-FileCopyrightText: 2026 The doorbelld authors
# SPDX-License-Identifier: GPL-2.0-or-later
"""The router: whatever a caller sends is answered exactly once, and nothing of ours gets out that should not."""

from __future__ import annotations

import asyncio
import itertools
import os
import tempfile
import xml.etree.ElementTree as ET
from collections.abc import AsyncIterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import structlog
from doorbelld.bus import router
from doorbelld.bus.announcer import Announcer
from doorbelld.bus.authority import Action, Authority
from doorbelld.bus.device_objects import DeviceView
from doorbelld.bus.interfaces import load
from doorbelld.bus.library import Message, MessageFlag, MessageType, Variant, parse
from doorbelld.bus.names import CLIENT, DEVICE, FLAT, MANAGER, PEER, QUEUE, REGION, ROOT, VECTOR
from doorbelld.bus.polkit import Answer, Polkit, Question
from doorbelld.bus.router import Router
from doorbelld.bus.tree import Tree
from doorbelld.devices import find
from doorbelld.devices.image import ImageUnavailable
from doorbelld.fds.owned import Fd
from doorbelld.host.host import Host
from doorbelld.ivshmem.clientspec import ClientSpec, FlatSpec
from doorbelld.ivshmem.spec import RegionSpec
from doorbelld.vhost.device import Device
from doorbelld.vhost.spec import DeviceSpec
from hypothesis import given, settings
from hypothesis import strategies as st
from support.fdcount import no_leaks

ME, STRANGER = ":1.7", ":1.8"
PROPERTIES = "org.freedesktop.DBus.Properties"
DEMO = f"{ROOT}/region/demo"
HOST_PEER = f"{DEMO}/peer/65535"
LOOP = f"{ROOT}/device/loop"
QUEUES = [f"{LOOP}/queue/{index}" for index in range(2)]


def plain(value: Any) -> Any:
    """Structs as lists: one library reads them as lists, the other as tuples."""
    return [plain(item) for item in value] if isinstance(value, list | tuple) else value


class FakeWriter:
    """Keeps what would be sent."""

    def __init__(self) -> None:
        self.sent: list[Any] = []
        self.fds: list[list[Fd]] = []

    def write(self, data: bytes, fds: list[Fd], future: object = None) -> None:
        self.sent.append(parse(data))
        self.fds.append(fds)


class Bench:
    """A router over a real host, with a writer that we see into."""

    def __init__(self, directory: str) -> None:
        self.loop = asyncio.get_running_loop()
        self.loop.set_default_executor(executor := ThreadPoolExecutor(1))
        self.executor = executor
        self.host = Host(self.loop, directory, 4096)
        self.reloads = 0
        self.asked: list[str] = []
        self.may_answer = asyncio.Event()
        self.may_answer.set()
        self.authority = Authority(self._credentials)
        self.router = Router(Tree(self.host, self._reload), self.authority)
        self.writer = FakeWriter()
        self.router.writer = self.writer  # type: ignore[assignment]
        self.router.next_serial = itertools.count(1).__next__
        self._serials = itertools.count(1)

    async def _credentials(self, sender: str) -> dict[str, Any]:
        self.asked.append(sender)
        await self.may_answer.wait()
        uid = os.geteuid() + (4711 if sender == STRANGER else 0)
        return {"ProcessID": os.getpid(), "UnixUserID": uid, "UnixGroupIDs": [0]}

    async def _reload(self) -> None:
        self.reloads += 1

    def message(
        self,
        path: str,
        interface: str | None,
        member: str,
        signature: str = "",
        *body: Any,
        sender: str = ME,
        flags: Any = MessageFlag.NONE,
    ) -> Any:
        return Message(
            destination="org.doorbelld.Doorbell1",
            path=path,
            interface=interface,
            member=member,
            signature=signature,
            body=list(body),
            sender=sender,
            flags=flags,
            serial=next(self._serials),
        )

    async def settle(self) -> None:
        async with asyncio.timeout(20):
            while tasks := [*self.router._tasks, *self.authority._runners]:
                await asyncio.wait(tasks)

    async def call(self, *arguments: Any, **more: Any) -> Any:
        """Send a call and give the one reply to it."""
        message = self.message(*arguments, **more)
        before = len(self.writer.sent)
        assert self.router.handle(message) is True
        await self.settle()
        (reply,) = self.writer.sent[before:]
        assert reply.reply_serial == message.serial
        assert reply.destination == message.sender
        return reply

    async def error(self, *arguments: Any, **more: Any) -> tuple[str, str]:
        reply = await self.call(*arguments, **more)
        assert reply.message_type is MessageType.ERROR
        assert reply.signature == "s"
        return reply.error_name, reply.body[0]

    async def rings(self) -> list[int]:
        """Tell what was rung on the host peer's doorbells, once the loop has looked at them."""
        for _ in range(3):
            await asyncio.sleep(0)
        host = self.host.region("demo").host
        assert host is not None
        return list(host.totals)

    async def rung(self, *totals: int) -> None:
        """Wait until that was rung."""
        async with asyncio.timeout(20):
            while await self.rings() != list(totals):
                pass

    async def make_device(self, name: str = "loop") -> None:
        await self.host.create_device(DeviceSpec.parse(name, {"type": "loopback", "queues": 2}, name, find))

    async def close(self) -> None:
        await self.host.close()
        self.executor.shutdown()


@pytest.fixture
async def bench(short_path: Path) -> AsyncIterator[Bench]:
    with no_leaks():
        made = Bench(str(short_path))
        await made.host.create_region(RegionSpec("demo"))
        await made.make_device()
        yield made
        await made.close()


async def test_a_method_with_a_result_without_one_and_an_awaited_one(bench: Bench) -> None:
    reply = await bench.call(ROOT, MANAGER, "ListRegions")
    assert (reply.signature, plain(reply.body)) == ("a(so)", [[["demo", DEMO]]])
    reply = await bench.call(DEMO, REGION, "Notify", "qq", 65535, 0)
    assert (reply.message_type, reply.signature, reply.body) == (MessageType.METHOD_RETURN, "", [])
    reply = await bench.call(ROOT, MANAGER, "Reload")
    assert (reply.message_type, bench.reloads) == (MessageType.METHOD_RETURN, 1)


async def test_the_interface_may_be_left_out(bench: Bench) -> None:
    assert plain((await bench.call(ROOT, None, "ListRegions")).body) == [[["demo", DEMO]]]
    assert plain((await bench.call(ROOT, None, "ListDevices")).body) == [[["loop", "loopback", LOOP]]]
    assert (await bench.call(DEMO, None, "GetAll", "s", "")).signature == "a{sv}"
    assert (await bench.call(f"{HOST_PEER}/vector/0", None, "Notify")).signature == ""


async def test_the_bus_is_asked_who_calls_once(bench: Bench) -> None:
    for _ in range(3):
        await bench.call(ROOT, MANAGER, "ListRegions")
    assert bench.asked == [ME]


FREEDESKTOP = "org.freedesktop.DBus.Error."
OURS = "org.doorbelld.Doorbell1.Error."

WRONG: list[tuple[tuple[Any, ...], str, str]] = [
    ((ROOT, MANAGER, "Explode"), FREEDESKTOP + "UnknownMethod", "has no method Explode"),
    ((ROOT, None, "Explode"), FREEDESKTOP + "UnknownMethod", "Explode"),
    ((ROOT, PROPERTIES, "Explode"), FREEDESKTOP + "UnknownMethod", "Explode"),
    ((ROOT, REGION, "Broadcast"), FREEDESKTOP + "UnknownInterface", f"{ROOT} has no interface {REGION}"),
    ((DEMO, "a.b", "C"), FREEDESKTOP + "UnknownInterface", "a.b"),
    ((f"{DEMO}/peer", MANAGER, "C"), FREEDESKTOP + "UnknownObject", "no object"),
    ((f"{ROOT}/region/none", REGION, "Broadcast"), FREEDESKTOP + "UnknownObject", "no object"),
    (("/", "a.b", "C"), FREEDESKTOP + "UnknownInterface", "a.b"),
    (("/elsewhere", REGION, "Broadcast"), FREEDESKTOP + "UnknownObject", "no object at /elsewhere"),
    (("/elsewhere", PROPERTIES, "GetAll", "s", ""), FREEDESKTOP + "UnknownObject", "no object"),
    (("/org", PROPERTIES, "GetAll", "s", ""), FREEDESKTOP + "UnknownInterface", "no properties"),
    ((f"{DEMO}/peer/65535/vector/4", VECTOR, "Notify"), FREEDESKTOP + "UnknownObject", "no object"),
    ((f"{DEMO}/peer/065535", PEER, "NotifyAll"), FREEDESKTOP + "UnknownObject", "no object"),
    ((f"{DEMO}/peer/65535/vector/00", VECTOR, "Notify"), FREEDESKTOP + "UnknownObject", "no object"),
    ((DEMO, REGION, "Notify", "q", 1), FREEDESKTOP + "InvalidArgs", 'takes arguments of signature "qq", not "q"'),
    ((DEMO, REGION, "Notify"), FREEDESKTOP + "InvalidArgs", 'not ""'),
    ((DEMO, REGION, "Broadcast", "s", "x"), FREEDESKTOP + "InvalidArgs", 'not "s"'),
    ((DEMO, PROPERTIES, "Get", "s", "x"), FREEDESKTOP + "InvalidArgs", 'takes "ss", not "s"'),
    ((DEMO, PROPERTIES, "Get", "ss", REGION, "Colour"), FREEDESKTOP + "UnknownProperty", "no property Colour"),
    ((DEMO, PROPERTIES, "Get", "ss", "", "Colour"), FREEDESKTOP + "UnknownProperty", "no property Colour"),
    ((DEMO, PROPERTIES, "Get", "ss", PROPERTIES, "Size"), FREEDESKTOP + "UnknownProperty", "no property Size"),
    ((DEMO, PROPERTIES, "Get", "ss", "a.b", "Size"), FREEDESKTOP + "UnknownInterface", "no interface a.b"),
    ((DEMO, PROPERTIES, "GetAll", "s", "a.b"), FREEDESKTOP + "UnknownInterface", "no interface a.b"),
    (
        (DEMO, PROPERTIES, "Set", "ssv", REGION, "Size", Variant("t", 1)),
        FREEDESKTOP + "PropertyReadOnly",
        "Size can't be set",
    ),
    (
        (DEMO, PROPERTIES, "Set", "ssv", REGION, "Colour", Variant("t", 1)),
        FREEDESKTOP + "UnknownProperty",
        "no property Colour",
    ),
    (
        (DEMO, "org.freedesktop.DBus.ObjectManager", "GetManagedObjects"),
        FREEDESKTOP + "UnknownInterface",
        "no object manager",
    ),
    ((DEMO, REGION, "Notify", "qq", 5, 0), OURS + "NoSuchPeer", 'region "demo" has no peer 5; nobody is connected'),
    ((DEMO, REGION, "Notify", "qq", 65535, 4), OURS + "NoSuchVector", "has vectors 0 to 3, not 4"),
    ((DEMO, REGION, "Disconnect", "q", 65535), OURS + "NoSuchPeer", "no connected peer 65535"),
    ((ROOT, MANAGER, "ListPeers", "s", "x"), OURS + "NoSuchRegion", 'no region "x"; there is: demo'),
    ((ROOT, MANAGER, "CreateRegion", "sa{sv}", "demo", {}), OURS + "RegionExists", "is there already"),
    ((ROOT, MANAGER, "ListQueues", "s", "d"), OURS + "NoSuchDevice", 'no device "d"; there is: loop'),
    ((ROOT, MANAGER, "RemoveDevice", "s", "d"), OURS + "NoSuchDevice", 'no device "d"'),
    ((ROOT, MANAGER, "CreateDevice", "ssa{sv}", "d", "x", {}), OURS + "NoSuchDeviceType", "write one of blk, "),
    ((ROOT, MANAGER, "CreateDevice", "ssa{sv}", "d", "", {}), OURS + "NoSuchDeviceType", 'device "d": '),
    ((ROOT, MANAGER, "CreateDevice", "ssa{sv}", "loop", "rng", {}), OURS + "DeviceExists", "is there already"),
    ((ROOT, MANAGER, "CreateDevice", "ssa{sv}", "demo", "rng", {}), OURS + "SocketInUse", "demo/socket"),
    ((ROOT, MANAGER, "CreateDevice", "ssa{sv}", "a b", "rng", {}), OURS + "InvalidOptions", "can't be a device's name"),
    ((ROOT, MANAGER, "CreateDevice", "ssa{sv}", "d", "blk", {}), OURS + "InvalidOptions", "device.d.path: missing"),
    ((LOOP, DEVICE, "Disconnect"), OURS + "NotConnected", 'device "loop" has no front-end'),
    ((LOOP, DEVICE, "Reset"), OURS + "NotConnected", "nothing to reset"),
    ((LOOP, DEVICE, "Refresh", "b", True), FREEDESKTOP + "InvalidArgs", 'not "b"'),
    ((QUEUES[0], QUEUE, "Notify"), OURS + "NotRunning", 'queue 0 of device "loop" does not run'),
    ((QUEUES[1], QUEUE, "Kick"), OURS + "NotRunning", "is not started and enabled by a driver"),
    ((f"{LOOP}/queue/2", QUEUE, "Kick"), FREEDESKTOP + "UnknownObject", "no object"),
    ((f"{LOOP}/queue/00", QUEUE, "Kick"), FREEDESKTOP + "UnknownObject", "no object"),
    ((f"{LOOP}/queue", QUEUE, "Kick"), FREEDESKTOP + "UnknownInterface", "no interface"),
    ((f"{ROOT}/device/none", DEVICE, "Reset"), FREEDESKTOP + "UnknownObject", "no object"),
    ((f"{ROOT}/device/_6c_6f_6f_70", DEVICE, "Reset"), FREEDESKTOP + "UnknownObject", "no object"),
    ((DEMO, REGION, "ReadMemory", "tu", 4 << 20, 1), OURS + "InvalidOptions", "are not within"),
    ((DEMO, REGION, "ReadMemory", "tu", 0, (1 << 20) + 1), OURS + "InvalidOptions", "more than 1048576"),
    ((DEMO, REGION, "ReadMemory", "tu", (1 << 64) - 1, 1), OURS + "InvalidOptions", "are not within"),
    ((DEMO, REGION, "WriteMemory", "tay", (4 << 20) - 1, b"ab"), OURS + "InvalidOptions", "are not within"),
    ((DEMO, REGION, "Attach", "a{sv}", {"x": Variant("b", True)}), OURS + "InvalidOptions", "x: unknown option"),
]


@pytest.mark.parametrize(("call", "name", "text"), WRONG, ids=[f"{n}-{c[0][2]}" for n, c in enumerate(WRONG)])
async def test_what_is_wrong_is_said(bench: Bench, call: tuple[Any, ...], name: str, text: str) -> None:
    for _ in range(2):  # the first from somebody new, the second from somebody known
        found, said = await bench.error(*call)
        assert found == name
        assert text in said


async def test_all_problems_of_options_are_in_one_error(bench: Bench) -> None:
    options = {"size": Variant("s", "3Q"), "vectors": Variant("u", 0), "colour": Variant("s", "red")}
    name, said = await bench.error(ROOT, MANAGER, "CreateRegion", "sa{sv}", "new", options)
    assert name == OURS + "InvalidOptions"
    assert [line.split(":")[0] for line in said.splitlines()] == [
        "region.new.size",
        "region.new.vectors",
        "region.new.colour",
    ]
    assert list(bench.host.regions) == ["demo"]


@pytest.mark.parametrize(
    ("kind", "options", "wrong"),
    [
        ("rng", {"type": Variant("s", "rng")}, ["type: is no option here"]),
        (
            "rng",
            {"rate": Variant("s", "fast"), "mode": Variant("u", 7), "queues": Variant("u", 2), "type": Variant("u", 1)},
            ["type: is no option here", "rate: ", "mode: ", "queues: 2 is more than"],
        ),
        ("loopback", {"rate": Variant("s", "1M"), "socket": Variant("s", "here")}, ["rate: unknown key", "socket: "]),
    ],
)
async def test_all_problems_of_a_device_are_in_one_error(
    bench: Bench, kind: str, options: dict[str, Any], wrong: list[str]
) -> None:
    name, said = await bench.error(ROOT, MANAGER, "CreateDevice", "ssa{sv}", "new", kind, options)
    assert name == OURS + "InvalidOptions"
    lines = said.splitlines()
    assert len(lines) == len(wrong)
    assert all(line.startswith(f"device.new.{start}") for line, start in zip(lines, wrong, strict=True))
    assert list(bench.host.devices) == ["loop"]


async def test_a_device_comes_and_goes(bench: Bench) -> None:
    options = {"rate": Variant("s", "1K"), "poll-us": Variant("u", 5), "mode": Variant("s", "0600")}
    reply = await bench.call(ROOT, MANAGER, "CreateDevice", "ssa{sv}", "a.b", "rng", options)
    assert (reply.signature, reply.body) == ("o", [f"{ROOT}/device/a_2eb"])
    device = bench.host.device("a.b")
    assert (device.spec.own.rate, device.spec.poll_us, device.spec.mode, device.configured) == (1024, 5, 0o600, False)
    listed = plain((await bench.call(ROOT, MANAGER, "ListQueues", "s", "a.b")).body)
    assert listed == [[[0, f"{ROOT}/device/a_2eb/queue/0"]]]
    reply = await bench.call(ROOT, MANAGER, "RemoveDevice", "s", "a.b")
    assert (reply.message_type, reply.signature) == (MessageType.METHOD_RETURN, "")
    assert list(bench.host.devices) == ["loop"]


async def test_a_device_that_took_anothers_place_is_seen(bench: Bench) -> None:
    """Even if the other went without a word, as when executing anew fails."""
    for path in (LOOP, QUEUES[0]):
        assert (await bench.call(path, PROPERTIES, "GetAll", "s", "")).body
    old = bench.host.device("loop")
    await bench.host.close_devices("to be executed anew")
    bench.host.listen(Announcer(bench.loop, bench.router._tree, bench.router).hear)
    await bench.make_device()
    view = bench.router._tree.find(LOOP)
    assert isinstance(view, DeviceView)
    assert view._device is bench.host.device("loop") is not old


async def test_an_error_with_what_no_string_takes(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    def refresh(self: Device) -> None:
        raise ImageUnavailable("a\0b\udc80")

    monkeypatch.setattr(Device, "refresh", refresh)
    assert await bench.error(LOOP, DEVICE, "Refresh") == (OURS + "ImageUnavailable", "a\ufffdb?")


async def test_a_stranger_may_look_but_not_touch(bench: Bench) -> None:
    assert (await bench.call(ROOT, MANAGER, "ListRegions", sender=STRANGER)).body
    assert (await bench.call(DEMO, PROPERTIES, "GetAll", "s", REGION, sender=STRANGER)).body
    for call in (
        (DEMO, REGION, "Notify", "qq", 65535, 0),
        (DEMO, REGION, "OpenMemory"),
        (DEMO, REGION, "ReadMemory", "tu", 0, 1),
        (DEMO, REGION, "Attach", "a{sv}", {}),
        (ROOT, MANAGER, "RemoveRegion", "s", "demo"),
        (ROOT, MANAGER, "CreateDevice", "ssa{sv}", "new", "rng", {}),
        (ROOT, MANAGER, "RemoveDevice", "s", "loop"),
        *((LOOP, DEVICE, member) for member in ("Disconnect", "Reset", "Refresh")),
        *((QUEUES[1], QUEUE, member) for member in ("Notify", "Kick")),
    ):
        name, said = await bench.error(*call, sender=STRANGER)
        assert name == OURS + "AccessDenied"
        assert "call as root or as the daemon's user" in said
    assert bench.host.region("demo").host.totals == [0, 0, 0, 0]  # type: ignore[union-attr]
    assert list(bench.host.devices) == ["loop"]


async def test_no_reply_is_sent_to_who_expects_none(bench: Bench) -> None:
    quiet = MessageFlag.NO_REPLY_EXPECTED
    await bench.call(ROOT, MANAGER, "ListRegions")
    before = len(bench.writer.sent)
    for call in (
        (ROOT, MANAGER, "ListRegions"),
        (DEMO, REGION, "Notify", "qq", 65535, 0),
        (DEMO, REGION, "Notify", "qq", 5, 0),
        (DEMO, REGION, "OpenMemory"),  # the descriptor is closed: the fixture counts
        (DEMO, "a.b", "C"),
        (ROOT, MANAGER, "CreateRegion", "sa{sv}", "new", {}),
        (ROOT, MANAGER, "Reload"),
    ):
        assert bench.router.handle(bench.message(*call, flags=quiet)) is True  # type: ignore[arg-type]
        await bench.settle()
    assert len(bench.writer.sent) == before
    assert sorted(bench.host.regions) == ["demo", "new"]
    assert bench.reloads == 1


async def test_without_a_bus_nothing_is_sent_and_nothing_leaks(bench: Bench) -> None:
    await bench.call(ROOT, MANAGER, "ListRegions")
    bench.router.writer = None
    before = len(bench.writer.sent)
    for call in ((ROOT, MANAGER, "ListRegions"), (DEMO, REGION, "OpenMemory"), (DEMO, "a.b", "C")):
        assert bench.router.handle(bench.message(*call)) is True
    bench.router.signal(DEMO, REGION, "Rung", "qt", [0, 1])
    assert len(bench.writer.sent) == before


async def test_descriptors_are_handed_to_the_writer(bench: Bench) -> None:
    reply = await bench.call(DEMO, REGION, "OpenMemory")
    assert (reply.signature, reply.body) == ("h", [0])
    (handed,) = bench.writer.fds[-1]
    memory = bench.host.region("demo").memory
    assert handed.fileno() != memory.fileno()
    assert os.fstat(handed.fileno()).st_ino == os.fstat(memory.fileno()).st_ino
    handed.close()


async def test_no_descriptor_left_is_a_limit_and_not_our_fault(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    await bench.call(ROOT, MANAGER, "ListRegions")

    def full(*_: object) -> int:
        raise OSError(24, "Too many open files")

    with monkeypatch.context() as patch:
        patch.setattr(os, "dup", full)
        for call in ((DEMO, REGION, "OpenMemory"), (DEMO, REGION, "OpenDoorbell", "qq", 65535, 0)):
            name, said = await bench.error(*call)
            assert name == OURS + "LimitExceeded"
            assert "raise LimitNOFILE=" in said


@pytest.mark.parametrize("member", ["ListRegions", "Describe", "Reload"])
async def test_an_exception_of_ours_is_logged_and_not_told(
    bench: Bench, monkeypatch: pytest.MonkeyPatch, member: str
) -> None:
    def fail(*_: object) -> None:
        raise RuntimeError("a secret of the daemon")

    async def fail_later(*_: object) -> None:
        await asyncio.sleep(0)
        fail()

    tree = bench.router._tree
    manager = tree.find(ROOT)
    assert manager is not None
    call = type(manager).calls[member]
    replaced = type(call)(
        fail_later if member == "Reload" else fail, call.takes, call.returns, call.action, call.wants_caller
    )
    monkeypatch.setitem(type(manager).calls, member, replaced)
    for _ in range(2):
        with structlog.testing.capture_logs() as logged:
            name, said = await bench.error(ROOT, MANAGER, member)
        assert name == FREEDESKTOP + "Failed"
        assert "secret" not in said
        assert "log" in said
        (line,) = [line for line in logged if line["log_level"] == "error"]
        assert (line["member"], str(line["exc_info"])) == (member, "a secret of the daemon")


async def test_a_reply_that_can_not_be_marshalled_is_an_error_of_ours(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    manager = bench.router._tree.find(ROOT)
    assert manager is not None
    call = type(manager).calls["ListRegions"]
    broken = type(call)(lambda _: [["demo", None]], "", call.returns, call.action, False)
    monkeypatch.setitem(type(manager).calls, "ListRegions", broken)
    with structlog.testing.capture_logs():
        assert (await bench.error(ROOT, MANAGER, "ListRegions"))[0] == FREEDESKTOP + "Failed"


async def test_an_answer_that_comes_after_the_bus_went_goes_to_nobody(bench: Bench) -> None:
    """Unique names begin anew on a new bus: the same one is somebody else's there."""
    await bench.call(ROOT, MANAGER, "ListRegions")
    old, new = bench.writer, FakeWriter()
    before = len(old.sent)
    bench.router.handle(bench.message(ROOT, MANAGER, "CreateRegion", "sa{sv}", "new", {}))
    bench.router.handle(bench.message(ROOT, MANAGER, "CreateRegion", "sa{sv}", "demo", {}))
    bench.router.writer = new  # type: ignore[assignment]
    await bench.settle()
    assert (len(old.sent) - before, new.sent) == (0, [])
    assert "new" in bench.host.regions


async def test_an_object_that_was_replaced_while_the_bus_was_asked(bench: Bench) -> None:
    bench.may_answer.clear()
    bench.router.handle(bench.message(DEMO, REGION, "OpenMemory"))
    bench.host.remove_region("demo")
    bench.router._tree.drop_tree(DEMO)  # as the announcer does
    region = await bench.host.create_region(RegionSpec("demo"))
    bench.may_answer.set()
    await bench.settle()
    ((handed,),) = bench.writer.fds
    assert os.fstat(handed.fileno()).st_ino == os.fstat(region.memory.fileno()).st_ino
    handed.close()
    bench.authority.forget()
    bench.router.handle(bench.message(DEMO, REGION, "OpenMemory"))
    bench.host.remove_region("demo")
    bench.router._tree.drop_tree(DEMO)
    await bench.settle()
    assert bench.writer.sent[-1].error_name == FREEDESKTOP + "UnknownObject"


async def test_what_is_no_call_is_left_to_the_library(bench: Bench) -> None:
    for kind in (MessageType.METHOD_RETURN, MessageType.ERROR, MessageType.SIGNAL):
        message = bench.message(ROOT, MANAGER, "ListRegions")
        message.message_type = kind
        assert bench.router.handle(message) is False
    assert bench.writer.sent == []


async def test_every_node_introspects_and_the_walk_reaches_every_object(bench: Bench) -> None:
    seen: dict[str, list[str]] = {}

    async def walk(path: str) -> None:
        (text,) = (await bench.call(path, "org.freedesktop.DBus.Introspectable", "Introspect")).body
        node = ET.fromstring(text)
        seen[path] = [item.get("name", "") for item in node.findall("interface") if BUS in item.get("name", "")]
        for child in node.findall("node"):
            await walk(f"{path.rstrip('/')}/{child.get('name')}")

    BUS = "org.doorbelld"
    await walk("/")
    assert seen[ROOT] == [MANAGER]
    assert seen[DEMO] == [REGION]
    assert seen[LOOP] == [DEVICE]
    assert [seen[path] for path in QUEUES] == [[QUEUE], [QUEUE]]
    above = {"/", "/org", "/org/doorbelld", ROOT, f"{ROOT}/region", f"{ROOT}/device", f"{LOOP}/queue"}
    assert set(seen) == {*above, DEMO, LOOP, *QUEUES}
    await bench.host.close_devices("to see what is listed without")
    bench.router._tree.drop_tree(LOOP)
    (text,) = (await bench.call(ROOT, "org.freedesktop.DBus.Introspectable", "Introspect")).body
    assert [child.get("name") for child in ET.fromstring(text).findall("node")] == ["region"]


async def test_the_host_peer_answers_though_it_is_not_listed(bench: Bench) -> None:
    (found,) = (await bench.call(HOST_PEER, PROPERTIES, "GetAll", "s", PEER)).body
    assert (found["Id"].value, found["Pid"].value, found["VmName"].value) == (65535, os.getpid(), "host")
    await bench.call(f"{HOST_PEER}/vector/2", VECTOR, "Notify")
    assert (await bench.call(f"{HOST_PEER}/vector/2", PROPERTIES, "Get", "ss", VECTOR, "Index")).body[0].value == 2
    (objects,) = (await bench.call(ROOT, "org.freedesktop.DBus.ObjectManager", "GetManagedObjects")).body
    assert list(objects) == [DEMO, LOOP, *QUEUES]


# With polkit, about strangers


class FakePolkit(Polkit):
    """Says ``answer`` to everything once it ``may_answer``, or what a person would; notes what it was asked."""

    def __init__(self, answer: Answer = Answer.YES) -> None:
        self.answer = answer
        self.asked: list[tuple[Question, bool]] = []
        self.kept: set[Question] = set()
        self.may_answer = asyncio.Event()
        self.may_answer.set()

    def granted(self, question: Question) -> bool:
        return question in self.kept

    async def check(self, question: Question) -> Answer:
        self.asked.append((question, False))
        await self.may_answer.wait()
        return self.answer

    async def challenge(self, question: Question) -> Answer:
        self.asked.append((question, True))
        return Answer.YES


OBJECT_MANAGER = "org.freedesktop.DBus.ObjectManager"
INTROSPECTABLE = "org.freedesktop.DBus.Introspectable"
ASKED = [
    ((ROOT, MANAGER, "ListRegions"), Action.INSPECT, ""),
    ((ROOT, None, "ListPeers", "s", "demo"), Action.INSPECT, "demo"),
    ((ROOT, MANAGER, "Notify", "sqq", "demo", 65535, 0), Action.NOTIFY, "demo"),
    ((ROOT, MANAGER, "NotifyMany", "sa(qq)", "demo", []), Action.NOTIFY, "demo"),
    ((ROOT, MANAGER, "CreateRegion", "sa{sv}", "new", {}), Action.MANAGE, "new"),
    ((ROOT, MANAGER, "CreateRegion", "sa{sv}", "x" * 65, {}), Action.MANAGE, ""),
    ((ROOT, MANAGER, "RemoveRegion", "s", "demo"), Action.MANAGE, "demo"),
    ((DEMO, REGION, "Notify", "qq", 65535, 0), Action.NOTIFY, "demo"),
    ((DEMO, REGION, "OpenMemory"), Action.OPEN_MEMORY, "demo"),
    ((HOST_PEER, PEER, "NotifyAll"), Action.NOTIFY, "demo"),
    ((f"{HOST_PEER}/vector/0", VECTOR, "Notify"), Action.NOTIFY, "demo"),
    ((f"{ROOT}/region/caf_c3_a9", REGION, "Broadcast"), None, ""),  # there is none: nothing to ask about
    ((DEMO, PROPERTIES, "GetAll", "s", ""), Action.INSPECT, "demo"),
    ((DEMO, PROPERTIES, "Get", "ss", REGION, "Size"), Action.INSPECT, "demo"),
    ((DEMO, INTROSPECTABLE, "Introspect"), Action.INSPECT, "demo"),
    ((ROOT, OBJECT_MANAGER, "GetManagedObjects"), Action.INSPECT, ""),
    ((ROOT, "org.freedesktop.DBus.Peer", "Ping"), None, ""),
]
ASKED_OF_DEVICES = [
    ((ROOT, MANAGER, "ListDevices"), Action.INSPECT, ""),
    ((ROOT, MANAGER, "ListQueues", "s", "loop"), Action.INSPECT, "loop"),
    ((ROOT, MANAGER, "CreateDevice", "ssa{sv}", "new", "none", {}), Action.MANAGE, "new"),
    ((ROOT, None, "RemoveDevice", "s", "demo"), Action.MANAGE, "demo"),  # a device of that name is no region
    ((LOOP, DEVICE, "Disconnect"), Action.MANAGE, "loop"),
    ((LOOP, DEVICE, "Refresh"), Action.MANAGE, "loop"),
    ((QUEUES[0], QUEUE, "Notify"), Action.NOTIFY, "loop"),
    ((QUEUES[1], QUEUE, "Kick"), Action.NOTIFY, "loop"),
    ((QUEUES[1], PROPERTIES, "GetAll", "s", QUEUE), Action.INSPECT, "loop"),
]


@pytest.mark.parametrize(
    ("call", "action", "device"), ASKED_OF_DEVICES, ids=[f"{n}-{c[0][2]}" for n, c in enumerate(ASKED_OF_DEVICES)]
)
async def test_what_polkit_is_asked_of_devices(
    bench: Bench, call: tuple[Any, ...], action: Action, device: str
) -> None:
    """A rule about a region says nothing about the device of that name, nor the other way round."""
    bench.authority.forget(polkit := FakePolkit(Answer.NO))
    assert (await bench.error(*call, sender=STRANGER))[0] == OURS + "AccessDenied"
    assert polkit.asked == [(Question(STRANGER, action.id, "", device), False)]
    bench.authority.forget(polkit := FakePolkit())
    assert (await bench.call(*call, sender=STRANGER)).error_name != OURS + "AccessDenied"
    assert len(polkit.asked) == 1


LAB, MCU = f"{ROOT}/client/lab", f"{ROOT}/flat/mcu"
ASKED_OF_OTHERS: list[tuple[tuple[Any, ...], Action, dict[str, str]]] = [
    ((ROOT, MANAGER, "ListClients"), Action.INSPECT, {}),
    ((ROOT, MANAGER, "CreateClient", "ssa{sv}", "new", "/s", {}), Action.MANAGE, {"client": "new"}),
    ((ROOT, None, "RemoveClient", "s", "demo"), Action.MANAGE, {"client": "demo"}),
    ((ROOT, MANAGER, "CreateFlatDevice", "ssa{sv}", "x" * 65, "/s", {}), Action.MANAGE, {}),
    ((ROOT, MANAGER, "RemoveFlatDevice", "s", "lab"), Action.MANAGE, {"flat": "lab"}),
    ((LAB, CLIENT, "Broadcast"), Action.NOTIFY, {"client": "lab"}),
    ((LAB, CLIENT, "ListPeers"), Action.INSPECT, {"client": "lab"}),
    ((LAB, CLIENT, "OpenMemory"), Action.OPEN_MEMORY, {"client": "lab"}),
    ((LAB, PROPERTIES, "GetAll", "s", ""), Action.INSPECT, {"client": "lab"}),
    ((MCU, FLAT, "Read", "u", 8), Action.INSPECT, {"flat": "mcu"}),
    ((MCU, FLAT, "Write", "uu", 12, 0), Action.NOTIFY, {"flat": "mcu"}),
    ((MCU, FLAT, "WriteMemory", "tay", 0, b""), Action.OPEN_MEMORY, {"flat": "mcu"}),
]


@pytest.mark.parametrize(
    ("call", "action", "about"), ASKED_OF_OTHERS, ids=[f"{n}-{c[0][2]}" for n, c in enumerate(ASKED_OF_OTHERS)]
)
async def test_what_polkit_is_asked_of_clients_and_flat_devices(
    bench: Bench, call: tuple[Any, ...], action: Action, about: dict[str, str]
) -> None:
    bench.host.create_client(ClientSpec("lab", "/nowhere/x"))
    bench.host.create_flat(FlatSpec("mcu", "/nowhere/x"))
    bench.authority.forget(polkit := FakePolkit(Answer.NO))
    assert (await bench.error(*call, sender=STRANGER))[0] == OURS + "AccessDenied"
    assert polkit.asked == [(Question(STRANGER, action.id, **about), False)]
    assert polkit.asked[0][0].details == about
    assert (list(bench.host.clients), list(bench.host.flats)) == (["lab"], ["mcu"])
    bench.authority.forget(polkit := FakePolkit())
    assert (await bench.call(*call, sender=STRANGER)).error_name != OURS + "AccessDenied"
    assert len(polkit.asked) == 1


@pytest.mark.parametrize(("call", "action", "region"), ASKED, ids=[f"{n}-{c[0][2]}" for n, c in enumerate(ASKED)])
async def test_what_polkit_is_asked(bench: Bench, call: tuple[Any, ...], action: Action | None, region: str) -> None:
    """About strangers only, and what it forbids does not happen."""
    polkit = FakePolkit(Answer.NO)
    bench.authority.forget(polkit)
    reply = await bench.call(*call, sender=STRANGER)
    if action is None:
        assert polkit.asked == []
        return
    assert polkit.asked == [(Question(STRANGER, action.id, region), False)]
    assert reply.error_name == OURS + "AccessDenied"
    assert f"may not {action.value}: polkit does not grant {action.id}" in reply.body[0]
    assert (list(bench.host.regions), await bench.rings()) == (["demo"], [0, 0, 0, 0])
    allowed = await bench.call(*call)
    assert allowed.error_name != OURS + "AccessDenied"
    assert len(polkit.asked) == 1
    for fd in bench.writer.fds[-1]:
        fd.close()


async def test_what_polkit_grants_happens(bench: Bench) -> None:
    bench.authority.forget(polkit := FakePolkit())
    for call, action, _ in ASKED:
        reply = await bench.call(*call, sender=STRANGER)
        assert reply.error_name != OURS + "AccessDenied"
        for fd in bench.writer.fds[-1]:
            fd.close()
        if call[2] == "RemoveRegion":
            assert list(bench.host.regions) == ["new"]
            bench.router._tree.drop_tree(DEMO)  # as the announcer does
            await bench.host.create_region(RegionSpec("demo"))
        assert action is None or polkit.asked[-1][0].action == action.id
    await bench.rung(3, 1, 1, 1)


@pytest.mark.parametrize(("kind", "known"), router._SUBJECTS.items())
def test_the_methods_that_name_one_are_those_of_the_interface(kind: str, known: frozenset[str]) -> None:
    made = "FlatDevice" if kind == "flat" else kind.title()
    methods = load(MANAGER).element.iter("method")
    first = {
        str(method.get("name")): next((str(arg.get("name")) for arg in method.iter("arg")), "") for method in methods
    }
    assert known == {
        name
        for name, arg in first.items()
        if arg == kind or (arg == "name" and name in (f"Create{made}", f"Remove{made}"))
    }


async def test_a_person_is_asked_only_where_the_call_allows_it(bench: Bench) -> None:
    polkit = FakePolkit(Answer.CHALLENGE)
    bench.authority.forget(polkit)
    question = Question(STRANGER, Action.NOTIFY.id, "demo")
    call = (DEMO, REGION, "Notify", "qq", 65535, 0)
    name, said = await bench.error(*call, sender=STRANGER)
    assert name == FREEDESKTOP + "InteractiveAuthorizationRequired"
    assert Action.NOTIFY.id in said
    assert polkit.asked == [(question, False)]
    polkit.asked.clear()
    reply = await bench.call(*call, sender=STRANGER, flags=MessageFlag.ALLOW_INTERACTIVE_AUTHORIZATION)
    assert reply.message_type is MessageType.METHOD_RETURN
    assert polkit.asked == [(question, False), (question, True)]
    await bench.rung(1, 0, 0, 0)


async def test_what_is_known_to_be_granted_is_answered_at_once(bench: Bench) -> None:
    polkit = FakePolkit()
    bench.authority.forget(polkit)
    await bench.call(ROOT, MANAGER, "ListRegions", sender=STRANGER)
    polkit.kept = {Question(STRANGER, Action.INSPECT.id, region) for region in ("", "demo")}
    before = len(bench.writer.sent)
    for call in ((ROOT, MANAGER, "ListRegions"), (DEMO, PROPERTIES, "GetAll", "s", REGION)):
        bench.router.handle(bench.message(*call, sender=STRANGER))  # type: ignore[arg-type]
    assert len(bench.writer.sent) == before + 2
    assert len(polkit.asked) == 1


async def test_whoever_polkit_is_asked_about_holds_up_nobody_else(bench: Bench) -> None:
    polkit = FakePolkit()
    bench.authority.forget(polkit)
    polkit.may_answer.clear()
    for number in range(3):
        bench.router.handle(bench.message(DEMO, REGION, "Notify", "qq", 65535, number, sender=STRANGER))
    bench.router.handle(bench.message(DEMO, REGION, "Notify", "qq", 65535, 3))
    async with asyncio.timeout(20):
        while not bench.writer.sent:
            await asyncio.sleep(0)
    assert [reply.destination for reply in bench.writer.sent] == [ME]
    await bench.rung(0, 0, 0, 1)
    polkit.may_answer.set()
    await bench.settle()
    assert [reply.reply_serial for reply in bench.writer.sent if reply.destination == STRANGER] == [1, 2, 3]


# Whatever happens: exactly one reply

PATHS = st.sampled_from(
    [
        *("/", "/org", ROOT, f"{ROOT}/region", DEMO, f"{DEMO}/peer", HOST_PEER, f"{HOST_PEER}/vector/1"),
        *(f"{ROOT}/device", LOOP, f"{LOOP}/queue", *QUEUES, f"{ROOT}/device/x"),
    ]
) | st.from_regex(r"(/[A-Za-z0-9_]{1,5}){1,9}", fullmatch=True)
INTERFACES = st.sampled_from(
    [
        None,
        MANAGER,
        REGION,
        PEER,
        VECTOR,
        DEVICE,
        QUEUE,
        PROPERTIES,
        "org.freedesktop.DBus.Introspectable",
        "org.freedesktop.DBus.ObjectManager",
        "org.freedesktop.DBus.Peer",
        "a.b",
    ]
)
METHODS = """
    ListRegions ListPeers ListDevices ListQueues Notify NotifyMany CreateRegion CreateDevice RemoveRegion RemoveDevice
    Describe Reload NotifyPeer Broadcast Attach OpenMemory OpenDoorbell ReadMemory WriteMemory Disconnect NotifyAll
    Reset Refresh Kick
    Get GetAll Set Introspect GetManagedObjects Ping GetMachineId Nothing
"""
MEMBERS = st.sampled_from(METHODS.split())
NUMBERS = st.sampled_from([0, 1, 3, 4, 65535])
WORDS = st.sampled_from(["demo", "other", "loop", "", REGION, PEER, DEVICE, "Size", "PeerCount", "x/y"])
OPTIONS = st.dictionaries(
    st.sampled_from(["size", "vectors", "backing", "queues", "type", "colour"]),
    st.sampled_from([Variant("s", "4K"), Variant("u", 1), Variant("s", "memfd"), Variant("ay", b"\xff")]),
    max_size=2,
)
BODIES = st.one_of(
    st.just(("", [])),
    st.tuples(st.just("s"), st.tuples(WORDS).map(list)),
    st.tuples(st.just("ss"), st.tuples(WORDS, WORDS).map(list)),
    st.tuples(st.just("q"), st.tuples(NUMBERS).map(list)),
    st.tuples(st.just("qq"), st.tuples(NUMBERS, NUMBERS).map(list)),
    st.tuples(st.just("sqq"), st.tuples(WORDS, NUMBERS, NUMBERS).map(list)),
    st.tuples(st.just("a(qq)"), st.tuples(st.lists(st.tuples(NUMBERS, NUMBERS).map(list), max_size=3)).map(list)),
    st.tuples(st.just("sa{sv}"), st.tuples(WORDS, OPTIONS).map(list)),
    st.tuples(st.just("ssa{sv}"), st.tuples(WORDS, st.sampled_from(["loopback", "none"]), OPTIONS).map(list)),
    st.tuples(st.just("a{sv}"), st.tuples(OPTIONS).map(list)),
    st.tuples(st.just("tu"), st.tuples(st.integers(0, 2**64 - 1), st.integers(0, 2**32 - 1)).map(list)),
    st.tuples(st.just("tay"), st.tuples(NUMBERS, st.binary(max_size=20)).map(list)),
    st.tuples(st.just("ssv"), st.tuples(WORDS, WORDS, st.just(Variant("s", "x"))).map(list)),
)
CALLS = st.tuples(PATHS, INTERFACES, MEMBERS, BODIES, st.sampled_from([ME, STRANGER]), st.booleans())


def test_exactly_one_reply_whatever_is_called() -> None:
    with tempfile.TemporaryDirectory(prefix="db") as directory, asyncio.Runner() as runner:

        async def start() -> Bench:
            return Bench(directory)

        bench = runner.run(start())

        async def step(calls: list[Any], answer: Answer | None) -> None:
            bench.authority.forget(FakePolkit(answer) if answer else None)
            if "demo" not in bench.host.regions:
                await bench.host.create_region(RegionSpec("demo", size=4096))
            if "loop" not in bench.host.devices:
                await bench.make_device()
            before = len(bench.writer.sent)
            expected = []
            for path, interface, member, (signature, body), sender, quiet in calls:
                flags = MessageFlag.NO_REPLY_EXPECTED if quiet else MessageFlag.NONE
                message = bench.message(path, interface, member, signature, *body, sender=sender, flags=flags)
                expected += [] if quiet else [(message.serial, sender)]
                with structlog.testing.capture_logs() as logged:
                    assert bench.router.handle(message) is True
                    if len(body) % 2:
                        await bench.settle()
                assert [line for line in logged if line["log_level"] == "error"] == []
            await bench.settle()
            replies = bench.writer.sent[before:]
            assert sorted((reply.reply_serial, reply.destination) for reply in replies) == sorted(expected)
            assert all(reply.error_name != FREEDESKTOP + "Failed" for reply in replies)
            for fds in bench.writer.fds[before:]:
                for fd in fds:
                    fd.close()
            for name in list(bench.host.regions.keys() - {"demo"}):
                bench.host.remove_region(name)
            for name in list(bench.host.devices.keys() - {"loop"}):
                await bench.host.remove_device(name)
            for peer in list(bench.host.regions["demo"].peers) if "demo" in bench.host.regions else []:
                bench.host.regions["demo"].disconnect(peer, "the example is over")
            await asyncio.sleep(0)

        @given(st.lists(CALLS, min_size=1, max_size=8), st.sampled_from([None, *Answer]))
        @settings(deadline=None, max_examples=300)
        def prove(calls: list[Any], answer: Answer | None) -> None:
            runner.run(step(calls, answer))

        try:
            prove()
        finally:
            runner.run(bench.close())
