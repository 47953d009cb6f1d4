# SPDX-FileCopyrightText: 2026 The doorbelld authors
# SPDX-License-Identifier: GPL-2.0-or-later
"""What `make install` puts down works from there, and the bus starts the daemon when it is called.

How it is under a real systemd is in tests/system.
"""

from __future__ import annotations

import gzip
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from support.busctl import Busctl
from support.daemon import DEADLINE
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

PROGRAMS = ("doorbellctl", "doorbell-client", "doorbell-server", "doorbelld-vhost-user-blk", "doorbelld-vhost-user-rng")
INSTALLED = (
    "lib/systemd/catalog/doorbelld.catalog",
    "lib/systemd/system/doorbelld.service",
    "lib/systemd/system/doorbelld.socket",
    "lib/systemd/system/doorbelld@.socket",
    "lib/systemd/system/doorbelld-device@.socket",
    "lib/systemd/system-preset/90-doorbelld.preset",
    "lib/sysusers.d/doorbelld.conf",
    "lib/tmpfiles.d/doorbelld.conf",
    "share/dbus-1/interfaces/org.doorbelld.Doorbell1.Manager.xml",
    "share/dbus-1/system.d/org.doorbelld.Doorbell1.conf",
    "share/dbus-1/system-services/org.doorbelld.Doorbell1.service",
    "share/polkit-1/actions/org.doorbelld.Doorbell1.policy",
    "share/polkit-1/rules.d/org.doorbelld.Doorbell1.rules",
    "share/qemu/vhost-user/50-doorbelld-blk.json",
    "share/qemu/vhost-user/50-doorbelld-rng.json",
)


def make(target: str, **variables: object) -> subprocess.CompletedProcess[str]:
    """Run make; the virtual environment is used as it is."""
    words = [f"{name}={value}" for name, value in {"VENV": sys.prefix, **variables}.items()]
    command = ["make", "-o", f"{sys.prefix}/.doorbelld", target, *words]
    return subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True, check=False, timeout=300)


def files_below(place: Path) -> set[str]:
    return {str(path.relative_to(place)) for path in place.rglob("*") if not path.is_dir()}


@pytest.fixture(scope="module")
def prefix(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Install to a prefix of our own."""
    place = tmp_path_factory.mktemp("prefix")
    done = make("install", PREFIX=place)
    assert done.returncode == 0, done.stderr
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
    for program in ("doorbelld", *PROGRAMS):
        command = [prefix / "bin" / program, "--version"]
        done = subprocess.run(command, capture_output=True, text=True, check=True, env={}, cwd="/", timeout=DEADLINE)
        assert done.stdout.startswith(f"{program} ")


def test_what_the_host_looks_for_is_there_and_names_our_programs(prefix: Path) -> None:
    for name in INSTALLED:
        text = (prefix / name).read_text()
        assert "/usr/bin/doorbell" not in text, name
    assert f"ExecStart={prefix}/bin/doorbelld " in (prefix / "lib/systemd/system/doorbelld.service").read_text()


def test_descriptors_of_back_ends_lead_to_programs_that_are_what_they_say(prefix: Path) -> None:
    descriptors = sorted((prefix / "share/qemu/vhost-user").iterdir())
    assert [file.name for file in descriptors] == ["50-doorbelld-blk.json", "50-doorbelld-rng.json"]
    for file in descriptors:
        descriptor = json.loads(file.read_text())
        assert Path(descriptor["binary"]).is_relative_to(prefix)
        command = [descriptor["binary"], "--print-capabilities"]
        said = subprocess.run(command, capture_output=True, check=True, env={}, cwd="/", timeout=DEADLINE).stdout
        assert json.loads(said)["type"] == descriptor["type"]


def test_manual_pages_are_there(prefix: Path) -> None:
    own = [f"man1/{program}.1" for program in PROGRAMS]
    for page in (*own, "man5/doorbelld.toml.5", "man5/org.doorbelld.Doorbell1.5", "man8/doorbelld.8"):
        with gzip.open(prefix / f"share/man/{page}.gz", "rt") as stream:
            assert ".TH " in stream.read()


@pytest.mark.parametrize("program", ["doorbelld", *PROGRAMS])
@pytest.mark.parametrize(
    ("shell", "file"),
    [
        ("bash", "bash-completion/completions/{0}"),
        ("zsh", "zsh/site-functions/_{0}"),
        ("fish", "fish/vendor_completions.d/{0}.fish"),
    ],
)
def test_completions_are_what_doorbellctl_prints(prefix: Path, program: str, shell: str, file: str) -> None:
    command = [str(prefix / "bin/doorbellctl"), "completion", shell, program]
    said = subprocess.run(command, capture_output=True, text=True, check=True, timeout=DEADLINE).stdout
    assert (prefix / "share" / file.format(program)).read_text().strip() == said.strip()


def test_modules_are_compiled_for_where_they_lie(prefix: Path) -> None:
    library = prefix / "lib/doorbelld/python"
    (compiled,) = library.glob("doorbelld/__pycache__/main.*.pyc")
    assert f"{library}/doorbelld/main.py".encode() in compiled.read_bytes()
    assert list(prefix.rglob("bin/*.pyc")) == []


def test_uninstall_leaves_the_configuration_only(tmp_path: Path) -> None:
    done = make("install", DESTDIR=tmp_path, INTERPRETER="/usr/bin/python-of-the-target")
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "usr/bin/doorbelld").read_text().startswith("#!/usr/bin/python-of-the-target ")
    (tmp_path / "usr/lib/doorbelld/vendor.toml").touch()
    assert make("uninstall", DESTDIR=tmp_path).returncode == 0
    assert files_below(tmp_path) == {"etc/doorbelld/doorbelld.toml", "usr/lib/doorbelld/vendor.toml"}
    again = make("uninstall", DESTDIR=tmp_path)
    assert again.returncode != 0
    assert "nothing is installed" in again.stderr


def test_an_interpreter_of_another_kind_is_refused(tmp_path: Path) -> None:
    done = make("install", PREFIX=tmp_path, INTERPRETER="/bin/false")
    assert done.returncode != 0
    assert "make both the same version" in done.stderr
    assert files_below(tmp_path) == set()


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
