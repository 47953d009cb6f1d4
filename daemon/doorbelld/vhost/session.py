# SPDX-FileCopyrightText: 2026 The doorbelld authors
# SPDX-License-Identifier: GPL-2.0-or-later
"""One front-end: what its requests do to a device.

Theory of operation
-------------------
`Session.handle` takes one message after the other, strictly in order, and gives the answer to send, if any. A table
says which method realises which request; what is not in it is not offered: packed rings, in-flight tracking, the dirty
log, postcopy and the IOTLB have their places there.

A request that can't be granted is `Refused`: with a non-zero acknowledgement if the front-end asked for one, else by
the end of the connection, because a front-end that is not told would go on in a belief that does not hold.

A ring is *enabled* or not, and *started* or not; both are off at first. It starts at SET_VRING_KICK, with a descriptor
or without, or at a VRING_KICK in band; if it has no addresses yet, then at SET_VRING_ADDR. GET_VRING_BASE stops it.
While it is started and enabled a worker serves it, and looks at once at what is available: no front-end need kick for
what it put there before.

Invariants
----------
1. Rings, guest memory and the device's hooks are touched only while workers are still (`Engine.still`).
2. A ring is attached to a worker exactly while it is enabled and started.
3. Nothing is ever waited for on the back-end channel (channel.py).
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Awaitable, Callable
from typing import Any, Protocol

from ..errors import DoorbellError
from ..fds import native
from ..fds.owned import Fd
from ..ring.errors import QueueError
from ..ring.memory import SLOTS_MAX
from ..ring.queue import RING_FEATURES
from ..wire.vhost import Message
from ..wire.vhost_messages import (
    CONFIG_MAX,
    U64,
    Config,
    Empty,
    Feature,
    MemoryTable,
    Payload,
    ProtocolFeature,
    SingleMemoryRegion,
    VhostSetConfigType,
    VringAddr,
    VringAddrFlag,
    VringFd,
    VringState,
)
from ..wire.vhost_requests import Answer, FrontendRequest, Request
from .channel import BackChannel, Reactor
from .device import QUEUE_SIZE_MAX
from .engine import Engine
from .errors import DeviceFaulty
from .features import offered_features, offered_protocol_features, why_unoffered_fails
from .vring import Refused, Ring, check_signal, own_eventfd

STATUS_RESET = 0
STATUS_NEEDS_RESET = 64
"""VIRTIO 1.2, 2.1: DEVICE_NEEDS_RESET."""
INBAND_NEEDS = ProtocolFeature.BACKEND_REQ | ProtocolFeature.REPLY_ACK


class SessionEnded(DoorbellError):
    """The front-end did what ends its connection; the text says what."""


class Watcher(Protocol):
    """What a session tells its owner; none of it may call the session back at once."""

    def failed(self, reason: str) -> None:
        """The connection must end, for *reason*."""

    def refused(self, request: str, reason: str) -> None:
        """A request was refused, and the front-end told so."""

    def queue_changed(self, index: int) -> None:
        """A ring was enabled, disabled, started or stopped, or has another size."""

    def negotiated(self) -> None:
        """Features, memory, or the configuration as far as the front-end changes it, are others now."""


class Session:
    """A front-end's hold on a device, from its connection until `close`."""

    def __init__(self, engine: Engine, reactor: Reactor, watcher: Watcher) -> None:
        self._engine = engine
        self._device = engine.device
        self._reactor = reactor
        self._watcher = watcher
        self.rings = [Ring(queue) for queue in engine.queues]
        self.features: int | None = None
        """What the front-end accepted; None before it did."""
        self._unoffered = ""
        self.protocol_features = ProtocolFeature(0)
        self.status = STATUS_RESET
        self.owned = False
        self.channel: BackChannel | None = None
        self._config_told = True

    def has(self, feature: ProtocolFeature) -> bool:
        """Whether *feature* was negotiated."""
        return bool(self.protocol_features & feature)

    # Messages

    async def handle(self, message: Message) -> Message | None:
        """Do what *message* asks, and return what to answer; its descriptors are closed or taken over.

        Raises:
            SessionEnded, DeviceFaulty: the connection must end.
        """
        with contextlib.closing(message):
            try:
                method = _METHODS.get(message.request)
                if method is None:
                    raise Refused("it is not offered, or unknown")
                payload = await method(self, message.payload, message)
            except (SessionEnded, DeviceFaulty):  # what a faulty device has done by half can't go on
                raise
            except (DoorbellError, OSError) as error:
                return self._refuse(message, f"{error}{self._unoffered}")
        if payload is not None:
            return message.reply(payload)
        return message.ack() if message.need_reply else None

    def _refuse(self, message: Message, reason: str) -> Message:
        request = message.request
        if request is FrontendRequest.GET_CONFIG:
            answer = message.reply(Empty())
        elif message.need_reply and request.exchange.answer is Answer.IF_ASKED:
            answer = message.ack(1)
        else:
            raise SessionEnded(f"{request.name}: {reason}")
        self._watcher.refused(request.name, reason)
        return answer

    async def _get_features(self, payload: Payload, message: Message) -> Payload:
        return U64(offered_features(self._device))

    async def _set_features(self, payload: U64, message: Message) -> None:
        offered = offered_features(self._device)
        accepted = payload.value & offered
        self._unoffered = why_unoffered_fails(payload.value, offered)
        if accepted == self.features:
            return
        async with self._engine.still():
            others = [ring.queue for ring in self.rings if (ring.queue.features ^ accepted) & RING_FEATURES]
            if any(queue.running for queue in others):
                raise Refused("features of rings can't change while one runs; stop it first")
            for queue in others:
                queue.set_features(accepted & RING_FEATURES)
            self.features = accepted
            self._device.ack(accepted & ~int(Feature.PROTOCOL_FEATURES))
            if not accepted & Feature.PROTOCOL_FEATURES:
                for index in range(len(self.rings)):
                    self._enable(index, True)
        self._watcher.negotiated()

    async def _set_owner(self, payload: Payload, message: Message) -> None:
        self.owned = True

    async def _reset_owner(self, payload: Payload, message: Message) -> None:
        """Do nothing: front-ends use it in ways that differ, and the specification says to ignore it."""

    async def _get_protocol_features(self, payload: Payload, message: Message) -> Payload:
        return U64(offered_protocol_features(self._device))

    async def _set_protocol_features(self, payload: U64, message: Message) -> None:
        accepted = ProtocolFeature(payload.value & offered_protocol_features(self._device))
        if accepted & ProtocolFeature.INBAND_NOTIFICATIONS and accepted & INBAND_NEEDS != INBAND_NEEDS:
            raise SessionEnded("INBAND_NOTIFICATIONS was accepted without BACKEND_REQ and REPLY_ACK, which it needs")
        self.protocol_features = accepted
        self._watcher.negotiated()

    async def _get_queue_num(self, payload: Payload, message: Message) -> Payload:
        return U64(len(self.rings))

    # Memory

    async def _set_mem_table(self, payload: MemoryTable, message: Message) -> None:
        regions = [
            (r.guest_addr, r.size, r.user_addr, r.mmap_offset, fd.fileno())
            for r, fd in zip(payload.regions, message.fds, strict=True)
        ]
        async with self._engine.still():
            self._engine.memory.set_table(regions)
        self._watcher.negotiated()

    async def _add_mem_reg(self, payload: Payload, message: Message) -> None:
        if not isinstance(payload, SingleMemoryRegion) or message.fd is None:
            raise Refused("postcopy is not offered")
        r, fd = payload.region, message.fd.fileno()
        async with self._engine.still():
            self._engine.memory.add(r.guest_addr, r.size, r.user_addr, r.mmap_offset, fd)
        self._watcher.negotiated()

    async def _rem_mem_reg(self, payload: SingleMemoryRegion, message: Message) -> None:
        r = payload.region
        async with self._engine.still():
            self._engine.memory.remove(r.guest_addr, r.size, r.user_addr)
        self._watcher.negotiated()

    async def _get_max_mem_slots(self, payload: Payload, message: Message) -> Payload:
        return U64(SLOTS_MAX)

    # Rings

    def _ring(self, index: int) -> Ring:
        if index >= len(self.rings):
            raise Refused(f"there is no ring {index}; this device has {len(self.rings)}")
        return self.rings[index]

    async def _set_vring_num(self, payload: VringState, message: Message) -> None:
        ring = self._ring(payload.index)
        if (most := ring.queue.max_size) < payload.num <= QUEUE_SIZE_MAX:
            raise Refused(
                f"a ring of {payload.num} entries is longer than queue-size = {most} allows; "
                f"set queue-size = {payload.num} for this device, or leave queue-size out"
            )
        async with self._engine.still():
            ring.queue.set_num(payload.num)
        self._watcher.queue_changed(payload.index)

    async def _set_vring_addr(self, payload: VringAddr, message: Message) -> None:
        ring = self._ring(payload.index)
        if payload.flags & VringAddrFlag.LOG:
            raise Refused("the dirty log is not offered")
        async with self._engine.still():
            ring.queue.set_addr(payload.desc, payload.used, payload.avail)
            ring.placed = True
            self._start(payload.index)

    async def _set_vring_base(self, payload: VringState, message: Message) -> None:
        ring = self._ring(payload.index)
        async with self._engine.still():
            ring.queue.set_base(payload.num)

    async def _get_vring_base(self, payload: VringState, message: Message) -> Payload:
        self._ring(payload.index)
        async with self._engine.still():
            base = self._stop(payload.index)
        return VringState(payload.index, base)

    async def _set_vring_kick(self, payload: VringFd, message: Message) -> None:
        ring = self._ring(payload.index)
        check_signal(message)
        async with self._engine.still():
            self._engine.detach(payload.index)
            try:
                self._set_kick(ring, message.fd)
            finally:
                if ring.queue.running and ring.enabled:
                    self._attach(payload.index)
            ring.due = True
            self._start(payload.index)

    async def _set_vring_call(self, payload: VringFd, message: Message) -> None:
        ring = self._ring(payload.index)
        check_signal(message)
        self._forget_call(ring)
        if message.fd is not None:
            ring.queue.set_call(message.fd.fileno())
        elif self.has(ProtocolFeature.INBAND_NOTIFICATIONS):
            self._begin_calls_in_band(payload.index)
        else:
            ring.queue.set_call(-1)

    async def _set_vring_err(self, payload: VringFd, message: Message) -> None:
        ring = self._ring(payload.index)
        check_signal(message)
        if ring.err is not None:
            ring.err.close()
        ring.err = None if message.fd is None else Fd(message.fd.steal())

    async def _set_vring_enable(self, payload: VringState, message: Message) -> None:
        self._ring(payload.index)
        if payload.num > 1:
            raise Refused(f"{payload.num} is neither 0 (disable) nor 1 (enable)")
        async with self._engine.still():
            self._enable(payload.index, bool(payload.num))

    async def _vring_kick(self, payload: VringState, message: Message) -> None:
        ring = self._ring(payload.index)
        if not self.has(ProtocolFeature.INBAND_NOTIFICATIONS):
            raise Refused("INBAND_NOTIFICATIONS was not negotiated")
        if not ring.queue.running:
            async with self._engine.still():
                ring.due = True
                self._start(payload.index)
        elif ring.kick is not None:
            os.eventfd_write(ring.kick.fileno(), 1)
        else:
            self._engine.rouse(payload.index)

    # While workers are still

    def _start(self, index: int) -> None:
        """Start a ring that is due and has its addresses.

        Raises:
            QueueError: it can't run.
        """
        ring = self.rings[index]
        if ring.queue.running or not ring.due or not ring.placed:
            return
        ring.due = False
        if self.has(ProtocolFeature.INBAND_NOTIFICATIONS):  # then Linux sends neither SET_VRING_KICK nor _CALL
            if ring.queue.kick_fd < 0:
                self._set_kick(ring, None)
            if ring.call is None and not ring.queue.has_call:
                self._begin_calls_in_band(index)
        ring.queue.start()
        self._device.start(ring.queue)
        if ring.enabled:
            self._attach(index)
        if self.channel is not None and not self._config_told:
            self._tell_config()
        self._watcher.queue_changed(index)

    def _set_kick(self, ring: Ring, fd: Fd | None) -> None:
        """Let the queue have a copy of *fd* to be kicked with; without, one that kicks in band write to, or none."""
        ring.forget_kick()
        if fd is None and self.has(ProtocolFeature.INBAND_NOTIFICATIONS):
            ring.kick = fd = own_eventfd()
        ring.queue.set_kick(-1 if fd is None else fd.fileno())

    def _attach(self, index: int) -> None:
        try:
            self._engine.attach(index)
        except OSError as error:
            raise SessionEnded(f"queue {index} can't be served: {error.strerror or error}") from error

    def _stop(self, index: int) -> int:
        ring = self.rings[index]
        running = ring.queue.running
        try:
            self._engine.detach(index)
        finally:
            ring.due = False
            ring.forget_kick()
            with contextlib.suppress(QueueError):  # it broke, or is not in memory
                while running and ring.queue.in_flight and ring.queue.rewind(1):
                    pass  # what the device keeps comes again after the next start
            base = ring.queue.stop()
            ring.queue.set_kick(-1)
        if running:
            self._watcher.queue_changed(index)
            self._device.stop(ring.queue)
        return base

    def _enable(self, index: int, enabled: bool) -> None:
        ring = self.rings[index]
        if ring.enabled == enabled:
            return
        ring.enabled = enabled
        if not enabled:
            self._engine.detach(index)
        elif ring.queue.running:
            self._attach(index)
        self._watcher.queue_changed(index)

    def _reset(self) -> None:
        """Stop and disable all rings, and give the device its state after birth; memory stays."""
        for index in range(len(self.rings)):
            self._stop(index)
            self.rings[index].placed = False
            if self.features is None or self.features & Feature.PROTOCOL_FEATURES:
                self._enable(index, False)
        self.status = STATUS_RESET
        self.features = None
        self._device.reset()

    def _forget_call(self, ring: Ring) -> None:
        if ring.call is not None:
            self._reactor.remove_reader(ring.call.fileno())
            ring.call.close()
            ring.call = None

    # Configuration, status, reset

    async def _get_config(self, payload: Config, message: Message) -> Payload:
        if not self._device.get_config():
            raise Refused("this device has no configuration space")
        start, size = payload.offset, len(payload.payload)
        if start + size > CONFIG_MAX:
            raise Refused(f"bytes {start} to {start + size} are not in a configuration space of {CONFIG_MAX}")
        return Config(start, self._device.config_space()[start : start + size], payload.flags)

    async def _set_config(self, payload: Config, message: Message) -> None:
        try:
            kind = VhostSetConfigType(payload.flags)
        except ValueError:
            raise Refused(f"{payload.flags} is no reason to write the configuration") from None
        have = len(self._device.get_config())
        if payload.offset + len(payload.payload) > have:
            raise Refused(f"the configuration space has {have} bytes")
        async with self._engine.still():
            self._device.set_config(payload.offset, payload.payload, kind)
        self._watcher.negotiated()

    async def _set_status(self, payload: U64, message: Message) -> None:
        status = payload.value & 0xFF
        if status == STATUS_RESET and self.status != STATUS_RESET:
            await self.reset()
        self.status = status

    async def _get_status(self, payload: Payload, message: Message) -> Payload:
        return U64(self.status)

    async def _reset_device(self, payload: Payload, message: Message) -> None:
        await self.reset()

    async def reset(self) -> None:
        """Reset the device, as the front-end may ask for (RESET_DEVICE)."""
        async with self._engine.still():
            self._reset()
        self._watcher.negotiated()

    async def reset_unasked(self) -> None:
        """Reset the device though nobody asked; the driver is to find out by its status, and start anew."""
        await self.reset()
        self.status = STATUS_NEEDS_RESET
        self._tell_config()

    # The back-end channel

    async def _set_backend_req_fd(self, payload: Payload, message: Message) -> None:
        if not self.has(ProtocolFeature.BACKEND_REQ) or message.fd is None:
            raise Refused("BACKEND_REQ was not negotiated")
        if self.channel is not None:
            self.channel.close()
        self.channel = BackChannel(
            self._reactor,
            message.fd,
            ask=self.has(ProtocolFeature.REPLY_ACK),
            fds=self.has(ProtocolFeature.BACKEND_SEND_FD),
            failed=self._watcher.failed,
        )
        if not self._config_told:
            self.config_changed()

    def config_changed(self) -> None:
        """Tell the front-end that the configuration space changed, now or when it can listen to that."""
        self._config_told = False
        if self.channel is not None and any(ring.queue.running for ring in self.rings):
            self._tell_config()

    def _tell_config(self) -> None:
        """Say it again after a start: QEMU's blk ignores it while it is stopped."""
        if self.channel is not None and self.has(ProtocolFeature.CONFIG):
            self.channel.config_changed()
            self._config_told = True

    def host_notifier(self, index: int, area: tuple[Fd, int, int] | None) -> bool:
        """Offer a page as the doorbell of a ring (see `Device`); False if that can't be, and then it is closed."""
        if self.channel is not None and self.has(ProtocolFeature.HOST_NOTIFIER):
            return self.channel.host_notifier(index, area)
        if area is not None:
            area[0].close()
        return False

    def _begin_calls_in_band(self, index: int) -> None:
        ring = self.rings[index]
        ring.call = own_eventfd()
        self._reactor.add_reader(ring.call.fileno(), self._call_in_band, index)
        ring.queue.set_call(ring.call.fileno())

    def _call_in_band(self, index: int) -> None:
        ring = self.rings[index]
        assert ring.call is not None
        with contextlib.suppress(BlockingIOError):
            os.eventfd_read(ring.call.fileno())
        if self.channel is not None:
            self.channel.call(index)

    def tell_broken(self) -> None:
        """Let the front-end know which rings broke, through what it gave for that (SET_VRING_ERR)."""
        for ring in self.rings:
            if not ring.queue.broken:
                continue
            if ring.err is not None:
                native.ring_one(ring.err.fileno())
            elif self.channel is not None and self.has(ProtocolFeature.INBAND_NOTIFICATIONS):
                self.channel.error(ring.queue.index)

    async def close(self) -> None:
        """Let go of the device: when this returns, or raises, nothing touches the front-end's memory any more.

        It raises DeviceFaulty, if a hook of the device failed, after everything else.
        """
        if self.channel is not None:
            self.channel.close()
        async with self._engine.still():
            with contextlib.ExitStack() as steps:  # taken from the last to the first, whatever one of them raises
                steps.callback(self._engine.memory.set_table, [])
                steps.callback(self._device.reset)
                for ring in reversed(self.rings):
                    steps.callback(self._let_go, ring)
                    steps.callback(self._stop, ring.queue.index)

    def _let_go(self, ring: Ring) -> None:
        self._enable(ring.queue.index, False)
        self._forget_call(ring)
        ring.queue.set_call(-1)
        ring.queue.set_features(0)
        if ring.err is not None:
            ring.err.close()


_Method = Callable[[Session, Any, Message], Awaitable[Payload | None]]
_F, _S = FrontendRequest, Session
_METHODS: dict[Request, _Method] = {
    _F.GET_FEATURES: _S._get_features,
    _F.SET_FEATURES: _S._set_features,
    _F.SET_OWNER: _S._set_owner,
    _F.RESET_OWNER: _S._reset_owner,
    _F.SET_MEM_TABLE: _S._set_mem_table,
    _F.SET_VRING_NUM: _S._set_vring_num,
    _F.SET_VRING_ADDR: _S._set_vring_addr,
    _F.SET_VRING_BASE: _S._set_vring_base,
    _F.GET_VRING_BASE: _S._get_vring_base,
    _F.SET_VRING_KICK: _S._set_vring_kick,
    _F.SET_VRING_CALL: _S._set_vring_call,
    _F.SET_VRING_ERR: _S._set_vring_err,
    _F.GET_PROTOCOL_FEATURES: _S._get_protocol_features,
    _F.SET_PROTOCOL_FEATURES: _S._set_protocol_features,
    _F.GET_QUEUE_NUM: _S._get_queue_num,
    _F.SET_VRING_ENABLE: _S._set_vring_enable,
    _F.SET_BACKEND_REQ_FD: _S._set_backend_req_fd,
    _F.GET_CONFIG: _S._get_config,
    _F.SET_CONFIG: _S._set_config,
    _F.RESET_DEVICE: _S._reset_device,
    _F.VRING_KICK: _S._vring_kick,
    _F.GET_MAX_MEM_SLOTS: _S._get_max_mem_slots,
    _F.ADD_MEM_REG: _S._add_mem_reg,
    _F.REM_MEM_REG: _S._rem_mem_reg,
    _F.SET_STATUS: _S._set_status,
    _F.GET_STATUS: _S._get_status,
}
