# SPDX-FileCopyrightText: 2026 The doorbelld authors
# SPDX-License-Identifier: GPL-2.0-or-later
"""Peers leave and come back beside QEMUs that stay.

QEMU corrupts its memory when an ID leaves and joins again (docs/decisions/0011): with MALLOC_PERTURB_ and
MALLOC_CHECK_ it notices that at once, and valgrind says where.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest
from support.busctl import Busctl, CallFailed
from support.daemon import Daemon
from support.dbusclient import Client, until
from support.guest.image import Image, build_image
from support.guest.qemu import QEMU_10, IdleQemu, Qemu
from support.guest.vm import Guest
from support.rawclient import RawClient

RETURNS = 8
CHECKED = {"MALLOC_PERTURB_": "165", "MALLOC_CHECK_": "3", "LD_PRELOAD": "libc_malloc_debug.so.0"}
REGIONS = {
    "plain": "[region.demo]\nvectors = 1\n",
    "relayed": "[region.demo]\nvectors = 1\nrelay = true\n",
    "given up": "[region.demo]\nvectors = 1\nmax-absent = 0\n",
    "fixed": """[region.demo]
        vectors = 1
        [[region.demo.peer]]
        match = { vm = "idle" }
        [[region.demo.peer]]
        match = {}
        id = 7
    """,
}


@pytest.fixture(scope="module")
def image() -> Image:
    return build_image()


def start(folder: Path, region: str) -> Daemon:
    return Daemon(folder, region, arguments=["--exec-restart"])


def peers(daemon: Daemon) -> dict[str, Any]:
    """Ask for the region: who is there, who is absent."""
    with Client(daemon.bus) as bus:
        described: dict[str, Any] = json.loads(bus.call("", "Manager", "Describe")[0])["regions"]["demo"]
    return described


def greeted(daemon: Daemon, count: int) -> None:
    """Wait until *count* peers have been told everything."""
    until(
        lambda: [peer["backlog"] for peer in peers(daemon)["peers"]] == [0] * count,
        f"{count} peers that know everybody",
    )


@pytest.mark.parametrize("restarted", [False, True], ids=["", "daemon restarted"])
@pytest.mark.parametrize("region", REGIONS)
def test_client_that_returns_again_and_again_does_not_harm_qemu(
    short_path: Path, qemu: Qemu, region: str, restarted: bool
) -> None:
    output = short_path / "qemu.log"
    with start(short_path, REGIONS[region]) as daemon:
        with IdleQemu(qemu, output, ivshmem=[(daemon.socket(), 1)], environment=CHECKED) as idle:
            greeted(daemon, 1)
            ids = set()
            for _ in range(RETURNS):
                with RawClient(str(daemon.socket())) as client:
                    ids.add(client.greet(1).id)
                    greeted(daemon, 2)
                    if restarted:
                        daemon.restart()
                greeted(daemon, 1)
            assert len(ids) == (RETURNS if region == "given up" else 1)
            idle.qmp("query-status")
            status = idle.quit()
        said = output.read_text()
        assert (status, said.count("\n")) == (0, 1), said
        assert "terminating on signal 15" in said


def test_valgrind_finds_no_invalid_access_in_a_qemu_beside_which_a_client_returns(short_path: Path) -> None:
    output, report = short_path / "qemu.log", short_path / "valgrind.log"
    with (
        start(short_path, REGIONS["plain"]) as daemon,
        IdleQemu(QEMU_10, output, ivshmem=[(daemon.socket(), 1)], valgrind=report) as idle,
    ):
        greeted(daemon, 1)
        for _ in range(3):
            with RawClient(str(daemon.socket())) as client:
                client.greet(1)
                greeted(daemon, 2)
            greeted(daemon, 1)
        idle.qmp("query-status")
        idle.quit()
    said = report.read_text()
    assert "Memcheck" in said
    assert "Invalid" not in said, said


def rings_both_ways(one: Guest, two: Guest, ids: Sequence[int], rung: Counter[Guest]) -> None:
    """Have each of two guests ring the other, and take the interrupt; *rung* counts them."""
    for sender, receiver, target in ((one, two, ids[1]), (two, one, ids[0])):
        sender.command(f"ring {target} 1")
        rung[receiver] += 1
        assert receiver.wait_irq(1) == rung[receiver]


@pytest.fixture(params=["plain", "relayed"])
def daemon(request: pytest.FixtureRequest, short_path: Path) -> Iterator[Daemon]:
    with start(short_path, f"[region.demo]\nrelay = {str(request.param == 'relayed').lower()}\n") as running:
        yield running


def test_guest_that_is_restarted_three_times_rings_its_neighbour_and_is_rung(
    daemon: Daemon, image: Image, qemu: Qemu
) -> None:
    with Guest(image, qemu=qemu, name="stays", ivshmem=[(daemon.socket(), 4)]) as stays:
        (there,) = stays.ready()
        rung: Counter[Guest] = Counter()
        for turn in range(4):
            with Guest(image, qemu=qemu, name="returns", ivshmem=[(daemon.socket(), 4)]) as returns:
                (back,) = returns.ready()
                assert (there.id, back.id) == (0, 1)
                assert peers(daemon)["absent"] == []
                rings_both_ways(stays, returns, (there.id, back.id), rung)
                if turn == 2:
                    daemon.restart()
                    rings_both_ways(stays, returns, (there.id, back.id), rung)
                returns.kill()
            until(lambda: len(peers(daemon)["peers"]) == 1, "the end of the guest")
            assert [(absent["id"], absent["vm"]) for absent in peers(daemon)["absent"]] == [(1, "returns")]
            stays.command("ring 1 1")  # to nobody: it is drained when the guest is back
            if turn == 0:
                daemon.restart()
        with pytest.raises(CallFailed, match="absent"):
            Busctl(daemon.bus).call("/region/demo", "Region", "Notify", "qq", 1, 0)


def test_host_client_that_comes_a_hundred_times_beside_two_guests_harms_neither(
    daemon: Daemon, image: Image, qemu: Qemu
) -> None:
    with ExitStack() as stack:
        guests = [
            stack.enter_context(Guest(image, qemu=qemu, name=name, ivshmem=[(daemon.socket(), 4)])) for name in "ab"
        ]
        ids = [guest.ready()[0].id for guest in guests]
        rung: Counter[Guest] = Counter()
        for turn in range(100):
            with RawClient(str(daemon.socket()), keep=True) as client:
                assert client.greet(4).id == 2
                if turn % 25 == 0:
                    daemon.restart()
                    rings_both_ways(guests[0], guests[1], ids, rung)
        until(lambda: len(peers(daemon)["peers"]) == 2, "the end of the last client")
        rings_both_ways(guests[0], guests[1], ids, rung)
        for guest in guests:
            guest.quit()
