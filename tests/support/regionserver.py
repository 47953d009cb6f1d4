# SPDX-FileCopyrightText: 2026 The doorbelld authors
# SPDX-License-Identifier: GPL-2.0-or-later
"""A region in a process of its own, under limits that a test could not live with.

``python regionserver.py JSON`` with ``spec`` (fields of RegionSpec), ``nofile`` (soft and hard limit) and ``uid``.
It answers each line of standard input with one line of JSON: ``stats`` at once, ``turns`` with the turns that the event
loop made in half a second from now. It ends with standard input.
"""

from __future__ import annotations

import asyncio
import json
import os
import resource
import sys

from doorbelld.fds.spare import Spare
from doorbelld.ivshmem.events import PeerAdded, PeerRefused, PeerRemoved
from doorbelld.ivshmem.region import Region
from doorbelld.ivshmem.spec import RegionSpec


async def main(options: dict) -> None:
    loop = asyncio.get_running_loop()
    turns = 0
    select = loop._selector.select

    def counted(timeout: float | None = None) -> list:
        nonlocal turns
        turns += 1
        return select(timeout)

    loop._selector.select = counted
    counts = {"PeerAdded": 0, "PeerRemoved": 0, "PeerRefused": 0}
    reasons: list[str] = []

    def emit(event: object) -> None:
        counts[type(event).__name__] += 1
        if isinstance(event, PeerRefused | PeerRemoved):
            reasons.append(event.reason)
        assert isinstance(event, PeerAdded | PeerRefused | PeerRemoved)

    spare = Spare()
    stdin = asyncio.StreamReader()
    await loop.connect_read_pipe(lambda: asyncio.StreamReaderProtocol(stdin), sys.stdin)
    if "uid" in options:
        os.setresuid(options["uid"], options["uid"], options["uid"])
    if "nofile" in options:
        resource.setrlimit(resource.RLIMIT_NOFILE, (options["nofile"], options["nofile"]))
    region = Region.open(RegionSpec(**options["spec"]), loop, emit, spare)

    def stats() -> dict:
        peers = region.peers.values()
        return {
            **counts,
            "reasons": reasons,
            "states": {peer.id: peer.state.name for peer in peers},
            "backlog": sum(peer.backlog for peer in peers),
        }

    print(json.dumps(stats()), flush=True)
    while line := await stdin.readline():
        answer = stats()
        if line == b"turns\n":
            before = turns
            await asyncio.sleep(0.5)
            answer = {"turns": turns - before}
        print(json.dumps(answer), flush=True)
    region.close()


if __name__ == "__main__":
    asyncio.run(main(json.loads(sys.argv[1])))
