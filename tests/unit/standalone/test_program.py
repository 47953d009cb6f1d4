# SPDX-FileCopyrightText: 2026 The doorbelld authors
# SPDX-License-Identifier: GPL-2.0-or-later
"""The command lines of the back-end programs: what they ask for, and what they say if that is wrong."""

from __future__ import annotations

import dataclasses
import json
import os
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
from doorbelld.devices.image import ImageUnavailable
from doorbelld.errors import DoorbellError, LimitExceeded, SocketInUse, SocketUnavailable
from doorbelld.standalone import program as program_module
from doorbelld.standalone.blk import program as blk
from doorbelld.standalone.program import Program
from doorbelld.standalone.rng import program as rng
from doorbelld.standalone.serving import Inherited
from doorbelld.vhost.spec import DeviceSpec

ROOT = Path(__file__).parents[3]
PROGRAMS = [blk, rng]
TYPES = ("block", "net", "rng", "console", "input", "vsock")
"""Those that every libvirt knows; older ones give up at another."""


class Served:
    """Stands for `serve`: notes what it is called with."""

    def __init__(self) -> None:
        self.specs: list[DeviceSpec] = []
        self.given: list[Inherited | None] = []
        self.once = False
        self.levels: list[str] = []
        self.error: DoorbellError | None = None

    def __call__(self, spec: DeviceSpec, given: Inherited | None = None, *, once: bool = False) -> int:
        if self.error is not None:
            raise self.error
        self.specs.append(spec)
        self.given.append(given)
        self.once = once
        return 0


@pytest.fixture
def served(monkeypatch: pytest.MonkeyPatch) -> Served:
    made = Served()
    monkeypatch.setattr(program_module, "serve", made)
    monkeypatch.setattr(program_module, "set_up", lambda level, _: made.levels.append(level))
    return made


def test_options_are_the_keys_of_a_device(served: Served) -> None:
    arguments = (
        "--socket-path=/run/s --blk-file=/srv/disk --read-only --cache=direct --aio=threads --no-discard --serial=abc "
        "--block-size=4096 --queues=7 --threads=2 --queue-size=64 --poll-us=50 --owner=0 --group=0 --mode=0600 --once "
        "--log-level=error"
    )
    assert blk.run(arguments.split()) == 0
    (spec,) = served.specs
    same = {
        "type": "blk", "socket": "/run/s", "path": "/srv/disk", "read-only": True, "cache": "direct",
        "aio": "threads", "discard": False, "serial": "abc", "block-size": 4096, "queues": 7, "threads": 2,
        "queue-size": 64, "poll-us": 50, "owner": "0", "group": "0", "mode": "0600",
    }  # fmt: skip
    assert spec == DeviceSpec.parse("blk", same, "device.blk", lambda _: blk.kind)
    assert served.once and served.given == [None] and served.levels == ["error"]


@pytest.mark.parametrize("program", PROGRAMS)
def test_each_key_of_the_type_has_an_option(program: Program) -> None:
    keys = {field.name for field in dataclasses.fields(program.kind.Options)}
    options = {parameter.name for parameter in program.params}
    assert {"blk_file" if key == "path" else key for key in keys} <= options


@pytest.mark.parametrize(
    ("program", "arguments"), [(blk, ["--socket-path=/s", "--blk-file=/disk"]), (rng, ["--socket-path=/s"])]
)
def test_without_options_it_is_as_in_the_configuration(program: Program, arguments: list[str], served: Served) -> None:
    assert program.run(arguments) == 0
    (spec,) = served.specs
    table = {"type": program.kind.name, "socket": "/s", **({"path": "/disk"} if program is blk else {})}
    assert spec == DeviceSpec.parse(program.kind.name, table, "", lambda _: program.kind)
    assert not served.once and served.levels == ["info"]


def test_paths_may_be_relative(served: Served, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert blk.run(["--socket-path", "a/../s", "--blk-file", "disk"]) == 0
    assert (served.specs[0].socket, served.specs[0].own.path) == (f"{tmp_path}/s", f"{tmp_path}/disk")


def test_a_rate(served: Served) -> None:
    assert rng.run(["--socket-path=/s", "--rate=2M"]) == 0
    assert served.specs[0].own.rate == 2 << 20


@pytest.mark.parametrize(
    ("program", "arguments", "lines"),
    [
        (rng, "", ["there is no socket; make one with --socket-path=PATH, or pass one with --fd=FDNUM; see --help"]),
        (rng, "--socket-path=/s --fd=3", ["--socket-path and --fd both name a socket; leave one out; see --help"]),
        (rng, "--fd=3 --mode=0600", ["--mode is about the socket of --socket-path; leave it out"]),
        (rng, "--fd=9999", ["--fd: descriptor 9999 is no socket (Bad file descriptor); pass"]),
        (rng, "--fd=three", ["Invalid value for '--fd'"]),
        (rng, "--socket-path=/s --rate=fast", ["--rate: 'fast' is not a size; write bytes or K, M, G"]),
        (rng, "--socket-path=", ["--socket-path: '' is not"]),
        (rng, f"--socket-path=/{'s' * 200}", ["--socket-path: /sss"]),
        (rng, "--socket-path=/s --queues=2", ["No such option"]),
        (rng, "--socket-path=/s word", ["Got unexpected extra argument"]),
        (rng, "--socket-path=/s --log-level=loud", ["Invalid value for '--log-level'"]),
        (rng, "--socket-path=/s --mode=rw", ["--mode: 'rw' is not a file mode"]),
        (rng, "--socket-path=/s --group=no-such-group", ["--group: no group 'no-such-group' on this host"]),
        (blk, "--socket-path=/s", ["--blk-file: missing"]),
        (
            blk,
            "--socket-path=/s --blk-file=/d --queues=300 --queue-size=3 --cache=no",
            ["--cache: 'no' is not known", "--queues: 300 is out of", "--queue-size: 3 is not a power of two; use 4"],
        ),
    ],
)  # fmt: skip
def test_a_wrong_command_line_is_64_and_a_line_for_each_thing(
    program: Program, arguments: str, lines: list[str], served: Served, capsys: pytest.CaptureFixture[str]
) -> None:
    assert program.run(arguments.split()) == os.EX_USAGE
    out, err = capsys.readouterr()
    said = err.splitlines()
    assert len(said) == len(lines) and out == ""
    for line, words in zip(sorted(said), sorted(lines), strict=True):
        assert line.startswith(f"{program.name}: ") and words in line
    assert served.specs == []


@pytest.mark.parametrize(
    ("error", "status", "said"),
    [
        (ImageUnavailable("image x: Permission denied; give the daemon permission to write, or set read-only = true"),
         os.EX_NOINPUT, "image x: Permission denied; give this program permission to write, or set --read-only"),
        (ImageUnavailable('image x; set cache = "buffered"'), os.EX_NOINPUT, "image x; set --cache=buffered"),
        (SocketInUse("x: a live server listens there"), os.EX_CANTCREAT, "x: a live server listens there"),
        (SocketUnavailable("x: Read-only file system"), os.EX_CANTCREAT, "x: Read-only file system"),
        (LimitExceeded("no room"), os.EX_OSERR, "no room"),
    ],
)  # fmt: skip
def test_what_can_not_be_served_has_a_status_and_one_line(
    error: DoorbellError, status: int, said: str, served: Served, capsys: pytest.CaptureFixture[str]
) -> None:
    served.error = error
    assert blk.run(["--socket-path=/s", "--blk-file=x"]) == status
    assert capsys.readouterr().err == f"doorbelld-vhost-user-blk: {said}\n"


@pytest.mark.parametrize("program", PROGRAMS)
def test_help_tells_options_statuses_and_how_to_start_qemu(
    program: Program, capsys: pytest.CaptureFixture[str]
) -> None:
    assert program.run(["--help"]) == 0
    said = capsys.readouterr().out
    for word in ("--socket-path", "--fd", "--print-capabilities", "  64  ", "  76  ", "vhost-user-", "share=on"):
        assert word in said
    assert program.run(["--version"]) == 0
    assert capsys.readouterr().out.startswith(f"{program.name} 0.")


@pytest.mark.parametrize("program", PROGRAMS)
def test_capabilities_come_first(program: Program, capsys: pytest.CaptureFixture[str]) -> None:
    for arguments in (["--print-capabilities"], ["--no-such-option", "--print-capabilities", "--fd"]):
        assert program.run(arguments) == 0
        out, err = capsys.readouterr()
        assert json.loads(out) == program.capabilities and err == ""


@pytest.mark.parametrize("program", PROGRAMS)
def test_its_descriptor_is_what_launchers_look_for(program: Program) -> None:
    file = ROOT / "packaging" / "vhost-user" / f"50-doorbelld-{program.kind.name}.json"
    descriptor = json.loads(file.read_text())
    assert descriptor.keys() == {"description", "type", "binary"}
    assert descriptor["type"] == program.capabilities["type"] and descriptor["type"] in TYPES
    assert descriptor["binary"] == f"/usr/bin/{program.name}"
    scripts = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["scripts"]
    assert scripts[program.name] == f"doorbelld.standalone.{program.kind.name}:main"


def test_each_descriptor_is_one_of_a_program() -> None:
    files = {file.name for file in (ROOT / "packaging" / "vhost-user").glob("*.json")}
    assert files == {f"50-doorbelld-{program.kind.name}.json" for program in PROGRAMS}


def test_it_needs_no_bus_and_no_configuration() -> None:
    code = "import sys, doorbelld.standalone.blk, doorbelld.standalone.rng; print(*sys.modules, sep='\\n')"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=60)
    loaded = set(done.stdout.split())
    assert "doorbelld.vhost.backend" in loaded
    unwanted = ("doorbelld.bus", "doorbelld.config", "doorbelld.ctl", "doorbelld.daemon", "dbus_next", "dbus_fast")
    assert [name for name in loaded if name.startswith(unwanted)] == []
