# SPDX-FileCopyrightText: 2026 The doorbelld authors
# SPDX-License-Identifier: GPL-2.0-or-later
"""Which D-Bus library: dbus-fast if it is installed, else dbus-next, whose API it keeps.

This is the only module that imports either, and `LIBRARY` names the one in use. ``DOORBELLD_DBUS_LIBRARY`` (dbus_fast
or dbus_next) chooses by hand; the tests run on both.
"""

from __future__ import annotations

import importlib
import importlib.metadata
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
    return f"{LIBRARY.replace('_', '-')} {importlib.metadata.version(LIBRARY)}"


def unwrap(value: Any) -> Any:
    """Take the variants out of a message's body."""
    if isinstance(value, Variant):
        return unwrap(value.value)
    if isinstance(value, dict):
        return {key: unwrap(item) for key, item in value.items()}
    if isinstance(value, list):
        return [unwrap(item) for item in value]
    return value
