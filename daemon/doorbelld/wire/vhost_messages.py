# SPDX-FileCopyrightText: 2026 The doorbelld authors
# SPDX-License-Identifier: GPL-2.0-or-later
"""What vhost-user messages carry (QEMU, docs/interop/vhost-user.rst, "Payload"; sections are named below).

The flags and numbers by their names, and the payloads, each a frozen dataclass that packs and unpacks itself. Which
request has which payload is in `vhost_requests.py`. All numbers are in the machine's byte order, as the specification
has it: both ends are on one machine.
"""

from __future__ import annotations

import struct
from collections.abc import Callable
from dataclasses import dataclass
from enum import IntEnum, IntFlag
from typing import Any, ClassVar, Self
from uuid import UUID

FDS_MAX = 8
"""Descriptors beside one message, at most ("Back-end communication")."""
REGIONS_MAX = 8
"""Regions in one memory table; who has more sends them one by one, with ADD_MEM_REG."""
CONFIG_MAX = 256
"""Bytes of a device's configuration space."""
PAYLOAD_MAX = 4096
"""Bytes of a payload that we don't know; the largest that we know is far below."""
VRING_INDEX_MASK = 0xFF
"""Where a number holds the index of a vring and a flag ("Front-end message types", SET_VRING_KICK)."""
VRING_NOFD = 1 << 8
"""The flag beside such an index, and in the answer to SET_DEVICE_STATE_FD: no descriptor comes with this."""


class Flags(IntFlag):
    """The flags of a header ("Header")."""

    VERSION = 0x1
    """The lower two bits are the version, which is 1."""
    REPLY = 0x4
    NEED_REPLY = 0x8


class Feature(IntFlag):
    """The bits among a device's features that are vhost-user's own ("Communication", "Migration")."""

    LOG_ALL = 1 << 26
    PROTOCOL_FEATURES = 1 << 30


class ProtocolFeature(IntFlag):
    """What both ends have to agree on ("Protocol features")."""

    MQ = 1 << 0
    LOG_SHMFD = 1 << 1
    RARP = 1 << 2
    REPLY_ACK = 1 << 3
    NET_MTU = 1 << 4
    BACKEND_REQ = 1 << 5
    CROSS_ENDIAN = 1 << 6
    CRYPTO_SESSION = 1 << 7
    PAGEFAULT = 1 << 8
    CONFIG = 1 << 9
    BACKEND_SEND_FD = 1 << 10
    HOST_NOTIFIER = 1 << 11
    INFLIGHT_SHMFD = 1 << 12
    RESET_DEVICE = 1 << 13
    INBAND_NOTIFICATIONS = 1 << 14
    CONFIGURE_MEM_SLOTS = 1 << 15
    STATUS = 1 << 16
    XEN_MMAP = 1 << 17
    SHARED_OBJECT = 1 << 18
    DEVICE_STATE = 1 << 19


class VringAddrFlag(IntFlag):
    """The flags of SET_VRING_ADDR ("Migration")."""

    LOG = 1 << 0
    """Writes to the used ring go into the log (VHOST_VRING_F_LOG)."""


class VhostSetConfigType(IntEnum):
    """What SET_CONFIG is for ("Virtio device config space"). There are front-ends that send other numbers."""

    FRONTEND = 0
    MIGRATION = 1


class IotlbType(IntEnum):
    """What an IOTLB message says ("An IOTLB message")."""

    MISS = 1
    UPDATE = 2
    INVALIDATE = 3
    ACCESS_FAIL = 4


class IotlbPerm(IntEnum):
    """What may be done with a piece of memory ("An IOTLB message")."""

    NONE = 0
    RO = 1
    WO = 2
    RW = 3


class TransferDirection(IntEnum):
    """Which way a device's state goes ("Device state transfer parameters")."""

    SAVE = 0
    LOAD = 1


class TransferPhase(IntEnum):
    """When a device's state goes ("Device state transfer parameters"); the specification reserves more."""

    STOPPED = 0


class Payload:
    """What follows a header; each kind is a dataclass below.

    The fields of a plain one are the fields of its structure, in order; others say how they differ.
    """

    __slots__: ClassVar[tuple[str, ...]] = ()
    LAYOUT: ClassVar[struct.Struct]
    PADDING: ClassVar[int] = 0
    """Bytes at the end of the structure that a compiler put there: not all send them."""

    @classmethod
    def sizes(cls) -> range:
        """Return the numbers of bytes that this payload may have."""
        return range(cls.LAYOUT.size - cls.PADDING, cls.LAYOUT.size + 1)

    @classmethod
    def unpack(cls, data: bytes) -> Self:
        """Read *data*, of which there are as many bytes as `sizes` allows.

        Raises:
            ValueError: it means nothing; the text says what is wrong.
        """
        return cls._of(*cls.LAYOUT.unpack(data.ljust(cls.LAYOUT.size, b"\0")))

    def pack(self) -> bytes:
        """Put it in the form that goes over the wire."""
        return self.LAYOUT.pack(*self._values())

    @property
    def fds(self) -> int:
        """How many descriptors it says to come with it."""
        return 0

    @classmethod
    def _of(cls, *values: Any) -> Self:
        make: Callable[..., Self] = cls
        return make(*values)

    def _values(self) -> tuple[Any, ...]:
        return tuple(getattr(self, name) for name in self.__slots__)


@dataclass(frozen=True, slots=True)
class Empty(Payload):
    """No payload at all."""

    LAYOUT = struct.Struct("")


@dataclass(frozen=True, slots=True)
class U64(Payload):
    """Features, a number of queues, an acknowledgement: 0 is success ("A single 64-bit integer")."""

    LAYOUT = struct.Struct("=Q")

    value: int


@dataclass(frozen=True, slots=True)
class VringState(Payload):
    """A number about a ring ("A vring state description", and the descriptor indices of both kinds of ring)."""

    LAYOUT = struct.Struct("=II")

    index: int
    num: int


@dataclass(frozen=True, slots=True)
class VringAddr(Payload):
    """Where a ring is; unknown flags are kept ("A vring address description")."""

    LAYOUT = struct.Struct("=II4Q")

    index: int
    flags: VringAddrFlag
    desc: int
    used: int
    avail: int
    log: int

    @classmethod
    def _of(cls, *values: int) -> Self:
        index, flags, desc, used, avail, log = values
        return cls(index, VringAddrFlag(flags), desc, used, avail, log)


@dataclass(frozen=True, slots=True)
class VringFd(Payload):
    """Whose kick, call or error descriptor this is; `nofd`: there is none ("Front-end message types")."""

    LAYOUT = U64.LAYOUT

    index: int
    nofd: bool = False

    @property
    def fds(self) -> int:
        """One, or none with `nofd`."""
        return int(not self.nofd)

    @classmethod
    def _of(cls, *values: int) -> Self:
        return cls(*_vring_of(values[0]))

    def _values(self) -> tuple[int]:
        return (_vring_bits(self.index, self.nofd),)


@dataclass(frozen=True, slots=True)
class HostNotifierArea(Payload):
    """A page of a device that is the doorbell of a ring; none with `nofd` ("Vring area description")."""

    LAYOUT = struct.Struct("=QQQ")

    index: int
    nofd: bool
    size: int
    offset: int

    @property
    def fds(self) -> int:
        """One, or none with `nofd`."""
        return int(not self.nofd)

    @classmethod
    def _of(cls, *values: int) -> Self:
        bits, size, offset = values
        return cls(*_vring_of(bits), size, offset)

    def _values(self) -> tuple[int, int, int]:
        return _vring_bits(self.index, self.nofd), self.size, self.offset


@dataclass(frozen=True, slots=True)
class MemoryRegion:
    """A piece of the guest's memory ("Memory region description", without the fields that Xen adds)."""

    LAYOUT: ClassVar[struct.Struct] = struct.Struct("=4Q")

    guest_addr: int
    size: int
    user_addr: int
    mmap_offset: int

    def pack(self) -> bytes:
        """Put it in the form that goes over the wire."""
        return self.LAYOUT.pack(self.guest_addr, self.size, self.user_addr, self.mmap_offset)


@dataclass(frozen=True, slots=True)
class MemoryTable(Payload):
    """All of the guest's memory ("Multiple memory regions description").

    `slack` is the bytes after the last region: User-Mode Linux sends an array of fixed length with fewer regions in
    it. A front-end in postcopy wants an answer as long as its request, so answer with ``replace(table, regions=..)``.
    A table without regions is what acknowledges such an answer.
    """

    LAYOUT = struct.Struct("=I4x")

    regions: tuple[MemoryRegion, ...]
    slack: int = 0

    @property
    def fds(self) -> int:
        """One for each region."""
        return len(self.regions)

    @classmethod
    def sizes(cls) -> range:
        """Return anything up to a full table."""
        return range(cls.LAYOUT.size, cls.LAYOUT.size + REGIONS_MAX * MemoryRegion.LAYOUT.size + 1)

    @classmethod
    def unpack(cls, data: bytes) -> Self:
        """Read *data*, which has to hold as many regions as it says."""
        start, each = cls.LAYOUT.size, MemoryRegion.LAYOUT.size
        (count,) = cls.LAYOUT.unpack_from(data)
        slack = len(data) - start - count * each
        if slack < 0:
            raise ValueError(f"{len(data)} bytes of payload are too few for a table of {count} regions")
        places = range(start, start + count * each, each)
        return cls(tuple(MemoryRegion(*MemoryRegion.LAYOUT.unpack_from(data, place)) for place in places), slack)

    def pack(self) -> bytes:
        """Put it in the form that goes over the wire."""
        return b"".join((self.LAYOUT.pack(len(self.regions)), *(r.pack() for r in self.regions), bytes(self.slack)))


@dataclass(frozen=True, slots=True)
class SingleMemoryRegion(Payload):
    """A region that comes or goes ("Single memory region description")."""

    LAYOUT = struct.Struct("=8x4Q")

    region: MemoryRegion

    @classmethod
    def _of(cls, *values: int) -> Self:
        return cls(MemoryRegion(*values))

    def _values(self) -> tuple[int, ...]:
        region = self.region
        return region.guest_addr, region.size, region.user_addr, region.mmap_offset


@dataclass(frozen=True, slots=True)
class Log(Payload):
    """Where the dirty log is in its descriptor ("Log description")."""

    LAYOUT = struct.Struct("=QQ")

    mmap_size: int
    mmap_offset: int


@dataclass(frozen=True, slots=True)
class Iotlb(Payload):
    """A piece of the translation from I/O to user addresses ("An IOTLB message")."""

    LAYOUT = struct.Struct("=QQQBB6x")
    PADDING = 6

    iova: int
    size: int
    uaddr: int
    perm: IotlbPerm
    type: IotlbType

    @classmethod
    def _of(cls, *values: int) -> Self:
        iova, size, uaddr, perm, kind = values
        return cls(iova, size, uaddr, IotlbPerm(perm), IotlbType(kind))


@dataclass(frozen=True, slots=True)
class Config(Payload):
    """A piece of the configuration space ("Virtio device config space").

    A GET_CONFIG asks for as many bytes as it brings. `flags` is a `VhostSetConfigType`, but rust-vmm's front-ends have
    bits there (1 in each GET_CONFIG), so it stays a number and only SET_CONFIG looks at it.
    """

    LAYOUT = struct.Struct("=III")

    offset: int
    payload: bytes
    flags: int = VhostSetConfigType.FRONTEND

    @classmethod
    def sizes(cls) -> range:
        """Return anything up to the whole configuration space."""
        return range(cls.LAYOUT.size, cls.LAYOUT.size + CONFIG_MAX + 1)

    @classmethod
    def unpack(cls, data: bytes) -> Self:
        """Read *data*, which has to hold as many bytes as it says."""
        offset, size, flags = cls.LAYOUT.unpack_from(data)
        payload = data[cls.LAYOUT.size :]
        if len(payload) != size:
            raise ValueError(f"it is about {size} bytes of configuration and brings {len(payload)}")
        return cls(offset, payload, flags)

    def pack(self) -> bytes:
        """Put it in the form that goes over the wire."""
        return self.LAYOUT.pack(self.offset, len(self.payload), self.flags) + self.payload


@dataclass(frozen=True, slots=True)
class Inflight(Payload):
    """Where requests in flight are written down ("Inflight description")."""

    LAYOUT = struct.Struct("=QQHH4x")
    PADDING = 4

    mmap_size: int
    mmap_offset: int
    num_queues: int
    queue_size: int


@dataclass(frozen=True, slots=True)
class SharedObject(Payload):
    """The name of a buffer; its first three components are big-endian on the wire ("VhostUserShared")."""

    LAYOUT = struct.Struct("16s")

    uuid: UUID

    @classmethod
    def _of(cls, *values: bytes) -> Self:
        return cls(UUID(bytes=values[0]))

    def _values(self) -> tuple[bytes]:
        return (self.uuid.bytes,)


@dataclass(frozen=True, slots=True)
class DeviceState(Payload):
    """A transfer; `phase` is a `TransferPhase`, or one to come ("Device state transfer parameters")."""

    LAYOUT = struct.Struct("=II")

    direction: TransferDirection
    phase: int = TransferPhase.STOPPED

    @classmethod
    def _of(cls, *values: int) -> Self:
        direction, phase = values
        return cls(TransferDirection(direction), phase)


@dataclass(frozen=True, slots=True)
class Opaque(Payload):
    """Bytes that we don't look into: an unknown request's, or a crypto session that only QEMU's headers describe."""

    data: bytes

    @classmethod
    def sizes(cls) -> range:
        """Return anything that is not too much."""
        return range(PAYLOAD_MAX + 1)

    @classmethod
    def unpack(cls, data: bytes) -> Self:
        """Keep *data*."""
        return cls(data)

    def pack(self) -> bytes:
        """Return what was kept."""
        return self.data


def _vring_of(bits: int) -> tuple[int, bool]:
    if bits & ~(VRING_INDEX_MASK | VRING_NOFD):
        raise ValueError(f"{bits:#x} is no vring index of 8 bits, with or without the flag {VRING_NOFD:#x}")
    return bits & VRING_INDEX_MASK, bool(bits & VRING_NOFD)


def _vring_bits(index: int, nofd: bool) -> int:
    if not 0 <= index <= VRING_INDEX_MASK:
        raise ValueError(f"vring {index} is not within 0..{VRING_INDEX_MASK}")
    return index | (VRING_NOFD if nofd else 0)
