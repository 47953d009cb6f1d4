# SPDX-FileCopyrightText: 2026 The doorbelld authors
# SPDX-License-Identifier: GPL-2.0-or-later
"""The process that fuzzes, which runner.py starts: ``python -m fuzz.harness TARGET FOLDER [libFuzzer's arguments]``.

It writes into ``FOLDER/depth.json`` how far inputs got, every now and then, since libFuzzer ends the process without
asking; and a script there that starts such a process, for libFuzzer's own use.
"""

from __future__ import annotations

import json
import shlex
import sys
from pathlib import Path

import atheris

from . import script
from .depth import Depth
from .targets import make

_EVERY = 256
"""Inputs between two writes."""


def main(name: str, folder: Path, arguments: list[str]) -> None:
    """Fuzz until libFuzzer has enough."""
    depth = Depth()
    runs = 0
    with atheris.instrument_imports(include=["doorbelld"], enable_loader_override=False):
        target = make(name, depth)

    def run(raw: bytes) -> None:
        nonlocal runs
        runs += 1
        target(raw)
        if runs % _EVERY == 0:
            fresh = folder / "depth.new"
            fresh.write_text(json.dumps(depth.reached, indent=1, sort_keys=True))
            fresh.replace(folder / "depth.json")

    def mutate(raw: bytes, size: int, seed: int) -> bytes:
        return script.mutate(raw, size, seed, atheris.Mutate, target.kinds)

    again = folder / "again"
    command = shlex.join([sys.executable, "-m", "fuzz.harness", name, str(folder)])
    again.write_text(f'#!/bin/sh\nexec {command} "$@"\n')
    again.chmod(0o755)
    atheris.Setup([str(again), *arguments], run, custom_mutator=mutate, custom_crossover=script.cross)
    atheris.Fuzz()


if __name__ == "__main__":
    main(sys.argv[1], Path(sys.argv[2]), sys.argv[3:])
