# SPDX-FileCopyrightText: 2026 The doorbelld authors
# SPDX-License-Identifier: GPL-2.0-or-later
"""Finds the daemon: on the bus that was named, or on the first of the usual ones that has it."""

from __future__ import annotations

import asyncio
import contextlib
import os
import sys

from ..bus.address import of_socket, resolve
from ..bus.client import CallFailed, Client
from ..bus.names import BUS_NAME
from ..errors import BusForbidden, BusUnavailable
from .session import BUS_WORDS, Failure

VARIABLE = "DOORBELLD_BUS"
CONNECT_SECONDS = 10.0
"""How long a message bus may take to let us in."""
SERVICE_BUS = "/run/doorbelld/bus"
_CURE = (
    "start it (systemctl start doorbelld; or, without root, doorbelld --bus private), "
    f"or name its bus with --bus or ${VARIABLE}"
)


class NoDaemon(Failure):
    """No doorbelld was found, or it went away; says where it was looked for."""

    exit_code = os.EX_UNAVAILABLE


class NotOurBus(NoDaemon):
    """A daemon has a bus of its own, and that does not let us in; the message ends with who may, after a semicolon."""


def private_sockets() -> list[str]:
    """Name the places where a daemon with a bus of its own has it, the likeliest first."""
    places = []
    if directory := os.environ.get("XDG_RUNTIME_DIR"):
        places.append(os.path.join(directory, "doorbelld/bus"))
    if sys.prefix != sys.base_prefix:  # a virtual environment: that of a checkout, beside which `make run` runs
        places.append(os.path.join(os.path.dirname(sys.prefix), "run/bus"))
    places.append(SERVICE_BUS)
    return places


async def open_bus(word: str, *, start: bool = True) -> Client:
    """Connect to the bus that *word* names (one of `BUS_WORDS`, or an address) if doorbelld is on it.

    If it is not, and *start* says so, the bus may start it.

    Raises:
        NoDaemon: it is not there; the message says where it was looked for and what to do.
    """
    if word not in ("auto", "private"):
        try:
            return await _join(resolve(word), start=start)
        except BusForbidden as error:
            raise NotOurBus(str(error)) from None
        except BusUnavailable as error:
            where = f" on the {word} bus" if word in BUS_WORDS else ""
            raise NoDaemon(f"no doorbelld{where}: {error}\n{_CURE}") from None
    tried: list[str] = []
    forbidden = ""
    if word == "auto":
        try:
            return await _join(resolve("system"))
        except BusUnavailable as error:
            tried.append(f"the system bus: {error}")
    for path in private_sockets():
        if not os.path.exists(path):
            tried.append(f"{path}: no such socket")
            continue
        try:
            return await _join(of_socket(path))
        except BusForbidden as error:
            forbidden = forbidden or str(error)
        except BusUnavailable as error:
            tried.append(f"{path}: {error}")
    if word == "auto" and start:
        with contextlib.suppress(BusUnavailable):
            return await _join(resolve("system"), start=True)
    if forbidden:
        raise NotOurBus(forbidden)
    raise NoDaemon("\n  ".join(["no doorbelld found; looked at", *tried]) + f"\n{_CURE}")


async def _join(address: str, start: bool = False) -> Client:
    """Connect to *address* if our name is owned there, or if the bus can *start* the daemon."""
    try:
        async with asyncio.timeout(CONNECT_SECONDS):
            client = await Client.connect(address)
    except TimeoutError:
        raise BusUnavailable(
            f"the message bus at {address} does not answer; see whether dbus-daemon is stopped"
        ) from None
    try:
        if not await client.call_bus("NameHasOwner", "s", BUS_NAME):
            if not start:
                raise BusUnavailable(f"there is a message bus, but nobody owns {BUS_NAME}")
            try:
                await client.call_bus("StartServiceByName", "su", BUS_NAME, 0)
            except CallFailed as error:
                raise BusUnavailable(f"nobody owns {BUS_NAME} at {address}, and the bus can't start it") from error
    except BaseException:
        await client.close()
        raise
    return client
