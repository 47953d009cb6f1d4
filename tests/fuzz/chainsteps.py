# SPDX-FileCopyrightText: 2026 The doorbelld authors
# SPDX-License-Identifier: GPL-2.0-or-later
"""The steps of the target ``chains``: each takes the run and at least nine bytes that say how."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable

from doorbelld.ring.errors import QueueBroken, QueueError, StaleChain

from .chains import RING_AT, Popped, Run
from .image import SIZE
from .oracle import LAP, Walk

COMPARED_MAX = 1 << 20
"""Bytes of a chain that are compared; a chain may have the same memory in it a thousand times."""
AS_WRITTEN = 0xFFFF
"""Instead of a number: what `Chain.write` wrote."""
_REFUSALS = (QueueError, ValueError)


def _number(data: bytes, at: int) -> int:
    return int.from_bytes(data[at : at + 2], "little")


# What a driver does


def _descriptor(run: Run, data: bytes) -> None:
    """Write a descriptor: table, index, address (2), length (2), flags, next."""
    table, index = data[0] % 5, data[1]
    length = _number(data, 4)
    if length & 0x8000:
        length = min((1 << (length & 31)) + (length >> 5 & 0x3F), (1 << 32) - 1)
    following = 0xFFFF if data[7] == 0xFF else data[7]
    address = run.image.address(_number(data, 2), run.ring)
    raw = address.to_bytes(8, "little") + length.to_bytes(4, "little")
    raw += (data[6] & 0x0F).to_bytes(2, "little") + following.to_bytes(2, "little")
    if table:
        run.image.write(run.image.table(table - 1) + 16 * index, raw)
    else:
        run.image.poke(run.ring[0] + 16 * (index % run.num), raw)


def _table(run: Run, data: bytes) -> None:
    """Refer to an indirect table: index, which, descriptors, bytes more, flags."""
    length = 16 * data[2] + data[3] % 3
    raw = run.image.table(data[1]).to_bytes(8, "little") + length.to_bytes(4, "little")
    run.image.poke(run.ring[0] + 16 * (data[0] % run.num), raw + (4 | data[4] & 3).to_bytes(2, "little") + bytes(2))


def _available(run: Run, data: bytes) -> None:
    """Make a head available, and say so."""
    head = data[0] if data[1] == 0xFF else data[0] % run.num
    run.image.poke(run.ring[1] + 4 + 2 * (run.next % run.num), head.to_bytes(2, "little"))
    _index(run, b"\1")


def _index(run: Run, data: bytes) -> None:
    """Move the available index."""
    run.next = (run.next + int.from_bytes(data[:1], "little", signed=True)) % LAP
    run.image.poke(run.ring[1] + 2, run.next.to_bytes(2, "little"))


def _write(run: Run, data: bytes) -> None:
    """Write anything anywhere."""
    run.image.write(run.image.address(_number(data, 0), run.ring), data[2:])


def _event(run: Run, data: bytes) -> None:
    """Say when to be called."""
    if run.oracle.event_idx:
        event = (run.oracle.used_idx + int.from_bytes(data[:1], "little", signed=True)) % LAP
        run.image.poke(run.ring[1] + 4 + 2 * run.num, event.to_bytes(2, "little"))
    else:
        run.image.poke(run.ring[1], (data[0] & 1).to_bytes(2, "little"))


def _memory(run: Run, data: bytes) -> None:
    """Change the memory table: take a region away and maybe put it back, the same again, or another layout."""
    run.detach()
    regions = run.image.ought.regions
    if data[0] % 4 == 0 and regions:
        gone = regions[data[1] % len(regions)]
        run.image.remove(gone)
        if data[2] & 1:
            run.image.add(gone)
    elif data[0] % 4 == 1:
        run.image.set(regions)
    else:
        run.image.change(data[1])
    run.relocate()


def _truncate(run: Run, data: bytes) -> None:
    """Truncate the file; from now on nothing is sure but that we survive."""
    run.exact = False
    run.image.truncate(int.from_bytes(data[:3], "little") % SIZE)


# What a device in Python does


def _try(run: Run, refusal: type[Exception] | None, step: Callable[[], object]) -> bool:
    """Do a step that ought to raise *refusal*, or not; whether it was done."""
    try:
        step()
    except _REFUSALS as error:
        assert not run.exact or (refusal is not None and isinstance(error, refusal)), f"{error!r}, not {refusal}"
        return False
    assert not run.exact or refusal is None, f"it was done, instead of {refusal}"
    return True


def _refusal(run: Run) -> type[Exception] | None:
    """Tell what a step raises that writes to the ring."""
    return QueueBroken if run.broken else None if run.alive else QueueError


def _chosen(run: Run, which: int) -> Popped | None:
    return run.out[which % len(run.out)] if run.out else None


def _pop(run: Run, data: bytes) -> None:
    found = run.next_walk() if run.exact else None
    queue = run.queue
    popped = []
    done = _try(run, QueueBroken if run.broken else None, lambda: popped.append(queue.pop()))
    chain = popped[0] if done else None
    assert not run.exact or (chain is None) == (found is None), f"popped {chain}, ought to be {found}"
    if chain is None:
        return
    if found is None:
        run.popped(chain, Walk(chain.head))
        return
    run.popped(chain, found)
    run.oracle.popped()
    said = chain.head, chain.readable_bytes, chain.writable_bytes, bool(chain.fault)
    assert said == (found.head, found.readable_bytes, found.writable_bytes, found.faulty), (said, found)
    for views, places in ((chain.readable, found.readable), (chain.writable, found.writable)):
        assert sum(map(len, views)) == sum(length for _, length in places)
        if found.readable_bytes + found.writable_bytes <= COMPARED_MAX:
            assert b"".join(views) == run.image.ought.read(places)


def _fill(run: Run, data: bytes) -> None:
    """Fill: which, how much is written (2), at which place."""
    if (popped := _chosen(run, data[0])) is None:
        return
    written, index = _number(data, 1), data[3] % (run.num + 2)
    refusal = _refusal(run)
    if refusal is None and (written > popped.walk.writable_bytes or index >= run.num or index in run.filled):
        refusal = ValueError
    if _try(run, refusal, lambda: run.queue.fill(popped.chain, written, index)):
        run.filled_with(popped, written, index)


def _flush(run: Run, data: bytes) -> None:
    count = data[0] % (run.num + 2)
    refusal = _refusal(run)
    if refusal is None and not run.filled.issuperset(range(count)):
        refusal = ValueError
    if _try(run, refusal, lambda: run.queue.flush(count)):
        run.flushed(count)


def _push(run: Run, data: bytes) -> None:
    """Push: which, how much is written (2)."""
    if (popped := _chosen(run, data[0])) is None:
        return
    said = _number(data, 1)
    written = popped.chain.written if said == AS_WRITTEN else said
    refusal = ValueError if run.filled else _refusal(run)
    if refusal is None and written > popped.walk.writable_bytes:
        refusal = ValueError
    if _try(run, refusal, lambda: run.queue.push(popped.chain, None if said == AS_WRITTEN else said)):
        run.filled_with(popped, written, 0)
        run.flushed(1)


def _unpop(run: Run, data: bytes) -> None:
    if (popped := _chosen(run, data[0])) is None:
        return
    refusal = _refusal(run)
    if refusal is None and popped is not run.order[-1]:
        refusal = ValueError
    if _try(run, refusal, lambda: run.queue.unpop(popped.chain)):
        run.put_back(1)


def _rewind(run: Run, data: bytes) -> None:
    count = data[0] % (run.num + 2)
    said: list[bool] = []
    if _try(run, _refusal(run), lambda: said.append(run.queue.rewind(count))):
        assert not run.exact or said == [run.can_put_back(count)]
        if said == [True]:
            run.put_back(count)


def _avail_bytes(run: Run, data: bytes) -> None:
    enough = data[0] << data[1] % 32, data[2] << data[3] % 32
    ought = run.measure(*enough) if run.exact else None
    said: list[tuple[int, int]] = []
    if _try(run, QueueBroken if run.broken else None, lambda: said.append(run.queue.avail_bytes(*enough))):
        assert not run.exact or said == [ought]


def _set_notification(run: Run, data: bytes) -> None:
    wanted = bool(data[0] & 1)
    ought = False
    run.oracle.notification = wanted
    if run.exact and run.alive:
        run.oracle.set_notification(wanted)
        ought = wanted and run.learn(run.oracle.available())
    assert run.queue.set_notification(wanted) == ought or not run.exact


def _notify(run: Run, data: bytes) -> None:
    ought = run.decide() if run.exact else False
    assert run.queue.notify() == ought or not run.exact
    with contextlib.suppress(BlockingIOError):
        os.eventfd_read(run.call)


def _empty(run: Run, data: bytes) -> None:
    ought = not (run.exact and run.alive and run.learn(run.oracle.available()))
    assert run.queue.empty() == ought or not run.exact


def _stale(run: Run, popped: Popped) -> type[Exception] | None:
    """Tell what the use of a chain's buffers raises."""
    return StaleChain if popped.changes != run.changes else None


def _read_chain(run: Run, data: bytes) -> None:
    """Read: which, how much (2)."""
    if (popped := _chosen(run, data[0])) is None:
        return
    said: list[bytes] = []
    length = _number(data, 1)
    if _try(run, _stale(run, popped), lambda: said.append(popped.chain.read(length))) and run.exact:
        assert said == [run.image.ought.read(_cut(popped.walk.readable, popped.taken, length))]
        popped.taken += len(said[0])


def _write_chain(run: Run, data: bytes) -> None:
    """Write: which, and what."""
    if (popped := _chosen(run, data[0])) is None:
        return
    before, left = popped.chain.written, data[1:]
    if _try(run, _stale(run, popped), lambda: popped.chain.write(left)) and run.exact:
        places = _cut(popped.walk.writable, before, len(left))
        assert popped.chain.written - before == sum(length for _, length in places)
        for at, length in places:
            run.image.ought.put(at, left[:length])
            left = left[length:]


def _cut(places: list[tuple[int, int]], skip: int, length: int) -> list[tuple[int, int]]:
    """Take *length* bytes, after the first *skip*, of some places."""
    taken = []
    for at, size in places:
        step = min(length, max(0, size - skip))
        if step:
            taken.append((at + skip, step))
        length -= step
        skip = max(0, skip - size)
    return taken


# Both


def _restart(run: Run, data: bytes) -> None:
    """Stop, and start: from another index (2), with another size, elsewhere."""
    run.stop()
    run.num = 1 << data[3] % 8 if data[0] & 2 else run.num
    base = _number(data, 1) if data[0] & 1 else run.queue.get_base()
    run.set_up(RING_AT + (data[4] if data[0] & 4 else 0), base)


def _serve(run: Run, data: bytes) -> None:
    """Have the device do all there is to do."""
    run.serve()


def _race(run: Run, data: bytes) -> None:
    """Have the device begin, and go on at once."""
    if run.device != "python" and run.queue.running:
        run.exact = False
        run.attach()
        os.eventfd_write(run.kick, 1)


def _python(step: Callable[[Run, bytes], None]) -> Callable[[Run, bytes], None]:
    """Do it only where the device is Python's."""

    def do(run: Run, data: bytes) -> None:
        if run.device == "python":
            step(run, data)

    return do


_DEVICE_STEPS = (_pop, _fill, _flush, _push, _unpop, _rewind, _avail_bytes, _set_notification, _notify, _empty)

STEPS: tuple[Callable[[Run, bytes], None], ...] = (
    *(_descriptor, _table, _available, _index, _write, _event, _memory, _truncate, _restart, _serve, _race),
    *map(_python, (*_DEVICE_STEPS, _read_chain, _write_chain)),
)
"""By their kinds."""
NAMES = tuple(
    step.__name__.strip("_")
    for step in (
        *(_descriptor, _table, _available, _index, _write, _event, _memory, _truncate, _restart, _serve, _race),
        *(*_DEVICE_STEPS, _read_chain, _write_chain),
    )
)
