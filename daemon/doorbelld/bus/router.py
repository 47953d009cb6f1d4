# SPDX-FileCopyrightText: 2026 The doorbelld authors
# SPDX-License-Identifier: GPL-2.0-or-later
"""One handler for every message that comes in: it finds the object, looks the method up, calls, and replies once.

The libraries can export objects by themselves, but scan all of them on each change and invent things in introspection
(docs/decisions/0003). Here an object is found by its path (`tree.Tree`), a method in the view's table, and the
standard interfaces are answered for all objects alike. Nothing that a caller sends gets an exception out of here:
what is wrong with a call is its error reply, what is wrong with us is one too, and a line in the log.
"""

from __future__ import annotations

import asyncio
import functools
import inspect
from collections.abc import Callable
from typing import Any

from ..errors import DoorbellError
from ..fds.owned import Fd
from ..fds.peercred import Credentials
from ..log import get_logger
from . import interfaces, paths
from .authority import Action, Authority, InteractiveAuthorizationRequired, Request, size_of
from .library import Message, MessageFlag, MessageType, text
from .names import DBUS_PEER, ERROR_PREFIX, INTROSPECTABLE, MANAGER, OBJECT_MANAGER, PROPERTIES, ROOT
from .tree import Tree
from .views import Call, View
from .writer import Writer, empty_return

log = get_logger()

_METHOD_CALL = MessageType.METHOD_CALL
_NO_REPLY_EXPECTED = MessageFlag.NO_REPLY_EXPECTED
_INTERACTIVE = MessageFlag.ALLOW_INTERACTIVE_AUTHORIZATION
_FREEDESKTOP_ERROR = "org.freedesktop.DBus.Error"
_STANDARD = (DBUS_PEER, INTROSPECTABLE, PROPERTIES)
_SUBJECTS = {
    "region": frozenset(("ListPeers", "Notify", "NotifyMany", "CreateRegion", "RemoveRegion")),
    "device": frozenset(("ListQueues", "CreateDevice", "RemoveDevice")),
    "client": frozenset(("CreateClient", "RemoveClient")),
    "flat": frozenset(("CreateFlatDevice", "RemoveFlatDevice")),
}
"""What a call may be about, and the manager's methods whose first argument is the name of such a one."""
_NAME_MAX = 64


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
        self._tasks: set[asyncio.Task[None]] = set()
        self.writer: Writer | None = None
        self.next_serial: Callable[[], int] = lambda: 0

    def handle(self, msg: Any) -> bool:
        """Take a message from the library; True if it is done with."""
        if msg.message_type is not _METHOD_CALL:
            return False
        try:
            result = self._dispatch(msg)
            if type(result) is tuple:  # as most are; isawaitable takes its time to say no
                self._reply(msg, *result)
            elif result is not None:
                self._later(msg, result)
        except Exception as error:
            self._reply_error(msg, error)
        return True

    # Finding what to call

    def _dispatch(self, msg: Any) -> Any:
        """Call what *msg* names: gives (signature, value), an awaitable of it, or None if somebody is to be asked."""
        view = self._tree.find(msg.path)
        if view is not None and msg.interface in (view.interface.name, None):
            call = view.calls.get(msg.member)
            if call is not None:
                return self._call(msg, view, call)
            if msg.interface is not None:
                raise CallError("UnknownMethod", f"{view.interface.name} has no method {msg.member}")
        return self._standard(msg, view)

    def _call(self, msg: Any, view: View, call: Call) -> Any:
        if msg.signature != call.takes:
            raise CallError(
                "InvalidArgs", f'{msg.member} takes arguments of signature "{call.takes}", not "{msg.signature}"'
            )
        who = self._authority.trusted(msg.sender)
        if who is None:
            return self._if_allowed(msg, call.action, functools.partial(self._call_now, msg, call))
        return self._call_as(who, msg, view, call)

    def _call_now(self, msg: Any, call: Call, who: Credentials) -> Any:
        if (view := self._tree.find(msg.path)) is None:  # what was there may be gone, or another by now
            raise CallError("UnknownObject", f"{msg.path} went away")
        return self._call_as(who, msg, view, call)

    def _call_as(self, who: Credentials, msg: Any, view: View, call: Call) -> Any:
        arguments = (who, *msg.body) if call.wants_caller else msg.body
        result = call.function(view, *arguments)
        if result is not None and inspect.isawaitable(result):
            return self._awaited(call, result)
        return call.returns, result

    def _if_allowed(self, msg: Any, action: Action, begin: Callable[[Credentials], Any]) -> Any:
        """Give what *begin* gives if the caller may do *action*; None if that is to be asked, and reply then."""
        request = Request(msg.sender, action, interactive=bool(msg.flags & _INTERACTIVE), **_subject(msg))
        who = self._authority.decided(request)
        if who is not None:
            return begin(who)
        asked_by = self.writer

        def go_on(who: Credentials) -> None:
            result = begin(who)
            if type(result) is tuple:
                self._reply(msg, *result)
            else:
                self._later(msg, result)

        def refuse(error: Exception) -> None:
            if self.writer is asked_by:  # else the caller's bus is gone, and its name another's on the new one
                self._reply_error(msg, error)

        self._authority.in_turn(request, size_of(msg.body), go_on, refuse)
        return None

    @staticmethod
    async def _awaited(call: Call, result: Any) -> tuple[str, Any]:
        return call.returns, await result

    # The interfaces that every object has

    def _standard(self, msg: Any, view: View | None) -> Any:
        for name in (*_STANDARD, OBJECT_MANAGER):
            if msg.interface in (name, None) and msg.member in interfaces.standard(name).methods:
                takes = interfaces.standard(name).methods[msg.member].takes
                if msg.signature != takes:
                    raise CallError("InvalidArgs", f'{msg.member} takes "{takes}", not "{msg.signature}"')
                if name == DBUS_PEER:
                    return ("", None) if msg.member == "Ping" else ("s", _machine_id())
                if self._authority.all_may_inspect(msg.sender) or self._authority.trusted(msg.sender) is not None:
                    return self._answer(msg, name, view)
                return self._if_allowed(msg, Action.INSPECT, functools.partial(self._answer_now, msg, name))
        if view is None and not self._tree.children(msg.path):
            raise CallError("UnknownObject", f"no object at {msg.path}")
        if msg.interface in (*_STANDARD, OBJECT_MANAGER, view.interface.name if view else None, None):
            raise CallError("UnknownMethod", f"{msg.interface or msg.path} has no method {msg.member}")
        raise CallError("UnknownInterface", f"{msg.path} has no interface {msg.interface}")

    def _answer_now(self, msg: Any, interface: str, _: Credentials) -> tuple[str, Any]:
        return self._answer(msg, interface, self._tree.find(msg.path))

    def _answer(self, msg: Any, interface: str, view: View | None) -> tuple[str, Any]:
        children = self._tree.children(msg.path)
        if view is None and not children:
            raise CallError("UnknownObject", f"no object at {msg.path}")
        if interface == INTROSPECTABLE:
            return "s", self._introspect(msg.path, view, children)
        if interface == OBJECT_MANAGER:
            if msg.path != ROOT:
                raise CallError("UnknownInterface", f"{msg.path} has no object manager; the one there is, is {ROOT}")
            return "a{oa{sa{sv}}}", {path: self.describe(view) for path, view in self._tree.listed()}
        if view is None:
            raise CallError("UnknownInterface", f"{msg.path} has no properties")
        return self._properties(msg, view)

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
    def _properties(msg: Any, view: View) -> tuple[str, Any]:
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

    def _later(self, msg: Any, result: Any) -> None:
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

    def _reply(self, msg: Any, signature: str, value: Any) -> None:
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

    def _reply_error(self, msg: Any, error: Exception) -> None:
        if isinstance(error, CallError):
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
        self._send(
            self.writer,
            [],
            message_type=MessageType.ERROR,
            reply_serial=msg.serial,
            destination=msg.sender,
            error_name=name,
            signature="s",
            body=[text(str(error))],
        )

    def signal(self, path: str, interface: str, member: str, signature: str, body: list[Any]) -> None:
        """Send a signal, if there is a bus to send it to."""
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
        message = Message(flags=_NO_REPLY_EXPECTED, serial=self.next_serial(), unix_fds=numbers, **fields)
        writer.write(message._marshall(True), fds)


def _subject(msg: Any) -> dict[str, str]:
    """Tell what a call is about, if it is about one thing: which of `_SUBJECTS`, and its name.

    It is in the path, or the first argument of one of the manager's methods.
    """
    found = {}
    if msg.path == ROOT:
        if msg.interface in (MANAGER, None):
            found = {kind: str(msg.body[0]) for kind, methods in _SUBJECTS.items() if msg.member in methods}
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
