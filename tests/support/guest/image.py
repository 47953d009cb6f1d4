# SPDX-FileCopyrightText: 2026 The doorbelld authors
# SPDX-License-Identifier: GPL-2.0-or-later
"""Builds what a QEMU guest boots: Debian's cloud kernel and an initramfs.

Theory of operation: the kernel comes from the package that `linux-image-cloud-amd64` depends on, downloaded by apt and
unpacked in the cache folder, never installed.

By hand: `PYTHONPATH=tests python3 -m support.guest.image` builds the default image and prints its paths.
"""

import re
import subprocess
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from support.cache import cached
from support.guest.initramfs import AGENT, CACHE, build_initramfs
from support.needs import require

VFIO_MODULES = ("vfio_iommu_type1", "vfio-pci")
"""What the ivshmem agent needs; the modules below them follow from the dependencies."""

_KERNEL_META_PACKAGE = "linux-image-cloud-amd64"


@dataclass(frozen=True)
class Image:
    """A kernel and an initramfs to boot it with."""

    kernel: Path
    initrd: Path


def build_image(
    *, modules: Sequence[str] = VFIO_MODULES, programs: Sequence[Path] = (AGENT,), cache: Path = CACHE
) -> Image:
    """Return the image with these modules and guest programs (see `build_initramfs`), from the cache if it is there.

    Raises FileNotFoundError for an unknown module and CalledProcessError when a tool fails.
    """
    kernel = _fetch_kernel(cache)
    tree = next((kernel / "lib/modules").iterdir())
    initrd = build_initramfs(tree, modules=modules, programs=programs, cache=cache)
    return Image(kernel=next((kernel / "boot").glob("vmlinuz-*")), initrd=initrd)


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

    return cached(cache / f"{package}_{version}", build)


def _run(*command: str | Path, cwd: Path | None = None) -> str:
    """Run a tool and return what it printed; its error output goes where ours goes."""
    return subprocess.run(command, cwd=cwd, stdout=subprocess.PIPE, text=True, check=True).stdout


if __name__ == "__main__":
    print(*vars(build_image()).values(), sep="\n")
