# SPDX-FileCopyrightText: 2026 The doorbelld authors
# SPDX-License-Identifier: GPL-2.0-or-later
"""Fuzzing for a while (DOORBELLD_FUZZ_SECONDS for each target), and what it has found so far.

The corpus is replayed first, without a fuzzer, wherever the sanitizers are; then libFuzzer begins with it. Inputs that
break something are kept in ``build/fuzz``, and the failure says how to run them again.
"""

from __future__ import annotations

import os
import platform
import shutil
import sys
from pathlib import Path

import pytest
from doorbelld.ring.errors import BROKEN
from fuzz import runner
from fuzz.depth import Depth
from fuzz.targets import NAMES

SECONDS = 20
_HAS_ATHERIS = sys.version_info < (3, 14) and platform.machine() == "x86_64"
"""Whether there is a wheel of the version that pyproject.toml names."""


@pytest.fixture
def atheris() -> None:
    if runner.can_fuzz():
        return
    if _HAS_ATHERIS and os.environ.get("DOORBELLD_TEST_REQUIRE") == "all":
        pytest.fail("atheris is missing: install the extra 'dev'")
    pytest.skip("there is no atheris for this interpreter and machine")


def ways_to_break() -> set[str]:
    """All that a driver can do wrong with a ring, as `Depth` writes it down."""
    depth = Depth()
    for reason in BROKEN[1:-1]:  # the first is none; for the last one memory would have to run out
        depth.note(f"python: {reason.format(7)}")
    return set(depth.reached)


REACHED = {
    "stream": {
        *(f"served: {device}" for device in ("echo", "inband", "blk", "rng")),
        "gone: it closed its connection",
        "gone: it closed its connection in the middle of a message",
        "broken: a header: N descriptors so far, at most N come with a message",
        "refused: SET_MEM_TABLE: memory regions N+N and N+N overlap",
        "refused: VRING_KICK: INBAND_NOTIFICATIONS was not negotiated",
    },
    "chains": {
        *ways_to_break(),
        *(f"{device}: served" for device in ("python", "echo", "blk", "rng")),
        "python: guest memory at N and above is gone: its file was truncated, or has no pages left",
    },
    "disk": {
        *(f"inline: {kind}: OK" for kind in ("IN", "OUT", "FLUSH", "GET_ID", "DISCARD", "WRITE_ZEROES")),
        *(f"inline: {kind}: IOERR" for kind in ("IN", "OUT", "DISCARD", "WRITE_ZEROES")),
        *(f"inline: {kind}: UNSUPP" for kind in ("DISCARD", "WRITE_ZEROES")),
        "memory: DISCARD: UNSUPP",
        "read-only: OUT: IOERR",
    },
}


@pytest.mark.parametrize("target", NAMES)
def test_the_corpus_holds_and_gets_as_far_as_ever(target: str) -> None:
    done = runner.replay(target, runner.inputs(target))
    assert done.good, done.output[-8000:]
    assert REACHED[target] - done.reached.keys() == set()


@pytest.mark.parametrize("target", NAMES)
def test_nothing_new_is_found(target: str, atheris: None) -> None:
    folder = runner.WORK / "test" / target
    shutil.rmtree(folder / "corpus", ignore_errors=True)
    done = runner.fuzz(target, runner.seconds_wanted(SECONDS), folder)
    assert done.good, done.output[-8000:]
    assert done.runs >= len(runner.inputs(target))


def test_an_error_that_was_planted_is_found_and_comes_again(tmp_path: Path, atheris: None) -> None:
    found = runner.fuzz("planted", 300, tmp_path)
    assert not found.good and "heap-buffer-overflow" in found.output
    (crash,) = tmp_path.glob("crash-*")
    assert f"fuzz replay planted {os.path.relpath(crash, runner.WORK.parents[1])}" in found.output
    again = runner.replay("planted", [crash])
    assert not again.good and "heap-buffer-overflow" in again.output
    assert runner.replay("planted", []).good
