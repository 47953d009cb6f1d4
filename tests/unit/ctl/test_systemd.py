# SPDX-FileCopyrightText: 2026 The doorbelld authors
# SPDX-License-Identifier: GPL-2.0-or-later
from __future__ import annotations

from pathlib import Path

import pytest
from doorbelld.ctl import systemd


def program(directory: Path, name: str, script: str) -> None:
    (directory / name).write_text(f"#!/bin/sh\n{script}\n")
    (directory / name).chmod(0o755)


@pytest.fixture(autouse=True)
def path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("PATH", f"{tmp_path}:/usr/bin:/bin")
    return tmp_path


def test_the_units_properties(path: Path) -> None:
    program(path, "systemctl", 'printf "LoadState=loaded\\nStatusText=a=b\\nDropInPaths=\\nnoise\\n"')
    assert systemd.unit() == {"LoadState": "loaded", "StatusText": "a=b", "DropInPaths": ""}


def test_a_list_in_several_lines(path: Path) -> None:
    program(path, "systemctl", 'printf "DeviceAllow=/dev/a rw\\nLoadState=loaded\\nDeviceAllow=/dev/b r\\n"')
    assert systemd.unit()["DeviceAllow"] == "/dev/a rw /dev/b r"


@pytest.mark.parametrize("script", ['echo "LoadState=not-found"', "echo LoadState=loaded; exit 1", ":"])
def test_no_unit(path: Path, script: str) -> None:
    program(path, "systemctl", script)
    assert systemd.unit() == {}


def test_the_journals_lines(path: Path) -> None:
    program(path, "journalctl", 'echo "$@"; echo more')
    assert systemd.journal(["-u", "x", "A=b"], 3) == ["-u x A=b -n 3 --no-pager -q", "more"]
    assert systemd.journal(["-u", "x"], 0) == []


def test_programs_that_are_not_there_or_hang(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(systemd, "SECONDS", 0.05)
    program(path, "journalctl", "exec sleep 60")
    assert systemd.journal(["-u", "x"], 3) == []
    monkeypatch.setenv("PATH", "/nowhere")
    assert (systemd.unit(), systemd.journal(["-u", "x"], 3)) == ({}, [])
