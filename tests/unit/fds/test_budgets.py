# SPDX-FileCopyrightText: 2026 The doorbelld authors
# SPDX-License-Identifier: GPL-2.0-or-later
"""Budgets count what each user has, say no with a key, and get everything back."""

from __future__ import annotations

import os
import socket

import pytest
from doorbelld.errors import LimitExceeded
from doorbelld.fds import eventfd
from doorbelld.fds.budgets import (
    DEVICE_COST,
    NO_LIMIT,
    QUEUE_COST,
    WINDOW_MAX,
    WINDOW_MIN,
    Account,
    Budgets,
    LimitsSpec,
    narrow,
    show_bytes,
)

GIB = 1 << 30
USER, OTHER, ROOT = 1 << 20, (1 << 20) + 1, 0


@pytest.fixture
def told() -> list[tuple[str, str, str]]:
    return []


@pytest.fixture
def budgets(told: list[tuple[str, str, str]]) -> Budgets:
    made = Budgets(lambda *what: told.append(what))
    made.change(LimitsSpec(guest_memory=10 * GIB, device_memory=6 * GIB, connections=20, user_share=50))
    return made


def test_a_user_has_its_share_and_root_the_rest(budgets: Budgets, told: list[tuple[str, str, str]]) -> None:
    user, other, root = (Account(budgets, uid, "disk") for uid in (USER, OTHER, ROOT))
    user.hold_memory(5 * GIB)
    with pytest.raises(LimitExceeded, match=rf"uid {USER} has 5G and may have 5G \(50 % of 10G, limits.user-share\)"):
        user.hold_memory(5 * GIB + 1)
    other.hold_memory(GIB)
    root.hold_memory(4 * GIB)
    with pytest.raises(LimitExceeded, match=rf"10G of 10G is in use, 5G of it by uid {USER}, .* raise limits.guest"):
        root.hold_memory(4 * GIB + 1)
    assert [(name, key) for name, _, key in told] == [
        ("guest-memory", "limits.user-share"),
        ("guest-memory", "limits.guest-memory"),
    ]
    assert budgets.show(0)["guest-memory"] == (10 * GIB, 10 * GIB, 2)


def test_a_device_has_its_own_limit_that_holds_for_root(budgets: Budgets) -> None:
    with pytest.raises(LimitExceeded, match=r'device "disk" shares 6.5G, and may 6G; raise limits.device-memory'):
        Account(budgets, ROOT, "disk").hold_memory(6 * GIB + GIB // 2)
    assert budgets.memory.used == 0


def test_what_is_refused_changes_nothing_and_what_is_closed_is_free(budgets: Budgets) -> None:
    account = Account(budgets, USER, "demo")
    account.hold("connections", 10)
    with pytest.raises(LimitExceeded):
        account.hold("connections", 11)
    assert budgets.connections.users == {USER: 10}
    account.hold("connections", 3)
    account.count("connections", 90)  # it is there, whatever the limit
    assert budgets.connections.used == 93
    account.close()
    account.close()
    assert (budgets.connections.used, budgets.connections.users) == (0, {})


def test_who_has_more_than_a_new_limit_keeps_it_and_may_have_less(budgets: Budgets) -> None:
    account = Account(budgets, ROOT, "disk")
    account.hold_memory(6 * GIB)
    budgets.change(LimitsSpec(guest_memory=GIB, device_memory=GIB))
    account.hold_memory(6 * GIB)
    account.hold_memory(5 * GIB)
    with pytest.raises(LimitExceeded):
        account.hold_memory(6 * GIB)


@pytest.mark.parametrize(("max_peers", "most"), [(1, 1), (9, 9), (10, 9), (1024, 922)])
def test_small_regions_have_no_reserve(max_peers: int, most: int) -> None:
    assert Budgets().peers_of_a_user(max_peers) == most


def test_descriptors_are_kept_for_devices(budgets: Budgets, told: list[tuple[str, str, str]]) -> None:
    budgets.reserve(1000, 40, 2, 5)
    kept = 2 * DEVICE_COST + 5 * QUEUE_COST
    assert (budgets.descriptors_end, budgets.descriptors.limit) == (1000 - kept, 1000 - kept - 40)
    budgets.reserve(100, 40, 50, 500)
    assert budgets.descriptors_end == 50  # never more than half
    before = len(os.listdir("/proc/self/fd"))
    budgets.for_newcomer(eventfd.make(2)).close()
    budgets.descriptors_end = 3
    with pytest.raises(OSError, match="the last ones are for devices"):
        budgets.for_newcomer(eventfd.make(2))
    assert len(os.listdir("/proc/self/fd")) == before
    assert [key for *_, key in told] == ["LimitNOFILE="]


def test_windows_shrink_and_fit_the_limit(budgets: Budgets) -> None:
    assert budgets.window(USER) == 0
    budgets.in_flight.limit = 1 << 16
    assert (budgets.window(ROOT), budgets.window(USER)) == (WINDOW_MAX, WINDOW_MAX)
    account, given = Account(budgets, ROOT, "demo"), []
    while budgets.in_flight.why_not(ROOT, window := budgets.window(ROOT)) is None:
        account.count("in-flight", window)
        given.append(window)
    assert given == sorted(given, reverse=True) and given[-1] == WINDOW_MIN and len(given) > 400
    account.close()
    budgets.in_flight.limit = NO_LIMIT
    assert budgets.window(ROOT) == 0


@pytest.mark.parametrize("window", [WINDOW_MIN, 20, 100])
def test_a_narrow_socket_takes_no_more_than_its_window(window: int) -> None:
    ours, theirs = socket.socketpair()
    with ours, theirs:
        ours.setblocking(False)
        narrow(ours, window)
        taken = 0
        with pytest.raises(BlockingIOError):
            while True:
                socket.send_fds(ours, [b"8 bytes."], [0])
                taken += 1
        assert taken == window


@pytest.mark.parametrize(
    ("amount", "words"), [(0, "0"), (1023, "1023"), (1536, "1.5K"), (4 << 40, "4T"), ((4 << 40) + 1, "4T")]
)
def test_bytes_in_words(amount: int, words: str) -> None:
    assert show_bytes(amount) == words
