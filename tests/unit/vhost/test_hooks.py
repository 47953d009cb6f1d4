# SPDX-FileCopyrightText: 2026 The doorbelld authors
# SPDX-License-Identifier: GPL-2.0-or-later
"""The code of a device fails in every way that Python has, and only that device notices."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import json
import os
import threading
import time
import traceback
import weakref
from collections.abc import Callable
from typing import Any

import pytest
from doorbelld.errors import LimitExceeded
from doorbelld.host.describe import describe_device
from doorbelld.ring.chain import Chain
from doorbelld.ring.queue import VirtQueue
from doorbelld.vhost.device import ConfigRefused, Device
from doorbelld.vhost.errors import DeviceFaulty
from doorbelld.vhost.events import CodeFailed, ConfigChanged, DeviceEvent, ErrorChanged, State
from doorbelld.vhost.frontend import BackendFailed
from doorbelld.vhost.hooks import Failure, Hooks
from doorbelld.wire.vhost_messages import Config, ProtocolFeature, VhostSetConfigType
from doorbelld.wire.vhost_requests import FrontendRequest as R
from support.devicesite import DeviceSite, Echo


def deep() -> None:
    deep()


class Worse(Exception):
    """An error whose text can't be had."""

    def __str__(self) -> str:
        raise SystemExit(2)


def raising(error: BaseException) -> Callable[..., Any]:
    def hook(*_: object, **__: object) -> Any:
        raise error

    return hook


ERRORS = [
    (raising(ValueError("boom")), "ValueError: boom"),
    (raising(SystemExit(1)), "SystemExit: 1"),
    (raising(KeyboardInterrupt()), "KeyboardInterrupt"),
    (raising(GeneratorExit()), "GeneratorExit"),
    (raising(StopIteration(1)), "StopIteration: 1"),
    (raising(asyncio.CancelledError()), "CancelledError"),
    (raising(MemoryError()), "MemoryError"),
    (raising(Worse()), "Worse: (its text can't be had)"),
    (raising(ValueError("a\0\x1b[2J\nb")), "ValueError: a\ufffd\ufffd[2J b"),
    (lambda *_: deep(), "RecursionError: maximum recursion depth exceeded"),
]


class Told:
    """Hooks around a device, and what they told."""

    def __init__(self, device: Device) -> None:
        self.failures: list[Failure] = []
        self.changes = 0
        self.hooks = Hooks(device, self.failures.append, self.change)

    def change(self) -> None:
        self.changes += 1


@pytest.mark.parametrize(("hook", "said"), ERRORS, ids=[said.partition(":")[0] for _, said in ERRORS])
def test_whatever_a_hook_raises_is_contained_and_named(hook: Callable[..., Any], said: str) -> None:
    device = Echo()
    told = Told(device)
    for name, call in (
        ("start", lambda: told.hooks.start(None)),  # type: ignore[arg-type]
        ("ack", lambda: told.hooks.ack(1)),
        ("reset", told.hooks.reset),
        ("refresh", told.hooks.refresh),
        ("get_config", told.hooks.get_config),
        ("set_config", lambda: told.hooks.set_config(0, b"", VhostSetConfigType.FRONTEND)),
        ("attach", lambda: told.hooks.attach(None, None)),  # type: ignore[arg-type]
        ("detach", lambda: told.hooks.detach(None, None)),  # type: ignore[arg-type]
    ):
        setattr(device, name, hook)
        with pytest.raises(DeviceFaulty) as caught:
            call()
        assert str(caught.value).startswith(f"{name}() raised {said}")
        assert f"{name}() raised {said}" in told.hooks.error
    device.counters = device.close = hook  # type: ignore[method-assign]
    assert told.hooks.counters() == {}
    told.hooks.close()
    assert f"close() raised {said}" in told.hooks.error
    assert len(told.failures) == 10


def test_a_failure_is_told_once_with_its_traceback_and_its_end_is_noticed() -> None:
    class Flaky(Echo):
        wrong = True

        def counters(self) -> dict[str, int]:
            if self.wrong:
                self.stumble()
            return {"steps": 3}

        def stumble(self) -> None:
            secret = object()
            raise ValueError(f"boom {id(secret)}")

    device = Flaky()
    told = Told(device)
    for _ in range(5):
        assert told.hooks.counters() == {}
    (failure,) = told.failures
    assert failure.reason.startswith("counters() raised ValueError: boom")
    assert "in stumble" in "".join(traceback.format_exception(failure.cause))
    device.wrong = False
    assert (told.hooks.counters(), told.hooks.error) == ({"steps": 3}, "")
    device.wrong = True
    assert told.hooks.counters() == {}
    assert told.hooks.error.startswith("counters() raised") and len(told.failures) == 1


def test_what_is_told_holds_nothing_of_the_device() -> None:
    class Holding(Echo):
        def counters(self) -> dict[str, int]:
            thing = threading.Event()
            self.seen = weakref.ref(thing)
            try:
                raise KeyError(0)
            except KeyError:
                raise ValueError("boom")  # noqa: B904

    device = Holding()
    told = Told(device)
    told.hooks.counters()
    gc.collect()
    assert told.failures and device.seen() is None


def test_a_recursion_leaves_a_short_traceback() -> None:
    device = Echo()
    device.counters = lambda: deep()  # type: ignore[method-assign, assignment, return-value, func-returns-value]
    told = Told(device)
    told.hooks.counters()
    assert len("".join(traceback.format_exception(told.failures[0].cause)).splitlines()) < 60


class Huge(int):
    pass


@pytest.mark.parametrize(
    ("given", "said"),
    [
        (None, "counters() returned a NoneType, not a mapping of names to numbers"),
        ([("a", 1)], "counters() returned a list, not a mapping of names to numbers"),
        ({1: 1}, "counters() returned a int as a counter's name, not text"),
        ({"a": "1"}, "counters() returned a str for a, not an integer of 64 bits"),
        ({"a": float("nan")}, "counters() returned a float for a, not an integer of 64 bits"),
        ({"a": 1 << 64}, "counters() returned a int for a, not an integer of 64 bits"),
        ({"a": 10**5000}, "counters() returned a int for a, not an integer of 64 bits"),
        ({str(i): i for i in range(1000)}, "counters() returned 1000 counters; 256 are shown at most"),
    ],
)
def test_counters_of_a_wrong_type_are_none(given: Any, said: str) -> None:
    device = Echo()
    device.counters = lambda: given  # type: ignore[method-assign]
    told = Told(device)
    assert (told.hooks.counters(), told.hooks.error) == ({}, said)


def test_counters_are_plain_whatever_they_are_made_of() -> None:
    device = Echo()
    device.counters = lambda: {"a\ud800\n": Huge(3)}  # type: ignore[method-assign]
    found = Told(device).hooks.counters()
    assert found == {"a\ufffd ": 3} and type(found["a\ufffd "]) is int


def test_a_hook_that_is_a_coroutine_is_refused() -> None:
    class Modern(Echo):
        async def reset(self) -> None:  # type: ignore[override]
            raise AssertionError

    with pytest.raises(DeviceFaulty, match=r"reset\(\) is a coroutine, which nobody awaits; write it without async"):
        Told(Modern()).hooks.reset()


def test_what_a_device_raises_on_purpose_passes_and_is_no_fault() -> None:
    told = Told(Device())
    Device.name = "plain"
    try:
        with pytest.raises(ConfigRefused):
            told.hooks.set_config(0, b"a", VhostSetConfigType.FRONTEND)
    finally:
        del Device.name
    assert (told.hooks.error, told.failures) == ("", [])


def test_attributes_that_are_wrong_or_raise() -> None:
    class Odd(Echo):
        id = "x"  # type: ignore[assignment]
        feature_names = ["A"]  # type: ignore[assignment] # noqa: RUF012

        @property
        def features(self) -> int:  # type: ignore[override]
            raise LookupError("gone")

    told = Told(Odd())
    assert (told.hooks.id, told.hooks.features, told.hooks.feature_names) == (0, 0, {})
    assert told.hooks.protocol_features is ProtocolFeature(0)
    expected = ("id is a str, not a number", "features raised LookupError: gone", "feature_names is a list")
    assert all(words in told.hooks.error for words in expected)


# On a socket, with a front-end


@pytest.mark.parametrize("hook", ["ack", "start", "attach", "get_config"])
def test_a_faulty_hook_ends_the_connection_and_no_other_device_notices(watched: DeviceSite, hook: str) -> None:
    faulty = type("Faulty", (Echo,), {hook: raising(SystemExit("no"))})
    backend = watched.open(faulty)
    frontend = watched.connect(backend)
    with contextlib.suppress(BackendFailed):  # it sees the end of its connection where it is
        frontend.start()
        frontend.ask(R.GET_CONFIG, Config(0, bytes(4)))
        os.eventfd_write(frontend.queues[0].kick_fd, 1)
    end = watched.farewell()
    assert end.broken and end.reason == f"{hook}() raised SystemExit: no"
    watched.wait_state(backend, State.LISTENING)
    assert backend.error == f"{hook}() raised SystemExit: no"
    assert [event.reason for event in watched.of(CodeFailed)] == [backend.error]


@pytest.mark.parametrize("hook", ["stop", "reset", "detach", "close"])
def test_a_hook_that_fails_at_the_end_leaves_nothing(site: DeviceSite, hook: str) -> None:
    faulty = type("Faulty", (Echo,), {hook: raising(KeyboardInterrupt())})
    backend, frontend = site.started(faulty)
    assert frontend.request(frontend.queues[0], b"a", 1) == b"a"
    frontend.close()
    site.wait_state(backend, State.LISTENING)
    with site.connect(backend) as again:
        again.start()
        assert again.request(again.queues[0], b"b", 1) == b"b"
    site.run(backend.close())
    assert backend.state is State.STOPPED and not os.path.exists(backend.spec.socket)
    assert site.of(CodeFailed)[0].reason == f"{hook}() raised KeyboardInterrupt"


def test_an_error_of_handle_is_told_with_its_traceback_once_for_each_place(site: DeviceSite) -> None:
    class Stumbling(Echo):
        def handle(self, queue: VirtQueue, chain: Chain) -> None:
            raise KeyError(chain.read().decode())

    backend = site.open(Stumbling)
    for number, word in enumerate((b"one", b"two", b"three"), 1):
        frontend = site.connect(backend)
        frontend.start()
        where = frontend.take(8)
        frontend.memory.write(where, word)
        frontend.queues[0].add([(where, len(word))])
        frontend.queues[0].kick()
        reason = site.farewell(number).reason
        assert reason == f"queue 0: its handler raised KeyError: '{word.decode()}'"
        site.wait_state(backend, State.LISTENING)
        assert backend.error == f"handle() raised KeyError: '{word.decode()}'"
    (failure,) = site.of(CodeFailed)
    assert failure.reason == "handle() raised KeyError: 'one'"
    assert "raise KeyError(chain.read().decode())" in "".join(traceback.format_exception(failure.cause))
    site.connect(backend)
    site.wait(lambda: not backend.error)


@pytest.mark.parametrize(
    ("attributes", "said"),
    [
        ({"__init__": raising(SystemExit(3))}, r'type "echo" can\'t be made: Faulty\(\) raised SystemExit: 3; repair'),
        ({"queues": 0}, "queues is 0, not a number from 1 to 256"),
        ({"queues": "2"}, "queues is a str, not a number of 64 bits"),
        ({"queue_size": 100}, "queue_size is 100, not a power of two"),
        ({"threads": None}, "threads is a NoneType, not a number of 64 bits"),
        ({"tell_config_changed": property(lambda self: None)}, "can't be made: Faulty"),
    ],
    ids=lambda value: next(iter(value)) if isinstance(value, dict) else "",
)
def test_a_device_that_can_not_be_made_leaves_nothing(site: DeviceSite, attributes: dict[str, Any], said: str) -> None:
    threads = threading.active_count()
    with pytest.raises(DeviceFaulty, match=said):
        site.open(type("Faulty", (Echo,), attributes))
    assert os.listdir(site.folder) == [] and threading.active_count() == threads


def test_a_device_that_can_not_be_had_for_a_good_reason_says_so(site: DeviceSite) -> None:
    with pytest.raises(LimitExceeded, match="no room"):
        site.open(type("Full", (Echo,), {"__init__": raising(LimitExceeded("no room"))}))


def test_everything_about_a_faulty_device_can_be_described(site: DeviceSite) -> None:
    faulty = {name: raising(OSError(5, "Input/output error")) for name in ("counters", "get_config")}
    backend = site.open(type("Faulty", (Echo,), {**faulty, "feature_names": property(raising(SystemExit()))}))
    found = json.loads(json.dumps(site.call(describe_device, backend), allow_nan=False))
    assert (found["state"], found["counters"]) == ("listening", {})
    assert found["error"] == "counters() raised OSError: [Errno 5] Input/output error"
    assert site.call(lambda: (backend.config, backend.offered_protocol_features)) == (b"", 0)
    assert site.call(lambda: backend.feature_names(1 << 32)) == ["VIRTIO_F_VERSION_1"]
    assert "get_config() raised OSError" in backend.error and "feature_names raised SystemExit" in backend.error
    assert len(site.of(ErrorChanged)) == len(site.of(CodeFailed)) == 3


def test_a_device_that_reports_a_change_whenever_it_is_looked_at_does_not_spin(site: DeviceSite) -> None:
    class Restless(Echo):
        def get_config(self) -> bytes:
            self.config_changed()
            return b"cfg"

    plain = site.emit

    def emit(event: DeviceEvent) -> None:  # looks at what changed, as the announcer on D-Bus does
        plain(event)
        if isinstance(event, ConfigChanged):
            assert event.device.config == b"cfg"

    site.emit = emit  # type: ignore[method-assign]
    backend = site.open(Restless)
    began = time.monotonic()
    site.call(lambda: [backend.config for _ in range(1000)])
    site.wait(lambda: len(site.of(ConfigChanged)) > 5)
    assert time.monotonic() - began >= 0.05
