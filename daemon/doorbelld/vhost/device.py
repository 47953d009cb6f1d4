# SPDX-FileCopyrightText: 2026 The doorbelld authors
# SPDX-License-Identifier: GPL-2.0-or-later
"""What a device author writes: a virtio device, without a word about vhost-user.

A device says what it is (class attributes), and serves requests: `Device.handle` is called for each chain of buffers
that a driver makes available, in a worker's thread, with Python's lock held. A device that has to be fast overrides
`Device.attach` instead, gives the worker native functions (ring/worker.pxd), and is then called without that lock.

Everything else has a default. The hooks (`ack`, `start`, `stop`, `reset`) are called on the event loop while no worker
runs, so they may touch whatever `handle` touches, and must not block. docs/devices.md has an example.

An error that a hook raises is the device's alone (hooks.py): it is logged with its traceback and shown as the device's
`Error`; one of `handle`, `attach`, `ack`, `start`, `stop`, `reset` or `get_config` ends the front-end's connection too.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

from ..errors import DoorbellError
from ..wire.vhost_messages import ProtocolFeature, VhostSetConfigType

if TYPE_CHECKING:
    from ..fds.owned import Fd
    from ..ring.chain import Chain
    from ..ring.queue import VirtQueue
    from ..ring.worker import Worker

QUEUES_MAX = 256
"""Queues of a device, at most: their index has eight bits in vhost-user."""
QUEUE_SIZE_MAX = 32768
"""Entries of a queue, at most (VIRTIO 1.2, 2.6)."""
_BATCH = 64
"""Requests that a Python device serves before the driver is told, and others have their turn."""


class ConfigRefused(DoorbellError):
    """The driver may not write this to the configuration space."""


@dataclass(frozen=True, slots=True)
class NoOptions:
    """The table of a type that has no options of its own."""


class Device:
    """A virtio device; subclass it, and name the subclass in the entry points ``doorbelld.devices``."""

    name: ClassVar[str]
    """The type, as in ``type = "rng"``."""
    id: ClassVar[int]
    """The virtio device ID (VIRTIO 1.2, 5)."""
    Options: ClassVar[type[Any]] = NoOptions
    """The dataclass of `options.option` fields that the type adds to ``[device.NAME]``."""
    queues_max: ClassVar[int] = 1
    """How many queues it can have at most, up to `QUEUES_MAX`."""
    threads: int = 1
    """How many worker threads share its queues."""
    queues: int = 1
    """How many it has, unless the configuration says so."""
    queue_size: int = QUEUE_SIZE_MAX
    """How many entries a queue may have at most, unless the configuration says so; a power of two.

    Nothing is allocated before a front-end sets the size of a ring, and then by that size."""
    feature_names: ClassVar[Mapping[int, str]] = {}
    """What the specification calls the feature bits of this type, by the number of the bit."""
    features: int = 0
    """Feature bits of this type of device (0 to 23, 50 and above); those of rings and of the transport are added."""
    protocol_features: ProtocolFeature = ProtocolFeature(0)
    """What it can do of vhost-user beyond what every device can (`features.OPTIONAL`)."""
    config: bytes = b""
    """The configuration space; empty if the type has none. What lies beyond it reads as zeros."""

    def __init__(self, options: Any = None, *, queues: int | None = None, queue_size: int | None = None) -> None:
        """Make a device with its own *options* (an instance of `Options`), so many queues and entries.

        Raises:
            DoorbellError: it can't be had, from subclasses; the text names the cause and the cure.
        """
        self.options = self.Options() if options is None else options
        """Replaced, between two requests of the event loop, when a reload changes options that are not frozen."""
        self.queues = self.queues if queues is None else queues
        self.queue_size = self.queue_size if queue_size is None else queue_size
        self.tell_config_changed: Callable[[], None] = lambda: None
        """Set by the backend; see `config_changed`."""
        self.tell_host_notifier: Callable[[int, tuple[Fd, int, int] | None], bool] = lambda index, area: False
        """Set by the backend; see `host_notifier`."""

    # Requests

    def handle(self, queue: VirtQueue, chain: Chain) -> None:
        """Serve one request: read ``chain``, write to it, then ``queue.push(chain)``; the driver is told by the worker.

        An exception breaks the device for this front-end, and is told as the reason.
        """
        raise NotImplementedError(f"{type(self).__name__} has neither handle() nor attach()")

    def attach(self, worker: Worker, queue: VirtQueue) -> None:
        """Have *queue*, which runs, served by *worker*, which is paused; a native device has its own way."""
        worker.attach(queue, self._serve)

    def detach(self, worker: Worker, queue: VirtQueue) -> None:
        """End what `attach` began; *worker* is paused, and nothing of *queue* is in flight."""
        worker.detach(queue)

    def _serve(self, queue: VirtQueue) -> None:
        """Serve what waits, up to a batch; the worker comes again if there is more."""
        served = False
        try:
            for _ in range(_BATCH):
                if (chain := queue.pop()) is None:
                    return
                served = True
                if chain.fault:
                    queue.push(chain, 0)
                else:
                    self.handle(queue, chain)
        finally:
            if served:
                queue.notify()

    # Configuration space

    def get_config(self) -> bytes:
        """Return the configuration space as it is now (VHOST_USER_GET_CONFIG)."""
        return self.config

    def set_config(self, offset: int, data: bytes, kind: VhostSetConfigType) -> None:
        """Let the driver write *data* at *offset*, which lies within the space (VHOST_USER_SET_CONFIG).

        Raises:
            ConfigRefused: it may not; this is what happens unless a type says otherwise.
        """
        raise ConfigRefused(f"the configuration of a {self.name} device can't be written")

    def config_changed(self) -> None:
        """Tell the driver to look at the configuration space again; from any thread."""
        self.tell_config_changed()

    def host_notifier(self, queue: VirtQueue, area: tuple[Fd, int, int] | None) -> bool:
        """Offer a page of memory as the doorbell of *queue* (``vu_set_queue_host_notifier``); None withdraws it.

        *area* is (descriptor, bytes, offset), and the descriptor is taken over. The driver then writes there instead
        of kicking, and whoever is behind that memory has to notice. For the event loop, so for `start`. False if the
        front-end takes no such thing; HOST_NOTIFIER has to be in `protocol_features`.
        """
        return self.tell_host_notifier(queue.index, area)

    # Hooks

    def ack(self, features: int) -> None:
        """Take note of the feature bits that the driver accepted; comes before queues start, and maybe again."""

    def start(self, queue: VirtQueue) -> None:
        """Get ready to serve *queue*."""

    def stop(self, queue: VirtQueue) -> None:
        """Leave *queue*: nothing of it is in flight any more. It may start again."""

    def reset(self) -> None:
        """Return to the state after birth: the driver wants that, or another front-end comes."""

    def refresh(self) -> None:
        """Look again at what is behind the device, which may have changed; comes at any time, on the event loop.

        Raises:
            DoorbellError: that can't be had any more; the text names the cause and the cure.
        """

    def counters(self) -> dict[str, int]:
        """Return what the type counts beside what is counted of all queues, since the device was made; at any time.

        ``Describe`` and ``doorbellctl status`` show it; names are spelled with dashes, values are integers.
        """
        return {}

    def close(self) -> None:
        """Let go of what the device has; nothing of it is called after that."""
