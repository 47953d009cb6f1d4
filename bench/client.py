# SPDX-FileCopyrightText: 2026 The doorbelld authors
# SPDX-License-Identifier: GPL-2.0-or-later
"""The ivshmem clients in Python: a ring against a bare os.eventfd_write, and what it costs to learn of many peers.

The peers are those of ``c/join_client.c``, the server is ours, each in a process of its own. Neither a ring nor reading
what is there waits for anybody, so CPU time tells what they cost, whoever else is busy on the machine.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import resource
import socket
import struct
import time
from collections.abc import Callable, Iterator
from functools import partial

from doorbelld.ivshmem.aioclient import AsyncClient
from doorbelld.ivshmem.client import Client
from support import (
    VECTORS,
    Malfunction,
    Options,
    Report,
    Row,
    Server,
    by_turns,
    column,
    main,
    peers,
    private_bus,
    two_cpus,
)

_PATIENCE = 60.0
_MESSAGE = struct.Struct("<q")
_GREETING = 3
_RINGS = 20_000


@contextlib.contextmanager
def region(options: Options, cpu: int) -> Iterator[Server]:
    """Run a daemon with one region, on a CPU that is not ours."""
    with private_bus() as bus, options.daemon.start(bus, cpu=cpu) as server:
        yield server


def joined(server: Server) -> Client:
    """Join, and wait until all doorbells of ours have come; so have all others, then."""
    client = Client(server.socket).connect(_PATIENCE)
    client.wait_for(lambda: client.vectors == VECTORS, _PATIENCE)
    return client


def by_client(server: Server, count: int) -> dict[str, float]:
    """Join with our client, which remembers everybody."""
    watch = Watch()
    with joined(server) as client:
        sample = watch.read(count)
        found = sum(peer.vectors for peer in client)
        if found != count * VECTORS:
            raise Malfunction(f"{found} doorbells of {count} peers have come")
    return sample


def by_hand(server: Server, count: int) -> dict[str, float]:
    """Read the same messages in a loop that does nothing but keep the descriptors."""
    found: list[int] = []
    watch = Watch()
    with socket.socket(socket.AF_UNIX) as sock:
        sock.connect(str(server.socket))
        for _ in range(messages(count)):
            data, fds, _, _ = socket.recv_fds(sock, _MESSAGE.size, 1)
            _MESSAGE.unpack(data)
            found += fds
        sample = watch.read(count)
    for fd in found:
        os.close(fd)
    return sample


class Watch:
    """Tells how long a join took, and what each of its messages cost."""

    def __init__(self) -> None:
        self._started = time.perf_counter(), time.process_time()

    def read(self, count: int) -> dict[str, float]:
        """Read it after joining *count* others."""
        seconds, used = time.perf_counter() - self._started[0], time.process_time() - self._started[1]
        return {"seconds": seconds, "per_message": used / messages(count) * 1e6}


def messages(count: int) -> int:
    """Tell how many messages say who we are, and who else is there."""
    return _GREETING + (count + 1) * VECTORS


async def rings(server: Server, options: Options, report: Report) -> None:
    """Ring a peer again and again, with either client; the loop has nothing to do meanwhile, and is not asked."""
    with joined(server) as friend, joined(server) as client:
        async with AsyncClient(server.socket) as in_loop:
            await in_loop.wait_for(lambda: in_loop.vectors == VECTORS, _PATIENCE)
            bell, peer = client.peers[friend.id].eventfds[0], friend.id
            sides = {
                "Client": partial(rate, client.notify, peer, 0),
                "AsyncClient": partial(rate, in_loop.notify, peer, 0),
                "other": partial(rate, os.eventfd_write, bell, 1),
            }
            results = by_turns(sides, 5 * options.rounds)
            if friend.poll(0) == []:
                raise Malfunction("no ring has come")
    for which in ("Client", "AsyncClient"):
        report.add(Row.against(f"{which}.notify", "1/s", results[which], results["other"], 0.8, at_least=True))


def rate(ring: Callable[[int, int], None], first: int, second: int) -> float:
    """Call *ring* with these arguments as fast as can be; gives calls a second of CPU time."""
    started = time.thread_time()
    for _ in range(_RINGS):
        ring(first, second)
    return _RINGS / (time.thread_time() - started)


def crowds(options: Options, report: Report, cpu: int) -> None:
    """Join where few are, where more are, and where many are, by turns."""
    counts = (250, 500) if options.quick else (250, 500, 1000)
    with contextlib.ExitStack() as stack:
        sides: dict[str, Callable[[], dict[str, float]]] = {}
        for count in counts:
            server = stack.enter_context(region(options, cpu))
            stack.enter_context(peers(server.socket, count, cpu=cpu))
            sides |= {
                f"ours {count}": partial(by_client, server, count),
                f"other {count}": partial(by_hand, server, count),
            }
        results = by_turns(sides, options.rounds)
    for count in counts:
        what = f"{count} peers x {VECTORS} doorbells"
        ours, other = results[f"ours {count}"], results[f"other {count}"]
        report.add(Row.against(f"{what}: joined", "s", column(ours, "seconds"), column(other, "seconds")))
        cost, plain = column(ours, "per_message"), column(other, "per_message")
        report.add(Row.against(f"{what}: a message, CPU time", "us", cost, plain))
        if count > counts[0]:
            first, first_plain = (column(results[f"{side} {counts[0]}"], "per_message") for side in ("ours", "other"))
            report.add(Row.against(f"{what}: against {counts[0]} peers, ours", "us", cost, first, 1.2))
            report.add(Row.against(f"{what}: against {counts[0]} peers, by hand", "us", plain, first_plain))


def benchmark(options: Options, report: Report) -> None:
    """Rings first, then joins."""
    resource.setrlimit(resource.RLIMIT_NOFILE, (resource.getrlimit(resource.RLIMIT_NOFILE)[1],) * 2)
    others, our = two_cpus()
    os.sched_setaffinity(0, {our})
    with region(options, others) as server:
        asyncio.run(rings(server, options, report))
    crowds(options, report, others)


if __name__ == "__main__":
    main("client", benchmark, rounds=7)
