# SPDX-FileCopyrightText: 2026 The doorbelld authors
# SPDX-License-Identifier: GPL-2.0-or-later
"""What `make install` puts down works from there, and the bus starts the daemon when it is called."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
from support.busctl import Busctl
from support.daemon import BIN, DEADLINE
from support.needs import require

REPOSITORY = Path(__file__).parents[2]
CONFIG = """<!DOCTYPE busconfig PUBLIC "-//freedesktop//DTD D-Bus Bus Configuration 1.0//EN"
 "http://www.freedesktop.org/standards/dbus/1.0/busconfig.dtd">
<busconfig>
  <type>session</type>
  <listen>unix:path={directory}/bus</listen>
  <auth>EXTERNAL</auth>
  <servicedir>{services}</servicedir>
  <policy context="default">
    <allow send_destination="*"/> <allow receive_sender="*"/> <allow own="*"/>
  </policy>
</busconfig>
"""


@pytest.fixture(scope="module")
def prefix(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Install to a prefix of our own."""
    place = tmp_path_factory.mktemp("prefix")
    command = [REPOSITORY / "packaging/install", BIN / "python", "", place]
    subprocess.run(command, cwd=REPOSITORY, check=True, timeout=300)
    return place


@pytest.fixture
def bus(prefix: Path, short_path: Path) -> Iterator[str]:
    """Run a bus that knows our activation file, as installed but for the system bus's helper."""
    services = short_path / "services"
    services.mkdir()
    installed = prefix / "share/dbus-1/system-services/org.doorbelld.Doorbell1.service"
    text = installed.read_text().replace("--bus system", f"--config {short_path}/doorbelld.toml --bus session")
    (services / installed.name).write_text(text)
    (short_path / "doorbelld.toml").write_text(f'[daemon]\nruntime-directory = "{short_path}/run"\n[region.demo]\n')
    config = short_path / "bus.conf"
    config.write_text(CONFIG.format(directory=short_path, services=services))
    command = [require("dbus-daemon", "dbus-daemon"), f"--config-file={config}", "--nofork", "--print-address=1"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True) as daemon:
        assert daemon.stdout is not None
        yield daemon.stdout.readline().strip()
        daemon.terminate()


def test_programs_run_from_where_they_are_installed(prefix: Path) -> None:
    for program in ("doorbelld", "doorbellctl"):
        command = [prefix / "bin" / program, "--version"]
        done = subprocess.run(command, capture_output=True, text=True, check=True, env={}, cwd="/", timeout=DEADLINE)
        assert done.stdout.startswith(f"{program} ")


def test_installed_configuration_is_fine(prefix: Path) -> None:
    command = [prefix / "bin/doorbelld", "--check", "--config", prefix / "etc/doorbelld/doorbelld.toml"]
    assert "fine" in subprocess.run(command, capture_output=True, text=True, check=True, timeout=DEADLINE).stdout


def test_documented_example_is_fine(prefix: Path) -> None:
    command = [prefix / "bin/doorbelld", "--check", "--config", prefix / "share/doc/doorbelld/example.toml"]
    assert "1 region" in subprocess.run(command, capture_output=True, text=True, check=True, timeout=DEADLINE).stdout


def test_a_call_starts_the_daemon(bus: str) -> None:
    busctl = Busctl(bus)
    (regions,) = busctl.call("", "Manager", "ListRegions")
    assert regions == [["demo", "/org/doorbelld/Doorbell1/region/demo"]]
    said = busctl.run(
        *("call", "org.freedesktop.DBus", "/org/freedesktop/DBus", "org.freedesktop.DBus"),
        *("GetConnectionUnixProcessID", "s", "org.doorbelld.Doorbell1"),
    )
    pid = int(said.split(":")[-1].strip("[]} \n"))
    pidfd = os.pidfd_open(pid)
    try:
        os.kill(pid, 15)
        import select

        assert select.select([pidfd], [], [], DEADLINE)[0], "it does not stop"
    finally:
        os.close(pidfd)
