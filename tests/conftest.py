# SPDX-FileCopyrightText: 2026 The doorbelld authors
# SPDX-License-Identifier: GPL-2.0-or-later
"""Fixtures that every kind of test may use."""

from __future__ import annotations

import gc
import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis.configuration import set_hypothesis_home_dir
from support import surroundings
from support.guest.qemu import QEMUS, Qemu
from xdist.scheduler import LoadScopeScheduling  # type: ignore[import-untyped]

HOME = pytest.StashKey[Path]()


def pytest_configure(config: pytest.Config) -> None:
    """Leave the surroundings of whoever runs the tests, before any of them is imported.

    The working directory is an empty one; pytest itself knows where it was started.
    """
    set_hypothesis_home_dir(config.rootpath / ".hypothesis")
    home = config.stash[HOME] = Path(tempfile.mkdtemp(prefix="dbhome"))
    surroundings.forget(os.environ, home)
    surroundings.heed_signals()
    os.umask(0o022)
    if not config.getoption("numprocesses", None):  # pytest-xdist starts its workers here
        os.chdir(home)


def pytest_unconfigure(config: pytest.Config) -> None:
    """Leave nothing behind."""
    if home := config.stash.get(HOME, None):
        os.chdir("/")
        shutil.rmtree(home, ignore_errors=True)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Begin with what takes longest."""
    tests = Path(__file__).parent
    first = [tests / "system", tests / "integration", tests]
    order = {item: next((n for n, of in enumerate(first) if of in item.path.parents), len(first)) for item in items}
    items.sort(key=order.__getitem__)


class BySharedFixtures(LoadScopeScheduling):  # type: ignore[misc]  # pytest-xdist has no types
    """Keep together what shares fixtures, where several processes share the tests.

    That is a module, and all of tests/system: its machine takes two minutes to set up.
    """

    def _split_scope(self, nodeid: str) -> str:
        return "tests/system" if nodeid.startswith("tests/system/") else nodeid.partition("::")[0]


def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> BySharedFixtures:
    """Choose how pytest-xdist shares the tests; its `loadgroup` does not work with pytest 9.2."""
    return BySharedFixtures(config, log)


def pytest_collection_finish() -> None:
    """Take what was made so far out of the collector's sight: tests that collect garbage look at their own only."""
    gc.collect()
    gc.freeze()


@pytest.hookimpl(trylast=True)
def pytest_runtest_teardown(item: pytest.Item, nextitem: pytest.Item | None) -> None:
    """Do so again after each module: a collection would take longer and longer, up to twenty times as long."""
    if nextitem is not None and nextitem.path != item.path:
        gc.collect()
        gc.freeze()


@pytest.fixture
def short_path() -> Iterator[Path]:
    """Give a directory whose path is short enough for UNIX sockets below it, whatever the test is called."""
    directory = Path(tempfile.mkdtemp(prefix="db"))
    yield directory
    shutil.rmtree(directory)


@pytest.fixture(scope="module", params=QEMUS, ids=str)
def qemu(request: pytest.FixtureRequest) -> Qemu:
    """Give this host's QEMU, then that of Debian 13."""
    chosen: Qemu = request.param
    return chosen
