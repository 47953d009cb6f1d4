# SPDX-FileCopyrightText: 2026 The doorbelld authors
# SPDX-License-Identifier: GPL-2.0-or-later
"""Asks polkit, which decides on the system bus who may do what (polkit(8), "org.freedesktop.PolicyKit1.Authority").

Theory of operation
-------------------
A `Question` is a caller, an action and the region, device, client or flat device that the call is about, which an
administrator's rules may look at.
`check` asks it without bothering anybody; only where polkit says that a person could authenticate, and the call allows
that, `challenge` has it ask that person.

A yes to `check` holds for `FRESH_SECONDS`, so that whoever reads a hundred properties is asked about once. Less long if
polkit says that anything changed (its rules, who is logged in where, an authentication that is over) or has another
owner; the seconds are for what it does not notice, such as somebody leaving a group. Callers that left the bus need no
care: their names are never given again, and the number of answers kept is bounded. What a person was asked for is not
kept here: polkit knows whether that is to hold for once or for a while.

Where there is no polkit, nobody is asked for `FRESH_SECONDS` either, or until it comes.

polkit tells only root, and the user that its policy file names as the owner of our actions, about other users.
"""

from __future__ import annotations

import asyncio
import itertools
import time
from collections import OrderedDict
from collections.abc import Awaitable, Callable
from enum import Enum, auto
from os.path import realpath
from typing import Any, NamedTuple

from ..errors import BusUnavailable
from ..log import Limiter, get_logger
from .address import resolve
from .library import Message, MessageFlag, MessageType, Variant, unwrap
from .names import DBUS

CHECK_SECONDS = 10.0
CHALLENGE_SECONDS = 120.0
FRESH_SECONDS = 5.0

NAME = "org.freedesktop.PolicyKit1"
PATH = "/org/freedesktop/PolicyKit1/Authority"
INTERFACE = "org.freedesktop.PolicyKit1.Authority"
RULES = (
    f"type='signal',sender='{NAME}',path='{PATH}',interface='{INTERFACE}',member='Changed'",
    f"type='signal',sender='{DBUS}',interface='{DBUS}',member='NameOwnerChanged',arg0='{NAME}'",
)
"""What the bus is to tell `Polkit.hear`."""

_ALLOW_USER_INTERACTION = 1
_CACHE_MAX = 4096
_NOBODY = ("ServiceUnknown", "NameHasNoOwner", "NoReply", "Disconnected")
_BUSY = ("LimitsExceeded", "Timeout", "TimedOut")
_ERROR = "org.freedesktop.DBus.Error."

log = get_logger()


class Question(NamedTuple):
    """Whether *sender*, a unique name, may do *action*, an action's full ID, to what one of the others names.

    All others are empty if it is about all there is, or nothing of it.
    """

    sender: str
    action: str
    region: str = ""
    device: str = ""
    client: str = ""
    flat: str = ""

    @property
    def details(self) -> dict[str, str]:
        """What a rule sees with ``action.lookup(...)``."""
        named = self._asdict()
        return {key: named[key] for key in ("region", "device", "client", "flat") if named[key]}


class Answer(Enum):
    """What polkit says."""

    YES = auto()
    NO = auto()
    CHALLENGE = auto()
    """A person could authenticate."""
    DISMISSED = auto()
    """A person was asked, and sent us away."""
    SILENT = auto()
    """Nothing, in time."""
    ABSENT = auto()
    """There is no polkit, or it can't tell."""


def answers_for(address: str) -> bool:
    """Tell whether the bus at *address* is the system bus; of callers on others polkit knows nothing."""
    return _place(address) == _place(resolve("system"))


def _place(address: str) -> str:
    """Give what tells two addresses apart: the socket's real path, without the bus's GUID."""
    transport, _, pairs = address.partition(":")
    values = dict(pair.partition("=")[::2] for pair in pairs.split(","))
    return realpath(values["path"]) if transport == "unix" and "path" in values else address


class Polkit:
    """Polkit on the bus that *call* sends to: it gives the reply, or raises when the bus is gone."""

    def __init__(self, call: Callable[[Any], Awaitable[Any]], clock: Callable[[], float] = time.monotonic) -> None:
        self._call = call
        self._clock = clock
        self._granted: OrderedDict[Question, float] = OrderedDict()  # until when
        self._absent_until = 0.0
        self._missed = False
        self._numbers = itertools.count(1)
        self._limited = Limiter(burst=2, period=60.0)

    def granted(self, question: Question) -> bool:
        """Tell whether the answer is yes, as far as that is known without asking."""
        until = self._granted.get(question)
        return until is not None and self._clock() < until

    async def check(self, question: Question) -> Answer:
        """Ask, and bother nobody: gives any answer but DISMISSED.

        Raises:
            BusUnavailable: the bus went away.
        """
        if self.granted(question):
            return Answer.YES
        if self._clock() < self._absent_until:
            return Answer.ABSENT
        granted = self._granted
        answer = await self._ask(question, "", CHECK_SECONDS)
        if answer is Answer.YES and granted is self._granted:  # else something changed, and this may be from before
            granted[question] = self._clock() + FRESH_SECONDS
            granted.move_to_end(question)
            if len(granted) > _CACHE_MAX:
                granted.popitem(last=False)
        return answer

    async def challenge(self, question: Question) -> Answer:
        """Ask, and have a person authenticate if that takes it: gives any answer.

        CHALLENGE means that there is nobody to ask: no authentication agent in the caller's session.

        Raises:
            BusUnavailable: the bus went away.
        """
        return await self._ask(question, f"doorbelld-{next(self._numbers)}", CHALLENGE_SECONDS)

    def hear(self, msg: Any) -> None:
        """Take a message that is no method call: what it says may end what we know.

        Anybody can send us a signal; one that is made up makes us ask more often, and does nothing else.
        """
        if msg.message_type is MessageType.SIGNAL and (
            (msg.interface == INTERFACE and msg.member == "Changed")
            or (msg.interface == DBUS and msg.member == "NameOwnerChanged" and msg.body[:1] == [NAME])
        ):
            self.forget()

    def forget(self) -> None:
        """Ask anew about everybody, and whether there is a polkit."""
        self._granted = OrderedDict()  # a new one: an answer that is on its way must not get in
        self._absent_until = 0.0

    async def _ask(self, question: Question, cancellation: str, seconds: float) -> Answer:
        """Ask *question*; one with a *cancellation* ID lets polkit bother a person."""
        body = [
            ["system-bus-name", {"name": Variant("s", question.sender)}],
            question.action,
            question.details,
            _ALLOW_USER_INTERACTION if cancellation else 0,
            cancellation,
        ]
        try:
            try:
                async with asyncio.timeout(seconds):
                    reply = await self._call(_message("CheckAuthorization", "(sa{sv})sa{ss}us", body))
            except TimeoutError:
                if cancellation:  # takes the dialogue away
                    await self._call(_message("CancelCheckAuthorization", "s", [cancellation], quiet=True))
                return Answer.SILENT
        except Exception as error:  # whatever the library raises when the bus goes away
            raise BusUnavailable(f"the message bus went away: {error}") from error
        if reply is None:  # which is how it may say so, too
            raise BusUnavailable("the message bus went away")
        if reply.message_type is MessageType.ERROR:
            return self._failed(reply.error_name, str(reply.body[0]) if reply.body else reply.error_name)
        if self._missed:
            self._missed = False
            log.info("polkit is there again")
        if reply.signature != "(bba{ss})":
            return self._failed(NAME, f'it answers with "{reply.signature}"')
        authorized, challenge, details = unwrap(reply.body[0])
        if authorized:
            return Answer.YES
        if details.get("polkit.dismissed"):
            return Answer.DISMISSED
        return Answer.CHALLENGE if challenge else Answer.NO

    def _failed(self, name: str, text: str) -> Answer:
        kind = name.removeprefix(_ERROR)
        if kind in _BUSY:
            return Answer.SILENT
        if kind in _NOBODY or kind.startswith("Spawn."):
            self._absent_until = self._clock() + FRESH_SECONDS
            if not self._missed:
                self._missed = True
                self._limited(
                    log.warning,
                    "absent",
                    "polkit is not there; only root and the daemon's own user may change anything",
                    reason=text,
                    cure="install polkitd, see systemctl status polkit",
                )
        else:
            self._limited(
                log.warning,
                "failed",
                "polkit can't tell; only root and the daemon's own user may change anything",
                reason=text,
                cure="see pkaction --verbose, journalctl -u polkit, and whether our policy file is installed",
            )
        return Answer.ABSENT


def _message(member: str, signature: str, body: list[Any], *, quiet: bool = False) -> Any:
    flags = MessageFlag.NO_REPLY_EXPECTED if quiet else MessageFlag.NONE
    return Message(
        destination=NAME, path=PATH, interface=INTERFACE, member=member, signature=signature, body=body, flags=flags
    )
