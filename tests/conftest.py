# SPDX-FileCopyrightText: 2026 The doorbelld authors
# SPDX-License-Identifier: GPL-2.0-or-later
"""Fixtures that every kind of test may use."""

from __future__ import annotations

import gc
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from support.guest.qemu import QEMUS, Qemu


def pytest_collection_finish() -> None:
    """Take what was made so far out of the collector's sight: tests that collect garbage look at their own only."""
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
