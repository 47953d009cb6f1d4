# SPDX-FileCopyrightText: 2026 The doorbelld authors
# SPDX-License-Identifier: GPL-2.0-or-later
"""A place for devices, and one where a device is watched while others are treated badly."""

from __future__ import annotations

import threading
from collections.abc import Iterator

import pytest
from doorbelld.vhost import backend as backend_module
from doorbelld.vhost.events import State
from support.devicesite import DEADLINE, DeviceSite, device_site


@pytest.fixture
def site() -> Iterator[DeviceSite]:
    with device_site() as made:
        yield made


@pytest.fixture
def watched(site: DeviceSite, monkeypatch: pytest.MonkeyPatch) -> Iterator[DeviceSite]:
    """A site whose first device serves a well-behaved front-end all the time; neither may notice anything."""
    monkeypatch.setattr(backend_module, "GRACE", 0.05)
    witness, peer = site.started()
    failures: list[BaseException] = []
    stop, began = threading.Event(), threading.Event()

    def load() -> None:
        try:
            while not stop.wait(0.005):
                for number in range(16):
                    text = b"%4d" % number
                    assert peer.request(peer.queues[0], text, 4) == text
                began.set()
        except BaseException as error:
            failures.append(error)
            began.set()

    loading = threading.Thread(target=load)
    loading.start()
    assert began.wait(DEADLINE)
    yield site
    before = witness.queue(0).requests
    site.wait(lambda: failures or witness.queue(0).requests > before)
    stop.set()
    loading.join(DEADLINE)
    assert not failures, failures
    assert witness.state is State.RUNNING and witness.queue(0).errors == 0
