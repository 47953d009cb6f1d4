# SPDX-FileCopyrightText: 2026 The doorbelld authors
# SPDX-License-Identifier: GPL-2.0-or-later
"""D-Bus from another side: a client on jeepney, which shares no code with the libraries that the daemon uses, and
message buses that a test can start, stop, kill and start again.
"""

from __future__ import annotations

import os
import subprocess
import time
from collections import deque
from collections.abc import Callable
from pathlib import Path
from typing import Any

from jeepney import DBusAddress, HeaderFields, Message, MessageFlag, MessageType, new_method_call
from jeepney.io.blocking import DBusConnection, open_dbus_connection

from .busctl import NAME, ROOT
from .needs import require

DEADLINE = 30.0
BUS = DBusAddress("/org/freedesktop/DBus", "org.freedesktop.DBus", "org.freedesktop.DBus")
PROPERTIES = "org.freedesktop.DBus.Properties"
OBJECT_MANAGER = "org.freedesktop.DBus.ObjectManager"


class ErrorReply(Exception):
    """An error reply: ``name`` in full, ``text``."""

    def __init__(self, name: str, text: str) -> None:
        super().__init__(f"{name}: {text}")
        self.name = name
        self.text = text

    @property
    def kind(self) -> str:
        """The last part of the name."""
        return self.name.rpartition(".")[2]


def until(condition: Callable[[], object], what: str = "what was waited for") -> None:
    """Wait for something that has no event of its own to wait for."""
    deadline = time.monotonic() + DEADLINE
    while not condition():
        assert time.monotonic() < deadline, f"in vain: {what}"
        time.sleep(0.005)


class Client:
    """One connection to the bus at *address* (``unix:path=``); signals that come are kept in ``signals``."""

    def __init__(self, address: str) -> None:
        self.connection: DBusConnection = open_dbus_connection(address, enable_fds=True, auth_timeout=DEADLINE)
        self.signals: deque[Message] = deque()

    def __enter__(self) -> Client:
        return self

    def __exit__(self, *_: object) -> None:
        self.connection.close()

    def send(self, message: Message, *, quiet: bool = False) -> int:
        """Send a call and give its serial; *quiet* if no reply is wanted."""
        serial = next(self.connection.outgoing_serial)
        if quiet:
            message.header.flags |= MessageFlag.no_reply_expected
        self.connection.send(message, serial=serial)
        return serial

    def next(self) -> Message:
        """Read one message, whatever it is, unless it is what the bus tells us of our own name."""
        while True:
            message = self.connection.receive(timeout=DEADLINE)
            if message.header.fields.get(HeaderFields.member) != "NameAcquired":
                return message

    def receive(self, serial: int) -> Any:
        """Read until the reply to *serial* has come: its body, or ErrorReply."""
        while True:
            message = self.next()
            fields = message.header.fields
            if message.header.message_type is MessageType.signal:
                self.signals.append(message)
            elif fields.get(HeaderFields.reply_serial) == serial:
                if message.header.message_type is MessageType.error:
                    raise ErrorReply(fields[HeaderFields.error_name], "".join(map(str, message.body[:1])))
                return message.body

    def message(self, path: str, interface: str | None, member: str, signature: str = "", *body: object) -> Message:
        """Make a call to the daemon; *path* and *interface* in full."""
        return new_method_call(DBusAddress(path, NAME, interface), member, signature or None, tuple(body))

    def raw(self, path: str, interface: str | None, member: str, signature: str = "", *body: object) -> Any:
        """Call the daemon; *path* and *interface* in full."""
        return self.receive(self.send(self.message(path, interface, member, signature, *body)))

    def call(self, path: str, interface: str, member: str, signature: str = "", *body: object) -> Any:
        """Call one of the daemon's own methods, *path* and *interface* relative, like Busctl does."""
        return self.raw(ROOT + path, f"{NAME}.{interface}", member, signature, *body)

    def get(self, path: str, interface: str, name: str) -> Any:
        """Read a property."""
        return self.raw(ROOT + path, PROPERTIES, "Get", "ss", f"{NAME}.{interface}", name)[0][1]

    def get_all(self, path: str, interface: str) -> dict[str, Any]:
        """Read all properties."""
        found = self.raw(ROOT + path, PROPERTIES, "GetAll", "s", f"{NAME}.{interface}")[0]
        return {name: value for name, (_, value) in found.items()}

    def introspect(self, path: str) -> str:
        """Give the XML of the node at the full *path*."""
        return str(self.raw(path, "org.freedesktop.DBus.Introspectable", "Introspect")[0])

    def bus(self, member: str, signature: str = "", *body: object) -> Any:
        """Call the bus itself."""
        return self.receive(self.send(new_method_call(BUS, member, signature or None, tuple(body))))

    def subscribe(self, rule: str = f"type='signal',sender='{NAME}'") -> None:
        """Have signals sent to us."""
        self.bus("AddMatch", "s", rule)

    def signal(self) -> tuple[str, str, tuple[Any, ...]]:
        """Give the next signal: path, interface and member, body."""
        while not self.signals:
            message = self.next()
            if message.header.message_type is MessageType.signal:
                self.signals.append(message)
        fields = (message := self.signals.popleft()).header.fields
        member = f"{fields[HeaderFields.interface]}.{fields[HeaderFields.member]}"
        return fields[HeaderFields.path], member, message.body

    def until_signal(self, member: str, condition: Callable[[Any], bool] = lambda _: True) -> Any:
        """Read signals until one whose full name ends in *member* fulfils *condition*; give its body."""
        while True:
            _, name, body = self.signal()
            if name.endswith(f".{member}") and condition(body):
                return body

    def wait_for_daemon(self) -> None:
        """Wait until somebody owns the daemon's name."""
        self.subscribe(f"type='signal',sender='org.freedesktop.DBus',member='NameOwnerChanged',arg0='{NAME}'")
        if not self.bus("NameHasOwner", "s", NAME)[0]:
            self.until_signal("NameOwnerChanged", lambda body: bool(body[2]))


_CONFIG = """<!DOCTYPE busconfig PUBLIC "-//freedesktop//DTD D-Bus Bus Configuration 1.0//EN"
 "http://www.freedesktop.org/standards/dbus/1.0/busconfig.dtd">
<busconfig>
  <type>{kind}</type>
  <listen>unix:path={socket}</listen>
  <auth>EXTERNAL</auth>
  {policy}
  <limit name="max_replies_per_connection">50000</limit>
</busconfig>
"""
EVERYBODY = """<policy context="default"><allow user="*"/><allow own="*"/><allow send_destination="*"/>
  <allow receive_sender="*"/><allow eavesdrop="true"/></policy>"""
LIKE_THE_SYSTEM_BUS = """<policy context="default"><allow user="*"/><deny own="*"/><deny send_type="method_call"/>
  <allow send_type="signal"/><allow send_requested_reply="true" send_type="method_return"/>
  <allow send_requested_reply="true" send_type="error"/><allow receive_type="method_call"/>
  <allow receive_type="method_return"/><allow receive_type="error"/><allow receive_type="signal"/>
  <allow send_destination="org.freedesktop.DBus"/></policy>"""


class BusDaemon:
    """A dbus-daemon at ``unix:path=<directory>/bus``, with any policy."""

    def __init__(self, directory: Path, policy: str = EVERYBODY, kind: str = "session") -> None:
        self._program = require("dbus-daemon", "dbus-daemon")
        self._config = directory / "bus.conf"
        self._socket = directory / "bus"
        self._config.write_text(_CONFIG.format(kind=kind, socket=self._socket, policy=policy))
        self.address = f"unix:path={self._socket}"
        self.process: subprocess.Popen[str] | None = None

    def start(self) -> BusDaemon:
        """Start it, and wait until it listens."""
        self._socket.unlink(missing_ok=True)
        self.process = subprocess.Popen(
            [
                self._program,
                f"--config-file={self._config}",
                "--nofork",
                "--nopidfile",
                "--nosyslog",
                "--print-address",
            ],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        assert self.process.stdout is not None
        if not self.process.stdout.readline():
            words = self.process.communicate()[1]
            self.process = None
            raise AssertionError(f"dbus-daemon did not start: {words}")
        return self

    def kill(self) -> None:
        """End it without a word."""
        if self.process is not None:
            self.process.kill()
            self.process.communicate()
            self.process = None

    def __enter__(self) -> BusDaemon:
        return self.start()

    def __exit__(self, *_: object) -> None:
        self.kill()


def children(pid: int) -> list[int]:
    """List the child processes of *pid*."""
    found = []
    for name in os.listdir("/proc"):
        try:
            if name.isdigit() and int(Path(f"/proc/{name}/stat").read_text().rpartition(")")[2].split()[1]) == pid:
                found.append(int(name))
        except (FileNotFoundError, ProcessLookupError):
            continue
    return found
