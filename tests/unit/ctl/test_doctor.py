# SPDX-FileCopyrightText: 2026 The doorbelld authors
# SPDX-License-Identifier: GPL-2.0-or-later
"""What doctor makes of a daemon that is there, and answers with an error."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from types import SimpleNamespace
from typing import Any, NoReturn

import pytest
from doorbelld.bus.client import CallFailed
from doorbelld.ctl import doctor
from doorbelld.ctl.checks.view import Level

BUS = "unix:path=/nowhere/bus"


class Failing:
    """A session with a daemon on a bus of its own, whose Describe fails with the error *name*."""

    bus = BUS

    def __init__(self, name: str) -> None:
        self.error = CallFailed(name, "internal error; the daemon's log has it")

    def run(self, work: Callable[[Any], Awaitable[Any]]) -> Any:
        async def pid(*_: object) -> int:
            return 1

        async def describe() -> NoReturn:
            raise self.error

        client = SimpleNamespace(address=BUS, call_bus=pid)

        async def run() -> Any:
            return await work(SimpleNamespace(client=client, describe=describe))

        return asyncio.run(run())


@pytest.mark.parametrize(
    ("name", "found", "cure"),
    [
        ("org.freedesktop.DBus.Error.Failed", "the daemon answers with an error: internal error", "its log has"),
        ("org.doorbelld.Doorbell1.Error.AccessDenied", "the daemon does not talk to you", "ask as root"),
        ("org.freedesktop.DBus.Error.InteractiveAuthorizationRequired", "does not talk to you", "ask as root"),
    ],
)
def test_an_error_of_the_daemon_is_no_refusal_and_no_matter_of_the_system_bus(name: str, found: str, cure: str) -> None:
    view = doctor._look(Failing(name))  # type: ignore[arg-type]
    assert view.address == BUS and not view.on_system_bus
    findings = {title: finding for title, finding in doctor.examine(view)}
    assert findings["daemon"].level is Level.WRONG
    assert found in findings["daemon"].found and cure in findings["daemon"].cure
    for title in ("bus policy", "activation", "polkit"):
        assert findings[title].level is Level.SKIPPED
