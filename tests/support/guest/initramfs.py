# SPDX-FileCopyrightText: 2026 The doorbelld authors
# SPDX-License-Identifier: GPL-2.0-or-later
"""Builds an initramfs of a few megabytes, for whichever kernel.

It holds a static busybox, the kernel modules asked for with all that they depend on, the guest programs compiled from
C, and an init script that loads the modules and runs one program with its standard input and output on a terminal.
Which program and which terminal is told on the kernel command line (`program=NAME port=NAME`, and `speed=BAUD` for a
serial port). When it ends the guest powers off.
"""

import os
import re
import shutil
import subprocess
from collections.abc import Iterable, Sequence
from pathlib import Path

from support.cache import BUILD, cached, digest
from support.needs import require

AGENT = Path(__file__).with_name("agent.c")
"""The source of the ivshmem agent, which also runs commands."""

DISK = Path(__file__).with_name("disk.c")
"""The source of a tool that does with a disk what busybox does not."""

CACHE = BUILD / "guest"

_INIT = """\
#!/bin/sh
mount -t devtmpfs devtmpfs /dev
mount -t proc proc /proc
mount -t sysfs sysfs /sys
for module in $(cat /modules/order); do
    insmod "/modules/$module" || echo "init: cannot load $module"
done
stty -F "/dev/$port" $speed raw -echo
"$program" <"/dev/$port" >"/dev/$port"
echo "init: $program ended with status $?"
poweroff -f
"""


def build_initramfs(
    tree: Path, *, modules: Sequence[str] = (), programs: Sequence[Path] = (AGENT,), cache: Path = CACHE
) -> Path:
    """Return the initramfs with these modules and programs, from the cache if it is there.

    `tree` is the folder of the kernel's modules (lib/modules/VERSION). `modules` are loaded in this order, each after
    what it depends on; those built into the kernel are passed over. `programs` are C sources of one file each, compiled
    statically to /bin/STEM.

    Raises FileNotFoundError for an unknown module and CalledProcessError when a tool fails.
    """
    busybox = require("busybox", "busybox-static")

    def build(folder: Path) -> None:
        root = folder / "root"
        _install_busybox(root, busybox)
        _install_modules(root, tree, modules)
        _install_programs(root, programs)
        _pack(root, folder / "initrd")
        shutil.rmtree(root)

    words = [str(tree), *modules, "", *(program.name for program in programs)]
    name = digest(words, [Path(__file__), tree / "modules.builtin", busybox, *programs])
    return cached(cache / f"initramfs-{name}", build) / "initrd"


def _install_busybox(root: Path, busybox: Path) -> None:
    for folder in ("bin", "dev", "proc", "sys"):
        (root / folder).mkdir(parents=True)
    shutil.copy(busybox, root / "bin/busybox")
    for applet in _run(busybox, "--list").split():
        if applet != "busybox":
            (root / "bin" / applet).symlink_to("busybox")
    init = root / "init"
    init.write_text(_INIT)
    init.chmod(0o755)


def _install_modules(root: Path, tree: Path, modules: Iterable[str]) -> None:
    """Copy the modules to /modules and write the order to load them in to /modules/order."""
    files = {_module_name(file.name): file for file in tree.rglob("*.ko")}
    builtin = {_module_name(line) for line in (tree / "modules.builtin").read_text().split()}
    folder = root / "modules"
    folder.mkdir()
    order: list[str] = []

    def install(name: str) -> None:
        if name in builtin:
            return
        if name not in files:
            raise FileNotFoundError(f"kernel module {name} is not in {tree}")
        file = files[name]
        if file.name in order:
            return
        for dependency in _module_dependencies(file):
            install(dependency)
        shutil.copy(file, folder)
        order.append(file.name)

    for module in modules:
        install(_module_name(module))
    (folder / "order").write_text("".join(f"{name}\n" for name in order))


def _module_name(path: str) -> str:
    """The kernel takes - and _ in the name of a module as the same."""
    return Path(path).name.removesuffix(".ko").replace("-", "_")


def _module_dependencies(file: Path) -> list[str]:
    """Read a module's `depends=` field, what depmod makes modules.dep of (not in the package)."""
    field = re.search(rb"\0depends=([^\0]*)\0", file.read_bytes())
    names = field[1].decode() if field else ""
    return [_module_name(name) for name in names.split(",") if name]


def _install_programs(root: Path, programs: Iterable[Path]) -> None:
    gcc = require("gcc", "gcc")
    require("/usr/include/stdio.h", "libc6-dev")
    for source in programs:
        output = root / "bin" / source.stem
        output.unlink(missing_ok=True)
        _run(gcc, "-static", "-s", "-O2", "-Wall", "-Wextra", "-Werror", "-o", output, source)


def _pack(root: Path, archive: Path) -> None:
    cpio = require("cpio", "cpio")
    names = "\0".join(sorted(str(path.relative_to(root)) for path in root.rglob("*")))
    options = ("--quiet", "--create", "--null", "--format=newc", "--owner=0:0", "--reproducible")
    with archive.open("wb") as output:
        subprocess.run([cpio, *options], cwd=root, input=os.fsencode(names), stdout=output, check=True)


def _run(*command: str | Path) -> str:
    """Run a tool and return what it printed; its error output goes where ours goes."""
    return subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True).stdout
