# SPDX-FileCopyrightText: 2026 The doorbelld authors
# SPDX-License-Identifier: GPL-2.0-or-later
from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Iterator
from typing import Any

import pytest
from doorbelld.ctl import top

FRAME: dict[str, Any] = {
    **{"version": "1", "pid": 7, "cpu-percent": None, "memory": None, "descriptors": {"limit": 9, "in-use": 1}},
    **{"regions": {}, "devices": {}},
}


async def test_the_terminal_is_given_back_while_somebody_types_a_password(monkeypatch: pytest.MonkeyPatch) -> None:
    taken: list[bool] = []

    @contextlib.contextmanager
    def keys(_: object) -> Iterator[None]:
        taken.append(True)
        yield
        taken.append(False)

    monkeypatch.setattr(top, "_keys", keys)
    task = asyncio.current_task()
    assert task is not None
    with top.FullScreen(1.0, task) as screen:
        assert taken == []
        screen.leave()  # the very first call wants a password
        screen.show(FRAME)
        screen.show(FRAME)
        assert taken == [True]
        screen.leave()
        assert taken == [True, False]
        screen.gone()
        assert taken == [True, False, True]
    assert taken == [True, False, True, False]
