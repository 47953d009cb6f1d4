# SPDX-FileCopyrightText: 2026 The doorbelld authors
# SPDX-License-Identifier: GPL-2.0-or-later
"""The rules that back-ends break: on the configuration space, the channel back, status and reset (35 to 38)."""

from __future__ import annotations

import os
import struct

import pytest
from doorbelld.devices.blk import Blk
from doorbelld.errors import InvalidOptions
from doorbelld.vhost.events import Negotiated
from doorbelld.wire.vhost_messages import (
    U64,
    Config,
    Empty,
    Flags,
    ProtocolFeature,
    VhostSetConfigType,
)
from doorbelld.wire.vhost_requests import BackendRequest, FrontendRequest
from support.devicesite import DeviceSite, Echo, pending

R = FrontendRequest
HEADER = struct.Struct("=III")
NO_ACKS = ~int(ProtocolFeature.REPLY_ACK)
VERSION_1 = 1 << 32


def test_rule_35_config_honours_offset_and_size(site: DeviceSite) -> None:
    site.open()
    f = site.connect()
    assert f.config(0, 24) == Echo.config
    assert f.config(20, 8) == Echo.config[20:] + bytes(4)
    assert len(f.config()) == 256
    for offset, size in ((1, 256), (256, 1), (2**32 - 1, 1)):
        assert f.ask(R.GET_CONFIG, Config(offset, bytes(size))) == Empty()
    f.send_raw(HEADER.pack(R.GET_CONFIG, Flags.VERSION, 12 + 257) + struct.pack("=III", 0, 257, 0) + bytes(257))
    assert "GET_CONFIG" in site.farewell().reason


def test_rule_35_set_config_has_flags(site: DeviceSite) -> None:
    backend = site.open("loopback")
    f = site.connect()
    assert f.try_to_tell(R.SET_CONFIG, Config(4, b"word", VhostSetConfigType.MIGRATION)) == 0
    assert backend.config[4:8] == b"word"
    assert site.of(Negotiated), "whoever watches the device is told"
    assert f.try_to_tell(R.SET_CONFIG, Config(4, b"word", 7)) != 0
    assert f.try_to_tell(R.SET_CONFIG, Config(14, b"word")) != 0
    site.open(Echo)
    assert site.connect().try_to_tell(R.SET_CONFIG, Config(0, b"x")) != 0  # it takes none


def test_rule_36_a_config_change_is_told_and_not_waited_for(site: DeviceSite) -> None:
    backend, f = site.started()
    f.open_channel()
    backend.device.config_changed()  # while stopped: told again after the start
    f.request(f.queues[0], b"a", 1)
    message = f.hear()
    assert message.request is BackendRequest.CONFIG_CHANGE_MSG and message.need_reply
    assert f.config(0, 4) == Echo.config[:4]  # on the main socket, before the ack
    backend.device.config_changed()
    backend.device.config_changed()
    assert f.request(f.queues[0], b"b", 1) == b"b"
    f.acknowledge(message)
    f.acknowledge(f.hear())  # the two of before are one


def test_rule_36_without_the_config_feature_nothing_is_told(site: DeviceSite) -> None:
    backend = site.open()
    f = site.connect()
    f.start(protocol=~int(ProtocolFeature.CONFIG))
    f.open_channel()
    f.request(f.queues[0], b"a", 1)
    backend.device.config_changed()
    assert f.ask_number(R.GET_FEATURES)
    assert f.channel is not None and not pending(f.channel.fileno())


def test_rule_37_status_gates_nothing_and_reset_needs_no_reply(site: DeviceSite) -> None:
    backend, f = site.started()
    device = backend.device
    assert isinstance(device, Echo)
    assert f.ask_number(R.GET_STATUS) == 0
    assert f.request(f.queues[0], b"a", 1) == b"a"  # without DRIVER_OK
    f.tell(R.SET_STATUS, U64(0x0F))
    assert f.ask_number(R.GET_STATUS) == backend.status == 0x0F
    f.send(R.RESET_DEVICE)
    assert f.ask_number(R.GET_STATUS) == 0
    assert not backend.queue(0).started and not backend.queue(0).enabled
    assert device.hooks[-2:] == [("stop", 0), ("reset", None)]
    assert len(backend.memory_regions) == 1  # QEMU believes that slots live as long as the connection
    f.tell(R.SET_FEATURES, U64(f.features))
    assert [name for name, _ in device.hooks].count("ack") == 2  # the device forgot it, and is told again
    f.place(0, base=1)
    f.connect_fds(0)
    f.enable(0)
    assert f.request(f.queues[0], b"b", 1) == b"b"
    f.tell(R.RESET_OWNER)  # is ignored
    assert f.request(f.queues[0], b"c", 1) == b"c"


def test_rule_37_after_a_reset_a_ring_has_to_be_placed_again(site: DeviceSite) -> None:
    """What it was before is of a driver that is gone: nothing is read there, nothing is written."""
    backend, f = site.started()
    f.request(f.queues[0], b"a", 1)
    f.tell(R.RESET_DEVICE)
    f.tell(R.SET_FEATURES, U64(f.features))
    f.connect_fds(0)
    f.enable(0)
    f.queues[0].add([(f.take(16), 1)], [])
    os.eventfd_write(f.queues[0].kick_fd, 1)
    session = backend.session
    assert session is not None
    site.wait(lambda: session.rings[0].due)
    assert f.ask_number(R.GET_FEATURES)
    assert not backend.queue(0).started and f.queues[0].used_index == 1
    f.place(0, base=1)
    assert f.wait(f.queues[0])


def test_rule_37_status_0_resets(site: DeviceSite) -> None:
    backend, f = site.started()
    f.request(f.queues[0], b"a", 1)
    f.tell(R.SET_STATUS, U64(1))
    before = len(site.of(Negotiated))
    f.tell(R.SET_STATUS, U64(0))
    assert not backend.queue(0).started
    assert (backend.accepted_features, len(site.of(Negotiated))) == (0, before + 1)
    device = backend.device
    assert isinstance(device, Echo) and device.hooks[-1] == ("reset", None)


def test_rule_38_as_many_queues_as_there_are(site: DeviceSite) -> None:
    assert (Blk.queues, Blk.queue_size) == (16, 32768)  # a disk of QEMU's asks for one for each of its processors
    site.open(queues=8)
    assert site.connect().ask_number(R.GET_QUEUE_NUM) == 8
    with pytest.raises(InvalidOptions, match="at most 8"):
        site.open(queues=9)
