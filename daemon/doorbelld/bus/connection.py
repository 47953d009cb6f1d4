# SPDX-FileCopyrightText: 2026 The doorbelld authors
# SPDX-License-Identifier: GPL-2.0-or-later
"""Our connection to the message bus: made, lost, made again.

While there is no bus the guests are served as ever; only nobody is told. `run` connects, owns the name, hands the
connection's writer to the router, waits until the bus goes away, and starts over with a back-off. Losing the bus loses
signals only: who cares reads the objects again when our name is owned again.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any

from ..errors import BusUnavailable
from ..host.host import Host
from ..log import get_logger
from . import polkit
from .announcer import Announcer
from .authority import Authority
from .library import Message, MessageType, connect, discard, unwrap
from .names import BUS_NAME, DBUS, DBUS_PATH
from .reader import Reader
from .router import Router
from .tree import Tree
from .writer import Writer

log = get_logger()

_DO_NOT_QUEUE = 4
_PRIMARY_OWNER = 1
_RETRY_FIRST = 0.1
_RETRY_MAX = 5.0


class Connection:
    """Serves *host* on the bus whose address *locate* gives (and makes sure of)."""

    def __init__(
        self,
        host: Host,
        loop: asyncio.AbstractEventLoop,
        locate: Callable[[], Awaitable[str]],
        reload: Callable[[], Awaitable[None]],
    ) -> None:
        self._loop = loop
        self._locate = locate
        self._authority = Authority(self._ask)
        self._polkit = polkit.Polkit(self._call)
        tree = Tree(host, reload)
        self._router = Router(tree, self._authority)
        self._announcer = Announcer(loop, tree, self._router)
        self._bus: Any = None
        self._reader: Reader | None = None
        self._writer: Writer | None = None
        host.listen(self._announcer.hear)

    async def start(self) -> str:
        """Connect for the first time; gives the bus's address.

        Raises:
            BusUnavailable: no bus there, or the name is somebody else's.
        """
        return await self._connect()

    async def keep(self) -> None:
        """Wait for the end of the connection and make a new one, for ever."""
        while True:
            try:
                await self._bus.wait_for_disconnect()
                reason = "it closed the connection"
            except Exception as error:
                reason = str(error) or type(error).__name__
            self._drop()
            log.warning("the message bus is gone; guests are served on, trying to reconnect", reason=reason)
            delay = _RETRY_FIRST
            while True:
                try:
                    address = await self._connect()
                    break
                except BusUnavailable as error:
                    log.debug("no message bus yet", reason=str(error))
                await asyncio.sleep(delay)
                delay = min(delay * 2, _RETRY_MAX)
            log.info("on the message bus again", address=address)

    def close(self) -> None:
        """Leave the bus."""
        self._drop()

    async def _connect(self) -> str:
        address = await self._locate()
        try:
            bus = await connect(address)
        except Exception as error:  # whatever the libraries raise, EOFError for one
            reason = getattr(error, "strerror", None) or str(error) or type(error).__name__
            raise BusUnavailable(
                f"no message bus at {address}: {reason}; is it running? --bus names another"
            ) from error
        # see writer.py and reader.py for what is wrong with those that it has
        self._loop.remove_reader(bus._fd)
        bus._writer = self._writer = Writer(bus._sock, self._loop, self._lost, self._announcer.press)
        self._reader = Reader(bus._sock, self._loop, self._router.handle, bus._process_message, self._lost)
        self._bus = bus
        self._router.writer, self._router.next_serial = self._writer, bus.next_serial
        with_polkit = polkit.answers_for(address)
        self._authority.forget(self._polkit if with_polkit else None)
        bus.add_message_handler(self._router.handle)  # before the name is ours: calls come at once then
        try:
            if with_polkit:
                bus.add_message_handler(self._polkit.hear)
                for rule in polkit.RULES:
                    await self._order("AddMatch", "s", [rule])
            if await self._order("RequestName", "su", [BUS_NAME, _DO_NOT_QUEUE]) != _PRIMARY_OWNER:
                raise BusUnavailable("another doorbelld owns it; stop that one, or use another --bus")
        except Exception as error:
            self._drop()
            raise BusUnavailable(f"can't own {BUS_NAME} on {address}: {error}") from error
        return address

    def _lost(self, error: Exception) -> None:
        self._silence()
        self._bus._finalize(error)

    def _silence(self) -> None:
        # before the socket is closed: its number may be a peer's the next moment
        for half in (self._reader, self._writer):
            if half is not None:
                half.close()

    def _drop(self) -> None:
        self._router.writer = None
        self._authority.forget()
        self._polkit.forget()
        self._announcer.press(False)
        self._silence()
        if self._bus is not None:
            discard(self._bus)
        self._bus = self._reader = self._writer = None

    async def _ask(self, sender: str) -> dict[str, Any]:
        reply = await self._call(_to_bus("GetConnectionCredentials", "s", [sender]))
        if reply.message_type is MessageType.ERROR:
            raise ValueError(reply.body[0])
        return dict(unwrap(reply.body[0]))

    async def _order(self, member: str, signature: str, body: list[Any]) -> Any:
        """Call the bus itself for something that we can't do without; gives the one value of the reply, if any."""
        reply = await self._call(_to_bus(member, signature, body))
        if reply.message_type is MessageType.ERROR:
            raise BusUnavailable(f"{reply.body[0]}; see the bus's policy (dbus/{BUS_NAME}.conf)")
        return reply.body[0] if reply.body else None

    async def _call(self, message: Any) -> Any:
        """Send a call and give the reply."""
        if self._bus is None:
            raise BusUnavailable("the message bus is gone")
        return await self._bus.call(message)


def _to_bus(member: str, signature: str, body: list[Any]) -> Any:
    return Message(destination=DBUS, path=DBUS_PATH, interface=DBUS, member=member, signature=signature, body=body)
