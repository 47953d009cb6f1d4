# SPDX-FileCopyrightText: 2026 The doorbelld authors
# SPDX-License-Identifier: GPL-2.0-or-later
"""Executing anew, as far as one process can try it; the rest is in tests/integration/test_exec_restart.py."""

from __future__ import annotations

import fcntl
import json
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
from doorbelld.fds import eventfd
from doorbelld.fds.keeper import Satchel
from doorbelld.service import anew
from support.fdcount import no_leaks


@pytest.fixture
def satchel() -> Iterator[Satchel]:
    with no_leaks():
        made = Satchel()
        bells = eventfd.make(3)
        for number, fd in enumerate(bells):
            made.put(f"r1.{number}", fd)
        bells.close()
        yield made
        made.close()


def mask() -> set[int]:
    return set(signal.pthread_sigmask(signal.SIG_BLOCK, ()))


def test_an_execution_that_fails_leaves_all_as_it_was(satchel: Satchel, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[tuple[str, dict[str, int]]] = []

    def fail(program: str, _: list[str], environment: dict[str, str]) -> None:
        number = int(environment[anew.VARIABLE])
        assert os.get_inheritable(number)
        assert all(os.get_inheritable(fd.fileno()) for fd in satchel.copies.values())
        assert set(anew.SIGNALS) <= mask()
        seen.append((program, json.loads(os.pread(number, 4096, 0))))
        raise OSError(2, "No such file or directory")

    before = mask()
    monkeypatch.setattr(os, "execve", fail)
    with pytest.raises(OSError, match="No such file"):
        anew.execute(satchel)
    assert seen == [(sys.executable, {name: fd.fileno() for name, fd in satchel.copies.items()})]
    assert not any(os.get_inheritable(fd.fileno()) for fd in satchel.copies.values())
    assert mask() == before
    assert anew.VARIABLE not in os.environ


def test_what_is_handed_on_comes_back_once(satchel: Satchel, monkeypatch: pytest.MonkeyPatch) -> None:
    numbers = {name: os.dup(fd.fileno()) for name, fd in satchel.copies.items()}
    table = os.memfd_create("table", 0)
    os.write(table, json.dumps(numbers).encode())
    for number in numbers.values():
        os.set_inheritable(number, True)
    monkeypatch.setenv(anew.VARIABLE, str(table))
    kept = anew.take_back()
    assert sorted(kept) == sorted(numbers)
    for name, number in numbers.items():
        fd = kept.take(name)
        assert fd is not None
        assert fd.fileno() == number
        assert fcntl.fcntl(number, fcntl.F_GETFD) == fcntl.FD_CLOEXEC
        fd.close()
    with pytest.raises(OSError, match="Bad file descriptor"):
        os.fstat(table)
    assert anew.VARIABLE not in os.environ
    assert len(anew.take_back()) == 0


@pytest.mark.parametrize("said", [None, "", "x", "-1"])
def test_nothing_comes_back_to_who_was_not_executed_anew(monkeypatch: pytest.MonkeyPatch, said: str | None) -> None:
    monkeypatch.delenv(anew.VARIABLE, raising=False)
    if said is not None:
        monkeypatch.setenv(anew.VARIABLE, said)
    assert len(anew.take_back()) == 0
    assert anew.VARIABLE not in os.environ


def test_signals_are_held_back_and_then_come() -> None:
    came: list[int] = []
    before = signal.signal(signal.SIGHUP, lambda number, _: came.append(number))
    try:
        anew.hold()
        signal.pthread_kill(threading.get_ident(), signal.SIGHUP)  # other threads do not hold it back
        assert (came, set(anew.SIGNALS) <= mask()) == ([], True)
        anew.release()
        assert came == [signal.SIGHUP]
    finally:
        anew.release()
        signal.signal(signal.SIGHUP, before)


PROGRAM = """
import json, os, sys
sys.path[:0] = json.loads(sys.argv[1])
from doorbelld.service import anew
from doorbelld.fds.keeper import Satchel
kept = anew.take_back()
if not len(kept):
    satchel = Satchel()
    memory = os.memfd_create("memory")
    os.write(memory, b"still there")
    for number in range(int(sys.argv[2])):
        satchel.put(f"r1.{number}" + "x" * 200, memory)
    os.close(memory)
    print(os.getpid(), flush=False)
    anew.execute(satchel)
(content,) = {os.pread(fd.fileno(), 99, 0) for name in kept for fd in [kept.copy(name)]}
count = len(kept)
kept.close()
print(os.getpid(), content.decode(), count, len(os.listdir("/proc/self/fd")))
"""


@pytest.mark.parametrize("count", [1, 900])
def test_a_program_that_does_it(count: int, tmp_path: Path) -> None:
    """Names of any length altogether: they would not fit one variable of the environment."""
    script = tmp_path / "program.py"
    script.write_text(PROGRAM)
    path = json.dumps([str(Path(anew.__file__).parents[2]), *sys.path])
    done = subprocess.run(
        [sys.executable, "-W", "error", script, path, str(count)], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    before, after = done.stdout.splitlines()
    pid, *said = after.split()
    assert pid == before
    assert said == ["still", "there", str(count), "4"]  # all were closed; 3 and the one that lists
