# SPDX-FileCopyrightText: 2026 The doorbelld authors
# SPDX-License-Identifier: GPL-2.0-or-later
"""Each protocol feature that is offered works, from one end to the other; and nothing else is offered."""

from __future__ import annotations

import mmap
import os
from collections.abc import Callable

import pytest
from doorbelld.fds.owned import Fd
from doorbelld.ring.queue import VirtQueue
from doorbelld.vhost.features import EVERYWHERE, OPTIONAL
from doorbelld.vhost.frontend import GUEST_BASE, USER_BASE, BackendFailed
from doorbelld.wire.vhost_messages import (
    U64,
    Config,
    HostNotifierArea,
    MemoryRegion,
    MemoryTable,
    ProtocolFeature,
    SingleMemoryRegion,
    VhostSetConfigType,
    VringFd,
    VringState,
)
from doorbelld.wire.vhost_requests import BackendRequest
from doorbelld.wire.vhost_requests import FrontendRequest as R
from support.devicesite import DeviceSite, Echo, pending

F = ProtocolFeature


class Everything(Echo):
    """A device that has all that one can have, and offers a page as the doorbell of each queue."""

    protocol_features = OPTIONAL
    offered: bool | None = None

    def start(self, queue: VirtQueue) -> None:
        super().start(queue)
        page = Fd(os.memfd_create("doorbell"))
        os.ftruncate(page.fileno(), 2 * mmap.PAGESIZE)
        os.pwrite(page.fileno(), b"page", mmap.PAGESIZE)
        self.offered = self.host_notifier(queue, (page, mmap.PAGESIZE, mmap.PAGESIZE))

    def stop(self, queue: VirtQueue) -> None:
        self.host_notifier(queue, None)


def mq(site: DeviceSite) -> None:
    _, f = site.started(Everything, queues=Everything.queues)
    assert f.ask_number(R.GET_QUEUE_NUM) == Everything.queues
    for queue in f.queues.values():
        assert f.request(queue, b"each", 4) == b"each"


def reply_ack(site: DeviceSite) -> None:
    backend, f = site.started(Everything)
    assert f.try_to_tell(R.SET_VRING_ENABLE, VringState(1, 1)) == 0 and backend.queue(1).enabled
    assert f.try_to_tell(R.SET_VRING_ENABLE, VringState(9, 1)) != 0


def backend_req(site: DeviceSite) -> None:
    backend, f = site.started(Everything)
    f.open_channel()
    backend.device.config_changed()
    f.request(f.queues[0], b"a", 1)
    message = f.hear()
    while message.request is not BackendRequest.CONFIG_CHANGE_MSG:
        f.acknowledge(message)
        message.close()
        message = f.hear()
    assert message.need_reply
    f.acknowledge(message)


def backend_send_fd(site: DeviceSite) -> None:
    host_notifier(site)
    backend = site.open(Everything)
    f = site.connect(backend)
    f.negotiate(protocol=~int(F.BACKEND_SEND_FD))
    f.open_channel()
    f.share()
    f.make_queue(0)
    f.place(0)
    f.connect_fds(0)
    f.enable(0)
    f.request(f.queues[0], b"a", 1)
    assert isinstance(backend.device, Everything) and backend.device.offered is False


def reset_device(site: DeviceSite) -> None:
    backend, f = site.started(Everything)
    f.request(f.queues[0], b"a", 1)
    f.send(R.RESET_DEVICE)
    assert f.ask_number(R.GET_FEATURES)
    assert not backend.queue(0).started and not backend.queue(0).enabled and backend.accepted_features == 0


def configure_mem_slots(site: DeviceSite) -> None:
    """As many as are said to be, and not one more."""
    backend = site.open(Everything)
    f = site.connect(backend, memory_size=1 << 22)
    f.negotiate()
    count, size = f.ask_number(R.GET_MAX_MEM_SLOTS), 8192
    slots = [MemoryRegion(GUEST_BASE + at, size, USER_BASE + at, at) for at in range(0, count * size, size)]
    for slot in slots:
        f.tell(R.ADD_MEM_REG, SingleMemoryRegion(slot), [f.memfd.fileno()])
    more = MemoryRegion(GUEST_BASE + count * size, size, USER_BASE, 0)
    assert f.try_to_tell(R.ADD_MEM_REG, SingleMemoryRegion(more), [f.memfd.fileno()]) != 0
    queue = f.make_queue(0)
    f.place(0)
    f.connect_fds(0)
    f.enable(0)
    far = GUEST_BASE + count * size - 4
    f.memory.write(far, b"last")
    queue.add([(far, 4)], [(GUEST_BASE + 2 * size - 2, 4)])  # across two
    queue.kick()
    assert f.wait(queue) == [(0, 4)] and f.memory.read(GUEST_BASE + 2 * size - 2, 4) == b"last"
    for slot in slots[:0:-1]:
        f.tell(R.REM_MEM_REG, SingleMemoryRegion(slot), [f.memfd.fileno()])
    assert len(backend.memory_regions) == 1


def status(site: DeviceSite) -> None:
    backend, f = site.started(Everything)
    for value in (1, 3, 11, 15):
        f.tell(R.SET_STATUS, U64(value))
        assert f.ask_number(R.GET_STATUS) == backend.status == value
    site.call(backend.reset)
    site.wait(lambda: f.ask_number(R.GET_STATUS) == 64)  # DEVICE_NEEDS_RESET
    f.tell(R.SET_STATUS, U64(0))
    assert f.ask_number(R.GET_STATUS) == 0


def config(site: DeviceSite) -> None:
    backend = site.open("loopback")
    f = site.connect()
    f.negotiate()
    f.tell(R.SET_CONFIG, site_config(4, b"word"))
    assert f.config(0, 12) == bytes(4) + b"word" + bytes(4) == backend.config[:12]


def site_config(offset: int, data: bytes) -> Config:
    return Config(offset, data, VhostSetConfigType.FRONTEND)


def inband_notifications(site: DeviceSite) -> None:
    site.open(Everything)
    f = site.connect()
    f.negotiate(protocol=~int(F.HOST_NOTIFIER))
    f.open_channel()
    f.share()
    queue = f.make_queue(0)
    f.place(0)
    f.tell(R.SET_VRING_KICK, VringFd(0, nofd=True))
    f.tell(R.SET_VRING_CALL, VringFd(0, nofd=True))
    f.enable(0)
    assert f.channel is not None
    for _ in range(3):
        queue.add([(f.take(16), 1)], [])
        f.tell(R.VRING_KICK, VringState(0, 0))
        while not queue.reap():
            message = f.hear()
            assert (message.request, message.payload) == (BackendRequest.VRING_CALL, VringState(0, 0))
            f.acknowledge(message)
    queue.set_available_index(9000)
    f.tell(R.VRING_KICK, VringState(0, 0))
    while (message := f.hear()).request is BackendRequest.VRING_CALL:
        f.acknowledge(message)
    assert (message.request, message.payload) == (BackendRequest.VRING_ERR, VringState(0, 0))


def host_notifier(site: DeviceSite) -> None:
    backend = site.open(Everything)
    f = site.connect()
    f.negotiate(protocol=~int(F.INBAND_NOTIFICATIONS))
    f.open_channel()
    f.share()
    queue = f.make_queue(0)
    f.place(0)
    f.connect_fds(0)
    f.enable(0)
    assert f.request(queue, b"a", 1) == b"a"
    assert isinstance(backend.device, Everything) and backend.device.offered
    message = f.hear()
    assert message.request is BackendRequest.VRING_HOST_NOTIFIER_MSG and message.fd is not None
    area = message.payload
    assert area == HostNotifierArea(0, nofd=False, size=mmap.PAGESIZE, offset=mmap.PAGESIZE)
    with mmap.mmap(message.fd.fileno(), area.size, offset=area.offset) as page:
        assert page[:4] == b"page"
    message.close()
    f.acknowledge(message)
    f.stop(0)
    message = f.hear()
    assert message.payload == HostNotifierArea(0, nofd=True, size=0, offset=0) and message.fd is None


WORKS: dict[ProtocolFeature, Callable[[DeviceSite], None]] = {
    F.MQ: mq,
    F.REPLY_ACK: reply_ack,
    F.BACKEND_REQ: backend_req,
    F.CONFIG: config,
    F.BACKEND_SEND_FD: backend_send_fd,
    F.HOST_NOTIFIER: host_notifier,
    F.RESET_DEVICE: reset_device,
    F.INBAND_NOTIFICATIONS: inband_notifications,
    F.CONFIGURE_MEM_SLOTS: configure_mem_slots,
    F.STATUS: status,
}
LATER = (
    F.LOG_SHMFD | F.RARP | F.NET_MTU | F.CROSS_ENDIAN | F.CRYPTO_SESSION | F.PAGEFAULT | F.INFLIGHT_SHMFD
    | F.XEN_MMAP | F.SHARED_OBJECT | F.DEVICE_STATE
)  # fmt: skip
"""Never offered; CROSS_ENDIAN, CRYPTO_SESSION and XEN_MMAP need more than we have, the others a device or its time."""


@pytest.mark.parametrize("feature", WORKS, ids=lambda feature: feature.name)
def test_what_is_offered_works(site: DeviceSite, feature: ProtocolFeature) -> None:
    WORKS[feature](site)


def test_nothing_else_is_offered(site: DeviceSite) -> None:
    backend = site.open(Everything)
    assert backend.offered_protocol_features == EVERYWHERE | OPTIONAL | F.CONFIG == sum(WORKS)
    assert sum(F) & ~int(LATER) == sum(WORKS)
    f = site.connect()
    assert f.ask_number(R.GET_PROTOCOL_FEATURES) == sum(WORKS)


def test_what_was_not_accepted_is_not_done(site: DeviceSite) -> None:
    backend = site.open(Everything)
    f = site.connect()
    f.negotiate(protocol=0)
    with pytest.raises(BackendFailed):
        f.open_channel()
        f.ask_number(R.GET_FEATURES)
    assert "BACKEND_REQ was not negotiated" in site.farewell().reason
    f = site.connect(backend)
    f.start(protocol=int(F.MQ))
    assert f.request(f.queues[0], b"a", 1) == b"a"
    assert isinstance(backend.device, Everything) and backend.device.offered is False
    backend.device.config_changed()
    assert f.ask_number(R.GET_FEATURES) and not pending(f.sock.fileno())


def test_a_byte_order_that_is_not_ours_is_refused_and_not_half_honoured(site: DeviceSite) -> None:
    """CROSS_ENDIAN: rings are little-endian, as VIRTIO 1 has them."""
    _, f = site.started()
    for order in (0, 1):
        assert f.try_to_tell(R.SET_VRING_ENDIAN, VringState(0, order)) != 0
    assert f.request(f.queues[0], b"a", 1) == b"a"


def test_a_table_takes_the_place_of_all_slots(site: DeviceSite) -> None:
    backend, f = site.started(Everything)
    half = f.size // 2
    table = MemoryTable((MemoryRegion(GUEST_BASE, half, USER_BASE, 0), MemoryRegion(GUEST_BASE + half, half, 0, half)))
    f.tell(R.SET_MEM_TABLE, table, [f.memfd.fileno()] * 2)
    assert [region.size for region in backend.memory_regions] == [half, half]
    assert f.request(f.queues[0], b"a", 1) == b"a"
