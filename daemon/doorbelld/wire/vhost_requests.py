# SPDX-FileCopyrightText: 2026 The doorbelld authors
# SPDX-License-Identifier: GPL-2.0-or-later
"""Which vhost-user requests there are (QEMU, docs/interop/vhost-user.rst; the sections are named below).

A table that the codec in `vhost.py` reads: for each request its `Exchange`, that is which payloads it may have, how
many descriptors go with them, and what answers it. Where there is more than one possible payload, the size tells which.
The table is as wide as what front-ends really send; where that is more than the specification says, a comment has it.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum, IntEnum, auto
from typing import TypeAlias

from .vhost_messages import (
    FDS_MAX,
    U64,
    Config,
    DeviceState,
    Empty,
    HostNotifierArea,
    Inflight,
    Iotlb,
    Log,
    MemoryTable,
    Opaque,
    Payload,
    SharedObject,
    SingleMemoryRegion,
    VringAddr,
    VringFd,
    VringState,
)


class Answer(Enum):
    """Who decides whether a request is answered ("Communication", "VHOST_USER_PROTOCOL_F_REPLY_ACK")."""

    ALWAYS = auto()
    """It has a reply of its own, and gets no acknowledgement beside that."""
    IF_ASKED = auto()
    """An acknowledgement if the request has NEED_REPLY."""


@dataclass(frozen=True, slots=True)
class Form:
    """One way that a message may look: a payload, and how many descriptors with it (None: as the payload says)."""

    payload: type[Payload]
    fds: range | None = range(1)

    def allowed(self, payload: Payload) -> range:
        """Return how many descriptors may come with *payload*."""
        return self.fds if self.fds is not None else range(payload.fds, payload.fds + 1)


@dataclass(frozen=True, slots=True)
class Exchange:
    """A request and what answers it. In replies to `Answer.IF_ASKED` there is more than `U64` in postcopy only."""

    request: tuple[Form, ...]
    reply: tuple[Form, ...]
    answer: Answer


class FrontendRequest(IntEnum):
    """What a front-end asks of a back-end ("Front-end message types")."""

    GET_FEATURES = 1
    SET_FEATURES = 2
    SET_OWNER = 3
    RESET_OWNER = 4
    SET_MEM_TABLE = 5
    SET_LOG_BASE = 6
    SET_LOG_FD = 7
    SET_VRING_NUM = 8
    SET_VRING_ADDR = 9
    SET_VRING_BASE = 10
    GET_VRING_BASE = 11
    SET_VRING_KICK = 12
    SET_VRING_CALL = 13
    SET_VRING_ERR = 14
    GET_PROTOCOL_FEATURES = 15
    SET_PROTOCOL_FEATURES = 16
    GET_QUEUE_NUM = 17
    SET_VRING_ENABLE = 18
    SEND_RARP = 19
    NET_SET_MTU = 20
    SET_BACKEND_REQ_FD = 21
    IOTLB_MSG = 22
    SET_VRING_ENDIAN = 23
    GET_CONFIG = 24
    SET_CONFIG = 25
    CREATE_CRYPTO_SESSION = 26
    CLOSE_CRYPTO_SESSION = 27
    POSTCOPY_ADVISE = 28
    POSTCOPY_LISTEN = 29
    POSTCOPY_END = 30
    GET_INFLIGHT_FD = 31
    SET_INFLIGHT_FD = 32
    GPU_SET_SOCKET = 33
    RESET_DEVICE = 34
    VRING_KICK = 35
    GET_MAX_MEM_SLOTS = 36
    ADD_MEM_REG = 37
    REM_MEM_REG = 38
    SET_STATUS = 39
    GET_STATUS = 40
    GET_SHARED_OBJECT = 41
    SET_DEVICE_STATE_FD = 42
    CHECK_DEVICE_STATE = 43

    @property
    def exchange(self) -> Exchange:
        """What it looks like, and its answer."""
        return _FRONTEND[self]


class BackendRequest(IntEnum):
    """What a back-end asks of a front-end, on the channel for it ("Back-end message types")."""

    IOTLB_MSG = 1
    CONFIG_CHANGE_MSG = 2
    VRING_HOST_NOTIFIER_MSG = 3
    VRING_CALL = 4
    VRING_ERR = 5
    SHARED_OBJECT_ADD = 6
    SHARED_OBJECT_REMOVE = 7
    SHARED_OBJECT_LOOKUP = 8

    @property
    def exchange(self) -> Exchange:
        """What it looks like, and its answer."""
        return _BACKEND[self]


class Unknown(int):
    """A request that is none of those above, so that it can be refused without losing the connection."""

    @property
    def name(self) -> str:
        """The number, in words."""
        return f"request {int(self)}"

    @property
    def exchange(self) -> Exchange:
        """Anything at all."""
        return _UNKNOWN


Request: TypeAlias = FrontendRequest | BackendRequest | Unknown
Vocabulary: TypeAlias = type[FrontendRequest] | type[BackendRequest]

_ONE, _PERHAPS, _ANY, _AS_SAID = range(1, 2), range(2), range(FDS_MAX + 1), None
_NUMBER = Form(U64)


def _tell(*request: Form, postcopy: type[Payload] | None = None) -> Exchange:
    also = () if postcopy is None else (Form(postcopy),)
    return Exchange(request or (Form(Empty),), (_NUMBER, *also), Answer.IF_ASKED)


def _ask(*reply: Form, by: type[Payload] = Empty, fds: range = range(1)) -> Exchange:
    return Exchange((Form(by, fds),), reply, Answer.ALWAYS)


_F, _B = FrontendRequest, BackendRequest
_FRONTEND = {
    _F.GET_FEATURES: _ask(_NUMBER),
    _F.SET_FEATURES: _tell(_NUMBER),
    _F.SET_OWNER: _tell(),
    _F.RESET_OWNER: _tell(),
    _F.SET_MEM_TABLE: _tell(Form(MemoryTable, _AS_SAID), postcopy=MemoryTable),
    # Without LOG_SHMFD no descriptor comes, and QEMU reads no answer: there the session has to hold it back.
    _F.SET_LOG_BASE: Exchange((Form(Log, _PERHAPS), _NUMBER), (_NUMBER, Form(Empty)), Answer.ALWAYS),
    _F.SET_LOG_FD: _tell(Form(Empty, _ONE)),
    _F.SET_VRING_NUM: _tell(Form(VringState)),
    _F.SET_VRING_ADDR: _tell(Form(VringAddr)),
    _F.SET_VRING_BASE: _tell(Form(VringState)),
    _F.GET_VRING_BASE: _ask(Form(VringState), by=VringState),
    _F.SET_VRING_KICK: _tell(Form(VringFd, _AS_SAID)),
    _F.SET_VRING_CALL: _tell(Form(VringFd, _AS_SAID)),
    _F.SET_VRING_ERR: _tell(Form(VringFd, _AS_SAID)),
    _F.GET_PROTOCOL_FEATURES: _ask(_NUMBER),
    _F.SET_PROTOCOL_FEATURES: _tell(_NUMBER),
    _F.GET_QUEUE_NUM: _ask(_NUMBER),
    _F.SET_VRING_ENABLE: _tell(Form(VringState)),
    _F.SEND_RARP: _tell(_NUMBER),
    _F.NET_SET_MTU: _tell(_NUMBER),
    _F.SET_BACKEND_REQ_FD: _tell(Form(Empty, _ONE)),
    _F.IOTLB_MSG: _ask(_NUMBER, by=Iotlb),
    _F.SET_VRING_ENDIAN: _tell(Form(VringState)),
    _F.GET_CONFIG: _ask(Form(Config), Form(Empty), by=Config),  # empty: an error
    _F.SET_CONFIG: _tell(Form(Config)),
    _F.CREATE_CRYPTO_SESSION: _ask(Form(Opaque), by=Opaque),
    _F.CLOSE_CRYPTO_SESSION: _tell(_NUMBER),
    _F.POSTCOPY_ADVISE: _ask(Form(Empty, _PERHAPS)),
    _F.POSTCOPY_LISTEN: _tell(),
    _F.POSTCOPY_END: _ask(_NUMBER),
    _F.GET_INFLIGHT_FD: _ask(Form(Inflight, _PERHAPS), by=Inflight),
    _F.SET_INFLIGHT_FD: _tell(Form(Inflight, _ONE)),
    _F.GPU_SET_SOCKET: _tell(Form(Empty, _ONE)),
    _F.RESET_DEVICE: _tell(),
    _F.VRING_KICK: _tell(Form(VringState)),
    _F.GET_MAX_MEM_SLOTS: _ask(_NUMBER),
    # In postcopy QEMU says with a bare 0 that it has taken note of all bases; the request is the last one it sent.
    _F.ADD_MEM_REG: _tell(Form(SingleMemoryRegion, _ONE), _NUMBER, postcopy=SingleMemoryRegion),
    _F.REM_MEM_REG: _tell(Form(SingleMemoryRegion, _PERHAPS), _NUMBER),
    _F.SET_STATUS: _tell(_NUMBER),
    _F.GET_STATUS: _ask(_NUMBER),
    # Back-ends differ in what they put beside the descriptor; libvhost-user returns the request.
    _F.GET_SHARED_OBJECT: _ask(
        Form(SharedObject, _PERHAPS), Form(U64, _PERHAPS), Form(Empty, _PERHAPS), by=SharedObject
    ),
    _F.SET_DEVICE_STATE_FD: _ask(Form(U64, _PERHAPS), by=DeviceState, fds=_ONE),
    _F.CHECK_DEVICE_STATE: _ask(_NUMBER),
}
_BACKEND = {
    _B.IOTLB_MSG: _tell(Form(Iotlb)),
    _B.CONFIG_CHANGE_MSG: _tell(),
    _B.VRING_HOST_NOTIFIER_MSG: _tell(Form(HostNotifierArea, _AS_SAID)),
    _B.VRING_CALL: _tell(Form(VringState)),
    _B.VRING_ERR: _tell(Form(VringState)),
    _B.SHARED_OBJECT_ADD: _tell(Form(SharedObject)),
    _B.SHARED_OBJECT_REMOVE: _tell(Form(SharedObject)),
    _B.SHARED_OBJECT_LOOKUP: _ask(Form(U64, _PERHAPS), by=SharedObject),
}
_UNKNOWN = Exchange((Form(Opaque, _ANY),), (Form(Opaque, _ANY),), Answer.IF_ASKED)
