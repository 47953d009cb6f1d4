# SPDX-FileCopyrightText: 2026 The doorbelld authors
# SPDX-License-Identifier: GPL-2.0-or-later
"""Machines to test in: doorbelld installed as an administrator does it, under a systemd of its own.

It is installed once. Each test module boots a machine of its own, which the tests in it share; `service` gives each a
daemon that is stopped, with the configuration that it asks for.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest
from support.machine.container import Machine
from support.machine.root import REPOSITORY, copy_of, installed_root
from support.machine.service import Service

POST_INSTALL = REPOSITORY / "packaging/post-install"


@pytest.fixture(scope="session")
def installed() -> Iterator[Path]:
    """Give a root with doorbelld installed; boot copies of it."""
    if os.geteuid():
        pytest.skip("a container with a systemd of its own needs root")
    with installed_root() as root:
        yield root


@pytest.fixture(scope="module")
def machine(installed: Path) -> Iterator[Machine]:
    """Boot a machine, with the users "permitted" (in the group doorbelld), "stranger", and "guest" (in kvm)."""
    with copy_of(installed) as root, Machine(root) as machine:
        machine.path("/tmp/post-install").write_bytes(POST_INSTALL.read_bytes())
        machine.run("sh", "/tmp/post-install", "/usr")
        machine.add_user("permitted", ["doorbelld"])
        machine.add_user("stranger")
        machine.add_user("guest", ["kvm"])
        yield machine


@pytest.fixture
def service(machine: Machine) -> Iterator[Service]:
    """Give doorbelld.service, stopped, with the region "demo" in its configuration."""
    service = Service(machine)
    service.configure("[region.demo]\n")
    yield service
    service.stop_all()
