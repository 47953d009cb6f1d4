# SPDX-FileCopyrightText: 2026 The doorbelld authors
# SPDX-License-Identifier: GPL-2.0-or-later
"""Everybody in one region: a QEMU guest, a flat device, a client in Python, and a shell script, in a relayed one too.

There is one guest, with a device in each of the two regions. Before the last turn the daemon is executed anew, and
nobody notices.
"""

from __future__ import annotations

import os
import re
import select
import subprocess
import tempfile
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import ExitStack
from itertools import permutations
from pathlib import Path
from types import TracebackType
from typing import Protocol

import pytest
from doorbelld.ivshmem.client import Client, Rung
from doorbelld.ivshmem.flat import FlatDevice, Register, doorbell
from support.busctl import Busctl
from support.daemon import BIN, DEADLINE, Daemon
from support.guest.image import build_image
from support.guest.qemu import Qemu
from support.guest.vm import Guest
from support.needs import require

HOST = 65535
VECTORS = 4
SIZE = 4 << 20
REGIONS = {"plain": "[region.plain]\n", "relayed": "[region.relayed]\nrelay = true\n"}

SCRIPT = r"""
memory=/dev/fd/$DOORBELL_MEMORY_FD
own=($DOORBELL_FDS)
echo ready "$DOORBELL_ID" "${#own[@]}" "$DOORBELL_MEMORY_SIZE" "$DOORBELL_PEERS"
while read -r word first second; do
    case $word in
    ring)
        peer=DOORBELL_PEER_$first
        bells=(${!peer})
        printf '\1\0\0\0\0\0\0\0' >&"${bells[second]}" && echo done ;;
    wait)
        echo $(od -An -N8 -tu8 <&"${own[first]}") ;;
    pending)
        echo $(for fd in "${own[@]}"; do sed -n 's/^eventfd-count: *//p' "/proc/$$/fdinfo/$fd"; done) ;;
    write)
        printf %s "$second" | dd of="$memory" bs=1 seek="$first" conv=notrunc status=none && echo done ;;
    read)
        echo "$(dd if="$memory" bs=1 skip="$first" count="$second" status=none)" ;;
    esac
done
"""


class Party(Protocol):
    """One of those in the region."""

    id: int

    def knows(self, others: set[int]) -> None:
        """Wait until all doorbells of *others* have come."""

    def ring(self, peer: int, vector: int) -> None:
        """Ring."""

    def rung(self, vector: int) -> int:
        """Wait until its next interrupt, which must be that of *vector*; return how many rings made it."""

    def taken(self) -> Counter[int]:
        """Tell how often each vector was rung so far, waited for or not."""

    def write(self, offset: int, data: bytes) -> None:
        """Write to the memory."""

    def read(self, offset: int, length: int) -> bytes:
        """Read from it."""


class InGuest:
    """The guest's device number *index*."""

    def __init__(self, guest: Guest, index: int, own: int) -> None:
        self.guest, self.index, self.id = guest, index, own
        self.seen: Counter[int] = Counter()

    def __str__(self) -> str:
        return "guest"

    def _command(self, line: str) -> None:
        self.guest.command(f"device {self.index}")
        self.guest.command(line)

    def knows(self, others: set[int]) -> None:
        """Nobody outside can see that, but QEMU reads what is there before it passes us a command."""

    def ring(self, peer: int, vector: int) -> None:
        self._command(f"ring {peer} {vector}")

    def rung(self, vector: int) -> int:
        before, self.seen[vector] = self.seen[vector], self.guest.wait_irq(vector, device=self.index)
        return self.seen[vector] - before

    def taken(self) -> Counter[int]:
        self._command("read 0 1")  # all that it took until now is in the log then
        found = re.findall(rf"^ *\S+ program IRQ (\d+) (\d+) device={self.index}$", self.guest.log, re.M)
        return Counter({int(vector): int(count) for vector, count in found})  # the last line of each has its total

    def write(self, offset: int, data: bytes) -> None:
        self._command(f"write {offset} {data.decode()}")

    def read(self, offset: int, length: int) -> bytes:
        self.guest.command(f"device {self.index}")
        return self.guest.read(offset, length)


class Flat:
    """A flat device."""

    def __init__(self, path: Path) -> None:
        self.pulses: list[tuple[int, int]] = []
        self.device = FlatDevice.connect(
            path, irq=lambda *pulse: self.pulses.append(pulse), trouble=pytest.fail, memory_size=SIZE
        )
        self.id = self.device.read(Register.IVPOSITION)
        self.seen = 0

    def __str__(self) -> str:
        return "flat"

    def knows(self, others: set[int]) -> None:
        self.device.wait_for(lambda: _whole(self.device.client, others), DEADLINE)

    def ring(self, peer: int, vector: int) -> None:
        self.device.write(Register.DOORBELL, doorbell(peer, vector))

    def rung(self, vector: int) -> int:
        self.device.wait_for(lambda: len(self.pulses) > self.seen, DEADLINE)
        got, count = self.pulses[self.seen]
        assert got == vector
        self.seen += 1
        return count

    def taken(self) -> Counter[int]:
        self.device.poll(0)
        return self.device.interrupts

    def write(self, offset: int, data: bytes) -> None:
        self.device.memory[offset : offset + len(data)] = data

    def read(self, offset: int, length: int) -> bytes:
        return self.device.memory[offset : offset + length]


class InPython:
    """A client."""

    def __init__(self, path: Path) -> None:
        self.rings: list[tuple[int, int]] = []
        self.client = Client(path, notified=lambda _, vector, count: self.rings.append((vector, count))).connect()
        self.id = self.client.id
        self.seen = 0

    def __str__(self) -> str:
        return "client"

    def knows(self, others: set[int]) -> None:
        self.client.wait_for(lambda: _whole(self.client, others), DEADLINE)

    def ring(self, peer: int, vector: int) -> None:
        self.client.notify(peer, vector)

    def rung(self, vector: int) -> int:
        events = self.client.wait_for(lambda: len(self.rings) > self.seen, DEADLINE)
        got, count = self.rings[self.seen]
        assert got == vector
        assert Rung(vector, count) in events
        self.seen += 1
        return count

    def taken(self) -> Counter[int]:
        self.client.poll(0)
        return sum((Counter({vector: count}) for vector, count in self.rings), Counter())

    def write(self, offset: int, data: bytes) -> None:
        self.client.memory[offset : offset + len(data)] = data

    def read(self, offset: int, length: int) -> bytes:
        return self.client.memory[offset : offset + length]


class Shell:
    """A bash script that ``doorbellctl attach`` started; it does what it reads, and answers each line with a line."""

    def __init__(self, daemon: Daemon, region: str, others: int) -> None:
        command: list[str | Path] = [BIN / "doorbellctl", "--bus", daemon.bus, "attach", region, "--peers", str(others)]
        command += ["--timeout", f"{DEADLINE:g}s", "--exec", require("bash", "bash"), "-c", SCRIPT]
        self.process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
        self._got = b""
        self._taken: Counter[int] = Counter()
        word, own, vectors, size, *peers = self._answer().split()
        assert (word, vectors, size) == ("ready", str(VECTORS), str(SIZE))
        self.id = int(own)
        self.peers = set(map(int, peers))

    def __str__(self) -> str:
        return "shell"

    def __enter__(self) -> Shell:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        if kind is not None:
            self.process.kill()
        self.process.communicate(timeout=DEADLINE)  # its input ends, and so does it
        assert kind is not None or self.process.returncode == 0

    def _answer(self) -> str:
        assert self.process.stdout is not None
        deadline = time.monotonic() + DEADLINE
        while b"\n" not in self._got:
            ready, _, _ = select.select([self.process.stdout], [], [], max(0.0, deadline - time.monotonic()))
            assert ready, f"the script says nothing but {self._got!r}"
            piece = os.read(self.process.stdout.fileno(), 4096)
            assert piece, f"the script ended with {self.process.wait(DEADLINE)}"
            self._got += piece
        line, _, self._got = self._got.partition(b"\n")
        return line.decode()

    def _ask(self, line: str) -> str:
        assert self.process.stdin is not None
        self.process.stdin.write(f"{line}\n".encode())
        self.process.stdin.flush()
        return self._answer()

    def knows(self, others: set[int]) -> None:
        assert others <= self.peers

    def ring(self, peer: int, vector: int) -> None:
        assert self._ask(f"ring {peer} {vector}") == "done"

    def rung(self, vector: int) -> int:
        count = int(self._ask(f"wait {vector}"))
        self._taken[vector] += count
        return count

    def taken(self) -> Counter[int]:
        pending = (int(count, 16) for count in self._ask("pending").split())
        return self._taken + Counter(dict(enumerate(pending)))

    def write(self, offset: int, data: bytes) -> None:
        assert self._ask(f"write {offset} {data.decode()}") == "done"

    def read(self, offset: int, length: int) -> bytes:
        return self._ask(f"read {offset} {length}").encode()


def _whole(client: Client, others: set[int]) -> bool:
    return all(other in client.peers and client.peers[other].vectors == VECTORS for other in others)


def _pairs(daemon: Daemon, region: str) -> dict[tuple[int, int], list[int]]:
    """Give rings, deliveries, refused rings, rate and permission of each sender and target."""
    (pairs,) = Busctl(daemon.bus).call(f"/region/{region}", "Region", "ListPairs")
    return {(sender, target): rest for sender, target, *rest in pairs}


@pytest.fixture(scope="module")
def stage(qemu: Qemu) -> Iterator[tuple[Daemon, Guest]]:
    """Give a daemon with both regions, and a guest that is in both."""
    with ExitStack() as stack:
        directory = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="db")))
        daemon = stack.enter_context(Daemon(directory, "".join(REGIONS.values()), arguments=["--exec-restart"]))
        devices = [(daemon.socket(region), VECTORS) for region in REGIONS]
        guest = stack.enter_context(Guest(build_image(), qemu=qemu, name="everywhere", ivshmem=devices))
        assert [(device.id, device.vectors, device.size) for device in guest.ready()] == [(0, VECTORS, SIZE)] * 2
        yield daemon, guest
        guest.quit()


@pytest.mark.parametrize("region", REGIONS)
def test_everybody_rings_everybody_and_sees_the_same_memory(stage: tuple[Daemon, Guest], region: str) -> None:
    daemon, guest = stage
    with ExitStack() as stack:
        flat = Flat(daemon.socket(region))
        stack.enter_context(flat.device)
        client = InPython(daemon.socket(region))
        stack.enter_context(client.client)
        shell = stack.enter_context(Shell(daemon, region, others=3))
        parties: list[Party] = [InGuest(guest, list(REGIONS).index(region), 0), flat, client, shell]
        assert [party.id for party in parties] == [0, 1, 2, 3]
        for party in parties:
            party.knows({other.id for other in parties} - {party.id})

        for party in parties:
            party.write(64 * party.id, f"from:{party}".encode())
        for reader in parties:
            for party in parties:
                written = f"from:{party}".encode()
                assert reader.read(64 * party.id, len(written)) == written, f"{reader} reads what {party} wrote"

        for turn in range(VECTORS + 1):
            if turn == VECTORS:
                daemon.restart()
            for sender, target in permutations(parties, 2):
                vector = (sender.id + turn) % VECTORS  # so the three who ring somebody in a turn can be told apart
                sender.ring(target.id, vector)
                assert target.rung(vector) == 1, f"{target} rung by {sender}"
        for party in parties:
            rings = Counter({vector: 3 for vector in range(VECTORS)})
            rings.update((other.id + VECTORS) % VECTORS for other in parties if other is not party)  # the last turn
            assert party.taken() == rings, f"{party} was rung by nobody else"

        if region == "relayed":
            by_all = {(sender.id, target.id): [VECTORS + 1, VECTORS + 1] for sender, target in permutations(parties, 2)}
            of_host = {(party.id, HOST): [0, 0] for party in parties}
            expected = {pair: [*rings, 0, 0, True] for pair, rings in {**by_all, **of_host}.items()}
            deadline = time.monotonic() + DEADLINE  # the last delivery is counted a moment after it was made
            while (counted := _pairs(daemon, region)) != expected and time.monotonic() < deadline:
                pass
            assert counted == expected
