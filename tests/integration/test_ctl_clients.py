# SPDX-FileCopyrightText: 2026 The doorbelld authors
# SPDX-License-Identifier: GPL-2.0-or-later
"""doorbellctl and what is in the regions of others: clients and flat devices, against a real daemon."""

from __future__ import annotations

import json
import os
import re
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from support.daemon import Daemon
from support.otherserver import OtherServer
from support.rawclient import RawClient

from .test_ctl import Ctl, Monitor, complete, ctl
from .test_ctl_live import Running, eventually

__all__ = ["ctl"]  # a fixture

CONFIG = """[region.demo]
size = "64K"
[client.lab]
socket = "{0}/demo/socket"
[flat.mcu]
socket = "{0}/demo/socket"
[region.both]
[client.both]
socket = "{0}/both/socket"
[flat.both]
socket = "{0}/both/socket"
"""
HOST = 65535


def settle(ctl: Ctl) -> None:
    def settled() -> bool:
        known = ctl.json("describe")
        return all(len(one["peers"]) == 2 for kind in ("clients", "flats") for one in known[kind].values())

    eventually(settled)


@pytest.fixture(scope="module")
def daemon() -> Iterator[Daemon]:
    directory = Path(tempfile.mkdtemp(prefix="db"))
    with Daemon(directory, CONFIG.format(directory / "run")) as running:
        settle(Ctl(running.bus))
        yield running
    shutil.rmtree(directory)


def rings(ctl: Ctl, name: str = "lab") -> list[int]:
    return list(ctl.json("clients", name, "--json")[name]["rings"])


def interrupts(ctl: Ctl, name: str = "mcu") -> int:
    return int(ctl.json("flats", name, "--json")[name]["interrupts"])


# Looking


def test_the_overview_lists_them(ctl: Ctl, daemon: Daemon) -> None:
    said = ctl()
    assert "2 regions, 4 peers, 2 clients, 2 flat devices," in said
    assert re.search(rf"^lab +connected +0 +4 +2 +64K +\d+ +{daemon.socket()}$", said, re.M)
    assert re.search(rf"^mcu +connected +1 +4 +2 +64K +\d+ +{daemon.socket()}$", said, re.M)
    assert re.search(r"^ +Serves: .*; 2 clients, 2 flat devices, 4 connected$", ctl("status"), re.M)


def test_an_overview_of_nothing_else(short_path: Path) -> None:
    with Daemon(short_path, f'[client.far]\nsocket = "{short_path}/nowhere"\n') as lonely:
        ctl = Ctl(lonely.bus)
        said = ctl()
        assert "no region yet" not in said
        assert re.search(rf"^far +connecting +- +0 +0 +- +0 +{short_path}/nowhere$", said, re.M)
        assert f"far: no ivshmem server at {short_path}/nowhere" in said
        assert "far is not connected: no ivshmem server" in ctl("peers", "far")
        assert "create-flat mcu" in ctl("flats")
        ctl("remove", "far")
        assert "create-client lab" in ctl("clients")
        assert ctl.json("clients", "--json") == ctl.json("flats", "--json") == {}


def test_the_status_of_one(ctl: Ctl) -> None:
    said = ctl("status", "lab")
    assert re.search(r"^ +Client: lab$", said, re.M)
    assert re.search(r"^ +State: connected since 2", said, re.M)
    assert re.search(rf"^{HOST} +4 +2\S+ \S+ +\d", said, re.M)
    found = ctl.json("status", "lab", "-n", 0, "--json")
    assert [peer["id"] for peer in found["peers"]] == [1, HOST]
    assert [len(peer["pending"]) for peer in found["peers"]] == [4, 4]
    said = ctl("status", "mcu")
    assert re.search(r"^ IVPosition: 1$", said, re.M)
    assert said == ctl("flat", "mcu")
    assert ctl.json("flat", "mcu", "--json")["iv-position"] == 1


def test_peers_that_a_client_sees(ctl: Ctl) -> None:
    assert re.search(rf"^ *PEER +VECTORS +SEEN SINCE\n +1 +4 +\S+ \S+\n{HOST} +4 ", ctl("peers", "lab"), re.M)
    assert [peer["vectors"] for peer in ctl.json("peers", "lab", "--json")] == [4, 4]


# Ringing


def test_client_and_flat_device_of_ours_are_named_as_peers(ctl: Ctl) -> None:
    owned = {peer["own"] for peer in ctl.json("peers", "demo", "--json")}
    assert owned == {"client lab", "flat mcu"}
    assert set(re.findall(r"(?:client|flat) \S+", ctl("peers", "demo"))) == owned
    before = interrupts(ctl)
    assert "rang vector 0 of peer" in ctl("notify", "demo", "mcu", 0)
    eventually(lambda: interrupts(ctl) == before + 1)
    assert "rang vector 0 of peer" in ctl("notify", "demo", "flat mcu", 0)


def test_notify_and_broadcast(ctl: Ctl) -> None:
    before, mine = interrupts(ctl), rings(ctl)
    assert ctl("notify", "lab", 1, 2) == "rang vector 2 of peer 1 in lab\n"
    assert ctl.json("notify", "lab", 1, "--json") == {"client": "lab", "peer": 1, "vector": None}
    assert ctl("broadcast", "lab") == "rang all vectors of 2 peers in lab\n"
    eventually(lambda: interrupts(ctl) == before + 9)
    assert rings(ctl) == mine
    ctl("notify", "demo", 0, 3)
    eventually(lambda: rings(ctl)[3] == mine[3] + 1)


def test_registers(ctl: Ctl) -> None:
    assert ctl("flat", "mcu", "read", "ivposition") == "1\n"
    for register, value in (("INTMASK", 0), ("intstatus", 0), ("doorbell", 0), ("8", 1), ("0x8", 1)):
        found = ctl.json("flat", "mcu", "read", register, "--json")
        assert (found["flat"], found["value"]) == ("mcu", value)
    before = rings(ctl)
    assert ctl("flat", "mcu", "write", "doorbell", "0x00002") == "rang vector 2 of peer 0\n"
    assert ctl.json("flat", "mcu", "write", "0xc", "2", "--json") == {"flat": "mcu", "offset": 12, "value": 2}
    eventually(lambda: rings(ctl)[2] == before[2] + 2)
    assert ctl("flat", "mcu", "write", "intmask", "1") == "wrote 0x1 at 0x0 of mcu\n"


def test_memory(ctl: Ctl) -> None:
    assert ctl("write", "lab", 16, "hello") == "wrote 5 bytes at 16 of lab\n"
    assert "|hello|" in ctl("read", "mcu", "0x10", 5)
    assert ctl.json("read", "demo", 16, 5, "--json")["hex"] == b"hello".hex()
    assert ctl.json("read", "lab", 16, 5, "--json")["client"] == "lab"
    assert ctl("read", "mcu", 16, 5, "--raw") == "hello"


@pytest.mark.parametrize(
    ("words", "error"),
    [
        (["notify", "lab", "9", "0"], "no peer 9"),
        (["notify", "lab", "guest1"], f'"guest1" is no ID of a peer that client "lab" sees; there is: 1, {HOST}'),
        (["notify", "mcu", "0", "0"], 'no region "mcu", but a flat device; doorbellctl status mcu shows it'),
        (["broadcast", "mcu"], 'no region "mcu", but a flat device'),
        (["disconnect", "lab", "1"], 'no region "lab", but a client'),
        (["qemu-args", "lab"], 'no region "lab", but a client'),
        (["clients", "mcu"], 'no client "mcu", but a flat device'),
        (["flats", "nowhere"], 'no flat device "nowhere"; there is: both, mcu'),
        (["remove-client", "mcu"], 'no client "mcu", but a flat device'),
        (["remove-flat", "lab"], 'no flat device "lab", but a client'),
        (["read", "lab", "64K", "1"], "not within the 65536 bytes"),
        (["flat", "mcu", "read", "5"], "no register at 0x5; there is INTMASK at 0x0"),
        (["flat", "mcu", "read", "0x100000000"], "no register at 0x100000000"),
        (["flat", "mcu", "write", "ivposition", "1"], "read-only"),
        (["flat", "mcu", "write", "doorbell", "0x90000"], "no peer 9"),
        (["flat", "mcu", "write", "doorbell", "0x4"], "peer 0 has vectors 0 to 3"),
        (["flat", "lab", "read", "ivposition"], 'no flat device "lab", but a client'),
        (["flat", "nowhere", "watch"], 'no flat device "nowhere"'),
        (["wait", "lab", "4"], 'client "lab" has vectors 0 to 3, not 4'),
        (["status", "both"], '"both" is a region and a client and a flat device; say which with --kind region or'),
        (["notify", "both", "0", "0"], "--kind region or --kind client"),
        (["status", "nowhere"], 'no region "nowhere", and no device or client or flat device of that name; there are'),
        (["create-client", "lab", "/x"], 'client "lab" is there already'),
        (["create-flat", "new", "/x", "--memory-size", "what"], "flat.new.memory-size: 'what' is not a size"),
    ],
)
def test_a_refusal_is_one_line_and_status_1(ctl: Ctl, words: list[str], error: str) -> None:
    said = ctl.refused(*words)
    assert said.startswith("doorbellctl: ")
    assert error in said
    assert said.count("\n") == 1


@pytest.mark.parametrize(
    ("words", "error"),
    [
        (["read", "nothing"], "intmask, intstatus, ivposition, doorbell, or an offset"),
        (["write", "doorbell", "x"], "is no number"),
        (["write", "doorbell", "0x100000000"], "does not fit into the 32 bits"),
        (["what"], 'no command "what"; after the name of a flat device comes one of read, write, watch'),
    ],
)
def test_what_is_typed_wrong(ctl: Ctl, words: list[str], error: str) -> None:
    assert error in ctl.refused("flat", "mcu", *words, status=2)


def test_a_name_of_several_kinds(ctl: Ctl) -> None:
    assert ctl.json("status", "both", "--kind", "client", "--json")["id"] == 0
    assert ctl.json("status", "both", "--kind", "flat", "--json")["iv-position"] == 1
    assert [peer["id"] for peer in ctl.json("peers", "both", "--kind", "region", "--json")] == [0, 1]
    before = interrupts(ctl, "both")
    ctl("notify", "both", 1, 0, "--kind", "client")
    ctl("broadcast", "both", "--kind", "region")
    eventually(lambda: interrupts(ctl, "both") == before + 5)
    ctl("write", "both", 0, "x", "--kind", "flat")
    assert ctl("read", "both", 0, 1, "--kind", "client", "--raw") == "x"


# Making


def test_create_and_remove(ctl: Ctl, daemon: Daemon) -> None:
    made = ctl.json("create-client", "new", daemon.socket(), "--no-reconnect", "--vectors-max", 8, "--json")
    assert (made["state"], made["reconnect"], made["vectors-max"], made["id"]) == ("connected", False, 8, 2)
    said = ctl("create-flat", "new", daemon.socket(), "--memory-size", "64K")
    assert said == f"made flat device new of the server at {daemon.socket()}: connected, ID 3\n"
    assert ctl("remove", "new", "--kind", "client") == "removed client new\n"
    assert ctl("remove", "new") == "removed flat device new\n"
    named = ctl("create-flat", "new", "demo")
    assert named == f"made flat device new of the server at {daemon.socket()}: connected, ID 2\n"
    assert ctl("remove", "new") == "removed flat device new\n"
    nowhere = daemon.directory / "nowhere"
    said = ctl("create-flat", "new", nowhere)
    assert said.startswith(f"made flat device new, which is waiting for the server at {nowhere}: no ivshmem server")
    assert ctl("remove-flat", "new") == "removed flat device new\n"
    assert f"no ivshmem server at {nowhere}" in ctl("create-client", "new", nowhere)
    assert ctl.json("remove-client", "new", "--json") == {"name": "new", "disconnected": 0}
    ctl("create-flat", "new", daemon.socket(), "--memory-size", "4M")
    assert "the server's memory has 65536 bytes" in ctl("flats", "new")
    assert "memory of 4M only" in ctl("status", "new")
    assert ctl("remove-flat", "new") == "removed flat device new\n"


def test_reload_tells_of_them(ctl: Ctl) -> None:
    assert ctl("reload") == "configuration reloaded: nothing changed\n"
    assert ctl.json("reload", "--json")["flats"] == ["both", "mcu"]


def test_the_configuration(ctl: Ctl, daemon: Daemon) -> None:
    found = ctl.json("cat-config", "--config", daemon.config, "--effective", "--json")
    assert found["client.lab.reconnect"]["value"] is True
    assert found["flat.mcu.memory-size"]["value"] == 0
    assert found["client.lab.socket"]["line"] == 6


# Waiting and watching


def test_watch(ctl: Ctl) -> None:
    with Running(ctl, "flat", "mcu", "watch", "--count", 3, "--json") as watching:
        assert watching.line("stderr") == "watching mcu; Ctrl-C ends it"
        total = interrupts(ctl)
        ctl("notify", "lab", 1, 1)
        first = watching.event()
        assert (first["flat"], first["vector"], first["count"]) == ("mcu", 1, 1)
        ctl("notify", "lab", 1, 1)
        assert watching.event()["total"] == first["total"] + 1
        ctl("notify", "lab", 1, 2)
        assert watching.event()["vector"] == 2
        assert watching.status() == 0
        assert interrupts(ctl) == total + 3
    with Running(ctl, "flat", "mcu", "watch") as watching:
        watching.line("stderr")
        ctl("notify", "lab", 1, 1)
        assert re.match(r"\d\d:\d\d:\d\d  mcu: vector 1: 1 ring, ", watching.line())
        assert watching.end() == 0


def test_wait_for_a_client(ctl: Ctl, daemon: Daemon) -> None:
    script = daemon.directory / "said"
    command = f'echo "$DOORBELLD_CLIENT $DOORBELLD_VECTOR $DOORBELLD_COUNT" > {script}'
    before = rings(ctl)[3]
    with Running(ctl, "wait", "lab", 3, "--after", before, "--exec", command) as waiting:
        ctl("flat", "mcu", "write", "doorbell", 3)
        assert waiting.status() == 0
    assert script.read_text() == "lab 3 1\n"
    total = rings(ctl)[3]
    found = ctl.json("wait", "lab", 3, "--after", total - 1, "--json")
    assert found == {"client": "lab", "vector": 3, "count": 1, "total": total}
    before = ctl.json("flats", "both", "--json")["both"]["rings"][0]
    with Running(ctl, "wait", "both", 0, "--kind", "flat", "--after", before, "--json") as waiting:
        ctl("notify", "both", 1, 0, "--kind", "region")
        assert waiting.event()["flat"] == "both"


def test_monitor(ctl: Ctl, daemon: Daemon) -> None:
    with Monitor(ctl, "--json") as monitor:
        first = monitor.event()
        assert (first["clients"], first["flats"]) == (["both", "lab"], ["both", "mcu"])
        ctl("notify", "lab", 1, 2)
        assert monitor.event() == {"event": "interrupt", "flat": "mcu", "vector": 2, "count": 1}
        ctl("flat", "mcu", "write", "doorbell", 1)
        assert monitor.event() == {"event": "rung", "client": "lab", "vector": 1, "count": 1}
    with Monitor(ctl, "new", "--json") as monitor:
        assert monitor.event()["event"] == "watching"
        path = str(daemon.directory / "other")
        ctl("create-client", "new", path)
        assert monitor.event() == {"event": "client-added", "client": "new", "socket": path}
        event = monitor.event()
        assert (event["event"], event["state"], path in event["reason"]) == ("client-state", "connecting", True)
        with OtherServer(path) as server:
            while event.get("state") != "connected":
                event = monitor.event()
            assert event == {"event": "client-state", "client": "new", "state": "connected", "reason": ""}
            with RawClient(path) as guest:
                guest.greet(server.vectors)
                assert monitor.event() == {"event": "peer-added", "client": "new", "peer": 1}
            assert monitor.event() == {"event": "peer-removed", "client": "new", "peer": 1}
        event = monitor.event()
        assert (event["event"], event["state"]) == ("client-state", "connecting")
        ctl("remove", "new")
        while event["event"] != "client-removed":
            event = monitor.event()
        assert event == {"event": "client-removed", "client": "new"}


def test_monitor_for_people(ctl: Ctl) -> None:
    with Monitor(ctl, "mcu") as monitor:
        assert monitor.line().endswith("watching flat device mcu; Ctrl-C ends it")
        ctl("notify", "lab", 1, 2)
        assert monitor.line().endswith("mcu        interrupt: vector 2, 1 time")


def test_nothing_is_lost_over_a_restart(short_path: Path) -> None:
    config = CONFIG.partition("[region.both]")[0].format(short_path / "run")
    with Daemon(short_path, config, arguments=["--exec-restart"]) as daemon:
        ctl = Ctl(daemon.bus)
        settle(ctl)
        with RawClient(str(daemon.socket()), keep=True) as guest:
            guest.greet(4)
            with Running(ctl, "flat", "mcu", "watch", "--json") as watching:
                watching.line("stderr")
                rung = 0

                def ring() -> None:
                    nonlocal rung
                    os.eventfd_write(guest.fds[1][0], 1)
                    rung += 1

                daemon.restart(ring)
                ring()
                told = 0
                while told < rung:
                    event: dict[str, Any] = json.loads(watching.line())
                    told += event["count"]
                assert (told, event["total"]) == (rung, rung)


# Finding out


def test_doctor(ctl: Ctl, daemon: Daemon) -> None:
    def found() -> dict[str, tuple[str, str]]:
        findings = json.loads(ctl.run("doctor", "--json").stdout)["findings"]
        about = [each for each in findings if each["check"] == "clients"]
        return {each["found"].partition('"')[2].partition('"')[0]: (each["level"], each["cure"]) for each in about}

    assert found() == {name: ("ok", "") for name in ("lab", "mcu", "both")}
    nowhere = str(daemon.directory / "nowhere")
    ctl("create-client", "far", nowhere)
    assert found()["far"] == ("wrong", f"start the server that listens at {nowhere}; or is it another path?")
    ctl("remove", "far")


def test_completion(ctl: Ctl) -> None:
    assert complete(ctl, "clients", "") == ["both", "lab"]
    assert complete(ctl, "remove-flat", "") == ["both", "mcu"]
    assert complete(ctl, "status", "l") == ["lab"]
    assert complete(ctl, "notify", "lab", "") == ["1", str(HOST)]
    assert complete(ctl, "notify", "lab", "1", "") == ["0", "1", "2", "3"]
    assert complete(ctl, "flat", "m") == ["mcu"]
    assert complete(ctl, "flat", "mcu", "") == ["read", "watch", "write"]
    assert complete(ctl, "flat", "mcu", "read", "int") == ["intmask", "intstatus"]
    assert complete(ctl, "flat", "mcu", "write", "d") == ["doorbell"]
    assert complete(ctl, "notify", "nowhere", "") == []
