# SPDX-FileCopyrightText: 2026 The doorbelld authors
# SPDX-License-Identifier: GPL-2.0-or-later
"""Linux's own virtio drivers, in User-Mode Linux, against our devices."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
from doorbelld.ring.chain import Chain
from doorbelld.ring.queue import VirtQueue
from doorbelld.vhost.device import Device
from doorbelld.vhost.events import RequestRefused, State
from doorbelld.wire.vhost_messages import ProtocolFeature
from support import uml
from support.devicesite import DeviceSite, device_site

TALK = """\
exec 3<>/dev/hvc0
stty raw -echo <&3
for word in one two three; do
    echo $word >&3
    read -r answer <&3
    echo "answer: $answer"
done
"""


class Console(Device):
    """A console (VIRTIO 1.2, 5.3) that answers in upper case: what one queue brings, the other takes back."""

    name = "console"
    id = 3
    queues_max = queues = 2
    config = bytes(12)

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.room: list[tuple[VirtQueue, Chain]] = []

    def handle(self, queue: VirtQueue, chain: Chain) -> None:
        if queue.index == 0:  # receiveq: kept until there is something to say
            self.room.append((queue, chain))
            return
        data = chain.read()
        queue.push(chain, 0)
        receiving, room = self.room.pop(0)
        room.write(data.upper())
        receiving.push(room)
        receiving.notify()

    def reset(self) -> None:
        self.room.clear()


class InbandConsole(Console):
    protocol_features = ProtocolFeature.INBAND_NOTIFICATIONS


@pytest.fixture
def site() -> Iterator[DeviceSite]:
    with device_site() as made:
        yield made


@pytest.mark.parametrize("kind", [Console, InbandConsole])
def test_a_driver_and_a_device_in_python(site: DeviceSite, kind: type[Device]) -> None:
    backend = site.open(kind)
    for _ in range(2):  # the device goes on listening
        lines = uml.run(TALK, [(backend.spec.socket, 3)], ["virtio_console"])
        assert [line for line in lines if line.startswith("answer")] == ["answer: ONE", "answer: TWO", "answer: THREE"]
        site.wait_state(backend, State.LISTENING)
    assert backend.reason == "it closed its connection"
    assert site.of(RequestRefused) == []
    inband = kind is InbandConsole
    assert (backend.queue(1).kicks > 0, backend.queue(1).calls > 0) == (True, True)
    assert inband == bool(backend.offered_protocol_features & ProtocolFeature.INBAND_NOTIFICATIONS)


def test_two_devices_in_one_machine(site: DeviceSite) -> None:
    consoles = [site.open(Console) for _ in range(2)]
    script = "".join(TALK.replace("hvc0", f"hvc{number}").replace("answer:", f"{number}:") for number in range(2))
    lines = uml.run(script, [(backend.spec.socket, 3) for backend in consoles], ["virtio_console"])
    assert sum(line in ("0: TWO", "1: TWO") for line in lines) == 2
    assert [backend.queue(1).errors for backend in consoles] == [0, 0]
