# SPDX-FileCopyrightText: 2026 The doorbelld authors
# SPDX-License-Identifier: GPL-2.0-or-later
"""The caller's side of D-Bus, for doorbellctl, tests and benchmarks.

Theory of operation
-------------------
A `Client` is one connection to a message bus. `Client.call` sends a method call and gives the reply's body, or raises
`CallFailed` with the error's name and text. `Client.subscribe` gives a `Subscription`: the signals that match, in the
order of the bus, and nothing else. The bus sends a signal once, however many rules match it, so each subscription
looks at what comes in by itself; what claims to be from a well-known name is held against that name's owner.

Descriptors in a reply become `Fd` objects, close-on-exec, owned by the caller: the libraries do neither, and leave
those of a reply that nobody waits for open for ever.

Invariants
----------
1. A descriptor that came in is in a reply's body, in ``_received`` for a call that waits, or closed.
2. Once the connection is lost, every call, subscription and wait ends with `BusUnavailable`; none hangs.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import pwd
from collections import deque
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, fields
from types import TracebackType
from typing import Any

from ..errors import BusForbidden, BusUnavailable, DoorbellError
from ..fds.owned import Fd
from . import library
from .address import socket_of
from .library import Message, MessageFlag, MessageType, Variant, unwrap
from .names import BUS_NAME, DBUS, DBUS_PATH, ERROR_PREFIX, OBJECT_MANAGER, PROPERTIES, ROOT
from .writer import Writer

CALL_SECONDS = 60.0
AUTHENTICATION_SECONDS = 150.0
"""What a call takes at most if a person has to authenticate for it: longer than polkit and the daemon wait."""
BACKLOG_MAX = 100_000
"""Signals that a subscription keeps for a reader that is slow; those beyond are counted in ``lost``."""

_FREEDESKTOP_ERROR = "org.freedesktop.DBus.Error"
_AUTHENTICATE = "InteractiveAuthorizationRequired"
_NOBODY = ("ServiceUnknown", "NameHasNoOwner", "NoReply", "Disconnected")


class CallFailed(DoorbellError):
    """An error reply: its full *name*, and its *text*."""

    def __init__(self, name: str, text: str) -> None:
        super().__init__(text)
        self.name = name
        self.text = text

    @property
    def kind(self) -> str:
        """The last part of the name: ``NoSuchPeer``, the name of one of our errors, or one of D-Bus's own."""
        return self.name.rpartition(".")[2]

    @property
    def ours(self) -> bool:
        """Whether doorbelld itself said so, and not the bus."""
        return self.name.startswith(f"{ERROR_PREFIX}.")

    @property
    def nobody_there(self) -> bool:
        """Whether the name that was called has no owner, or its owner went away before it answered."""
        return self.name.startswith(f"{_FREEDESKTOP_ERROR}.") and self.kind in _NOBODY


@dataclass(frozen=True, slots=True)
class Match:
    """Which signals: all conditions that are not empty must hold (D-Bus Specification, "Match Rules")."""

    sender: str = BUS_NAME
    path: str = ""
    path_namespace: str = ""
    interface: str = ""
    member: str = ""
    arg0: str = ""

    @property
    def rule(self) -> str:
        """The rule as the bus reads it."""
        given = ((field.name, getattr(self, field.name)) for field in fields(self))
        return ",".join(["type='signal'", *(f"{key}='{value}'" for key, value in given if value)])

    def accepts(self, signal: Signal, owner: str) -> bool:
        """Tell whether *signal* fulfils it; *owner* is the unique name of `BUS_NAME`'s owner."""
        below = f"{self.path_namespace.rstrip('/')}/"
        return (
            signal.sender == (owner if self.sender == BUS_NAME else self.sender or signal.sender)
            and self.path in ("", signal.path)
            and (not self.path_namespace or f"{signal.path}/".startswith(below))
            and self.interface in ("", signal.interface)
            and self.member in ("", signal.member)
            and self.arg0 in ("", signal.body[0] if signal.body else None)
        )


@dataclass(frozen=True, slots=True)
class Signal:
    """A signal that came in; variants are unwrapped."""

    sender: str
    path: str
    interface: str
    member: str
    body: list[Any]


OWNER_CHANGED = Match(sender=DBUS, path=DBUS_PATH, interface=DBUS, member="NameOwnerChanged", arg0=BUS_NAME)
"""Our name's owner comes or goes: body (name, old owner, new owner)."""


class Subscription:
    """Signals that match, as an asynchronous iterator; ends when closed, with `BusUnavailable` if the bus is gone."""

    def __init__(self, client: Client, matches: Sequence[Match], callback: Callable[[Signal], None] | None) -> None:
        self.lost = 0
        """Signals dropped because `BACKLOG_MAX` of them waited."""
        self._client = client
        self._matches = matches
        self._callback = callback
        self._waiting: deque[Signal] = deque()
        self._woken = asyncio.Event()
        self._closed = False

    async def close(self) -> None:
        """Ask the bus for no more of them; a second time does nothing."""
        if not self._closed:
            self._closed = True
            self._woken.set()
            await self._client._unsubscribe(self, self._matches)

    def __aiter__(self) -> Subscription:
        return self

    async def __anext__(self) -> Signal:
        while not self._waiting:
            if self._closed:
                raise StopAsyncIteration
            if self._client.gone is not None:
                raise self._client.gone
            self._woken.clear()
            await self._woken.wait()
        return self._waiting.popleft()

    async def __aenter__(self) -> Subscription:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None
    ) -> None:
        await self.close()

    def _hear(self, signal: Signal, owner: str) -> None:
        if not any(match.accepts(signal, owner) for match in self._matches):
            return
        if self._callback is not None:
            self._callback(signal)
        elif len(self._waiting) >= BACKLOG_MAX:
            self.lost += 1
        else:
            self._waiting.append(signal)
            self._woken.set()

    def _wake(self) -> None:
        self._woken.set()


_SHUT_OUT = (BrokenPipeError, ConnectionResetError, EOFError, library.AuthError)
"""What the libraries raise if a bus closes the connection instead of greeting us."""


def _stranger(address: str) -> str:
    """Name the owner of the bus at *address*; empty if that is us, if it can't be seen, or if we are root."""
    try:
        owner = os.stat(socket_of(address)).st_uid
    except (OSError, ValueError):
        return ""
    if os.geteuid() in (0, owner):
        return ""
    try:
        return pwd.getpwuid(owner).pw_name
    except KeyError:
        return f"uid {owner}"


class Client:
    """A connection to the message bus, made by `connect`; use it in ``async with`` or `close` it."""

    def __init__(self, bus: Any, address: str) -> None:
        loop = asyncio.get_running_loop()
        self.address = address
        self.gone: BusUnavailable | None = None
        """Why the connection is lost, once it is."""
        self.authenticate: Callable[[], Awaitable[None]] | None = None
        """Gets ready to have a person authenticate; a call that takes that fails if this is None, as it is at first."""
        self._bus = bus
        # the libraries' own one takes a full socket for the end of the connection, see writer.py
        bus._writer = self._writer = Writer(bus._sock, loop, bus._finalize, lambda pressed: None)
        self._subscriptions: list[Subscription] = []
        self._rules: dict[str, int] = {}
        self._owner: str | None = None
        self._owner_changed = asyncio.Event()
        self._expected: set[int] = set()
        self._received: dict[int, list[Fd]] = {}
        bus.add_message_handler(self._handle)
        self._watcher = loop.create_task(self._watch())

    @classmethod
    async def connect(cls, address: str) -> Client:
        """Connect to the bus at *address*.

        Raises:
            BusForbidden: it is another user's, and does not let us in.
            BusUnavailable: nothing listens there, or it does not let us in.
        """
        try:
            bus = await library.connect(address)
        except Exception as error:  # whatever the libraries raise
            if isinstance(error, _SHUT_OUT) and (owner := _stranger(address)):
                whose = f"{address}: that bus is {owner}'s and does not take uid {os.geteuid()}"
                raise BusForbidden(f"{whose}; ask as {owner}") from error
            reason = getattr(error, "strerror", None) or str(error) or type(error).__name__
            raise BusUnavailable(f"no message bus at {address}: {reason}") from error
        return cls(bus, address)

    async def close(self) -> None:
        """Leave the bus; a second time does nothing."""
        if self.gone is None:
            self.gone = BusUnavailable("the connection to the message bus was closed")
            self._writer.close()
            library.discard(self._bus)
        await self._watcher

    async def __aenter__(self) -> Client:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None
    ) -> None:
        await self.close()

    @property
    def known_owner(self) -> str:
        """The unique name that owns ours, as last heard (see `owner`, which asks); stays as it was once `gone`."""
        return self._owner or ""

    # Calling

    async def call(
        self,
        path: str,
        interface: str,
        member: str,
        signature: str = "",
        body: Sequence[Any] = (),
        *,
        destination: str = BUS_NAME,
        timeout: float | None = CALL_SECONDS,
    ) -> list[Any]:
        """Call a method and give the reply's body, without variants; an out argument of type h is an owned `Fd`.

        Raises:
            CallFailed: the reply is an error, or none comes within *timeout* seconds (None waits for ever).
            BusUnavailable: the connection is lost.
        """
        arguments = destination, path, interface, member, signature, body
        try:
            return await self._call(MessageFlag.NONE, timeout, *arguments)
        except CallFailed as error:
            if self.authenticate is None or error.name != f"{_FREEDESKTOP_ERROR}.{_AUTHENTICATE}":
                raise
            await self.authenticate()
        return await self._call(
            MessageFlag.ALLOW_INTERACTIVE_AUTHORIZATION, timeout and max(timeout, AUTHENTICATION_SECONDS), *arguments
        )

    async def _call(
        self,
        flags: Any,
        timeout: float | None,
        destination: str,
        path: str,
        interface: str,
        member: str,
        signature: str,
        body: Sequence[Any],
    ) -> list[Any]:
        if self.gone is not None:
            raise self.gone
        message = Message(
            destination=destination,
            path=path,
            interface=interface,
            member=member,
            signature=signature,
            body=list(body),
            flags=flags,
            serial=self._bus.next_serial(),
        )
        self._expected.add(message.serial)
        try:
            async with asyncio.timeout(timeout):
                reply = await self._bus.call(message)
            if reply is None:  # the libraries' way to tell that the connection ended
                raise EOFError
            return self._open(reply, self._received.get(message.serial, []))
        except TimeoutError:
            raise CallFailed(f"{_FREEDESKTOP_ERROR}.Timeout", f"{member}: no answer in {timeout} s") from None
        except (OSError, EOFError) as error:
            await self._watcher
            raise self.gone or BusUnavailable(f"the message bus is gone: {error}") from error
        finally:
            self._expected.discard(message.serial)
            for fd in self._received.pop(message.serial, []):
                fd.close()

    async def get(self, path: str, interface: str, name: str) -> Any:
        """Read one property."""
        return (await self.call(path, PROPERTIES, "Get", "ss", [interface, name]))[0]

    async def get_all(self, path: str, interface: str) -> dict[str, Any]:
        """Read all properties of an interface."""
        return dict((await self.call(path, PROPERTIES, "GetAll", "s", [interface]))[0])

    async def managed_objects(self) -> dict[str, dict[str, dict[str, Any]]]:
        """Read all objects: path, interface, property."""
        return dict((await self.call(ROOT, OBJECT_MANAGER, "GetManagedObjects"))[0])

    async def call_bus(self, member: str, signature: str = "", *body: Any) -> Any:
        """Call a method of the message bus itself and give the one value that it returns, if any."""
        reply = await self.call(DBUS_PATH, DBUS, member, signature, body, destination=DBUS)
        return reply[0] if reply else None

    @staticmethod
    def _open(reply: Any, fds: list[Fd]) -> list[Any]:
        if reply.message_type is MessageType.ERROR:
            raise CallFailed(reply.error_name, str(reply.body[0]) if reply.body else reply.error_name)
        body = [unwrap(value) for value in reply.body]
        for place, kind in enumerate(reply.signature_tree.types):
            if kind.signature == "h":
                if not 0 <= body[place] < len(fds):
                    raise CallFailed(f"{_FREEDESKTOP_ERROR}.InvalidArgs", "the reply names a descriptor it has not")
                body[place] = Fd(fds[body[place]].steal())
        return body

    # Signals

    async def subscribe(self, *matches: Match, callback: Callable[[Signal], None] | None = None) -> Subscription:
        """Receive the signals that fulfil one of *matches*, from now on; with *callback* each is handed to that.

        Raises:
            CallFailed: the bus does not allow it.
            BusUnavailable: the connection is lost.
        """
        await self._track()
        subscription = Subscription(self, matches, callback)
        self._subscriptions.append(subscription)
        try:
            for match in matches:
                await self._add_rule(match.rule)
        except BaseException:
            self._subscriptions.remove(subscription)
            raise
        return subscription

    async def owner(self) -> str:
        """Tell the unique name that owns ours now; empty if there is no daemon on this bus."""
        await self._track()
        return self._owner or ""

    async def wait_for_owner(self, there: bool = True) -> str:
        """Wait until our name has an owner (or has none, with ``there=False``), and tell it."""
        await self._track()
        while self.gone is None and bool(self._owner) is not there:
            self._owner_changed.clear()
            await self._owner_changed.wait()
        if self.gone is not None:
            raise self.gone
        return self._owner or ""

    async def _track(self) -> None:
        """From the first need on, know our name's owner."""
        if self._owner is not None:
            return
        await self._add_rule(OWNER_CHANGED.rule)
        try:
            owner = await self.call_bus("GetNameOwner", "s", BUS_NAME)
        except CallFailed as error:
            if not error.nobody_there:
                raise
            owner = ""
        if self._owner is None:  # else a change came in meanwhile, which is newer
            self._owner = owner

    async def _add_rule(self, rule: str) -> None:
        self._rules[rule] = self._rules.get(rule, 0) + 1
        if self._rules[rule] == 1:
            try:
                await self.call_bus("AddMatch", "s", rule)
            except BaseException:
                self._rules[rule] = 0
                raise

    async def _unsubscribe(self, subscription: Subscription, matches: Sequence[Match]) -> None:
        if subscription in self._subscriptions:
            self._subscriptions.remove(subscription)
        for match in matches:
            self._rules[match.rule] = max(0, self._rules[match.rule] - 1)
            if not self._rules[match.rule] and self.gone is None:
                with contextlib.suppress(CallFailed, BusUnavailable):
                    await self.call_bus("RemoveMatch", "s", match.rule)

    # What comes in

    def _handle(self, msg: Any) -> bool:
        """Take a message from the library; True if it is done with."""
        fds = [Fd(number) for number in msg.unix_fds or ()]
        for fd in fds:
            os.set_inheritable(fd.fileno(), False)
        if msg.message_type is MessageType.METHOD_RETURN and fds and msg.reply_serial in self._expected:
            self._received[msg.reply_serial] = fds
        else:
            for fd in fds:
                fd.close()
        if msg.message_type is MessageType.SIGNAL:
            self._hear(Signal(msg.sender, msg.path, msg.interface, msg.member, [unwrap(v) for v in msg.body]))
        return False

    def _hear(self, signal: Signal) -> None:
        if OWNER_CHANGED.accepts(signal, ""):
            self._owner = signal.body[2]
            self._owner_changed.set()
        for subscription in list(self._subscriptions):
            subscription._hear(signal, self._owner or "")

    async def _watch(self) -> None:
        """Wait for the end of the connection, and let everybody know."""
        try:
            await self._bus.wait_for_disconnect()
            reason = "it closed the connection"
        except Exception as error:
            reason = str(error) or "it closed the connection"
        if self.gone is None:
            self.gone = BusUnavailable(f"the message bus at {self.address} is gone: {reason}")
        self._writer.close()
        library.discard(self._bus)
        for subscription in self._subscriptions:
            subscription._wake()
        self._owner_changed.set()


def variant(value: Any) -> Any:
    """Wrap a plain value, as JSON or TOML have them, in a variant.

    Raises:
        TypeError: D-Bus has no type for it.
    """
    match value:
        case bool():
            return Variant("b", value)
        case int():
            return Variant("x", value)
        case float():
            return Variant("d", value)
        case str():
            return Variant("s", value)
        case dict():
            return Variant("a{sv}", options(value))
        case list():
            return Variant("av", [variant(item) for item in value])
    raise TypeError(f"{value!r} can't go over D-Bus; write a number, a string, true, false, a list or a table")


def options(values: dict[str, Any]) -> dict[str, Any]:
    """Make an ``a{sv}`` of plain values."""
    return {key: variant(value) for key, value in values.items()}
