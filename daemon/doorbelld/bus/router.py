# SPDX-FileCopyrightText: 2026 The doorbelld authors
# SPDX-License-Identifier: GPL-2.0-or-later
"""One handler for every message that comes in: it finds the object, looks the method up, calls, and replies once.

The libraries can export objects by themselves, but scan all of them on each change and invent things in introspection
(docs/decisions/0003). Here an object is found by its path (`tree.Tree`), a method in the view's table, and the
standard interfaces are answered for all objects alike. Nothing that a caller sends gets an exception out of here:
what is wrong with a call is its error reply, what is wrong with us is one too, and a line in the log.

What a call needs leave for is told by its interface and member alone, and is asked before anything else is looked at:
whether there is such an object, whether the arguments are as they should be, what they say. So those who may not look
get the same answer whatever there is.
"""

from __future__ import annotations

import asyncio
import functools
import inspect
from collections.abc import Callable
from typing import Any

from ..errors import DoorbellError, printable_lines
from ..fds.owned import Fd
from ..fds.peercred import Credentials
from ..log import get_logger
from . import interfaces, paths
from .access.disclosure import SHOWN, shown
from .authority import Action, Authority, InteractiveAuthorizationRequired, Request
from .library import Message, MessageFlag, MessageType, text
from .names import DBUS_PEER, ERROR_PREFIX, INTROSPECTABLE, MANAGER, OBJECT_MANAGER, PROPERTIES, ROOT
from .snapshot import Snapshot
from .transport.call import BodyMalformed, BodyTooLarge, MethodCall
from .transport.header import body_max
from .tree import VIEWS, Tree
from .views import Call, View
from .writer import Writer, empty_return, error_return, prefixed_return

log = get_logger()

_METHOD_CALL = MessageType.METHOD_CALL
_NO_REPLY_EXPECTED = int(MessageFlag.NO_REPLY_EXPECTED.value)  # as flags of an enumeration they take longer
_INTERACTIVE = int(MessageFlag.ALLOW_INTERACTIVE_AUTHORIZATION.value)
_FREEDESKTOP_ERROR = "org.freedesktop.DBus.Error"
_STANDARD = (DBUS_PEER, INTROSPECTABLE, PROPERTIES)
_STANDARD_METHODS = frozenset(("Introspect", "Get", "GetAll", "Set", "GetManagedObjects"))
_SUBJECTS = {
    "region": frozenset(("ListPeers", "Notify", "NotifyMany", "CreateRegion", "RemoveRegion")),
    "device": frozenset(("ListQueues", "CreateDevice", "RemoveDevice")),
    "client": frozenset(("CreateClient", "RemoveClient")),
    "flat": frozenset(("CreateFlatDevice", "RemoveFlatDevice")),
}
"""What a call may be about, and the manager's methods whose first argument is the name of such a one."""
_DEVICES = f"{ROOT}/device/"
_NAME_MAX = 64
_WORDS_MAX = 4096
"""Characters of an error's text."""


class CallError(Exception):
    """A call that is wrong by D-Bus's own rules; *name* is the last part of an org.freedesktop.DBus.Error."""

    def __init__(self, name: str, text: str) -> None:
        super().__init__(text)
        self.name = name


class Router:
    """Answers method calls from *tree*; `writer` and `next_serial` are those of the connection of the moment."""

    def __init__(self, tree: Tree, authority: Authority) -> None:
        self._tree = tree
        self._authority = authority
        self._actions, self._body_max = _tables()
        self.snapshots = [Snapshot(tree, functools.partial(self._describe_for, bool(trusted))) for trusted in (0, 1)]
        """The lists of all objects that others are given, and those who may do everything."""
        self._tasks: set[asyncio.Task[None]] = set()
        self.writer: Writer | None = None
        self.next_serial: Callable[[], int] = lambda: 0

    def body_max(self, interface: str | None, member: str, signature: str) -> int:
        """Tell how many bytes the arguments of such a call may have: none if there is no such method."""
        return self._body_max.get((interface, member, signature), 0)

    def handle(self, msg: MethodCall) -> None:
        """Begin a call, and answer it now or later."""
        try:
            result = self._dispatch(msg)
            if type(result) is tuple:  # as most are; isawaitable takes its time to say no
                self._reply(msg, *result)
            elif result is not None:
                self._later(msg, result)
        except Exception as error:
            self._reply_error(msg, error)

    @property
    def restricted(self) -> bool:
        """Whether somebody may get our signals who may not look."""
        return self._authority.restricted

    def press(self, pressed: bool) -> None:
        """Learn whether the bus is slow to take what we write."""
        for snapshot in self.snapshots:
            snapshot.press(pressed)

    def leave(self) -> None:
        """Forget who waits, and that there is a bus."""
        self.writer = None
        for snapshot in self.snapshots:
            snapshot.clear()

    def refuse(self, msg: MethodCall, why: str) -> None:
        """Answer a call that is one too many."""
        self._reply_error(msg, CallError("LimitsExceeded", why))

    # Finding what to call

    def _dispatch(self, msg: MethodCall) -> Any:
        """Call what *msg* names: gives (signature, value), an awaitable of it, or None if it is answered elsewhere."""
        who = self._authority.trusted(msg.sender)
        if who is not None:  # as of most who ring: `shown`, written out
            before, SHOWN.addresses = SHOWN.addresses, True
            try:
                return self._begin(msg, who)
            finally:
                SHOWN.addresses = before
        if _is_of_peer(msg):
            return self._answer_peer(msg)
        action = self._actions.get((msg.interface, msg.member), Action.INSPECT)
        if msg.member in _STANDARD_METHODS and self._authority.all_may_inspect(msg.sender):
            known = self._authority.user(msg.sender) is not None
            if not known:
                self._authority.meet(msg.sender)  # its next calls take turns with others as that user's
            if known or not _depends_on_caller(msg):
                return self._begin(msg, None)
        return self._if_allowed(msg, action, functools.partial(self._begin_as, msg))

    def _begin_as(self, msg: MethodCall, who: Credentials) -> Any:
        """Do the same for a caller who had to be looked up, or asked about."""
        with shown(self._authority.trusts(who)):
            return self._begin(msg, who)

    def _begin(self, msg: MethodCall, who: Credentials | None) -> Any:
        """Do what `_dispatch` is for, for a caller who may; *who* it is matters only to what nobody may by default."""
        view = self._tree.find(msg.path)
        if view is not None and msg.interface in (view.interface.name, None):
            call = view.calls.get(msg.member)
            if call is not None:
                return self._call(msg, view, call, who)
            if msg.interface is not None:
                raise CallError("UnknownMethod", f"{view.interface.name} has no method {msg.member}")
        return self._standard(msg, view)

    @classmethod
    def _call(cls, msg: MethodCall, view: View, call: Call, who: Credentials | None) -> Any:
        if msg.signature != call.takes:
            raise CallError(
                "InvalidArgs", f'{msg.member} takes arguments of signature "{call.takes}", not "{msg.signature}"'
            )
        arguments = (who, *msg.body) if call.wants_caller else msg.body
        result = call.function(view, *arguments)
        if result is not None and inspect.isawaitable(result):
            return cls._awaited(call, result)
        return call.returns, result

    def _if_allowed(self, msg: MethodCall, action: Action, begin: Callable[[Credentials], Any]) -> Any:
        """Give what *begin* gives if the caller may do *action*; None if that is to be asked, and reply then."""
        request = Request(msg.sender, action, interactive=bool(msg.flags & _INTERACTIVE), **_subject(msg))
        who = self._authority.decided(request)
        if who is not None:
            return begin(who)
        asked_by, was_there = self.writer, self._tree.find(msg.path) is not None

        def go_on(who: Credentials) -> None:
            if was_there and self._tree.find(msg.path) is None:
                raise CallError("UnknownObject", f"{msg.path} went away")
            result = begin(who)
            if type(result) is tuple:
                self._reply(msg, *result)
            elif result is not None:
                self._later(msg, result)

        def refuse(error: Exception) -> None:
            if self.writer is asked_by:  # else the caller's bus is gone, and its name another's on the new one
                self._reply_error(msg, error)

        self._authority.in_turn(request, msg.weight, go_on, refuse)
        return None

    @staticmethod
    async def _awaited(call: Call, result: Any) -> tuple[str, Any]:
        return call.returns, await result

    # The interfaces that every object has

    @staticmethod
    def _answer_peer(msg: MethodCall) -> tuple[str, Any]:
        """Answer what is the same whatever there is, and for everybody."""
        if msg.signature:
            raise CallError("InvalidArgs", f'{msg.member} takes "", not "{msg.signature}"')
        return ("", None) if msg.member == "Ping" else ("s", _machine_id())

    def _standard(self, msg: MethodCall, view: View | None) -> Any:
        if _is_of_peer(msg):
            return self._answer_peer(msg)
        for name in (INTROSPECTABLE, PROPERTIES, OBJECT_MANAGER):
            if msg.interface in (name, None) and msg.member in interfaces.standard(name).methods:
                takes = interfaces.standard(name).methods[msg.member].takes
                if msg.signature != takes:
                    raise CallError("InvalidArgs", f'{msg.member} takes "{takes}", not "{msg.signature}"')
                return self._answer(msg, name, view)
        if view is None and not self._tree.children(msg.path):
            raise CallError("UnknownObject", f"no object at {msg.path}")
        if msg.interface in (*_STANDARD, OBJECT_MANAGER, view.interface.name if view else None, None):
            raise CallError("UnknownMethod", f"{msg.interface or msg.path} has no method {msg.member}")
        raise CallError("UnknownInterface", f"{msg.path} has no interface {msg.interface}")

    def _answer(self, msg: MethodCall, interface: str, view: View | None) -> tuple[str, Any] | None:
        children = self._tree.children(msg.path)
        if view is None and not children:
            raise CallError("UnknownObject", f"no object at {msg.path}")
        if interface == INTROSPECTABLE:
            return "s", self._introspect(msg.path, view, children)
        if interface == OBJECT_MANAGER:
            if msg.path != ROOT:
                raise CallError("UnknownInterface", f"{msg.path} has no object manager; the one there is, is {ROOT}")
            self._list(msg)
            return None
        if view is None:
            raise CallError("UnknownInterface", f"{msg.path} has no properties")
        return self._properties(msg, view)

    def _list(self, msg: MethodCall) -> None:
        """Answer with all objects, once they are gathered."""
        asked_by = self.writer

        def answer(body: bytes) -> None:
            if not body:
                if self.writer is asked_by:
                    self._reply_error(msg, RuntimeError("the objects can't be listed"))
            elif self.writer is asked_by and self.writer is not None and not msg.flags & _NO_REPLY_EXPECTED:
                header = prefixed_return(self.next_serial(), msg.serial, msg.sender, "a{oa{sa{sv}}}", len(body))
                self.writer.write_with(header, body)

        if not self.snapshots[SHOWN.addresses].ask(msg.sender, answer):
            raise CallError(
                "LimitsExceeded", "too many of your calls of GetManagedObjects wait; wait for their answers"
            )

    def _describe_for(self, trusted: bool, view: View) -> dict[str, dict[str, Any]]:
        with shown(trusted):
            return self.describe(view)

    @staticmethod
    def describe(view: View) -> dict[str, dict[str, Any]]:
        """Give a view's interfaces with all properties."""
        return {view.interface.name: view.get_all()}

    @staticmethod
    def _introspect(path: str, view: View | None, children: list[str]) -> str:
        names = list(_STANDARD) if view else [DBUS_PEER, INTROSPECTABLE]
        if path == ROOT:
            names.append(OBJECT_MANAGER)
        listed = [interfaces.standard(name) for name in names]
        return interfaces.introspection(listed + ([view.interface] if view else []), children)

    @staticmethod
    def _properties(msg: MethodCall, view: View) -> tuple[str, Any]:
        interface, name = msg.body[0], msg.body[1] if len(msg.body) > 1 else ""
        known = interface in ("", view.interface.name)
        if not known and interface not in (*_STANDARD, OBJECT_MANAGER):
            raise CallError("UnknownInterface", f"{msg.path} has no interface {interface}")
        if msg.member == "GetAll":
            return "a{sv}", view.get_all() if known else {}
        if not known or name not in view.interface.properties:
            raise CallError("UnknownProperty", f"{interface or view.interface.name} has no property {name}")
        if msg.member == "Set":
            raise CallError("PropertyReadOnly", f"{name} can't be set")
        return "v", view.get(name)

    # Replying, exactly once

    def _later(self, msg: MethodCall, result: Any) -> None:
        asked_by = self.writer

        async def finish() -> None:
            try:
                answer = await result
                if self.writer is asked_by:  # else the caller's bus is gone, and its name another's on the new one
                    self._reply(msg, *answer)
            except Exception as error:
                if self.writer is asked_by:
                    self._reply_error(msg, error)

        task = asyncio.get_running_loop().create_task(finish())
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    def _reply(self, msg: MethodCall, signature: str, value: Any) -> None:
        fds = [value] if isinstance(value, Fd) else []
        if self.writer is None or msg.flags & _NO_REPLY_EXPECTED:
            for fd in fds:
                fd.close()
            return
        if not signature:
            self.writer.write(empty_return(self.next_serial(), msg.serial, msg.sender), [])
            return
        self._send(
            self.writer,
            fds,
            message_type=MessageType.METHOD_RETURN,
            reply_serial=msg.serial,
            destination=msg.sender,
            signature=signature,
            body=[0 if fds else value],
        )

    def _reply_error(self, msg: MethodCall, error: Exception) -> None:
        if isinstance(error, BodyTooLarge):
            name = f"{_FREEDESKTOP_ERROR}.LimitsExceeded"
        elif isinstance(error, BodyMalformed):
            name = f"{_FREEDESKTOP_ERROR}.InvalidArgs"
        elif isinstance(error, CallError):
            name = f"{_FREEDESKTOP_ERROR}.{error.name}"
        elif isinstance(error, InteractiveAuthorizationRequired):  # D-Bus has a name for it, which clients know
            name = f"{_FREEDESKTOP_ERROR}.{type(error).__name__}"
        elif isinstance(error, DoorbellError):
            name = f"{ERROR_PREFIX}.{type(error).__name__}"
        else:
            log.error("a D-Bus call failed for a reason that is ours", member=msg.member, path=msg.path, exc_info=error)
            name, error = f"{_FREEDESKTOP_ERROR}.Failed", RuntimeError("internal error; the daemon's log has it")
        if self.writer is None or msg.flags & _NO_REPLY_EXPECTED:
            return
        words = text(printable_lines(str(error)))[:_WORDS_MAX]
        self.writer.write(error_return(self.next_serial(), msg.serial, msg.sender, name, words), [])

    def signal(self, path: str, interface: str, member: str, signature: str, body: list[Any]) -> None:
        """Send a signal, if there is a bus to send it to."""
        for snapshot in self.snapshots:
            snapshot.changed(body[0] if interface == OBJECT_MANAGER else path)
        if self.writer is None:
            return
        self._send(
            self.writer,
            [],
            message_type=MessageType.SIGNAL,
            path=path,
            interface=interface,
            member=member,
            signature=signature,
            body=body,
        )

    def _send(self, writer: Writer, fds: list[Fd], **fields: Any) -> None:
        """Write a message that wants no reply; *fds* are taken over."""
        numbers = [fd.fileno() for fd in fds]
        message = Message(flags=MessageFlag.NO_REPLY_EXPECTED, serial=self.next_serial(), unix_fds=numbers, **fields)
        writer.write(message._marshall(True), fds)


def _depends_on_caller(msg: MethodCall) -> bool:
    """Tell whether the answer shows more to those who may do everything."""
    return msg.member == "GetManagedObjects" or msg.path.startswith(_DEVICES)


def _is_of_peer(msg: MethodCall) -> bool:
    return msg.interface in (DBUS_PEER, None) and msg.member in ("Ping", "GetMachineId")


def _tables() -> tuple[dict[tuple[str | None, str], Action], dict[tuple[str | None, str, str], int]]:
    """Tell of each method what it needs leave for, and how large its arguments may be, with and without its interface.

    Raises:
        ImportError: methods of one name need leave for different things, so that a call without an interface would
            have to find its object first.
    """
    actions: dict[tuple[str | None, str], Action] = {}
    sizes: dict[tuple[str | None, str, str], int] = {}
    for view in VIEWS:
        for member, call in view.calls.items():
            if actions.setdefault((None, member), call.action) is not call.action:
                raise ImportError(f"{view.interface.name}.{member}: other methods of that name need leave for another")
            actions[view.interface.name, member] = call.action
            for interface in (None, view.interface.name):
                sizes[interface, member, call.takes] = body_max(call.takes, call.array_max)
    for name in (*_STANDARD, OBJECT_MANAGER):
        for member, declared in interfaces.standard(name).methods.items():
            for known in (None, name):
                sizes[known, member, declared.takes] = body_max(declared.takes)
    return actions, sizes


def _subject(msg: MethodCall) -> dict[str, str]:
    """Tell what a call is about, if it is about one thing: which of `_SUBJECTS`, and its name.

    It is in the path, or the first argument of one of the manager's methods.
    """
    found = {}
    if msg.path == ROOT:
        if msg.interface in (MANAGER, None):
            found = {kind: msg.first_text() for kind, methods in _SUBJECTS.items() if msg.member in methods}
    elif msg.path.startswith(f"{ROOT}/"):
        kind, _, below = msg.path[len(ROOT) + 1 :].partition("/")
        if kind in _SUBJECTS and below:
            found = {kind: paths.unescape(below.partition("/")[0])}
    return {kind: name for kind, name in found.items() if len(name) <= _NAME_MAX}


def _machine_id() -> str:
    for path in ("/etc/machine-id", "/var/lib/dbus/machine-id"):
        try:
            with open(path, encoding="ascii") as file:
                return file.read().strip()
        except OSError:
            continue
    raise CallError("Failed", "this host has no machine ID; systemd-machine-id-setup makes one")
