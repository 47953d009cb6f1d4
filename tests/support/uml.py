# SPDX-FileCopyrightText: 2026 The doorbelld authors
# SPDX-License-Identifier: GPL-2.0-or-later
"""A Linux driver in User-Mode Linux: a kernel as a process, whose virtio devices are all vhost-user.

Theory of operation: `run` boots Debian's UML kernel with an initramfs (busybox, the drivers asked for, one shell
script) and one ``virtio_uml.device`` for each socket. The script's output comes out of the first console. When the
script ends the machine halts, which takes a second and a half from the start.
"""

import subprocess
from collections.abc import Iterable, Sequence
from pathlib import Path

from support.guest.image import DEFAULT_CACHE, _cached, _hash, _install_busybox, _install_modules, _pack
from support.needs import require

_MODULES = Path("/usr/lib/uml/modules")
_INIT = """\
#!/bin/sh
mount -t devtmpfs devtmpfs /dev
mount -t proc proc /proc
mount -t sysfs sysfs /sys
for module in $(cat /modules/order); do
    insmod "/modules/$module" || echo "init: cannot load $module"
done
sh -e /script && echo "script: done" || echo "script: failed"
poweroff -f
"""


def build_initrd(script: str, modules: Sequence[str], cache: Path = DEFAULT_CACHE) -> Path:
    """Return an initramfs that loads *modules* of the UML kernel and runs *script*, from the cache if it is there."""
    busybox = require("busybox", "busybox-static")
    tree = next(require(str(_MODULES), "user-mode-linux").iterdir())
    cache.mkdir(parents=True, exist_ok=True)

    def build(folder: Path) -> None:
        root = folder / "root"
        _install_busybox(root, busybox)
        (folder / "lib").mkdir()
        (folder / "lib/modules").symlink_to(_MODULES)
        _install_modules(root, folder, modules)
        (root / "init").write_text(_INIT)
        (root / "script").write_text(script)
        _pack(root, folder / "initrd")

    return _cached(cache / f"uml-{_hash([tree.name, *modules, script, _INIT], [busybox])}", build) / "initrd"


def run(
    script: str, devices: Iterable[tuple[str, int]], modules: Sequence[str] = (), timeout: float = 60.0
) -> list[str]:
    """Boot, run *script*, and return the lines that it printed.

    *devices* are (socket, virtio ID). Raises AssertionError if the script fails, TimeoutExpired if it does not end.
    """
    kernel = require("linux.uml", "user-mode-linux")
    initrd = build_initrd(script, modules)
    arguments = [f"virtio_uml.device={path}:{number}" for path, number in devices]
    command = [kernel, "mem=128M", f"initrd={initrd}", *arguments, "con=null", "con0=null,fd:1", "quiet", "panic=1"]
    done = subprocess.run(
        command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, timeout=timeout, check=False, text=True
    )
    lines = [line.rstrip() for line in done.stdout.splitlines()]
    assert "script: done" in lines, f"the script in the guest failed:\n{done.stdout}"
    return lines
