# SPDX-FileCopyrightText: 2026 The doorbelld authors
# SPDX-License-Identifier: GPL-2.0-or-later
"""A QEMU guest draws entropy from our rng, over PCI."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from doorbelld.vhost.events import RequestRefused, State
from support.devicesite import DeviceSite, device_site
from support.guest import image
from support.guest.vm import BOOT_TIMEOUT, Guest

ENTROPY = Path(image.__file__).with_name("entropy.c")
SHARED_MEMORY = ["-object", "memory-backend-memfd,id=m,size=256M,share=on", "-numa", "node,memdev=m"]


@pytest.fixture
def site() -> Iterator[DeviceSite]:
    with device_site() as made:
        yield made


def test_a_guest_draws_entropy(site: DeviceSite) -> None:
    booted = image.build_image(modules=("virtio_pci", "virtio-rng"), programs=(ENTROPY,))
    backend = site.open("rng")
    device = ["-chardev", f"socket,path={backend.spec.socket},id=c", "-device", "vhost-user-rng-pci,chardev=c"]
    for _ in range(2):  # the next guest gets the device too
        with Guest(booted, name="thirsty", program="entropy", args=[*SHARED_MEMORY, *device]) as guest:
            assert guest.expect("^CURRENT (.*)", BOOT_TIMEOUT)[1] == "virtio_rng.0"
            drawn = [guest.expect("^BYTES (.*)")[1] for _ in range(8)]
            assert len(set(drawn)) == 8 and {len(each) for each in drawn} == {128}
            assert backend.state is State.RUNNING
            assert backend.who is not None and backend.who.vm_name == "thirsty"
            assert backend.queue(0).errors == 0
        site.wait_state(backend, State.LISTENING)
    assert site.of(RequestRefused) == []
