# SPDX-FileCopyrightText: 2026 The doorbelld authors
# SPDX-License-Identifier: GPL-2.0-or-later
"""The one place that calls the code of a device, which may be another package's and may be wrong.

A hook may raise anything (SystemExit and KeyboardInterrupt included), recurse without end, or return a value of the
wrong type. Here that becomes `DeviceFaulty`, whose text names the hook and the error. A hook may raise a
`DoorbellError` on purpose; that passes through. What a queue's handler raises comes from its worker
(`Hooks.handler_failed`).

A failure is told once for each place in the device's code (`Failure`), so a hook that is called every second fills no
log. `Hooks.error` says what is wrong now: a hook's failure stays there until the hook works again.
"""

from __future__ import annotations

import contextlib
import inspect
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeVar

from ..errors import DoorbellError, in_words, printable
from ..wire.vhost_messages import CONFIG_MAX, ProtocolFeature, VhostSetConfigType
from .device import Device
from .errors import DeviceFaulty

if TYPE_CHECKING:
    from ..ring.queue import VirtQueue
    from ..ring.worker import Worker

T = TypeVar("T")

_PLACES_MAX = 100
"""Places in a device's code that are told apart; what is beyond is shown in `Hooks.error` only."""
_FRAMES_MAX = 20
"""Frames of a traceback that are kept: the last ones."""
_COUNTERS_MAX = 256


class _WrongValue(Exception):
    """A hook or an attribute gave what it may not; the text goes on after its name."""


@dataclass(frozen=True, slots=True)
class Failure:
    """A hook failed in a way that was not told before; *cause* has the traceback."""

    reason: str
    cause: BaseException


class Hooks:
    """The hooks and attributes of *device*, with every error contained.

    *told* gets each new `Failure`, *changed* is called when `error` has another value; neither may raise. All methods
    are for the event loop.
    """

    def __init__(
        self,
        device: Device,
        told: Callable[[Failure], None] = lambda failure: None,
        changed: Callable[[], None] = lambda: None,
    ) -> None:
        self.device = device
        self._told = told
        self._changed = changed
        self._failing: dict[str, str] = {}
        self._places: set[tuple[object, ...]] = set()

    @property
    def error(self) -> str:
        """What is wrong with the device's code now; empty if nothing is known to be."""
        return "; ".join(self._failing.values())

    # What it is

    @property
    def id(self) -> int:
        """The virtio device ID; 0 if the class has none."""
        return self._or(0, lambda: self._attribute("id", _integer))

    @property
    def features(self) -> int:
        """Feature bits of its type."""
        return self._or(0, lambda: self._attribute("features", _integer))

    @property
    def protocol_features(self) -> ProtocolFeature:
        """Protocol features beyond those of every device."""
        return ProtocolFeature(self._or(0, lambda: self._attribute("protocol_features", _integer)))

    @property
    def feature_names(self) -> Mapping[int, str]:
        """The names of its feature bits."""
        return self._or({}, lambda: self._attribute("feature_names", _names))

    def count(self, name: str, most: int, *, power_of_two: bool = False) -> int:
        """Read the attribute *name*, which is a number from 1 to *most*.

        Raises:
            DeviceFaulty: it is not.
        """

        def check(value: object) -> int:
            if (number := _integer(value)) not in range(1, most + 1):
                raise _WrongValue(f"is {number}, not a number from 1 to {most}")
            if power_of_two and number & (number - 1):
                raise _WrongValue(f"is {number}, not a power of two")
            return number

        return self._attribute(name, check)

    def install(self, **attributes: object) -> None:
        """Set attributes of the device: options, and what it calls us by.

        Raises:
            DeviceFaulty: it does not let us.
        """
        for name, value in attributes.items():
            with self._failures(name):
                setattr(self.device, name, value)

    # Hooks; each raises DeviceFaulty, or what DoorbellError the device raises

    def attach(self, worker: Worker, queue: VirtQueue) -> None:
        """Call `Device.attach`; an OSError passes through: the worker has no descriptors or memory left."""
        self._call("attach", worker, queue, passing=(DoorbellError, OSError))

    def detach(self, worker: Worker, queue: VirtQueue) -> None:
        """Call `Device.detach`."""
        self._call("detach", worker, queue)

    def get_config(self) -> bytes:
        """Call `Device.get_config`."""
        return bytes(self._call("get_config", convert=_bytes, passing=()))

    def config_space(self) -> bytes:
        """Return the configuration space as a driver sees it: zeros follow what the type has."""
        return self.get_config().ljust(CONFIG_MAX, b"\0")

    def set_config(self, offset: int, data: bytes, kind: VhostSetConfigType) -> None:
        """Call `Device.set_config`."""
        self._call("set_config", offset, data, kind)

    def ack(self, features: int) -> None:
        """Call `Device.ack`."""
        self._call("ack", features)

    def start(self, queue: VirtQueue) -> None:
        """Call `Device.start`."""
        self._call("start", queue)

    def stop(self, queue: VirtQueue) -> None:
        """Call `Device.stop`."""
        self._call("stop", queue)

    def reset(self) -> None:
        """Call `Device.reset`."""
        self._call("reset")

    def refresh(self) -> None:
        """Call `Device.refresh`."""
        self._call("refresh")

    def counters(self) -> dict[str, int]:
        """Call `Device.counters`; gives nothing if that fails."""
        return self._or({}, lambda: self._call("counters", convert=_counters, passing=()))

    def close(self) -> None:
        """Call `Device.close`; raises nothing."""
        self._or(None, lambda: self._call("close"))

    # Requests

    def handler_failed(self, error: BaseException) -> None:
        """Take what the handler of a queue raised in its worker's thread."""
        self._failed("handle()", error)

    def forget_handler(self) -> None:
        """Forget that the handler failed: another front-end begins."""
        self._works("handle()")

    # What is common to them

    def _call(
        self,
        hook: str,
        *arguments: Any,
        convert: Callable[[Any], Any] = lambda value: value,
        passing: tuple[type[Exception], ...] = (DoorbellError,),
    ) -> Any:
        with self._failures(f"{hook}()", passing):
            value = getattr(self.device, hook)(*arguments)
            if inspect.iscoroutine(value):
                value.close()
                raise _WrongValue("is a coroutine, which nobody awaits; write it without async")
            return convert(value)

    def _attribute(self, name: str, convert: Callable[[Any], T]) -> T:
        with self._failures(name):
            return convert(getattr(self.device, name))

    @contextlib.contextmanager
    def _failures(self, what: str, passing: tuple[type[Exception], ...] = ()) -> Iterator[None]:
        """Turn what the body raises into `DeviceFaulty`, unless it is one of *passing*."""
        try:
            yield
        except passing:
            self._works(what)
            raise
        except BaseException as error:  # SystemExit, KeyboardInterrupt and CancelledError of a hook are only its errors
            raise DeviceFaulty(self._failed(what, error)) from error
        self._works(what)

    def _or(self, default: T, ask: Callable[[], T]) -> T:
        try:
            return ask()
        except DoorbellError:
            return default

    def _works(self, what: str) -> None:
        if self._failing and self._failing.pop(what, None) is not None:
            self._changed()

    def _failed(self, what: str, error: BaseException) -> str:
        reason = f"{what} {error}" if isinstance(error, _WrongValue) else f"{what} raised {in_words(error)}"
        place = _contain(error)
        if self._failing.get(what) != reason:
            self._failing[what] = reason
            self._changed()
        if (what, place) not in self._places and len(self._places) < _PLACES_MAX:
            self._places.add((what, place))
            self._told(Failure(reason, error))
        return reason


def _contain(error: BaseException) -> tuple[object, ...]:
    """Drop the locals of the frames of *error*, and all but the last frames; return the place that it comes from."""
    place: tuple[object, ...] = (type(error),)
    seen: set[int] = set()
    link: BaseException | None = error
    while link is not None and id(link) not in seen and len(seen) < _FRAMES_MAX:
        seen.add(id(link))
        frames = []
        trace = link.__traceback__
        while trace is not None:
            frames.append(trace)
            trace = trace.tb_next
        for frame in frames:
            with contextlib.suppress(RuntimeError):  # it runs still: it is ours
                frame.tb_frame.clear()
        if frames:
            link.__traceback__ = frames[-_FRAMES_MAX:][0]
            last = frames[-1]
            place += (last.tb_frame.f_code.co_filename, last.tb_lineno)
        link = link.__cause__ or link.__context__
    return place


def _integer(value: object) -> int:
    number = int.__int__(value) if isinstance(value, int) and not isinstance(value, bool) else -1
    if not 0 <= number < 1 << 64:
        raise _WrongValue(f"is {_short(value)}, not a number of 64 bits")
    return number


def _bytes(value: object) -> bytes:
    if not isinstance(value, bytes | bytearray | memoryview):
        raise _WrongValue(f"returned {_short(value)}, not bytes")
    return bytes(value)


def _names(value: object) -> dict[int, str]:
    if not isinstance(value, Mapping) or not all(isinstance(k, int) and isinstance(v, str) for k, v in value.items()):
        raise _WrongValue(f"is {_short(value)}, not a mapping of bits to names")
    return {bit: printable(name) for bit, name in value.items()}


def _counters(value: object) -> dict[str, int]:
    if not isinstance(value, Mapping):
        raise _WrongValue(f"returned {_short(value)}, not a mapping of names to numbers")
    if len(value) > _COUNTERS_MAX:
        raise _WrongValue(f"returned {len(value)} counters; {_COUNTERS_MAX} are shown at most")
    found: dict[str, int] = {}
    for name, count in value.items():
        if not isinstance(name, str):
            raise _WrongValue(f"returned {_short(name)} as a counter's name, not text")
        number = int.__int__(count) if isinstance(count, int) and not isinstance(count, bool) else 1 << 64
        if not -(1 << 63) <= number < 1 << 64:
            raise _WrongValue(f"returned {_short(count)} for {printable(name)}, not an integer of 64 bits")
        found[printable(name)] = number
    return found


def _short(value: object) -> str:
    """Name a wrong value by its type: its repr() may be long, or raise."""
    return f"a {type(value).__name__}"
