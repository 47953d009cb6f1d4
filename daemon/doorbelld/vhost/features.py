# SPDX-FileCopyrightText: 2026 The doorbelld authors
# SPDX-License-Identifier: GPL-2.0-or-later
"""Feature bits: which a front-end is offered, and what the specifications call them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Protocol

from ..ring.queue import RING_FEATURES
from ..wire.vhost_messages import Feature, ProtocolFeature

VIRTIO_F_VERSION_1 = 1 << 32
RESERVED = sum(1 << bit for bit in range(24, 50))
"""Bits that no type of device has a say in (VIRTIO 1.2, 6): they are about queues and about negotiation itself."""
EVERYWHERE = (
    ProtocolFeature.MQ
    | ProtocolFeature.REPLY_ACK
    | ProtocolFeature.BACKEND_REQ
    | ProtocolFeature.BACKEND_SEND_FD
    | ProtocolFeature.RESET_DEVICE
    | ProtocolFeature.CONFIGURE_MEM_SLOTS
    | ProtocolFeature.STATUS
)
"""Protocol features that every device has; beside them CONFIG, where there is a configuration space."""
OPTIONAL = ProtocolFeature.INBAND_NOTIFICATIONS | ProtocolFeature.HOST_NOTIFIER
"""Protocol features that a device has if it says so (`Device.protocol_features`)."""
COMMON = {
    24: "VIRTIO_F_NOTIFY_ON_EMPTY",
    26: "VHOST_F_LOG_ALL",
    27: "VIRTIO_F_ANY_LAYOUT",
    28: "VIRTIO_F_INDIRECT_DESC",
    29: "VIRTIO_F_EVENT_IDX",
    30: "VHOST_USER_F_PROTOCOL_FEATURES",
    32: "VIRTIO_F_VERSION_1",
    33: "VIRTIO_F_ACCESS_PLATFORM",
    34: "VIRTIO_F_RING_PACKED",
    35: "VIRTIO_F_IN_ORDER",
    36: "VIRTIO_F_ORDER_PLATFORM",
    37: "VIRTIO_F_SR_IOV",
    38: "VIRTIO_F_NOTIFICATION_DATA",
    39: "VIRTIO_F_NOTIF_CONFIG_DATA",
    40: "VIRTIO_F_RING_RESET",
}
"""Bits that mean the same for every type of device (VIRTIO 1.2, 6; vhost-user for 26 and 30)."""

_FORCED = {33: "iommu_platform=on", 34: "packed=on"}
"""Options with which QEMU 7.2 gives the guest of a vhost-user-rng features that the back-end does not offer."""


class Offering(Protocol):
    """A `Device`, or its `Hooks`, as far as it says what is offered."""

    @property
    def features(self) -> int:
        """Feature bits of its type."""

    @property
    def protocol_features(self) -> ProtocolFeature:
        """Protocol features beyond those of every device."""

    def get_config(self) -> bytes:
        """Return the configuration space."""


def offered_features(device: Offering) -> int:
    """Return the feature bits that a front-end is offered (GET_FEATURES)."""
    own = device.features & ~RESERVED
    return int(own | RING_FEATURES | VIRTIO_F_VERSION_1 | Feature.PROTOCOL_FEATURES)


def offered_protocol_features(device: Offering) -> ProtocolFeature:
    """Return vhost-user's own feature bits that a front-end is offered (GET_PROTOCOL_FEATURES)."""
    config = ProtocolFeature.CONFIG if device.get_config() else ProtocolFeature(0)
    return EVERYWHERE | config | (device.protocol_features & OPTIONAL)


def why_unoffered_fails(accepted: int, offered: int) -> str:
    """Explain why nothing works with what was accepted though it was not offered; empty if that does no harm."""
    stray = accepted & ~offered
    return "".join(
        f"; {COMMON[bit]} was accepted and is not offered: leave {option} out of QEMU's arguments"
        for bit, option in _FORCED.items()
        if stray >> bit & 1
    )


def feature_names(bits: int, own: Mapping[int, str]) -> list[str]:
    """Name the feature *bits* of a device whose type calls its own ones *own*; an unknown one is ``bit 41``."""
    names = {**COMMON, **own}
    return [names.get(bit, f"bit {bit}") for bit in range(64) if bits >> bit & 1]


def protocol_feature_names(bits: int) -> list[str]:
    """Name vhost-user's own feature *bits* (``VHOST_USER_PROTOCOL_F_`` goes before each)."""
    known = {feature.value.bit_length() - 1: str(feature.name) for feature in ProtocolFeature}
    return [known.get(bit, f"bit {bit}") for bit in range(64) if bits >> bit & 1]
