# SPDX-FileCopyrightText: 2026 The doorbelld authors
# SPDX-License-Identifier: GPL-2.0-or-later
"""rng: the entropy device (VIRTIO 1.2, 5.4).

One queue. Each request is room to fill; the device writes at least one byte, and not more than `rng_io` gives at once.
The bytes come from getrandom(2), straight into guest memory, in the worker's thread without Python's lock.
"""

from __future__ import annotations

from dataclasses import dataclass

from ..options import option, size
from ..ring.queue import VirtQueue
from ..ring.worker import Worker
from ..vhost.device import Device
from .rng_io import Source

RATE_MAX = 1 << 40


def _rate(raw: object) -> int:
    value = size(raw)
    if value > RATE_MAX:
        raise ValueError(f'{raw!r} is out of range; write at most "1T", or leave it out for no limit')
    return value


@dataclass(frozen=True, slots=True)
class Options:
    """What ``[device.NAME]`` may say of an rng beside what all devices have."""

    rate: int | None = option(_rate, default=None, frozen="the worker goes by it")
    """Bytes a second, at most."""


class Rng(Device):
    """Fills the guest's buffers with random bytes."""

    name = "rng"
    id = 4
    Options = Options

    def attach(self, worker: Worker, queue: VirtQueue) -> None:
        """Have the native source serve the queue."""
        self._source = Source(queue, self.options.rate or 0)
        self._source.attach(worker)

    def detach(self, worker: Worker, queue: VirtQueue) -> None:
        """End that."""
        self._source.detach(worker)
        del self._source
