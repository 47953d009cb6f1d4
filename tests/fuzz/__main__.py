# SPDX-FileCopyrightText: 2026 The doorbelld authors
# SPDX-License-Identifier: GPL-2.0-or-later
"""The command ``python -m fuzz``; what it can do is told in ``__init__.py``."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from pathlib import Path

from . import runner
from .depth import Depth
from .script import parse
from .targets import NAMES, make


def run(target: str, seconds: str) -> int:
    """Fuzz one target, or all."""
    good = True
    for name in NAMES if target == "all" else (target,):
        print(f"{name}: {seconds} s", flush=True)
        done = runner.fuzz(name, int(seconds), runner.WORK / name)
        tail = "\n".join(done.output.splitlines()[-6 if done.good else -60 :])
        ways = "".join(f"\n  {count:8} {what}" for what, count in sorted(done.reached.items()))
        print(f"{tail}\n{done.runs} runs reached:{ways}", flush=True)
        good = good and done.good
    return int(not good)


def replay(target: str, *files: str) -> int:
    """Run inputs with the sanitized modules."""
    done = runner.replay(target, [Path(file).resolve() for file in files])
    print(done.output)
    return int(not done.good)


def execute(target: str, *files: str) -> int:
    """Run inputs here; a line for each says what it is the first to reach, and the last one what all did, how often."""
    depth = Depth()
    made = make(target, depth)
    for file in files:
        before = set(depth.reached)
        print(file, end="\t", flush=True)  # which one it was, if that is the last thing we say
        made(Path(file).read_bytes())
        print(json.dumps(sorted(depth.reached.keys() - before)), flush=True)
    made.close()
    print(json.dumps(depth.reached))
    return 0


def show(file: str) -> int:
    """Print the steps of an input."""
    for step in parse(Path(file).read_bytes()):
        print(f"{step.kind:3} {step.fds.hex() or '-'} {step.data!r}")
    return 0


def keep(target: str) -> int:
    """Merge what was found into the corpus."""
    before = len(runner.inputs(target))
    runner.merge(target, runner.WORK / target)
    after = runner.inputs(target)
    print(f"{target}: {before} inputs, now {len(after)} with {sum(each.stat().st_size for each in after)} bytes")
    return 0


def seeds(folder: str) -> int:
    """Write the first inputs of all targets."""
    from . import seeds as made

    print("\n".join(made.write(Path(folder))))
    return 0


_COMMANDS: dict[str, Callable[..., int]] = {
    command.__name__: command for command in (run, replay, execute, show, keep, seeds)
}


def main() -> int:
    """Do what the command line says."""
    if len(sys.argv) < 3 or sys.argv[1] not in _COMMANDS:
        print(f"usage: python -m fuzz {'|'.join(_COMMANDS)} ...", file=sys.stderr)
        return 2
    return _COMMANDS[sys.argv[1]](*sys.argv[2:])


sys.exit(main())
