# SPDX-FileCopyrightText: 2026 The doorbelld authors
# SPDX-License-Identifier: GPL-2.0-or-later
"""A host that leaves nothing behind."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from doorbelld.host.host import Host
from support.fdcount import no_leaks


@pytest.fixture
async def host(short_path: Path) -> AsyncIterator[Host]:
    with no_leaks():
        asyncio.get_running_loop().set_default_executor(executor := ThreadPoolExecutor(1))
        made = Host(asyncio.get_running_loop(), str(short_path / "run"), 4096)
        yield made
        await made.close()
        executor.shutdown()
