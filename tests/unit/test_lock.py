# SPDX-FileCopyrightText: 2026 The doorbelld authors
# SPDX-License-Identifier: GPL-2.0-or-later
"""packaging/lock pins all that is fetched: versions that pyproject.toml permits, and hashes of all of their files."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).parents[2]
LOCK = ROOT / "packaging/lock"
FILES = ("build.txt", "run.txt", "dev.txt")


def pinned(name: str) -> dict[str, tuple[str, list[str]]]:
    """Read a file: the version and the hashes of each package."""
    found = {}
    for line in (LOCK / name).read_text().replace("\\\n", "").splitlines():
        if line.startswith("#"):
            continue
        match = re.fullmatch(r"([a-z0-9-]+)==([\w.]+)(?: ; [^#]*?)?((?:\s+--hash=sha256:[0-9a-f]{64})+)\s*", line)
        assert match, f"not pinned, or no option of pip's that is known here: {line}"
        found[match[1]] = (match[2], match[3].split())
    return found


def wanted(*extras: str) -> list[Requirement]:
    """Give what pyproject.toml wants."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())
    lines = [*project["project"]["dependencies"], *project["build-system"]["requires"]]
    return [Requirement(line) for name in extras for line in project["project"]["optional-dependencies"][name]] + [
        Requirement(line) for line in lines
    ]


@pytest.mark.parametrize("name", FILES)
def test_all_has_hashes_and_is_the_same_everywhere(name: str) -> None:
    everything = pinned("dev.txt")
    for package, (version, hashes) in pinned(name).items():
        assert everything[package][0] == version
        assert hashes


def test_all_that_is_wanted_is_pinned_to_what_is_permitted() -> None:
    everything = pinned("dev.txt")
    for requirement in wanted("fast", "dev"):
        version, _ = everything[canonicalize_name(requirement.name)]
        assert requirement.specifier.contains(version), f"{requirement} is pinned to {version}: run 'make lock'"
    installed = pinned("run.txt")
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    for line in (*project["dependencies"], *project["optional-dependencies"]["fast"]):
        assert canonicalize_name(Requirement(line).name) in installed


def test_native_code_is_there_for_each_python() -> None:
    """dbus-fast has a file for each version of Python, C library and processor."""
    assert len(pinned("run.txt")["dbus-fast"][1]) > 20
