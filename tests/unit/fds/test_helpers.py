# SPDX-FileCopyrightText: 2026 The doorbelld authors
# SPDX-License-Identifier: GPL-2.0-or-later
from __future__ import annotations

import asyncio
import signal
import threading
from collections.abc import Iterator

import pytest
from doorbelld.fds.helpers import Helpers, HelperTimeout

LONG = 30.0
SHORT = 0.05


class Hanging:
    """Calls that hang until they are let go."""

    def __init__(self) -> None:
        self.gate = threading.Event()
        self.begun = threading.Semaphore(0)

    def __call__(self) -> str:
        self.begun.release()
        assert self.gate.wait(LONG)
        return "late"


@pytest.fixture
def hanging() -> Iterator[Hanging]:
    made = Hanging()
    yield made
    made.gate.set()


def test_result_and_error_arrive() -> None:
    async def run() -> None:
        helpers = Helpers()
        assert await helpers.run("a", lambda: 7, LONG) == 7
        with pytest.raises(ZeroDivisionError):
            await helpers.run("a", lambda: 1 // 0, LONG)
        assert await helpers.run("a", threading.get_ident, LONG) != threading.get_ident()

    asyncio.run(run())


def test_stuck_calls_delay_no_other_owner_and_are_bounded(hanging: Hanging) -> None:
    async def run() -> None:
        helpers = Helpers(per_owner=2, threads_max=5)
        late: list[str] = []
        stuck = [asyncio.ensure_future(helpers.run("bad", hanging, SHORT, late=late.append)) for _ in range(4)]
        others = [helpers.run(number, lambda: "fine", LONG) for number in range(20)]
        assert set(await asyncio.gather(*others)) == {"fine"}
        for one in stuck:
            with pytest.raises(HelperTimeout, match=r"no answer within 0.05 s"):
                await one
        assert helpers.stuck == 2
        with pytest.raises(HelperTimeout, match="earlier calls"):
            await helpers.run("bad", lambda: "never", LONG)
        helpers.forget("bad", lambda: late.append("never"))
        for owner in ("worse", "worst"):  # until no thread is left
            with pytest.raises(HelperTimeout):
                await asyncio.gather(*(helpers.run(owner, hanging, SHORT, late=late.append) for _ in range(2)))
        while helpers.stuck < 5:
            await asyncio.sleep(0)
        with pytest.raises(HelperTimeout, match="earlier calls"):
            await helpers.run("good", lambda: "never", LONG)
        hanging.gate.set()
        while helpers.stuck:
            await asyncio.sleep(0)
        assert await helpers.run("bad", lambda: "fine", LONG) == "fine"
        assert set(late) == {"late"}

    asyncio.run(run())


def test_calls_of_one_owner_take_turns(hanging: Hanging) -> None:
    async def run() -> None:
        helpers = Helpers(per_owner=1)
        first = asyncio.ensure_future(helpers.run("a", hanging, LONG))
        second = asyncio.ensure_future(helpers.run("a", lambda: hanging.gate.is_set(), LONG))
        assert await helpers.run("b", lambda: hanging.begun.acquire(timeout=LONG), LONG)
        assert not second.done()
        hanging.gate.set()
        assert (await first, await second) == ("late", True)

    asyncio.run(run())


def test_calls_that_never_begin_are_told_of(hanging: Hanging, monkeypatch: pytest.MonkeyPatch) -> None:
    async def run() -> None:
        helpers = Helpers(per_owner=1)
        ends: list[str] = []

        def submit(name: str) -> None:
            helpers.submit(
                "bad", hanging, SHORT, lambda result, error: ends.append(name), unbegun=lambda: ends.append("un" + name)
            )

        submit("first")
        submit("second")  # which waits for the first
        while len(ends) < 3:
            await asyncio.sleep(SHORT)
        assert ends == ["first", "unsecond", "second"]
        with pytest.raises(HelperTimeout):
            submit("third")
        assert ends[3:] == ["unthird"]

        def none(_: threading.Thread) -> None:
            raise RuntimeError("can't start new thread")

        with monkeypatch.context() as patch:
            patch.setattr(threading.Thread, "start", none)
            helpers = Helpers()
            with pytest.raises(HelperTimeout, match="no thread"):
                submit("fourth")
        assert ends[4:] == ["unfourth"]

    asyncio.run(run())


def test_cancelled_caller_releases_the_result(hanging: Hanging) -> None:
    async def run() -> None:
        helpers, late = Helpers(), asyncio.Event()
        caller = asyncio.ensure_future(helpers.run("a", hanging, LONG, late=lambda result: late.set()))
        assert await helpers.run("b", lambda: hanging.begun.acquire(timeout=LONG), LONG)
        caller.cancel()
        hanging.gate.set()
        await asyncio.wait_for(late.wait(), LONG)

    asyncio.run(run())


def test_what_nobody_waits_for_is_called_without_a_loop() -> None:
    done = threading.Event()
    Helpers().forget("a", done.set)
    assert done.wait(LONG)


def test_threads_take_no_signals_and_hold_up_no_end() -> None:
    def look() -> tuple[bool, bool]:
        blocked = signal.pthread_sigmask(signal.SIG_BLOCK, [])
        return signal.SIGTERM in blocked, threading.current_thread().daemon

    async def run() -> None:
        assert await Helpers().run("a", look, LONG) == (True, True)

    asyncio.run(run())


def test_no_thread_to_be_had(monkeypatch: pytest.MonkeyPatch) -> None:
    def start(thread: threading.Thread) -> None:
        raise RuntimeError("can't start new thread")

    async def run() -> None:
        helpers = Helpers()
        with monkeypatch.context() as patch:
            patch.setattr(threading.Thread, "start", start)
            with pytest.raises(HelperTimeout, match=r"no thread for it .*; raise TasksMax="):
                await helpers.run("a", lambda: 1, LONG)
        assert await helpers.run("a", lambda: 1, LONG) == 1

    asyncio.run(run())
