# SPDX-FileCopyrightText: 2026 The doorbelld authors
# SPDX-License-Identifier: GPL-2.0-or-later
"""Rules of the repository that no linter knows; `make lint` runs the linters."""

from __future__ import annotations

import re
import shutil
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]

# in pieces, so that this file is not what it forbids
BUILD_MACHINE = re.compile("|".join([r"(?<![\w.~-])/work" + "/", r"(?<![\w.~-])/home" + r"/\w+/", "/root" + r"/\."]))
MIRROR = re.compile(
    "|".join(
        [
            r"\b(?:deb|security|ftp|snapshot)\." + r"debian\.org",
            r"\b(?:archive|security)\." + r"ubuntu\.com",
            "files" + r"\.pythonhosted\.org",
            r"https?://[\w.-]*mirror" + r"[\w.-]*/",
            "index-url" + r"\s*=",
        ]
    )
)


def repository_files() -> list[Path]:
    """All files that are in the repository or about to be."""
    if shutil.which("git") is None or not (ROOT / ".git").exists():
        pytest.skip("not a git repository")
    listed = subprocess.run(
        ["git", "-C", str(ROOT), "ls-files", "-z", "--cached", "--others", "--exclude-standard"],
        capture_output=True,
        text=True,
        check=True,
    ).stdout
    return [file for name in listed.split("\0") if name and (file := ROOT / name).is_file()]


def forbidden(text: str) -> list[str]:
    """Find what must not be in any file, with its line."""
    return [
        f"{number}: {match[0]}"
        for number, line in enumerate(text.splitlines(), 1)
        for pattern in (BUILD_MACHINE, MIRROR)
        if (match := pattern.search(line))
    ]


def shell_of(file: Path) -> str | None:
    """Tell which shell a script is for, from its first line."""
    with file.open("rb") as stream:
        first = stream.readline(128)
    match = re.match(rb"#!\s*/\S*?(?:env\s+)?\b(sh|bash|dash)\s", first)
    return match[1].decode() if match else None


def test_no_file_names_a_build_machine_or_a_mirror() -> None:
    found = {}
    for file in repository_files():
        try:
            text = file.read_text()
        except UnicodeDecodeError:
            continue
        if lines := forbidden(text):
            found[str(file.relative_to(ROOT))] = lines
    assert found == {}


@pytest.mark.parametrize(
    "text",
    ["see /work" + "/main", "#!/home" + "/me/bin/python", "http://deb." + "debian.org/debian", "index-url" + " = x"],
)
def test_what_is_forbidden_is_found(text: str) -> None:
    assert forbidden(f"\n{text}\n") != []


@pytest.mark.parametrize("text", ["the network/working set", "https://www.debian.org/", "~/work" + "/x"])
def test_what_is_fine_is_not(text: str) -> None:
    assert forbidden(text) == []


def test_shell_scripts_parse() -> None:
    scripts = {file: shell for file in repository_files() if (shell := shell_of(file))}
    assert scripts, "there is .ci/run at least"
    for file, shell in scripts.items():
        if shutil.which(shell) is None:
            continue
        done = subprocess.run([shell, "-n", file], capture_output=True, text=True, check=False)
        assert done.returncode == 0, f"{file}: {done.stderr}"


@pytest.mark.parametrize(
    ("first", "shell"),
    [
        ("#!/bin/sh\n", "sh"),
        ("#!/usr/bin/env bash\n", "bash"),
        ("#! /bin/bash -e\n", "bash"),
        ("#!/usr/bin/env python3\n", None),
        ("# no script\n", None),
    ],
)
def test_shell_of(tmp_path: Path, first: str, shell: str | None) -> None:
    (tmp_path / "script").write_text(first + "true\n")
    assert shell_of(tmp_path / "script") == shell
