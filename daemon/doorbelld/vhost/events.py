# SPDX-FileCopyrightText: 2026 The doorbelld authors
# SPDX-License-Identifier: GPL-2.0-or-later
"""What a device tells those who listen: typed, immutable, in the order in which it happened."""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from ..fds.peercred import Credentials
    from .backend import Backend


class State(Enum):
    """How a device stands; the value is what D-Bus says."""

    LISTENING = "listening"
    """It waits for a front-end."""
    CONNECTING = "connecting"
    """It looks for a front-end that listens, again and again."""
    CONNECTED = "connected"
    """A front-end is there; no queue of it runs."""
    RUNNING = "running"
    """At least one queue runs."""
    BROKEN = "broken"
    """A front-end broke it, and what that left is being cleared away."""
    STOPPED = "stopped"
    """It is closed, for good."""


@dataclass(frozen=True, slots=True)
class DeviceEvent:
    """Something happened in *device*."""

    device: Backend


@dataclass(frozen=True, slots=True)
class StateChanged(DeviceEvent):
    """*device* went from one state to another; *reason* is empty where there is nothing to say."""

    old: State
    new: State
    reason: str


@dataclass(frozen=True, slots=True)
class FrontendAttached(DeviceEvent):
    """A front-end, *who*, has the device now."""

    who: Credentials


@dataclass(frozen=True, slots=True)
class FrontendDetached(DeviceEvent):
    """The front-end *who* is gone, for *reason*; *broken* tells that it did what it may not do."""

    who: Credentials
    reason: str
    broken: bool


@dataclass(frozen=True, slots=True)
class FrontendRefused(DeviceEvent):
    """Somebody connected and was turned away, or could not be reached, for *reason*."""

    reason: str


@dataclass(frozen=True, slots=True)
class FrontendSilent(DeviceEvent):
    """The front-end *who* connected some seconds ago and has said nothing since, which *reason* puts in words."""

    who: Credentials
    reason: str


@dataclass(frozen=True, slots=True)
class RequestRefused(DeviceEvent):
    """The front-end asked for what it can't have, and was told so; the connection goes on."""

    request: str
    reason: str


@dataclass(frozen=True, slots=True)
class FaultChanged(DeviceEvent):
    """What keeps front-ends from using *device* (`Backend.fault`) is another; that it works is told by its state."""


@dataclass(frozen=True, slots=True)
class QueueChanged(DeviceEvent):
    """Queue *index* was enabled, disabled, started or stopped, or has another size."""

    index: int


@dataclass(frozen=True, slots=True)
class Negotiated(DeviceEvent):
    """The front-end accepted features, shared its memory anew, reset the device, or wrote to its configuration."""


@dataclass(frozen=True, slots=True)
class ConfigChanged(DeviceEvent):
    """The device's configuration space changed."""


@dataclass(frozen=True, slots=True)
class DeviceChanged(DeviceEvent):
    """*device* goes by another spec now."""


@dataclass(frozen=True, slots=True)
class CodeFailed(DeviceEvent):
    """The code of *device* failed as it did not before: *reason* says where and how, *cause* has the traceback."""

    reason: str
    cause: BaseException


@dataclass(frozen=True, slots=True)
class ErrorChanged(DeviceEvent):
    """What is wrong with the code of *device* (`Backend.error`) changed."""
