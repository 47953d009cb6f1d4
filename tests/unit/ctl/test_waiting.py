# SPDX-FileCopyrightText: 2026 The doorbelld authors
# SPDX-License-Identifier: GPL-2.0-or-later
from __future__ import annotations

from doorbelld.ctl.waiting import Rings, Tally
from hypothesis import given
from hypothesis import strategies as st

VECTORS = 3


def test_what_was_there_before_does_not_count() -> None:
    tally = Tally()
    tally.see([5, 0])
    assert tally.take() is None
    tally.see([5, 2])
    assert tally.take() == Rings(1, 2, 2)
    assert tally.take() is None


def test_rings_add_up_until_they_are_taken() -> None:
    tally = Tally()
    for total in (0, 1, 4):
        tally.see([total])
    assert tally.take() == Rings(0, 4, 4)


def test_one_vector_only() -> None:
    tally = Tally(1)
    tally.see([0, 0])
    tally.see([9, 1])
    assert tally.take() == Rings(1, 1, 1)
    assert tally.take() is None


def test_fewer_than_wanted_stay() -> None:
    tally = Tally()
    tally.see([0, 0])
    tally.see([2, 3])
    assert tally.take(3) == Rings(1, 3, 3)
    tally.see([3, 3])
    assert tally.take(3) == Rings(0, 3, 3)


def test_after_a_total_that_was_told() -> None:
    tally = Tally(0, after=4)
    tally.see([7, 9])
    assert tally.take() == Rings(0, 3, 7)
    tally = Tally(0, after=4)
    tally.see([4, 9])
    assert tally.take() is None
    restarted = Tally(0, after=40)
    restarted.see([2, 0])
    assert restarted.take() == Rings(0, 2, 2)


def test_a_region_made_anew_in_another_shape() -> None:
    tally = Tally()
    tally.see([5, 5])
    tally.see([6, 5])
    tally.see([1])
    assert tally.take() == Rings(0, 2, 1)
    assert tally.take() is None


def test_a_client_that_gets_its_vectors_one_by_one() -> None:
    tally = Tally()
    for totals in ([], [0], [0, 0], [2, 0, 0]):
        tally.see(totals)
    assert tally.take() == Rings(0, 2, 2)
    tally.see([2, 0, 5, 1])
    assert (tally.take(), tally.take()) == (Rings(2, 5, 5), Rings(3, 1, 1))
    fresh = Tally(1, after=4)
    fresh.see([])
    fresh.see([0, 0])
    assert fresh.take() is None


ring = st.tuples(st.integers(0, VECTORS - 1), st.integers(1, 9))


@given(st.lists(st.one_of(ring, st.sampled_from(["look", "take", "keep", "reset"])), max_size=60))
def test_nothing_is_lost_or_doubled(steps: list[tuple[int, int] | str]) -> None:
    """Against a daemon that is restarted: with its totals kept, or (when all of them had been seen) from nothing."""
    totals, rung, told = [0] * VECTORS, [0] * VECTORS, [0] * VECTORS
    tally = Tally()
    tally.see(totals)

    def take() -> None:
        while (rings := tally.take()) is not None:
            told[rings.vector] += rings.count

    for step in [*steps, "look", "take"]:
        match step:
            case (int(vector), int(count)):
                totals[vector] += count
                rung[vector] += count
            case "look":
                tally.see(totals)
            case "take":
                take()
            case "reset":
                tally.see(totals)
                totals = [0] * VECTORS
                tally.see(totals)
    assert told == rung
