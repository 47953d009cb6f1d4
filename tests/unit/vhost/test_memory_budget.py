# SPDX-FileCopyrightText: 2026 The doorbelld authors
# SPDX-License-Identifier: GPL-2.0-or-later
"""Guest memory for which there is no room is refused, and the front-end that shared it goes on with what it has."""

from __future__ import annotations

import pytest
from doorbelld.fds.budgets import LimitsSpec
from doorbelld.vhost.frontend import GUEST_BASE, USER_BASE, Frontend
from doorbelld.vhost.session import Session
from doorbelld.wire.vhost_messages import MemoryRegion, MemoryTable, SingleMemoryRegion
from doorbelld.wire.vhost_requests import FrontendRequest as R
from support.devicesite import DeviceSite


def region(f: Frontend, slots: int, size: int = 1 << 20) -> MemoryRegion:
    """A part of the front-end's file at some other place."""
    return MemoryRegion(GUEST_BASE + (slots << 30), size, USER_BASE + (slots << 30), 0)


def test_each_request_counts_what_is_mapped_after_it(site: DeviceSite) -> None:
    device, f = site.started()
    budgets, whole = device._budgets, f.size
    site.call(lambda: budgets.change(LimitsSpec(device_memory=3 * whole)))
    assert budgets.memory.used == whole
    for number in (1, 2):
        f.tell(R.ADD_MEM_REG, SingleMemoryRegion(region(f, number, whole)), [f.memfd.fileno()])
        assert budgets.memory.used == (number + 1) * whole
    assert f.try_to_tell(R.ADD_MEM_REG, SingleMemoryRegion(region(f, 3, 4096)), [f.memfd.fileno()]) != 0
    table = MemoryTable(tuple(region(f, number, whole) for number in range(4)))
    assert f.try_to_tell(R.SET_MEM_TABLE, table, [f.memfd.fileno()] * 4) != 0
    assert (budgets.memory.used, budgets.memory.refused) == (3 * whole, 2)
    assert f.request(f.queues[0], b"same", 4) == b"same"
    f.tell(R.REM_MEM_REG, SingleMemoryRegion(region(f, 1, whole)))
    assert budgets.memory.used == 2 * whole
    overlapping = MemoryTable((region(f, 5, whole), region(f, 5, whole)))
    assert f.try_to_tell(R.SET_MEM_TABLE, overlapping, [f.memfd.fileno()] * 2) != 0
    assert budgets.memory.used == 2 * whole
    f.close()
    site.wait(lambda: budgets.memory.used == 0)


def test_no_memory_for_a_mapping_refuses_that_request(site: DeviceSite, monkeypatch: pytest.MonkeyPatch) -> None:
    device, f = site.started()

    def fails(self: Session) -> int:
        raise MemoryError

    with monkeypatch.context() as patch:
        patch.setattr(Session, "_shared", fails)
        assert f.try_to_tell(R.ADD_MEM_REG, SingleMemoryRegion(region(f, 1)), [f.memfd.fileno()]) != 0
    assert f.request(f.queues[0], b"same", 4) == b"same"
    assert device.session is not None
