# SPDX-FileCopyrightText: 2026 The doorbelld authors
# SPDX-License-Identifier: GPL-2.0-or-later
"""The package with its native modules built for the address and the undefined behaviour sanitizer.

Theory of operation: `build` compiles the modules into ``build/sanitize``, beside the ones in use, and puts the
package's Python files there too; `environment` is what makes another interpreter load all that. The modules carry no
runtime of their own: what is in LD_PRELOAD decides, gcc's runtimes for tests, or those that atheris brings, which a
fuzzer needs.

The interpreter itself leaks at its end. So leaks are looked for only where that is wanted, and `native_leaks` finds
those that are ours in the report: what a native module allocated itself. The status of the program is 0 then, whatever
was found, for the runtimes have one and the same status for leaks and for errors; look at what it wrote.
"""

from __future__ import annotations

import fcntl
import hashlib
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from support.needs import require

ROOT = Path(__file__).parents[2]
BUILD = ROOT / "build" / "sanitize"
SOURCES = ROOT / "daemon" / "doorbelld"
_DECIDE = (ROOT / "setup.py", Path(__file__).with_name("coverage.h"))
FOUND = 99
"""Status of a program in which a sanitizer found something."""
_NATIVE = ".so"


def build() -> Path:
    """Build what is not up to date, and return the folder to import the package from."""
    library = BUILD / "lib"
    with _alone():
        stamp = _stamp()
        if not (BUILD / "stamp").exists() or (BUILD / "stamp").read_text() != stamp:
            shutil.rmtree(library, ignore_errors=True)
            shutil.rmtree(BUILD / "temp", ignore_errors=True)
        command = [sys.executable, "setup.py", "--quiet", "build_ext", f"--parallel={os.cpu_count() or 1}"]
        command += ["--build-temp", str(BUILD / "temp"), "--build-lib", str(library)]
        environment = {**os.environ, "DOORBELLD_SANITIZE": "1"}
        done = subprocess.run(
            command, cwd=ROOT, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, check=False
        )
        assert done.returncode == 0, f"the sanitized modules could not be built:\n{done.stdout}"
        (BUILD / "stamp").write_text(stamp)
        _mirror(SOURCES, library / "doorbelld")
    return library


def runtimes() -> list[Path]:
    """Find gcc's runtimes of both sanitizers."""
    require("gcc", "gcc")
    found = []
    for name in ("libasan.so", "libubsan.so"):
        said = subprocess.run(["gcc", f"-print-file-name={name}"], stdout=subprocess.PIPE, text=True, check=True).stdout
        found.append(require(f"{Path(said.strip()).parent}/{name}", "gcc (libasan, libubsan)").resolve())
    return found


def environment(library: Path, *, preload: Sequence[Path] = (), leaks: bool = False) -> dict[str, str]:
    """Return what an interpreter needs to use *library*; *preload* are runtimes other than gcc's."""
    options = {
        "detect_leaks": str(int(leaks)),
        "quarantine_size_mb": "32",  # enough to notice use after free; more is only memory
        "allocator_may_return_null": "1",  # sizes come from hostile front-ends
        "exitcode": "0" if leaks else str(FOUND),
    }
    return {
        **os.environ,
        "LD_PRELOAD": " ".join(map(str, preload or runtimes())),
        "PYTHONMALLOC": "malloc",
        "PYTHONPATH": os.pathsep.join([str(library), str(ROOT / "tests")]),
        "ASAN_OPTIONS": ":".join(f"{key}={value}" for key, value in options.items()),
        "UBSAN_OPTIONS": "print_stacktrace=1:halt_on_error=1",
    }


def native_leaks(report: str) -> list[str]:
    """Return the leaks in *report* that a native module of ours allocated, not Python on its behalf."""
    leaks = re.split(r"\n\n", report)
    return [
        leak for leak in leaks if re.search(r"(?m)^(?:Direct|Indirect) leak.*\n\s*#0 .*\n\s*#1 .*/doorbelld/", leak)
    ]


@contextmanager
def _alone() -> Iterator[None]:
    BUILD.mkdir(parents=True, exist_ok=True)
    with (BUILD / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def _stamp() -> str:
    compiler = subprocess.run(["gcc", "--version"], stdout=subprocess.PIPE, check=True).stdout
    return hashlib.sha256(
        b"".join([sys.version.encode(), compiler, *(file.read_bytes() for file in _DECIDE)])
    ).hexdigest()


def _mirror(source: Path, target: Path) -> None:
    """Make *target* hold the files of *source*, but for native modules, of which it has its own."""
    wanted = {
        entry.name: entry for entry in source.iterdir() if entry.suffix != _NATIVE and entry.name != "__pycache__"
    }
    target.mkdir(exist_ok=True)
    for old in target.iterdir():
        if old.name not in wanted and old.suffix != _NATIVE:
            shutil.rmtree(old) if old.is_dir() else old.unlink()
    for name, entry in wanted.items():
        if entry.is_dir():
            _mirror(entry, target / name)
        else:
            shutil.copy2(entry, target / name)
