# SPDX-FileCopyrightText: 2026 The doorbelld authors
# SPDX-License-Identifier: GPL-2.0-or-later
"""Code that is run in a process of its own, because it may kill that, or have it stand still."""

from __future__ import annotations

import os
import subprocess
import sys
import textwrap
from pathlib import Path
from typing import Any


def _path() -> dict[str, str]:
    return {"PYTHONPATH": os.pathsep.join([str(Path(__file__).parents[1]), *filter(None, sys.path)])}


def run_python(code: str, timeout: float = 60) -> subprocess.CompletedProcess[str]:
    """Run *code*, which may import `doorbelld` and `support`."""
    # the address sanitizer, if this runs under it, is to leave the signal alone
    options = ":".join(filter(None, (os.environ.get("ASAN_OPTIONS"), "handle_sigbus=0")))
    return subprocess.run(
        [sys.executable, "-c", textwrap.dedent(code)],
        capture_output=True,
        text=True,
        timeout=timeout,
        check=False,
        env={
            **os.environ,
            "ASAN_OPTIONS": options,
            **_path(),
        },
    )


def start_module(name: str, *arguments: str, **popen: Any) -> subprocess.Popen[Any]:
    """Start the module *name* as a program, which may import `doorbelld` and `support`, with pipes at both ends."""
    return subprocess.Popen(
        [sys.executable, "-m", name, *arguments],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        env={**os.environ, **_path()},
        **popen,
    )
