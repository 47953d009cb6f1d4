# SPDX-FileCopyrightText: 2026 The doorbelld authors
# SPDX-License-Identifier: GPL-2.0-or-later
"""The loopback device."""

from __future__ import annotations

from doorbelld.wire.vhost_messages import Config
from doorbelld.wire.vhost_requests import FrontendRequest as R
from support.devicesite import DeviceSite


def test_it_writes_back_what_it_reads(site: DeviceSite) -> None:
    _, f = site.started("loopback")
    assert f.request(f.queues[0], b"hello", 100) == b"hello"
    assert f.request(f.queues[0], b"hello", 2) == b"he"
    assert f.request(f.queues[0], b"", 2) == b""


def test_its_configuration_lasts_until_a_reset(site: DeviceSite) -> None:
    _, f = site.started("loopback")
    f.tell(R.SET_CONFIG, Config(14, b"ab"))
    assert f.config(0, 16) == bytes(14) + b"ab"
    f.tell(R.RESET_DEVICE)
    assert f.config(0, 16) == bytes(16)
