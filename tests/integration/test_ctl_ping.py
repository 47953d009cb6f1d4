# SPDX-FileCopyrightText: 2026 The doorbelld authors
# SPDX-License-Identifier: GPL-2.0-or-later
"""``doorbellctl`` echo, ping and bench, against a real daemon; no time that they measure is judged here."""

from __future__ import annotations

import json
import os
import re
import signal
from typing import Any

import pytest
from doorbelld.ivshmem.client import Client, Rung
from support.daemon import DEADLINE, Daemon
from support.dbusclient import until

from .test_ctl import VECTORS, Ctl, ctl, daemon, region
from .test_ctl_live import Running

__all__ = ["ctl", "daemon", "region"]  # fixtures

CONFIG = '[region.other]\nsize = "64K"\n'
HOST = 65535
MAY_NOT_RING = f"peer=[{{match={{uid={os.getuid()}}}, may-ring=['host']}}]"


def known(ctl: Ctl, region: str) -> dict[str, Any]:
    return dict(ctl.json("describe")["regions"][region])


def peers(ctl: Ctl, region: str) -> list[int]:
    return [peer["id"] for peer in known(ctl, region)["peers"]]


def whole(client: Client, peer_id: int) -> None:
    """Wait until *client* knows all doorbells of a peer."""
    client.wait_for(lambda: len(client.doorbells.get(peer_id, ())) == VECTORS, DEADLINE)


def take(client: Client, count: int) -> list[Rung]:
    """Wait for so many rings."""
    rings: list[Rung] = []
    while sum(ring.count for ring in rings) < count:
        events = client.poll(DEADLINE)
        assert events, f"no more rings than {rings}"
        rings += [event for event in events if isinstance(event, Rung)]
    return rings


def test_ping_and_echo(ctl: Ctl, region: str) -> None:
    with Running(ctl, "echo", region) as echo:
        assert echo.line().startswith(f"peer 0 of {region} rings everybody else back")
        assert echo.line() == f"try: doorbellctl ping {region} 0"
        lines = ctl("ping", region, 0, "--count", 3, "--interval", "1ms").splitlines()
        assert lines[0] == f"PING {region}: peer 0, vector 0; we are peer 1"
        for number, line in enumerate(lines[1:4], 1):
            assert re.fullmatch(rf"answer from peer 0: seq={number} time=\d+\.\d us", line)
        assert lines[6] == "3 rings, 3 answers, 0 lost (0 %)"
        assert re.fullmatch(r"min/avg/p99/max = (\d+\.\d/){3}\d+\.\d us", lines[7])
        assert len(ctl("ping", region, 0, "-q", "-c", 3, "-i", 0).splitlines()) == 4
        found = ctl.json("ping", region, 0, "--count", 50, "--interval", 0, "--vector", 2, "--json")
        times = [found.pop(f"{name}-us") for name in ("min", "avg", "p99", "max")]
        assert found == {"region": region, "peer": 0, "vector": 2, "sent": 50, "answered": 50, "lost": 0}
        assert 0 < times[0] <= times[1] <= times[3] and times[2] <= times[3]
        assert echo.end() == 0
        assert echo.line("stderr") == "answered 56 rings"
        until(lambda: not peers(ctl, region), "it to be gone")
        assert sum(known(ctl, region)["host-rings"]) == 0


def test_echo_answers_at_the_same_vector(daemon: Daemon, ctl: Ctl, region: str) -> None:
    with Client(daemon.socket(region)) as first, Client(daemon.socket(region)) as second:
        with Running(ctl, "echo", region, "--json") as echo:
            said = json.loads("".join(echo.line() for _ in range(6)))
            assert said == {"region": region, "peer": 2, "vectors": VECTORS, "to": None}
            for client in (first, second):
                whole(client, 2)
            for vector in (1, 2):
                first.notify(2, vector)
                assert take(first, 1) == take(second, 1) == [Rung(vector, 1)]
        first.wait_for(lambda: 2 not in first.peers, DEADLINE)
        with Running(ctl, "echo", region, "--to", second.id) as echo:
            assert "rings peer 1 back" in echo.line()
            whole(first, 2)
            first.notify(2, 0)
            assert take(second, 1) == [Rung(0, 1)]
            first.notify(2, 2)
            assert take(second, 1) == [Rung(2, 1)]
            assert not [event for event in first.handle_fds() if isinstance(event, Rung)]
            second.close()
            first.wait_for(lambda: 1 not in first.peers, DEADLINE)
            first.notify(2, 0)  # who is to be rung has left: that is no reason to end
            assert echo.end() == 0
        first.wait_for(lambda: 2 not in first.peers, DEADLINE)
        with Running(ctl, "echo", region, "--to", "host") as echo:
            echo.line()
            whole(first, 1)
            first.notify(1, 1)
            until(lambda: known(ctl, region)["host-rings"] == [0, 1, 0], "the host to be rung")
            ctl("remove", region, "--yes")
            assert echo.status() == 1
            assert "closed the connection" in echo.line("stderr")


def test_two_echoes_are_told_that_they_look_like_a_loop(ctl: Ctl, region: str) -> None:
    with Running(ctl, "echo", region) as first:
        assert "rings everybody else back" in first.line()
        until(lambda: peers(ctl, region) == [0], "the first to be peer 0")
        with Running(ctl, "echo", region) as second:
            assert "rings everybody else back" in second.line()
            until(lambda: peers(ctl, region) == [0, 1], "both to be there")
            ctl("notify", region, 0, 0)
            for echo, other in ((first, 1), (second, 0)):
                said = echo.line("stderr")
                assert re.match(rf"doorbellctl: peer {other} rings [\d,]+ times a second; a loop\? ", said)
            assert first.end() == second.end() == 0


def test_who_does_not_answer(daemon: Daemon, ctl: Ctl, region: str) -> None:
    with Client(daemon.socket(region)):
        done = ctl.run("ping", region, 0, "--count", 2, "--interval", 0, "--timeout", "20ms")
        said, error = done.stdout.decode(), done.stderr.decode()
        assert done.returncode == 1
        assert "no answer from peer 0: seq=2, within 0.02 s" in said
        assert "2 rings, 0 answers, 2 lost (100 %)" in said
        assert "min/avg" not in said
        assert error.count("doorbellctl echo") == 1, "how to start one is told once"
        found = ctl.run("ping", region, 0, "--count", 1, "--timeout", "20ms", "--json")
        assert found.returncode == 1
        assert json.loads(found.stdout)["avg-us"] is None


def test_who_answers_sometimes(daemon: Daemon, ctl: Ctl, region: str) -> None:
    with (
        Client(daemon.socket(region)) as other,
        Running(ctl, "ping", region, 0, "--count", 2, "--interval", 0, "--timeout", "1500ms") as ping,
    ):
        ping.line()
        take(other, 1)
        whole(other, 1)
        other.notify(1, 1)  # at another vector: that is no answer
        assert "no answer" in ping.line()
        take(other, 1)
        other.notify(1, 0)
        assert "answer from peer 0: seq=2" in ping.line()
        assert [ping.line() for _ in range(3)][2] == "2 rings, 1 answer, 1 lost (50 %)"
        assert ping.status() == 0


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("9",), "no peer 9; there is: 0"),
        (("1",), "no peer 1"),
        (("host",), "host peer"),
        ((str(HOST),), "answers none; doorbellctl echo"),
        (("guest",), 'no peer "guest"'),
        (("0", "--vector", "7"), "has vectors 0 to 2, not 7"),
    ],
)
def test_who_can_not_be_pinged(daemon: Daemon, ctl: Ctl, region: str, words: tuple[str, ...], said: str) -> None:
    with Client(daemon.socket(region)):
        assert said in ctl.refused("ping", region, *words)
    until(lambda: not peers(ctl, region), "it to be gone")


def test_wrong_command_lines(ctl: Ctl) -> None:
    assert "takes some time" in ctl.refused("ping", "other", 0, "--timeout", 0, status=2)
    assert "not a duration" in ctl.refused("ping", "other", 0, "--interval", "x", status=2)
    assert "nowhere" in ctl.refused("ping", "nowhere", 0)
    assert "nowhere" in ctl.refused("echo", "nowhere")
    assert "no peer 5" in ctl.refused("echo", "other", "--to", 5)


def test_the_peer_leaves(daemon: Daemon, ctl: Ctl, region: str) -> None:
    with (
        Client(daemon.socket(region)) as other,
        Running(ctl, "ping", region, 0, "--interval", "10ms", "--timeout", "20s") as ping,
    ):
        ping.line()
        take(other, 1)
        other.wait_for(lambda: 1 in other.peers, DEADLINE)
        other.notify(1, 0)
        assert "answer" in ping.line()
        take(other, 1)
        other.close()
        assert ping.status() == 1
        assert "peer 0 left" in ping.line("stderr")
        assert [ping.line() for _ in range(3)][2].startswith("1 ring, 1 answer")


def test_the_region_ends(daemon: Daemon, ctl: Ctl, region: str) -> None:
    with Client(daemon.socket(region)) as other, Running(ctl, "ping", region, 0, "--timeout", "20s") as ping:
        take(other, 1)
        ctl("remove", region, "--yes")
        assert ping.status() == 1
        assert "closed the connection" in ping.line("stderr")


@pytest.mark.parametrize("answered", [True, False])
def test_ctrl_c_sums_up(daemon: Daemon, ctl: Ctl, region: str, answered: bool) -> None:
    with (
        Client(daemon.socket(region)) as other,
        Running(ctl, "ping", region, 0, "--interval", "1h", "--timeout", "20s") as ping,
    ):
        ping.line()
        take(other, 1)
        if answered:
            other.wait_for(lambda: 1 in other.peers, DEADLINE)
            other.notify(1, 0)
            assert "answer" in ping.line()
        assert ping.end(signal.SIGINT) == (not answered)
        assert [ping.line() for _ in range(3)][2].startswith(f"1 ring, {int(answered)} answer")


# Bench


def test_bench(ctl: Ctl) -> None:
    before = ctl.json("describe")["regions"]
    found = ctl.json("bench", "--seconds", "0.4", "--json")
    assert ctl.json("describe")["regions"] == before, "its regions are gone"
    for way in ("direct", "relayed"):
        assert found[way]["rings-per-second"] > 0
        trip = found[way]["round-trip"]
        assert 0 < trip["min-us"] <= trip["p50-us"] <= trip["p99-us"]
    assert found["relay-us"] is not None and found["relay-skipped"] is None
    assert found["notify"]["per-second"] > 0 and found["notify"]["min-us"] > 0
    assert found["memory"]["in-per-second"] > 0 and found["memory"]["out-per-second"] > 0
    said = ctl("bench", "--seconds", "0.2")
    assert "ring and be rung back, relayed" in said and "GB/s" in said
    assert "The relay adds" in said


def test_bench_of_a_region_leaves_it_as_it_was(daemon: Daemon, ctl: Ctl, region: str) -> None:
    with Client(daemon.socket(region)) as other:
        before = bytes(range(256)) * 256
        other.memory[:] = before
        found = ctl.json("bench", region, "--seconds", "0.2", "--json")
        assert (found["region"], found["relayed"], found["memory"]["in-per-second"]) == (region, None, None)
        assert "not relayed" in found["relay-skipped"]
        assert other.memory[:] == before
        assert not [event for event in other.handle_fds() if isinstance(event, Rung)], "nobody else was rung"
        until(lambda: peers(ctl, region) == [0], "them to be gone")


def test_bench_of_a_relayed_region(ctl: Ctl) -> None:
    ctl("create", "relayed", "--size", "64K", "--set", "relay=true")
    try:
        found = ctl.json("bench", "relayed", "--seconds", "0.2", "--json")
        assert found["relayed"]["round-trip"]["count"] > 0 and found["direct"]["round-trip"]["count"] > 0
        assert found["relay-us"] is not None
    finally:
        ctl("remove", "relayed", "--yes")
    assert list(ctl.json("describe")["regions"]) == ["other"]


def test_bench_of_a_region_whose_rules_forbid_it(ctl: Ctl) -> None:
    ctl("create", "strict", "--size", "64K", "--set", MAY_NOT_RING)
    try:
        assert "may-ring" in ctl.refused("bench", "strict", "--seconds", "0.2")
        assert "nowhere" in ctl.refused("bench", "nowhere")
    finally:
        ctl("remove", "strict", "--yes")


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_bench_cleans_up(ctl: Ctl, number: signal.Signals) -> None:
    with Running(ctl, "bench", "--seconds", "60") as bench:
        until(lambda: len(ctl.json("describe")["regions"]) == 2, "its region")
        assert bench.end(number) == 128 + number
    assert list(ctl.json("describe")["regions"]) == ["other"]


def test_bench_shows_on_a_terminal_what_it_does(ctl: Ctl) -> None:
    status, written = ctl.on_terminal("bench", "--seconds", "0.2")
    assert status == 0
    assert "\x1b[K" in written and "rings through the relay" in written
