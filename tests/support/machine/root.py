# SPDX-FileCopyrightText: 2026 The doorbelld authors
# SPDX-License-Identifier: GPL-2.0-or-later
"""Builds what a test machine boots: a minimal Debian with doorbelld installed in it.

Theory of operation: mmdebstrap makes the Debian from the apt sources of this host, whatever they are; its suite is
the host's, or another in its place. It takes a quarter of a minute and is kept (see support.cache). It is never booted
itself: whoever wants to boot one takes a copy, and installs doorbelld into it.

The programs run with the Debian's own Python if that is of the version that our native code was built for. Else the
interpreter that we run with is copied into it, to a place where the daemon's user and its sandbox can reach it.

By hand: `PYTHONPATH=tests python3 -m support.machine.root DIRECTORY` makes DIRECTORY such a root.
"""

import os
import re
import shutil
import subprocess
import sys
import sysconfig
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from support.cache import BUILD, cached, digest
from support.needs import require

REPOSITORY = Path(__file__).parents[3]

CACHE = BUILD / "machine"

PACKAGES = ("systemd", "systemd-sysv", "dbus", "polkitd", "python3", "util-linux", "procps")

_OPTIONS = (
    "--quiet",
    "--mode=root",
    "--format=directory",
    *(f"--dpkgopt=path-exclude=/usr/share/{name}/*" for name in ("doc", "info", "locale", "man")),
    '--customize-hook=echo machine > "$1/etc/hostname"',
    '--customize-hook=rm -f "$1/etc/apt/sources.list"',
)
"""For mmdebstrap: what no test reads is left out. Copying the root is most of the cost of a boot."""

_APT_OPTIONS = re.compile(r'^Acquire::(?:\w+::(?:Proxy|CaInfo|Verify-\w+)\b|Retries|Proxy).* "[^"]+";$', re.I | re.M)
"""How this host reaches its apt sources."""


@contextmanager
def installed_root(*, cache: Path = CACHE) -> Iterator[Path]:
    """Give a root with doorbelld installed, of our own; it is removed afterwards.

    Raises CalledProcessError when a tool fails.
    """
    with copy_of(debian(cache)) as root:
        install(root)
        yield root


@contextmanager
def copy_of(root: Path) -> Iterator[Path]:
    """Give a copy of *root*, on the same file system; it is removed afterwards."""
    with tempfile.TemporaryDirectory(dir=root.parent, prefix=".copy.") as place:  # nspawn puts a lock file beside it
        copy = Path(place) / "root"
        _run("cp", "-a", "--reflink=auto", root, copy)
        yield copy


def debian(cache: Path = CACHE) -> Path:
    """Return a minimal Debian that is not to be changed, from the cache if it is there."""
    return bootstrap(_os_release()["VERSION_CODENAME"], PACKAGES, cache=cache)


def bootstrap(suite: str, packages: Sequence[str], *, variant: str = "minbase", cache: Path = CACHE) -> Path:
    """Return a root of Debian's *suite* with *packages*, from the cache if it is there.

    *variant* is mmdebstrap's; "extract" unpacks the packages with all that they depend on, and nothing else.

    Raises CalledProcessError when the apt sources don't have it.
    """
    mmdebstrap = require("mmdebstrap", "mmdebstrap")
    ours = _os_release()["VERSION_CODENAME"]
    sources = {path.name: re.sub(rf"\b{ours}\b", suite, path.read_text()) for path in _apt_sources(ours)}
    words = [f"--variant={variant}", f"--include={','.join(packages)}", *_OPTIONS]

    def build(root: Path) -> None:
        options = [f"--aptopt={line}" for line in _APT_OPTIONS.findall(_run("apt-config", "dump"))]
        with tempfile.TemporaryDirectory() as folder:
            files = [Path(folder) / name for name in sources]
            for file in files:
                file.write_text(sources[file.name])
            _run(mmdebstrap, *words, *options, suite, root, *files)

    return cached(cache / f"{suite}-{digest([suite, *words, *sources.values()])}", build)


def install(root: Path) -> None:
    """Install this checkout's doorbelld below *root* with `make install`; the virtual environment is used as it is."""
    words = ["install", f"DESTDIR={root}", f"INTERPRETER={_interpreter(root)}"]
    _run("make", "-C", REPOSITORY, "-o", f"{sys.prefix}/.doorbelld", f"VENV={sys.prefix}", *words)


def _interpreter(root: Path) -> str:
    """Tell which Python doorbelld is to run with in *root*, after copying it there if need be."""
    version = sysconfig.get_python_version()
    if (root / f"usr/bin/python{version}").exists():
        return f"/usr/bin/python{version}"
    home = Path("/opt/python")
    target = root / home.relative_to("/")
    shutil.copytree(sys.base_prefix, target, symlinks=True, ignore=shutil.ignore_patterns("test"))
    if sysconfig.get_config_var("Py_ENABLE_SHARED"):
        (root / "etc/ld.so.conf.d/python.conf").write_text(f"{home}/lib\n")
        _run("ldconfig", "-r", root)
    return str(home / "bin" / f"python{version}")


def _apt_sources(suite: str) -> list[Path]:
    """Find the files of this host's apt sources that have *suite*."""
    folder = Path("/etc/apt")
    files = [folder / "sources.list", *sorted((folder / "sources.list.d").glob("*"))]
    files = [file for file in files if file.suffix in (".list", ".sources") and file.is_file()]
    return [file for file in files if re.search(rf"^[^#]*\s{suite}(?:\s|$)", file.read_text(), re.M)]


def _os_release() -> dict[str, str]:
    lines = Path("/etc/os-release").read_text().splitlines()
    return {key: value.strip('"') for key, _, value in (line.partition("=") for line in lines)}


def _run(*command: str | Path) -> str:
    """Run a tool and return what it printed; its error output goes where ours goes."""
    return subprocess.run(command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, text=True, check=True).stdout


if __name__ == "__main__":
    made = Path(sys.argv[1])
    _run("cp", "-a", "-T", debian(), made)
    install(made)
    print(os.fspath(made))
