# SPDX-FileCopyrightText: 2026 The doorbelld authors
# SPDX-License-Identifier: GPL-2.0-or-later
"""Work for a Linux guest's disk: a random but repeatable mix of operations, and what they must come to.

Theory of operation: a plain Python model of the disk's content goes through the same steps as a shell script for the
guest (busybox, and `disk` of support.guest). Where the script reads, it prints a checksum, which the model knows too.
At the end the host compares the image with the model, byte by byte. Works on distinct areas of a disk may run at once.
"""

from __future__ import annotations

import hashlib
import random
from dataclasses import dataclass

_STEP = 4096
_MOST = 96
"""Steps of `_STEP` bytes that an operation takes at most."""


@dataclass(frozen=True)
class DiskWork:
    """Some work, and its outcome."""

    script: str
    """For ``sh -e``."""
    said: list[str]
    """What the script prints, line by line."""
    content: bytes
    """What is in the area afterwards."""


def disk_work(content: bytes, device: str, *, seed: int, start: int = 0, steps: int = 40) -> DiskWork:
    """Make work for the area of the disk *device* from *start* on that holds *content* now."""
    chance = random.Random(seed)
    model = bytearray(content)
    script: list[str] = []
    said: list[str] = []

    def area() -> tuple[int, int]:
        length = chance.randint(1, _MOST) * _STEP
        return chance.randrange(0, len(model) - length + 1, _STEP), length

    def flags(direction: str, place: str) -> str:
        return f"{direction}={','.join(['direct', place] if chance.random() < 0.7 else [place])}"

    for step in range(steps):
        block = chance.choice([512, 4096, 12288, 65536, 1 << 20])
        at, length = area()
        kind = chance.choice(["read", "read", "copy", "copy", "zero", "discard"]) if step else "read"
        source = f"dd if={device} bs={block} count={length} status=none"
        if kind == "read":
            flag = flags("iflag", "count_bytes,skip_bytes")
            script.append(f"{source} {flag} skip={start + at} | sha256sum | cut -c-64")
            said.append(hashlib.sha256(model[at : at + length]).hexdigest())
        elif kind == "copy":
            into, _ = area()
            length = min(length, len(model) - into, abs(into - at) or length)
            source = f"dd if={device} bs={block} count={length} status=none"
            skip, seek = flags("iflag", "count_bytes,skip_bytes"), flags("oflag", "seek_bytes")
            flush = chance.choice(["notrunc", "notrunc,fsync"])
            script.append(f"{source} {skip} skip={start + at} of={device} {seek} seek={start + into} conv={flush}")
            model[into : into + length] = model[at : at + length]
        else:
            script.append(f"disk {kind} {device} {start + at} {length}")
            model[at : at + length] = bytes(length)
    script.append("sync")
    return DiskWork("\n".join(script), said, bytes(model))
