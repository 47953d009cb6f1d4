# SPDX-FileCopyrightText: 2026 The doorbelld authors
# SPDX-License-Identifier: GPL-2.0-or-later
"""Where threads run out, each call is made once, and only for who waits for it."""

from __future__ import annotations

import threading

import pytest
from doorbelld.fds.executor import SteadyExecutor


def no_thread(self: threading.Thread) -> None:
    raise RuntimeError("can't start new thread")


def test_without_further_threads_calls_wait_for_the_first(monkeypatch: pytest.MonkeyPatch) -> None:
    held, made = threading.Event(), list[int]()
    with SteadyExecutor(lambda: None) as executor:
        monkeypatch.setattr(threading.Thread, "start", no_thread)
        executor.submit(held.wait)
        calls = [executor.submit(made.append, number) for number in range(3)]
        assert made == []
        held.set()
        for call in calls:
            call.result(10)
    assert made == [0, 1, 2]


def test_without_any_thread_there_is_no_executor(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(threading.Thread, "start", no_thread)
    with pytest.raises(RuntimeError, match="can't start new thread"):
        SteadyExecutor(lambda: None)
