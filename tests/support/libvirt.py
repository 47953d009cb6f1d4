# SPDX-FileCopyrightText: 2026 The doorbelld authors
# SPDX-License-Identifier: GPL-2.0-or-later
"""libvirt of Debian 13 (11.x), and domains in it.

Theory of operation: libvirtd runs as an ordinary user, for ``qemu:///session``, and so do the QEMUs that it starts. All
of them are in a process namespace of their own, whose first process is a shell that reaps what is left to it; they end
with the `with` block, or with the tests. Files are in a directory that this user owns, sockets of the tests included.

A domain boots the image of `support.guest.image`; its two serial ports are sockets that we listen on.
"""

from __future__ import annotations

import contextlib
import os
import pwd
import select
import shutil
import signal
import socket
import subprocess
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType
from typing import IO, Self

from doorbelld.fds.peercred import credentials

from support import debian13
from support.guest.image import Image
from support.guest.talk import Linux
from support.guest.vm import KERNEL_WORDS
from support.needs import require

USER = "nobody"
DEADLINE = 60.0
"""Seconds; libvirt asks QEMU what it can do first, which takes some 3."""

_REAP = '"$@" & wait'


class VirshError(Exception):
    """virsh failed; the text is what it said."""


class Libvirt:
    """A libvirtd that runs while the `with` block runs, with its files in *directory*, which has to be short."""

    def __init__(self, directory: Path) -> None:
        known = pwd.getpwnam(USER)
        self.directory = directory
        self.uid = known.pw_uid
        self._identity = [f"--reuid={known.pw_uid}", f"--regid={known.pw_gid}", "--clear-groups"]
        self._undo = contextlib.ExitStack()

    def __enter__(self) -> Self:
        with self._undo as undo:
            self.directory.mkdir()
            os.chown(self.directory, self.uid, -1)
            self._start(undo)
            self._undo = undo.pop_all()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        self._undo.close()

    def _start(self, undo: contextlib.ExitStack) -> None:
        listening = undo.enter_context(self.listen("notify", socket.SOCK_DGRAM))
        listening.settimeout(DEADLINE)
        apart = ["unshare", "--pid", "--fork", "--kill-child=KILL", "--mount-proc", "bash", "-c", _REAP, "bash"]
        with (self.directory / "log").open("wb") as log:
            process = subprocess.Popen(
                [require("setpriv", "util-linux"), "--pdeathsig", "KILL", *apart, *self._command("libvirtd")],
                env={**self._environment, "NOTIFY_SOCKET": str(self.directory / "notify")},
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
            )
        undo.callback(process.wait)
        undo.callback(process.kill)
        while b"READY=1" not in listening.recv(4096):
            pass

    @property
    def _environment(self) -> dict[str, str]:
        places = ("XDG_RUNTIME_DIR", "XDG_CONFIG_HOME", "XDG_CACHE_HOME", "XDG_DATA_HOME", "HOME")
        return {"PATH": "/usr/sbin:/usr/bin", "LANG": "C", **dict.fromkeys(places, str(self.directory))}

    def _command(self, program: str, *arguments: str) -> list[str | Path]:
        return debian13.command("setpriv", [*self._identity, "--", program, *arguments])

    def listen(self, name: str, kind: socket.SocketKind = socket.SOCK_STREAM) -> socket.socket:
        """Make a socket in its directory to which it and its QEMUs can connect."""
        listening = socket.socket(socket.AF_UNIX, kind)
        listening.bind(str(self.directory / name))
        os.chown(self.directory / name, self.uid, -1)
        if kind == socket.SOCK_STREAM:
            listening.listen()
        return listening

    def virsh(self, *words: str, timeout: float = DEADLINE) -> str:
        """Run virsh and return what it printed.

        Raises:
            VirshError: it failed.
        """
        done = subprocess.run(
            self._command("virsh", "--quiet", "--connect", "qemu:///session", *words),
            env=self._environment,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=timeout,
            check=False,
        )
        if done.returncode:
            raise VirshError(done.stderr)
        return done.stdout

    def file(self, name: str, text: str) -> str:
        """Write a file for virsh, and return its path."""
        (self.directory / name).write_text(text)
        return str(self.directory / name)


class Domain(Linux):
    """A domain that runs while the `with` block runs.

    *devices* is XML that goes into <devices>, *beside* what goes into <domain>. *machine* is QEMU's; with a q35 there
    is an IOMMU, which the agent needs.
    """

    def __init__(
        self,
        libvirt: Libvirt,
        image: Image,
        *,
        name: str = "guest",
        devices: Sequence[str] = (),
        beside: Sequence[str] = (),
        machine: str = "q35",
    ) -> None:
        super().__init__(name)
        self._libvirt = libvirt
        self._image = image
        self._devices = devices
        self._beside = beside
        self._machine = machine

    def attach(self, xml: str) -> None:
        """Attach a device while it runs."""
        self._libvirt.virsh("attach-device", self.name, self._libvirt.file("device.xml", xml))

    def detach(self, xml: str) -> None:
        """Ask the guest to let go of a device."""
        self._libvirt.virsh("detach-device", self.name, self._libvirt.file("device.xml", xml))

    def _start(self) -> IO[bytes]:
        ports = ("console", "control")
        with contextlib.ExitStack() as stack:
            listening = [stack.enter_context(self._libvirt.listen(port)) for port in ports]
            self._libvirt.virsh("create", self._libvirt.file("domain.xml", self._xml(ports)))
            console, self._control = (each.accept()[0] for each in listening)
            for port in ports:
                (self._libvirt.directory / port).unlink()
        with console:
            self._process = _Adopted(credentials(console).pid)
            return console.makefile("rb")

    def _xml(self, ports: Sequence[str]) -> str:
        files = {"kernel": self._image.kernel, "initrd": self._image.initrd}
        for name, source in files.items():
            shutil.copyfile(source, self._libvirt.directory / name)  # from where not everybody may read
        boot = "".join(f"<{name}>{self._libvirt.directory / name}</{name}>" for name in files)
        serial = "".join(
            f"<serial type='unix'><source mode='connect' path='{self._libvirt.directory / port}'/>"
            f"<target port='{number}'/></serial>"
            for number, port in enumerate(ports)
        )
        split = "<ioapic driver='qemu'/>" * (self._machine == "q35")
        iommu = "<iommu model='intel'><driver intremap='on'/></iommu>" * (self._machine == "q35")
        return f"""\
<domain type='qemu'>
  <name>{self.name}</name>
  <memory unit='MiB'>256</memory>
  <memoryBacking><source type='memfd'/><access mode='shared'/></memoryBacking>
  <os>
    <type arch='x86_64' machine='{self._machine}'>hvm</type>
    {boot}
    <cmdline>{KERNEL_WORDS} program=agent</cmdline>
  </os>
  <features><acpi/>{split}</features>
  <devices>
    {serial}{iommu}
    {"".join(self._devices)}
  </devices>
  {"".join(self._beside)}
</domain>
"""


class _Adopted:
    """A process that is no child of ours."""

    def __init__(self, pid: int) -> None:
        self.pid = pid
        self.returncode = 0
        self._pidfd = os.pidfd_open(pid)

    def poll(self) -> int | None:
        return 0 if self._ended(0) else None

    def wait(self, timeout: float | None = None) -> int:
        if not self._ended(timeout):
            raise subprocess.TimeoutExpired([str(self.pid)], timeout or 0)
        return 0

    def kill(self) -> None:
        with contextlib.suppress(ProcessLookupError):
            signal.pidfd_send_signal(self._pidfd, signal.SIGKILL)

    def _ended(self, timeout: float | None) -> bool:
        return bool(select.select([self._pidfd], [], [], timeout)[0])
