# SPDX-FileCopyrightText: 2026 The doorbelld authors
# SPDX-License-Identifier: GPL-2.0-or-later
"""What a device can be told: the keys of ``[device.NAME]`` that all types have, and those of its type beside them.

`DeviceSpec.parse` splits a table in two: the common keys are read here, the others against the type's own `Options`.
Problems of both are told at once. `DeviceSpec.make` then makes the device.
"""

from __future__ import annotations

import contextlib
import dataclasses
import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, TypeAlias

from ..errors import DoorbellError, InvalidOptions, Problem, in_words
from ..fds.listener import PATH_MAX, group_id, user_id
from ..options import boolean, duration, integer, mode, option, parse, path, text
from ..wire.vhost_messages import ProtocolFeature
from .access import FrontendRule, parse_rules
from .device import QUEUE_SIZE_MAX, QUEUES_MAX, Device
from .errors import DeviceFaulty

POLL_MAX = 1_000_000
NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,63}")
_TOLD = "front-ends were told"

Kind: TypeAlias = type[Device]  # below, ``type`` is a field


@dataclass(frozen=True, slots=True)
class DeviceSpec:
    """A device as it was asked for. ``socket`` is empty until the host has filled in its default."""

    name: str
    kind: Kind
    """The class behind ``type``."""
    own: Any
    """The options of the type, an instance of ``kind.Options``."""
    type: str = option(text, frozen="it is another device")
    socket: str = option(path, default="", frozen="front-ends come back to the old path")
    owner: str = option(text, default="")
    group: str = option(text, default="")
    mode: int = option(mode, default=0o660)
    connect: bool = option(boolean, default=False, frozen="the other side has to change too")
    queues: int | None = option(integer(1, QUEUES_MAX), default=None, frozen=_TOLD)
    queue_size: int | None = option(integer(1, QUEUE_SIZE_MAX), default=None, frozen=_TOLD)
    poll_us: int = option(integer(0, POLL_MAX), default=0)
    silence_timeout: float = option(duration, default=30.0)
    """Seconds for which a front-end that says nothing keeps others away; 0: for ever."""
    inband: bool = option(boolean, default=False, frozen=_TOLD)
    """Whether INBAND_NOTIFICATIONS is offered: QEMU accepts it without being able to do it, User-Mode Linux can."""
    peer: tuple[FrontendRule, ...] = option(parse_rules, default=())

    def check(self, prefix: str) -> list[Problem]:
        """Look at the values together."""
        problems: list[Problem] = []

        def problem(key: str, cause: str, cure: str) -> None:
            problems.append(Problem(f"{prefix}.{key}" if key else prefix, cause, cure))

        if not NAME.fullmatch(self.name):
            problem("", f"{self.name!r} can't be a device's name", "use letters, digits, _ . -, at most 64")
        if len(self.socket.encode()) > PATH_MAX:
            problem(
                "socket", f"{self.socket} is longer than a UNIX socket's path may be", f"use {PATH_MAX} bytes or less"
            )
        if self.connect and not self.socket:
            problem("socket", "missing, and connect is true", "write the path on which the front-end listens")
        if self.queues is not None and self.queues > self.kind.queues_max:
            cause = f"{self.queues} is more than a {self.kind.name} device can have"
            problem("queues", cause, f"use at most {self.kind.queues_max}")
        if (size := self.queue_size) is not None and size & (size - 1):
            problem("queue-size", f"{size} is not a power of two", f"use {1 << size.bit_length()}")
        for key, resolve in (("owner", user_id), ("group", group_id)):
            try:
                resolve(getattr(self, key))
            except KeyError:
                problem(key, f"no {key} {getattr(self, key)!r} on this host", "write a name that is there, or a number")
        return problems

    def warnings(self, prefix: str) -> list[Problem]:
        """Say what this host lacks for the device now, as far as its type knows (``warnings(prefix)`` of its Options).

        The device can be served once that is there.
        """
        problems: list[Problem] = []
        with _gathering(problems, prefix):
            problems += getattr(self.own, "warnings", lambda _: [])(prefix)
        return problems

    @classmethod
    def parse(cls, name: str, raw: Mapping[str, Any], prefix: str, find: Callable[[str], Kind]) -> DeviceSpec:
        """Read the table of device *name*; *find* gives the class of a type, or raises `DoorbellError`.

        Raises:
            InvalidOptions: with all problems found.
        """
        common = {key: value for key, value in raw.items() if key in _COMMON}
        problems: list[Problem] = []
        kind: Kind = Device
        own: Any = None
        try:
            kind = find(text(raw["type"]))
        except KeyError:
            pass  # told below
        except (ValueError, DoorbellError) as error:
            cause, _, cure = str(error).partition("; ")
            problems.append(Problem(f"{prefix}.type", cause, cure))
        else:
            with _gathering(problems, prefix):
                rest = {key: value for key, value in raw.items() if key not in _COMMON}
                own = parse(kind.Options, rest, prefix, others=_COMMON)
        made: DeviceSpec | None = None
        told = {problem.key for problem in problems}
        try:
            made = parse(cls, common, prefix, name=name, kind=kind, own=own)
        except InvalidOptions as error:
            problems += [problem for problem in error.problems if problem.key not in told]
        if made is None or problems:
            raise InvalidOptions(problems)
        return made

    def make(self) -> Device:
        """Make the device.

        Raises:
            DoorbellError: it can't be had (a file is missing, say).
            DeviceFaulty: the code of the type fails.
        """
        try:
            device = self.kind(self.own, queues=self.queues, queue_size=self.queue_size)
            if self.inband:
                device.protocol_features |= ProtocolFeature.INBAND_NOTIFICATIONS
        except DoorbellError:
            raise
        except BaseException as error:  # SystemExit too: it is another package's code
            cause = f'type "{self.type}" can\'t be made: {self.kind.__name__}() raised {in_words(error)}'
            raise DeviceFaulty(f"{cause}; repair {self.kind.__module__}, then restart the daemon") from error
        return device

    def as_options(self) -> dict[str, Any]:
        """Put the common keys in plain values, the form that they are asked for in, less the rules."""
        options = {
            "type": self.type,
            "socket": self.socket,
            "owner": self.owner,
            "group": self.group,
            "mode": f"{self.mode:04o}",
            "connect": self.connect,
            "poll-us": self.poll_us,
            "silence-timeout": self.silence_timeout,
            "inband": self.inband,
        }
        given = {"queues": self.queues, "queue-size": self.queue_size}
        return {**options, **{key: value for key, value in given.items() if value is not None}}


_COMMON = frozenset(
    field.name.replace("_", "-") for field in dataclasses.fields(DeviceSpec) if "convert" in field.metadata
)


@contextlib.contextmanager
def _gathering(problems: list[Problem], prefix: str) -> Iterator[None]:
    """Collect the problems of a type's own options; what else its code raises is one of them."""
    try:
        yield
    except InvalidOptions as error:
        problems += error.problems
    except BaseException as error:  # SystemExit too: it is another package's code
        cause = f"the options of its type can't be read: {in_words(error)}"
        problems.append(Problem(prefix, cause, "repair the package of that type"))
