# SPDX-FileCopyrightText: 2026 The doorbelld authors
# SPDX-License-Identifier: GPL-2.0-or-later
"""The objects of vhost-user devices and their queues: thin views of `Backend`.

What a device moves is counted by its workers, and read here only when somebody asks: no property of a queue tells of
its changes. Words that may come from a device of somebody's own, or from a guest through it, are made fit for the bus
(`library.text`). What a device's code fails at is contained by `vhost.hooks`, and is its `Error`.
"""

from __future__ import annotations

from typing import Any

from ..vhost.backend import Backend
from ..vhost.queuestate import QueueState
from .authority import Action
from .library import text
from .names import DEVICE, QUEUE
from .views import View, method, prop

NOBODY = 0xFFFFFFFF
"""The user and group of a front-end that is not there."""


class DeviceView(View, interface=DEVICE):
    """A vhost-user device."""

    def __init__(self, device: Backend) -> None:
        self._device = device

    @method("Disconnect", Action.MANAGE)
    def disconnect(self) -> None:
        """Drop its front-end."""
        self._device.disconnect("disconnected over D-Bus")

    @method("Reset", Action.MANAGE)
    def reset(self) -> None:
        """Give it the state after birth."""
        self._device.reset()

    @method("Refresh", Action.MANAGE)
    def refresh(self) -> None:
        """Have it look again at what is behind it."""
        self._device.refresh()

    @prop("Name")
    def name(self) -> str:
        """Its name."""
        return self._device.name

    @prop("Type")
    def type(self) -> str:
        """Its type."""
        return self._device.spec.type

    @prop("VirtioId")
    def virtio_id(self) -> int:
        """The virtio device ID."""
        return self._device.virtio_id

    @prop("Socket")
    def socket(self) -> str:
        """Where front-ends connect, or listen."""
        return self._device.spec.socket

    @prop("Connect")
    def connect(self) -> bool:
        """Whether the front-end listens."""
        return self._device.spec.connect

    @prop("QueueCount")
    def queue_count(self) -> int:
        """How many queues."""
        return self._device.queue_count

    @prop("PollUSec")
    def poll(self) -> int:
        """Microseconds."""
        return self._device.spec.poll_us

    @prop("State")
    def state(self) -> str:
        """How it stands."""
        return self._device.state.value

    @prop("Reason")
    def reason(self) -> str:
        """Why the last front-end went."""
        return text(self._device.reason)

    @prop("Fault")
    def fault(self) -> str:
        """What keeps front-ends from using it."""
        return text(self._device.fault)

    @prop("Error")
    def error(self) -> str:
        """What is wrong with its code."""
        return text(self._device.error)

    @prop("FrontendPid")
    def frontend_pid(self) -> int:
        """Its process."""
        return self._device.who.pid if self._device.who else 0

    @prop("FrontendUid")
    def frontend_uid(self) -> int:
        """Its user."""
        return self._device.who.uid & NOBODY if self._device.who else NOBODY

    @prop("FrontendGid")
    def frontend_gid(self) -> int:
        """Its group."""
        return self._device.who.gid & NOBODY if self._device.who else NOBODY

    @prop("FrontendVmName")
    def frontend_vm_name(self) -> str:
        """What it calls itself."""
        return self._device.who.vm_name if self._device.who else ""

    @prop("FrontendUnit")
    def frontend_unit(self) -> str:
        """Its systemd unit."""
        return self._device.who.unit if self._device.who else ""

    @prop("FrontendSince")
    def frontend_since(self) -> int:
        """When it connected."""
        return self._device.since

    @prop("OfferedFeatures")
    def offered_features(self) -> int:
        """Bits."""
        return self._device.offered_features

    @prop("OfferedFeatureNames")
    def offered_feature_names(self) -> list[str]:
        """The same by name."""
        return self._device.feature_names(self._device.offered_features)

    @prop("AckedFeatures")
    def acked_features(self) -> int:
        """Bits."""
        return self._device.accepted_features

    @prop("AckedFeatureNames")
    def acked_feature_names(self) -> list[str]:
        """The same by name."""
        return self._device.feature_names(self._device.accepted_features)

    @prop("OfferedProtocolFeatures")
    def offered_protocol_features(self) -> int:
        """Bits."""
        return int(self._device.offered_protocol_features)

    @prop("OfferedProtocolFeatureNames")
    def offered_protocol_feature_names(self) -> list[str]:
        """The same by name."""
        return self._device.protocol_feature_names(self.offered_protocol_features())

    @prop("AckedProtocolFeatures")
    def acked_protocol_features(self) -> int:
        """Bits."""
        return int(self._device.accepted_protocol_features)

    @prop("AckedProtocolFeatureNames")
    def acked_protocol_feature_names(self) -> list[str]:
        """The same by name."""
        return self._device.protocol_feature_names(self.acked_protocol_features())

    @prop("Status")
    def status(self) -> int:
        """The virtio device status."""
        return self._device.status

    @prop("MemoryRegions")
    def memory_regions(self) -> list[list[Any]]:
        """Guest memory."""
        return [[*numbers, text(error)] for *numbers, error in self._device.memory_regions]

    @prop("ConfigSpace")
    def config_space(self) -> bytes:
        """The configuration space."""
        return self._device.config

    @prop("Requests")
    def requests(self) -> int:
        """Requests done, over all queues."""
        return sum(queue.requests for queue in self._device.queues())

    @prop("Bytes")
    def bytes_moved(self) -> int:
        """Bytes moved, over all queues."""
        return sum(queue.bytes for queue in self._device.queues())

    @prop("Errors")
    def errors(self) -> int:
        """Requests that failed, over all queues."""
        return sum(queue.errors for queue in self._device.queues())


class QueueView(View, interface=QUEUE):
    """A queue of a device."""

    def __init__(self, device: Backend, index: int) -> None:
        self._device = device
        self._index = index
        self._seen: QueueState | None = None

    def get_all(self) -> dict[str, Any]:
        """Read all properties, as they are at one moment."""
        self._seen = self._device.queue(self._index)
        try:
            return super().get_all()
        finally:
            self._seen = None

    def _look(self) -> QueueState:
        return self._seen or self._device.queue(self._index)

    @method("Notify", Action.NOTIFY)
    def notify(self) -> None:
        """Interrupt the guest."""
        self._device.notify(self._index)

    @method("Kick", Action.NOTIFY)
    def kick(self) -> None:
        """Have it looked at now."""
        self._device.kick(self._index)

    @prop("Index")
    def index(self) -> int:
        """Its number."""
        return self._index

    @prop("Size")
    def size(self) -> int:
        """Entries of the ring."""
        return self._look().size

    @prop("Enabled")
    def enabled(self) -> bool:
        """Whether the front-end lets it be served."""
        return self._look().enabled

    @prop("Started")
    def started(self) -> bool:
        """Whether it runs."""
        return self._look().started

    @prop("AvailableIndex")
    def available_index(self) -> int:
        """How far requests were made available."""
        return self._look().available_index

    @prop("UsedIndex")
    def used_index(self) -> int:
        """How far they were given back."""
        return self._look().used_index

    @prop("InFlight")
    def in_flight(self) -> int:
        """Requests being served."""
        return self._look().in_flight

    @prop("Kicks")
    def kicks_taken(self) -> int:
        """How often the driver kicked."""
        return self._look().kicks

    @prop("Calls")
    def calls_made(self) -> int:
        """How often the driver was interrupted."""
        return self._look().calls

    @prop("Requests")
    def requests(self) -> int:
        """Requests done."""
        return self._look().requests

    @prop("Bytes")
    def bytes_moved(self) -> int:
        """Bytes moved."""
        return self._look().bytes

    @prop("Errors")
    def errors(self) -> int:
        """Requests that failed."""
        return self._look().errors

    @prop("Broken")
    def broken(self) -> str:
        """Why it does nothing more."""
        return text(self._look().broken)
