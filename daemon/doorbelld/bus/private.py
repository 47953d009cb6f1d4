# SPDX-FileCopyrightText: 2026 The doorbelld authors
# SPDX-License-Identifier: GPL-2.0-or-later
"""A message bus of our own, so that nothing needs to be set up to try doorbelld.

It is a dbus-daemon that we start with a configuration of our own, on a socket in the runtime directory, for our own
user and root. It ends with us, and should it end before, it is started again at the same address.
"""

from __future__ import annotations

import asyncio
import contextlib
import ctypes
import os
import shutil
import signal

from ..errors import BusUnavailable, SocketInUse, SocketUnavailable
from ..fds import listener
from .address import of_socket

_CONFIG = """<!DOCTYPE busconfig PUBLIC "-//freedesktop//DTD D-Bus Bus Configuration 1.0//EN"
 "http://www.freedesktop.org/standards/dbus/1.0/busconfig.dtd">
<busconfig>
  <type>session</type>
  <listen>{address}</listen>
  <auth>EXTERNAL</auth>
  <policy context="default">
    <allow user="root"/>
    <allow send_destination="*" eavesdrop="true"/>
    <allow eavesdrop="true"/>
    <allow own="*"/>
  </policy>
  <limit name="max_replies_per_connection">50000</limit>
</busconfig>
"""
_START_SECONDS = 10.0
_PR_SET_PDEATHSIG = 1


class PrivateBus:
    """A dbus-daemon whose socket is ``<directory>/bus``."""

    def __init__(self, directory: str) -> None:
        self.socket = os.path.join(directory, "bus")
        self.address = of_socket(self.socket)
        self._directory = directory
        self._log = os.path.join(directory, "bus.log")
        self._process: asyncio.subprocess.Process | None = None

    async def ensure(self) -> str:
        """Start it unless it runs, and give its address.

        Raises:
            BusUnavailable: there is no dbus-daemon, or it does not start.
        """
        if self._process is None or self._process.returncode is not None:
            try:
                await self._start()
            except OSError as error:
                raise BusUnavailable(
                    f"no private bus: {error.filename or self._directory}: {error.strerror}; "
                    "give the daemon's user a runtime-directory that it may write to"
                ) from error
        return self.address

    def make_way(self) -> None:
        """Remove the socket that a bus left which is gone.

        Raises:
            BusUnavailable: a bus listens there.
        """
        try:
            listener.clear(self.socket)
        except SocketInUse as error:
            raise BusUnavailable(f"{error}; another doorbelld seems to run there") from error
        except SocketUnavailable as error:
            raise BusUnavailable(f"no private bus: {error}") from error

    async def _start(self) -> None:
        program = shutil.which("dbus-daemon")
        if program is None:
            raise BusUnavailable("there is no dbus-daemon for a private bus; install it (Debian: dbus-daemon)")
        if len(self.socket.encode()) > listener.PATH_MAX:
            raise BusUnavailable(f"{self.socket} is too long for a socket; use a shorter runtime-directory")
        os.makedirs(self._directory, exist_ok=True)
        self.make_way()
        config = os.path.join(self._directory, "bus.conf")
        with open(config, "w", encoding="utf-8") as file:
            file.write(_CONFIG.format(address=self.address))
        with open(self._log, "wb") as words:
            self._process = await asyncio.create_subprocess_exec(
                *(program, f"--config-file={config}", "--nofork", "--nopidfile", "--nosyslog", "--print-address=1"),
                stdin=asyncio.subprocess.DEVNULL,
                stdout=asyncio.subprocess.PIPE,
                stderr=words,
                # dbus-daemon tells systemd that it is ready, too; whoever waits for us would take that for ours
                env={key: value for key, value in os.environ.items() if key != "NOTIFY_SOCKET"},
                preexec_fn=_die_with_parent,
            )
        assert self._process.stdout is not None
        try:
            line = await asyncio.wait_for(self._process.stdout.readline(), _START_SECONDS)
        except TimeoutError:
            line = b""
        if not line:
            await self.stop()
            raise BusUnavailable(f"dbus-daemon did not start; {self._log} has its words")

    async def stop(self) -> None:
        """End it."""
        if self._process is not None:
            with contextlib.suppress(ProcessLookupError):
                self._process.terminate()
            await self._process.wait()
            self._process = None
            with contextlib.suppress(FileNotFoundError):
                os.unlink(self.socket)


def _die_with_parent() -> None:
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGTERM)
    os.setpgid(0, 0)  # Ctrl-C on the terminal is for us to handle
