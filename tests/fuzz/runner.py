# SPDX-FileCopyrightText: 2026 The doorbelld authors
# SPDX-License-Identifier: GPL-2.0-or-later
"""Starts what fuzzes and what replays, each in a process with the sanitized modules (tests/support/sanitized.py)."""

from __future__ import annotations

import importlib.util
import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from support import sanitized

CORPUS = Path(__file__).with_name("corpus")
WORK = sanitized.ROOT / "build" / "fuzz"
INPUT_MAX = 4096
INPUT_SECONDS = 30
"""How long one input may take."""
MEMORY_MAX = 4096
"""MiB; the sanitizer takes much, and a leak still shows."""
_SLACK = 120.0
_DONE = re.compile(r"^Done (\d+) runs", re.MULTILINE)
_NAME_LENGTH = 12
_NAMELESS = re.compile(r"[0-9a-f]{12,40}")
"""What libFuzzer calls an input, or the beginning of that."""


@dataclass(frozen=True, slots=True)
class Outcome:
    """How a process ended."""

    good: bool
    output: str
    runs: int
    reached: dict[str, int]
    """How far inputs got, by what `Depth.note` was told."""


def can_fuzz() -> bool:
    """Tell whether there is atheris for this interpreter."""
    return importlib.util.find_spec("atheris") is not None


def fuzz(target: str, seconds: int, folder: Path, *, corpus: Path | None = None) -> Outcome:
    """Fuzz *target* for so long; what is found stays in *folder*: ``corpus``, and ``crash-*``."""
    known = [each for each in [corpus or CORPUS / target] if each.is_dir()]
    return _libfuzzer(target, folder, [f"-max_total_time={seconds}"], known, seconds)


def merge(target: str, folder: Path) -> None:
    """Put what was found in *folder* into the corpus, as much as adds something, and leave out what does not any more.

    What has a name (``regression-*``, and the seeds) stays, whatever it adds.
    """
    kept, merged, found = CORPUS / target, folder / "merged", folder / "corpus"
    shutil.rmtree(merged, ignore_errors=True)
    merged.mkdir(parents=True)
    found.mkdir(exist_ok=True)
    for old in inputs(target):
        if not _NAMELESS.fullmatch(old.name):
            shutil.copy(old, merged)
    done = _libfuzzer(target, folder, ["-merge=1", "-use_counters=0"], [merged, kept, found], 3600)
    assert done.good, done.output
    _add_ways(target, merged, found)
    for old in inputs(target):
        old.unlink()
    for new in merged.iterdir():
        shutil.copy(new, kept / (new.name[:_NAME_LENGTH] if _NAMELESS.fullmatch(new.name) else new.name))


def _add_ways(target: str, merged: Path, found: Path) -> None:
    """Add the shortest inputs that are served or refused in ways that no other is: libFuzzer looks at code only."""
    already = [*merged.iterdir()]
    done = replay(target, [*already, *sorted(found.iterdir(), key=lambda file: file.stat().st_size)])
    assert done.good, done.output
    for line in done.output.splitlines()[:-1]:
        name, tab, ways = line.partition("\t")
        if tab and json.loads(ways) and Path(name) not in already:
            shutil.copy(name, merged)


def _libfuzzer(target: str, folder: Path, how: Sequence[str], folders: Iterable[Path], seconds: float) -> Outcome:
    found = importlib.util.find_spec("atheris")
    assert found is not None and found.origin is not None, "atheris is missing: install the extra 'dev'"
    runtime = Path(found.origin).parents[1] / "asan_with_fuzzer.so"
    fresh = [] if "-merge=1" in how else [folder / "corpus"]
    for each in (folder, *fresh):
        each.mkdir(parents=True, exist_ok=True)
    arguments = [f"-timeout={INPUT_SECONDS}", f"-rss_limit_mb={MEMORY_MAX}", f"-max_len={INPUT_MAX}", "-reload=0"]
    arguments += ["-print_final_stats=1", f"-artifact_prefix={folder}/", *how, *map(str, [*fresh, *folders])]
    command = [sys.executable, "-m", "fuzz.harness", target, str(folder), *arguments]
    (folder / "depth.json").unlink(missing_ok=True)
    before = _broken(folder)
    done = _run(command, sanitized.environment(sanitized.build(), preload=[runtime]), seconds + _SLACK)
    told = folder / "depth.json"
    reached = json.loads(told.read_text()) if told.exists() else {}
    (folder / "log").write_text(done.stdout)
    finished = _DONE.search(done.stdout)
    broken = sorted(_broken(folder) - before)
    # the status is not to be relied upon: after an error that a sanitizer found, it is 0
    good = done.returncode == 0 and not broken and ("-merge=1" in how or finished is not None)
    output = done.stdout + "".join(_advice(target, file) for file in broken)
    return Outcome(good, output, int(finished[1]) if finished else 0, reached)


def _broken(folder: Path) -> set[Path]:
    return {file for kind in ("crash", "timeout", "oom", "leak") for file in folder.glob(f"{kind}-*")}


def _advice(target: str, file: Path) -> str:
    again = f"PYTHONPATH=tests .venv/bin/python -m fuzz replay {target} {os.path.relpath(file, sanitized.ROOT)}"
    keep = f"tests/fuzz/corpus/{target}/regression-WHAT"
    return f"\nReproduce it with\n  {again}\nand when it is mended, keep the input as {keep}.\n"


def replay(target: str, inputs: Sequence[Path]) -> Outcome:
    """Run *inputs* once, one after the other, without libFuzzer."""
    command = [sys.executable, "-m", "fuzz", "execute", target, *map(str, inputs)]
    done = _run(command, sanitized.environment(sanitized.build()), INPUT_SECONDS * 10)
    reached = json.loads(done.stdout.splitlines()[-1]) if done.returncode == 0 else {}
    return Outcome(done.returncode == 0, done.stdout, len(inputs), reached)


def _run(command: list[str], environment: dict[str, str], seconds: float) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        command,
        env=environment,
        cwd=sanitized.ROOT,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        errors="replace",
        timeout=seconds,
        check=False,
    )


def inputs(target: str) -> list[Path]:
    """Return the corpus of *target*."""
    return sorted((CORPUS / target).iterdir())


def seconds_wanted(default: int) -> int:
    """Return how long to fuzz in tests: DOORBELLD_FUZZ_SECONDS, or *default*."""
    return int(os.environ.get("DOORBELLD_FUZZ_SECONDS", default))
