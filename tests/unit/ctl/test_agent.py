# SPDX-FileCopyrightText: 2026 The doorbelld authors
# SPDX-License-Identifier: GPL-2.0-or-later
"""polkit's agent for terminals is started once, waited for, and ended."""

from __future__ import annotations

import asyncio
import os
from pathlib import Path

import pytest
from doorbelld.ctl.agent import PROGRAM, Agent
from support.fdcount import no_leaks

DEADLINE = 20


def play(directory: Path, monkeypatch: pytest.MonkeyPatch, script: str) -> Path:
    """Be the program, which notes its arguments; give the note."""
    program = directory / PROGRAM
    program.write_text(f'#!/bin/sh\necho "$$ $*" >> {directory}/note\n{script}\n')
    program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{directory}:{os.environ['PATH']}")
    return directory / "note"


async def test_it_is_started_once_and_ended(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    note = play(tmp_path, monkeypatch, 'eval "exec $4>&-"\nexec sleep 1000')
    await asyncio.to_thread(int)  # the thread's own descriptors are not what is counted
    with no_leaks():
        agent = Agent()
        async with asyncio.timeout(DEADLINE):
            await agent.start()
            await agent.start()
        (line,) = note.read_text().splitlines()
        pid, *words = line.split()
        assert words[:3] == ["--process", str(os.getpid()), "--notify-fd"]
        assert words[4:] == ["--fallback"]
        assert Path(f"/proc/{pid}").exists()
        agent.stop()
        assert not Path(f"/proc/{pid}").exists()
        agent.stop()


async def test_one_that_can_not_run_holds_up_nobody(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    play(tmp_path, monkeypatch, "exit 1")
    agent = Agent()
    async with asyncio.timeout(DEADLINE):
        await agent.start()
    agent.stop()


async def test_where_there_is_none_there_is_none(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    agent = Agent()
    await agent.start()
    agent.stop()
