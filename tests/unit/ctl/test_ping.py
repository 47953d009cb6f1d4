# SPDX-FileCopyrightText: 2026 The doorbelld authors
# SPDX-License-Identifier: GPL-2.0-or-later
from __future__ import annotations

from doorbelld.ctl.bench import rows, summary
from doorbelld.ctl.ping import LoopGuess, Tally, percentile
from hypothesis import given
from hypothesis import strategies as st

TIMES = st.lists(st.integers(1, 10**9), min_size=1)


@given(TIMES, st.floats(0.01, 1))
def test_a_percentile_is_the_least_that_so_many_do_not_exceed(times: list[int], share: float) -> None:
    ordered = sorted(times)
    found = percentile(ordered, share)
    assert found in ordered
    assert sum(time <= found for time in ordered) >= share * len(ordered) - 1e-6
    smaller = [time for time in ordered if time < found]
    assert len(smaller) < share * len(ordered) + 1e-6


@given(TIMES, st.integers(0, 5))
def test_pings_add_up(times: list[int], lost: int) -> None:
    found = Tally(len(times) + lost, times).summary()
    assert (found["sent"], found["answered"], found["lost"]) == (len(times) + lost, len(times), lost)
    assert found["min-us"] <= found["avg-us"] <= found["max-us"]
    assert found["min-us"] <= found["p99-us"] <= found["max-us"]
    assert found["min-us"] == round(min(times) / 1000, 1)


def test_nothing_came_back() -> None:
    found = Tally(3).summary()
    assert (found["answered"], found["lost"], found["min-us"], found["avg-us"]) == (0, 3, None, None)


def test_the_table_has_what_was_measured() -> None:
    trip = summary([3000, 1000, 2000])
    assert trip == {"count": 3, "min-us": 1.0, "p50-us": 2.0, "p99-us": 3.0}
    bells = {"rings-per-second": 1_234_567, "round-trip": trip}
    made = {
        "direct": bells,
        "relayed": None,
        "notify": {"per-second": 10_000, **trip},
        "memory": {"out-per-second": 12_340_000_000, "in-per-second": None},
    }
    few = list(rows(made))
    assert ["ring and be rung back", "", 1.0, 2.0, 3.0] in few
    assert ["copy out of the shared memory", "12.3 GB/s", "", "", ""] in few
    assert not any("into" in str(row[0]) or "relayed" in str(row[0]) for row in few)
    assert len(list(rows({**made, "relayed": bells}))) == len(few) + 2
    assert {len(row) for row in few} == {5}


def test_many_rings_for_seconds_look_like_a_loop_once() -> None:
    guess = LoopGuess(0.0)
    assert [guess.see(20_000, at) for at in (1.0, 2.0, 2.9)] == [0.0] * 3
    assert guess.see(20_000, 4.0) == 20_000.0
    assert [guess.see(20_000, at) for at in (5.0, 8.0, 11.0)] == [0.0] * 3


def test_few_rings_or_a_burst_look_like_no_loop() -> None:
    guess = LoopGuess(0.0)
    assert [guess.see(900, float(at)) for at in range(1, 20)] == [0.0] * 19
    assert guess.see(2_000, 30.0) == 0.0
