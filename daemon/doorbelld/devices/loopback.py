# SPDX-FileCopyrightText: 2026 The doorbelld authors
# SPDX-License-Identifier: GPL-2.0-or-later
"""loopback: writes back what it reads. For trying out, and to copy from.

There is no such device in the virtio specification, so no driver binds to it by itself; its ID is one that the
specification sets aside for nothing. The configuration space is sixteen bytes that a driver may write.
"""

from __future__ import annotations

from typing import Any

from ..ring.chain import Chain
from ..ring.queue import VirtQueue
from ..vhost.device import QUEUES_MAX, Device
from ..wire.vhost_messages import VhostSetConfigType

CONFIG_SIZE = 16


class Loopback(Device):
    """Copies the readable buffers of each request into the writable ones."""

    name = "loopback"
    id = 0x3F  # beyond those given out so far, and within the six bits of a transitional PCI device
    queues_max = QUEUES_MAX

    def __init__(self, options: Any = None, *, queues: int | None = None, queue_size: int | None = None) -> None:
        super().__init__(options, queues=queues, queue_size=queue_size)
        self.config = bytes(CONFIG_SIZE)

    def handle(self, queue: VirtQueue, chain: Chain) -> None:
        """Answer one request."""
        chain.write(chain.read(chain.writable_bytes))
        queue.push(chain)

    def set_config(self, offset: int, data: bytes, kind: VhostSetConfigType) -> None:
        """Take what the driver writes."""
        self.config = self.config[:offset] + data + self.config[offset + len(data) :]

    def reset(self) -> None:
        """Forget it."""
        self.config = bytes(CONFIG_SIZE)
