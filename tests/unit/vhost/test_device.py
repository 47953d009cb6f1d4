# SPDX-FileCopyrightText: 2026 The doorbelld authors
# SPDX-License-Identifier: GPL-2.0-or-later
"""What a device author may rely on, down to the example in the manual."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from doorbelld.vhost.device import ConfigRefused, Device
from doorbelld.wire.vhost_messages import VhostSetConfigType
from support.devicesite import DEADLINE, DeviceSite, Echo

MANUAL = Path(__file__).parents[3] / "docs" / "devices.md"


def test_defaults_do_nothing_and_refuse_what_they_must() -> None:
    device = Device()
    device.reset()
    device.ack(0)
    device.close()
    device.config_changed()
    assert device.get_config() == b""
    with pytest.raises(NotImplementedError, match="neither handle"):
        device.handle(None, None)  # type: ignore[arg-type]


def test_configuration_is_read_only_unless_a_type_says_otherwise() -> None:
    with pytest.raises(ConfigRefused, match="echo"):
        Echo().set_config(0, b"x", VhostSetConfigType.FRONTEND)


def test_many_requests_are_served_in_order(site: DeviceSite) -> None:
    _, f = site.started()
    (queue,) = f.queues.values()
    source = f.take(64)
    done: list[int] = []
    sent: list[int] = []
    for _ in range(40):
        while queue.free:
            sent.append(queue.add([(source, 1)], []))
        queue.kick()
        done += [head for head, _ in f.wait(queue)]
    while len(done) < len(sent):
        done += [head for head, _ in f.wait(queue)]
    assert done == sent


def test_hooks_are_called_while_nothing_is_in_flight(site: DeviceSite) -> None:
    backend, f = site.started()
    f.request(f.queues[0], b"a", 1)
    f.stop(0)
    device = backend.device
    assert isinstance(device, Echo)
    assert device.hooks == [("ack", f.features & ~(1 << 30)), ("start", 0), ("stop", 0)]


def test_the_example_of_the_manual_works(site: DeviceSite) -> None:
    (source,) = re.findall(r"```python\n(.*?)```", MANUAL.read_text(), re.S)
    assert len(source.splitlines()) <= 30
    namespace: dict[str, Any] = {"__name__": "example"}
    exec(compile(source, str(MANUAL), "exec"), namespace)
    (kind,) = [
        each
        for each in namespace.values()
        if isinstance(each, type) and issubclass(each, Device) and each is not Device
    ]
    site.open(kind)
    f = site.connect()
    f.start()
    assert f.request(f.queues[0], b"abc", 8) == b"CBA"
    assert f.config(0, 4) == b"\1\0\0\0"


def test_the_example_of_the_manual_is_typed(tmp_path: Path) -> None:
    (source,) = re.findall(r"```python\n(.*?)```", MANUAL.read_text(), re.S)
    (tmp_path / "my_package.py").write_text(source)
    done = subprocess.run(
        [sys.executable, "-m", "mypy", "--strict", "--config-file=", f"--cache-dir={tmp_path}/cache", "my_package.py"],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=DEADLINE * 12,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
