# SPDX-FileCopyrightText: 2026 The doorbelld authors
# SPDX-License-Identifier: GPL-2.0-or-later
"""Builds what a test guest boots: Debian's cloud kernel and an initramfs of a few megabytes.

Theory of operation: the kernel comes from the package that `linux-image-cloud-amd64` depends on, downloaded
by apt and unpacked in the cache folder, never installed. The initramfs holds a static busybox, the kernel
modules asked for with all that they depend on, the guest programs compiled from C, and an init script that
loads the modules and runs one program with its standard input and output on the second serial port; the
first one is the kernel's. Which program is told on the kernel command line (`program=NAME`). When it ends
the guest powers off.

Each result is a folder of the cache, named after all that went into it. It is built in a temporary folder
beside it and renamed, so that a folder that is there is complete, and of two builders at once the later one
gives way.

By hand: `PYTHONPATH=tests python3 -m support.guest.image` builds the default image and prints its paths.
"""

import hashlib
import os
import re
import shutil
import subprocess
import tempfile
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from support.needs import require

AGENT = Path(__file__).with_name("agent.c")
"""The source of the ivshmem agent."""

VFIO_MODULES = ("vfio_iommu_type1", "vfio-pci")
"""What the ivshmem agent needs; the modules below them follow from the dependencies."""

DEFAULT_CACHE = Path(__file__).parents[3] / "build" / "guest"

_KERNEL_META_PACKAGE = "linux-image-cloud-amd64"

_INIT = """\
#!/bin/sh
mount -t devtmpfs devtmpfs /dev
mount -t proc proc /proc
mount -t sysfs sysfs /sys
for module in $(cat /modules/order); do
    insmod "/modules/$module" || echo "init: cannot load $module"
done
stty -F /dev/ttyS1 115200 raw -echo
"$program" </dev/ttyS1 >/dev/ttyS1
echo "init: $program ended with status $?"
poweroff -f
"""


@dataclass(frozen=True)
class Image:
    """A kernel and an initramfs to boot it with."""

    kernel: Path
    initrd: Path


def build_image(
    *,
    modules: Sequence[str] = VFIO_MODULES,
    programs: Sequence[Path] = (AGENT,),
    cache: Path = DEFAULT_CACHE,
) -> Image:
    """Return the image with these modules and guest programs, from the cache if it is there.

    `modules` are loaded in this order, each after what it depends on; those built into the kernel are
    passed over. `programs` are C sources of one file each, compiled statically to /bin/STEM.

    Raises FileNotFoundError for an unknown module and CalledProcessError when a tool fails.
    """
    busybox = require("busybox", "busybox-static")
    cache.mkdir(parents=True, exist_ok=True)
    kernel = _fetch_kernel(cache)
    files = [Path(__file__), busybox, *programs]
    key = _hash([kernel.name, *modules, *(p.name for p in programs)], files)

    def build(folder: Path) -> None:
        root = folder / "root"
        _install_busybox(root, busybox)
        _install_modules(root, kernel, modules)
        _install_programs(root, programs)
        _pack(root, folder / "initrd")
        shutil.rmtree(root)

    initramfs = _cached(cache / f"initramfs-{key}", build)
    return Image(kernel=next((kernel / "boot").glob("vmlinuz-*")), initrd=initramfs / "initrd")


def _cached(folder: Path, build: Callable[[Path], None]) -> Path:
    """Return `folder`, after `build` has filled it if it was not there."""
    if folder.exists():
        return folder
    with tempfile.TemporaryDirectory(dir=folder.parent, prefix=f".{folder.name}.") as temporary:
        result = Path(temporary) / "result"
        result.mkdir()
        build(result)
        try:
            result.rename(folder)
        except OSError:
            if not folder.exists():
                raise
    return folder


def _hash(words: Iterable[str], files: Iterable[Path]) -> str:
    digest = hashlib.sha256("\0".join(words).encode())
    for file in files:
        digest.update(hashlib.sha256(file.read_bytes()).digest())
    return digest.hexdigest()[:16]


def _run(*command: str | Path, cwd: Path | None = None) -> str:
    """Run a tool and return what it printed; its error output goes where ours goes."""
    return subprocess.run(command, cwd=cwd, stdout=subprocess.PIPE, text=True, check=True).stdout


def _fetch_kernel(cache: Path) -> Path:
    """Return the folder into which the kernel package is unpacked."""
    apt_cache = require("apt-cache", "apt")
    control = _run(apt_cache, "show", "--no-all-versions", _KERNEL_META_PACKAGE)
    dependency = re.search(r"^Depends: (linux-image-\S+) \(= (\S+)\)", control, re.MULTILINE)
    if dependency is None:
        raise LookupError(f"{_KERNEL_META_PACKAGE} depends on no kernel package:\n{control}")
    package, version = dependency.groups()

    def build(folder: Path) -> None:
        _run("apt-get", "-q", "download", f"{package}={version}", cwd=folder)
        for archive in folder.glob("*.deb"):
            _run("dpkg", "-x", archive, folder)
            archive.unlink()

    return _cached(cache / f"{package}_{version}", build)


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


def _install_modules(root: Path, kernel: Path, modules: Iterable[str]) -> None:
    """Copy the modules to /modules and write the order to load them in to /modules/order."""
    tree = next((kernel / "lib/modules").iterdir())
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


if __name__ == "__main__":
    print(*vars(build_image()).values(), sep="\n")
