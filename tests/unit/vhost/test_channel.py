# SPDX-FileCopyrightText: 2026 The doorbelld authors
# SPDX-License-Identifier: GPL-2.0-or-later
"""The back-end channel: what waits is bounded, and nothing waits for it."""

from __future__ import annotations

import asyncio
import os
import socket
from collections.abc import AsyncIterator

import pytest
from doorbelld.fds.owned import Fd
from doorbelld.vhost.channel import BackChannel, receive
from doorbelld.wire.vhost import Decoder, Message, encode
from doorbelld.wire.vhost_messages import HostNotifierArea, VringState
from doorbelld.wire.vhost_requests import BackendRequest
from support.fdcount import no_leaks


class Ends:
    """A channel and the front-end's end of it."""

    def __init__(self, ask: bool, fds: bool) -> None:
        ours, self.theirs = socket.socketpair()
        self.reasons: list[str] = []
        loop = asyncio.get_running_loop()
        self.channel = BackChannel(loop, Fd(ours.detach()), ask=ask, fds=fds, failed=self.reasons.append)
        self.decoder = Decoder(BackendRequest)

    def heard(self) -> list[Message]:
        """Return what came until now."""
        found: list[Message] = []
        try:
            while (came := receive(self.theirs))[0]:
                found += self.decoder.feed(*came)
        except BlockingIOError:
            pass
        return found

    async def acknowledge(self, message: Message) -> None:
        self.theirs.send(encode(message.ack())[0])
        await asyncio.sleep(0)
        await asyncio.sleep(0)

    def close(self) -> None:
        self.channel.close()
        self.theirs.close()


@pytest.fixture(params=[True, False], ids=["asking", "not asking"])
async def ends(request: pytest.FixtureRequest) -> AsyncIterator[Ends]:
    with no_leaks():
        made = Ends(request.param, fds=True)
        yield made
        made.close()


async def test_one_message_of_a_kind_waits_at_most() -> None:
    ends = Ends(ask=True, fds=False)
    for _ in range(100):
        ends.channel.config_changed()
        ends.channel.call(3)
        ends.channel.call(4)
    seen = []
    while heard := ends.heard():
        (message,) = heard
        seen.append((message.request, message.payload))
        await ends.acknowledge(message)
    config, call = BackendRequest.CONFIG_CHANGE_MSG, BackendRequest.VRING_CALL
    assert [request for request, _ in seen] == [config, call, call, config]
    assert [payload for request, payload in seen if request is call] == [VringState(3, 0), VringState(4, 0)]
    ends.close()


async def test_a_channel_that_is_full_goes_on_when_there_is_room(ends: Ends) -> None:
    ends.channel._ask = False
    sent = 0
    while not ends.channel._waiting:
        ends.channel.call(sent % 256)
        sent += 1
        assert sent < 1_000_000
    ends.channel.call(255)
    got = len(ends.heard())
    await asyncio.sleep(0.01)
    got += len(ends.heard())
    assert got >= sent and not ends.channel._waiting


async def test_a_front_end_that_closes_its_end_loses_what_waits(ends: Ends) -> None:
    ends.theirs.close()
    await asyncio.sleep(0.01)
    assert not ends.channel.open
    ends.channel.config_changed()
    ends.channel.error(0)
    assert not ends.channel.host_notifier(0, (Fd(os.memfd_create("page")), 4096, 0))
    assert ends.reasons == []


async def test_host_notifiers(ends: Ends) -> None:
    page = Fd(os.memfd_create("page"))
    assert ends.channel.host_notifier(2, (page, 4096, 8192))
    (message,) = ends.heard()
    assert message.payload == HostNotifierArea(2, nofd=False, size=4096, offset=8192) and message.fd is not None
    if message.need_reply:
        await ends.acknowledge(message)
    message.close()
    assert ends.channel.host_notifier(2, None)
    (message,) = ends.heard()
    assert message.payload == HostNotifierArea(2, nofd=True, size=0, offset=0)


async def test_without_permission_no_descriptor_is_sent() -> None:
    with no_leaks():
        ends = Ends(ask=False, fds=False)
        assert not ends.channel.host_notifier(0, (Fd(os.memfd_create("page")), 4096, 0))
        assert ends.heard() == []
        ends.close()
