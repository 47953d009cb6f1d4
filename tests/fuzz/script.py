# SPDX-FileCopyrightText: 2026 The doorbelld authors
# SPDX-License-Identifier: GPL-2.0-or-later
"""Inputs as lists of steps, and how they are mutated.

A step is one byte that says its kind, one that counts the descriptors that go with it, one byte for the kind of each of
those, two bytes for the length of its data, and the data. Any bytes at all are a list of steps: what is missing at the
end is taken to be empty. What the steps mean is the target's affair.

Mutating bytes at random would shift all that follows, and mostly give steps that are none. So libFuzzer is given a
mutator of ours: it turns one step into another by libFuzzer's own means, or by a number that means something, or
repeats, drops, moves and swaps whole steps.
"""

from __future__ import annotations

import random
import struct
from collections.abc import Callable, Sequence
from typing import NamedTuple

FDS_MAX = 15
STEPS_MAX = 96
_NUMBERS = (0, 1, 2, 3, 4, 7, 8, 15, 16, 31, 64, 255, 256, 4095, 4096, 0x7FFF, 0x8000, 0xFFFF, 1 << 31, (1 << 32) - 1)
_NUMBERS_64 = (*_NUMBERS, 1 << 32, 1 << 63, (1 << 64) - 1, (1 << 64) - 4096)


class Step(NamedTuple):
    """One thing to do."""

    kind: int
    data: bytes = b""
    fds: bytes = b""
    """Kinds of descriptors."""


def parse(raw: bytes) -> list[Step]:
    """Read a list of steps; never fails."""
    steps: list[Step] = []
    at = 0
    while at < len(raw) and len(steps) < STEPS_MAX:
        count = raw[at + 1] & FDS_MAX if at + 1 < len(raw) else 0
        fds = raw[at + 2 : at + 2 + count]
        length = int.from_bytes(raw[at + 2 + count : at + 4 + count], "little")
        start = at + 4 + count
        steps.append(Step(raw[at], raw[start : start + length], fds))
        at = start + length
    return steps


def build(steps: Sequence[Step]) -> bytes:
    """Write a list of steps."""
    return b"".join(
        bytes([step.kind, len(step.fds)]) + step.fds + struct.pack("<H", len(step.data)) + step.data for step in steps
    )


def mutate(raw: bytes, size: int, seed: int, blind: Callable[[bytes, int], bytes], kinds: int) -> bytes:
    """Make another input of at most *size* bytes; *blind* is libFuzzer's mutation, *kinds* how many kinds there are."""
    dice = random.Random(seed)
    steps = parse(raw)
    for _ in range(dice.choice((1, 1, 1, 2, 4))):
        if not steps or dice.random() < 0.05:
            steps = parse(blind(build(steps), size))
        else:
            _change(steps, dice, blind, kinds)
    made = build(steps[:STEPS_MAX])
    return made if len(made) <= size else made[:size]


def cross(one: bytes, other: bytes, size: int, seed: int) -> bytes:
    """Make one input of two: a piece of the other one's steps comes into the first."""
    dice = random.Random(seed)
    steps, donor = parse(one), parse(other)
    start = dice.randint(0, len(donor))
    at = dice.randint(0, len(steps))
    steps[at : at + dice.choice((0, 0, 1, 2))] = donor[start : start + dice.randint(1, 6)]
    return build(steps[:STEPS_MAX])[:size]


def _change(steps: list[Step], dice: random.Random, blind: Callable[[bytes, int], bytes], kinds: int) -> None:
    at = dice.randrange(len(steps))
    step = steps[at]
    what = dice.random()
    if what < 0.3:
        steps[at] = step._replace(data=blind(step.data, len(step.data) + 64)[:0xFFFF])
    elif what < 0.55:
        steps[at] = step._replace(data=_renumber(step.data, dice, steps))
    elif what < 0.65:
        steps.insert(dice.randint(0, len(steps)), step)
    elif what < 0.75:
        del steps[at]
    elif what < 0.85:
        other = dice.randrange(len(steps))
        steps[at], steps[other] = steps[other], steps[at]
    elif what < 0.9:
        steps[at] = step._replace(kind=dice.randrange(kinds))
    elif what < 0.95:
        steps.insert(at, Step(dice.randrange(kinds), dice.randbytes(dice.choice((0, 1, 2, 4, 8)))))
    else:
        fds = bytearray(step.fds)
        if fds and dice.random() < 0.5:
            fds[dice.randrange(len(fds))] = dice.randrange(16)
        elif fds and dice.random() < 0.5:
            del fds[dice.randrange(len(fds))]
        else:
            fds += bytes(dice.randrange(16) for _ in range(dice.choice((1, 1, 1, 8))))
        steps[at] = step._replace(fds=bytes(fds[:FDS_MAX]))


def _renumber(data: bytes, dice: random.Random, steps: Sequence[Step]) -> bytes:
    """Put another number into an aligned place of *data*: a remarkable one, its neighbour, or one from elsewhere."""
    width = dice.choice((1, 2, 4, 8))
    if len(data) < width:
        return data + dice.randbytes(width)
    at = dice.randrange(len(data) // width) * width
    mask = (1 << 8 * width) - 1
    now = int.from_bytes(data[at : at + width], "little")
    how = dice.random()
    if how < 0.4:
        now = dice.choice(_NUMBERS_64 if width == 8 else _NUMBERS)
    elif how < 0.7:
        now += dice.choice((-16, -4, -1, 1, 4, 16, 4096, -4096))
    elif how < 0.8:
        now ^= 1 << dice.randrange(8 * width)
    else:
        other = dice.choice(steps).data
        if len(other) >= width:
            there = dice.randrange(len(other) // width) * width
            now = int.from_bytes(other[there : there + width], "little")
    return data[:at] + (now & mask).to_bytes(width, "little") + data[at + width :]
