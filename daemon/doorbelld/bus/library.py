# SPDX-FileCopyrightText: 2026 The doorbelld authors
# SPDX-License-Identifier: GPL-2.0-or-later
"""Which D-Bus library: dbus-fast if it is installed, else dbus-next, whose API it keeps.

This is the only module that imports either, and `LIBRARY` names the one in use. ``DOORBELLD_DBUS_LIBRARY`` (dbus_fast
or dbus_next) chooses by hand; the tests run on both.
"""

from __future__ import annotations

import asyncio
import contextlib
import functools
import importlib
import importlib.util
import io
import os
from typing import Any

NAMES = ("dbus_fast", "dbus_next")

LIBRARY = os.environ.get("DOORBELLD_DBUS_LIBRARY") or next(
    (name for name in NAMES if importlib.util.find_spec(name)), NAMES[-1]
)
if LIBRARY not in NAMES:
    raise SystemExit(f"DOORBELLD_DBUS_LIBRARY={LIBRARY}: not known; use one of {', '.join(NAMES)}")

_root: Any = importlib.import_module(LIBRARY)

MessageBus: Any = importlib.import_module(f"{LIBRARY}.aio").MessageBus
Message: Any = _root.Message
MessageType: Any = _root.MessageType
MessageFlag: Any = _root.MessageFlag
Variant: Any = _root.Variant
_private: Any = importlib.import_module(f"{LIBRARY}._private.unmarshaller")
AuthError: Any = _root.AuthError

_CONNECT_SECONDS = 20.0


async def connect(address: str) -> Any:
    """Connect to the bus at *address*: a MessageBus that is through with its greeting.

    Raises:
        Exception: of any type, the libraries see to that; nothing is left open then.
    """
    bus = MessageBus.__new__(MessageBus)
    try:
        bus.__init__(bus_address=address, negotiate_unix_fd=True)
    except BaseException:  # dbus-next connects here, and leaves the socket open if it can't
        _close(bus)
        raise
    if LIBRARY == "dbus_next":
        bus._auth_readline = functools.partial(_auth_readline, bus)
    try:
        async with asyncio.timeout(_CONNECT_SECONDS):
            return await bus.connect()
    except BaseException:
        discard(bus)
        raise


async def _auth_readline(bus: Any) -> str:
    """Read a line of the authentication; dbus-next's own reads the end of the stream for ever, and never yields."""
    line = b""
    while not line.endswith(b"\r\n"):
        if not (byte := await bus._loop.sock_recv(bus._sock, 1)):
            raise AuthError("it closed the connection")
        line += byte
    return line[:-2].decode()


def discard(bus: Any) -> None:
    """End a connection at once and close its socket, which dbus-next would leave to the garbage collector."""
    if bus.connected and bus._fd is not None:  # else it is no more its descriptor
        bus._user_disconnect = True
        bus._finalize(ConnectionError("the connection was given up"))
    _close(bus)


def _close(bus: Any) -> None:
    for end in ("_stream", "_sock"):
        if (half := getattr(bus, end, None)) is not None:
            with contextlib.suppress(OSError):
                half.close()


def parse(raw: bytes) -> Any:
    """Parse one whole message.

    Raises:
        Exception: whatever the library raises for one that is not well-formed.
    """
    parser = _private.Unmarshaller(io.BytesIO(raw))
    message = parser.unmarshall()
    if message is True:  # dbus-next says whether there is one, dbus-fast gives it
        message = parser.message
    if message is None:
        raise ValueError("a message that ends before its end")
    return message


def describe() -> str:
    """Name the library and its version."""
    import importlib.metadata  # takes its time, and few ask

    return f"{LIBRARY.replace('_', '-')} {importlib.metadata.version(LIBRARY)}"


def text(words: str) -> str:
    """Replace what D-Bus takes in no string: zero bytes, and halves of surrogate pairs."""
    return words.replace("\0", "\ufffd").encode(errors="replace").decode()


def unwrap(value: Any) -> Any:
    """Take the variants out of a message's body."""
    if isinstance(value, Variant):
        return unwrap(value.value)
    if isinstance(value, dict):
        return {key: unwrap(item) for key, item in value.items()}
    if isinstance(value, list | tuple):  # dbus-fast makes tuples of structs
        return [unwrap(item) for item in value]
    return value
