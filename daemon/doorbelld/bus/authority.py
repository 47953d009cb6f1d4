# SPDX-FileCopyrightText: 2026 The doorbelld authors
# SPDX-License-Identifier: GPL-2.0-or-later
"""Who may do what.

Theory of operation
-------------------
Who a caller is comes from the message bus, once per connection: unique names are never given twice during a bus's
life, so an answer stays true and only the size of the cache needs a bound. Root and the daemon's own user may do
everything, wherever they call from. About others polkit is asked on the system bus. On other buses, where it knows
nobody, and while it is not there, looking is everybody's (the bus's own policy may be stricter) and the rest is nobody
else's.

What needs nobody to be asked is decided on the spot (`trusted`, `decided`). A call that has to wait for an answer goes
through its caller's *lane* (`in_turn`), and so does every later call of the same caller until the lane is empty again.

Invariants
----------
1. The calls of one caller begin in the order in which they came.
2. No call begins that came over a bus that is gone.
3. Polkit is asked one question per connection at a time, and has at most `DIALOGUES_MAX` persons to ask per user. What
   waits in the lanes of one user, who is neither root nor ours, is at most `CALLS_MAX` calls of `BYTES_MAX` together,
   once the bus has said who it is.
"""

from __future__ import annotations

import asyncio
import os
from collections import Counter, OrderedDict, deque
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from enum import Enum
from typing import Any

from ..errors import AccessDenied, BusUnavailable, LimitExceeded
from ..fds.peercred import Credentials
from .library import Variant
from .names import BUS_NAME
from .polkit import CHALLENGE_SECONDS, CHECK_SECONDS, Answer, Polkit, Question

DIALOGUES_MAX = 4
CALLS_MAX = 1024
BYTES_MAX = 16 << 20

_CACHE_MAX = 1024
_ITEM_BYTES = 64


class Action(Enum):
    """What a call needs leave for."""

    INSPECT = "inspect"
    NOTIFY = "notify"
    OPEN_MEMORY = "open-memory"
    MANAGE = "manage"

    @property
    def id(self) -> str:
        """Its name for polkit."""
        return f"{BUS_NAME}.{self.value}"


class InteractiveAuthorizationRequired(AccessDenied):
    """The caller may do this once a person has authenticated, but the call does not allow to ask for that."""


@dataclass(frozen=True, slots=True)
class Request:
    """A call that wants to begin."""

    sender: str
    action: Action
    region: str = ""
    """The name of the region that it is about, if it is about one."""
    device: str = ""
    """The name of the device that it is about, if it is about one."""
    interactive: bool = False
    """Whether a person may be bothered for it."""
    client: str = ""
    """The name of the client that it is about, if it is about one."""
    flat: str = ""
    """The name of the flat device that it is about, if it is about one."""

    @property
    def question(self) -> Question:
        """What polkit is asked about it."""
        return Question(self.sender, self.action.id, self.region, self.device, self.client, self.flat)


@dataclass(slots=True)
class _Waiting:
    """A call that waits."""

    request: Request
    size: int
    begin: Callable[[Credentials], None]
    refuse: Callable[[Exception], None]


@dataclass(slots=True)
class _Lane:
    """The calls of one caller that wait, the next first."""

    sender: str
    uid: int | None  # of a caller whose calls are counted
    calls: deque[_Waiting] = field(default_factory=deque)
    size: int = 0


@dataclass(slots=True)
class _Bus:
    """What is known of the callers on one bus; what still waits when that is gone goes on with it, and not far."""

    polkit: Polkit | None = None
    known: OrderedDict[str, Credentials] = field(default_factory=OrderedDict)
    lanes: dict[str, _Lane] = field(default_factory=dict)
    calls: Counter[int] = field(default_factory=Counter)  # that wait, by uid
    sizes: Counter[int] = field(default_factory=Counter)
    dialogues: Counter[int] = field(default_factory=Counter)


class Authority:
    """Decides; *ask* fetches ``GetConnectionCredentials`` of a unique name from the bus."""

    def __init__(self, ask: Callable[[str], Awaitable[dict[str, Any]]], polkit: Polkit | None = None) -> None:
        self._ask = ask
        self._trusted = {0, os.geteuid()}
        self._bus = _Bus(polkit)
        self._runners: set[asyncio.Task[None]] = set()

    def forget(self, polkit: Polkit | None = None) -> None:
        """Forget everybody: another bus gives the same names to others. *polkit* decides on the next one, if given."""
        self._bus = _Bus(polkit)

    # On the spot

    def trusted(self, sender: str) -> Credentials | None:
        """Tell who *sender* is if that is known, may do everything, and has no call that waits."""
        bus = self._bus
        who = bus.known.get(sender)
        return who if who is not None and who.uid in self._trusted and sender not in bus.lanes else None

    def all_may_inspect(self, sender: str) -> bool:
        """Tell whether it does not matter who *sender* is, for looking."""
        return self._bus.polkit is None and sender not in self._bus.lanes

    def decided(self, request: Request) -> Credentials | None:
        """Tell who the caller is, if it may do what it wants; None if that is to be asked, or others are before it.

        Raises:
            AccessDenied: it may not.
        """
        bus, sender = self._bus, request.sender
        who = bus.known.get(sender)
        if who is None or sender in bus.lanes:
            return None
        if who.uid in self._trusted:
            return who
        if bus.polkit is None:
            self._rule_without_polkit(request.action, who)
            return who
        return who if bus.polkit.granted(request.question) else None

    # In turn

    def in_turn(
        self,
        request: Request,
        size: int,
        begin: Callable[[Credentials], None],
        refuse: Callable[[Exception], None],
    ) -> None:
        """Call *begin* with who the caller is, once it may do what it wants and its earlier calls have begun.

        It occupies *size* bytes while it waits (see `size_of`). If it may not (AccessDenied, LimitExceeded), if the
        bus went away meanwhile (AccessDenied), or if *begin* raises something, *refuse* is called with that.

        Raises:
            LimitExceeded: too much of this user waits already; neither is called.
        """
        bus, sender = self._bus, request.sender
        if (lane := bus.lanes.get(sender)) is None:
            known = bus.known.get(sender)
            lane = _Lane(sender, known.uid if known is not None and known.uid not in self._trusted else None)
        if lane.uid is not None:
            _check_room(bus, lane.uid, 1, size)
            bus.calls[lane.uid] += 1
            bus.sizes[lane.uid] += size
        lane.calls.append(_Waiting(request, size, begin, refuse))
        lane.size += size
        if sender not in bus.lanes:
            bus.lanes[sender] = lane
            runner = asyncio.get_running_loop().create_task(self._run(bus, lane))
            self._runners.add(runner)
            runner.add_done_callback(self._runners.discard)

    async def _run(self, bus: _Bus, lane: _Lane) -> None:
        """Have the calls in a lane begin, at once where nobody is to be asked."""
        try:
            while lane.calls:
                call = lane.calls[0]
                try:
                    call.begin(await self._permit(bus, lane, call.request))
                except Exception as error:
                    call.refuse(error)
                lane.calls.popleft()
                lane.size -= call.size
                if lane.uid is not None:
                    _take(bus.calls, lane.uid, 1)
                    _take(bus.sizes, lane.uid, call.size)
        finally:
            del bus.lanes[lane.sender]
            if lane.uid is not None and lane.calls:  # whose reply failed, or we stop
                _take(bus.calls, lane.uid, len(lane.calls))
                _take(bus.sizes, lane.uid, lane.size)

    async def _permit(self, bus: _Bus, lane: _Lane, request: Request) -> Credentials:
        """Tell who the caller is, once it may do what it wants."""
        sender = request.sender
        self._same(bus, sender)
        if (who := bus.known.get(sender)) is None:
            who = await self._learn(sender)
            self._same(bus, sender)
            bus.known[sender] = who
            while len(bus.known) > _CACHE_MAX:
                bus.known.popitem(last=False)
            if who.uid not in self._trusted and lane.uid is None:
                lane.uid = who.uid
                bus.calls[who.uid] += len(lane.calls)
                bus.sizes[who.uid] += lane.size
        if who.uid in self._trusted:
            return who
        if bus.polkit is None:
            self._rule_without_polkit(request.action, who)
            return who
        _check_room(bus, who.uid, 0, 0)
        try:
            answer = await bus.polkit.check(request.question)
            if answer is Answer.CHALLENGE and request.interactive:
                self._same(bus, sender)
                answer = await self._challenge(bus, bus.polkit, request, who)
        except BusUnavailable as error:
            raise AccessDenied(f"the bus that knew {sender} is gone") from error
        self._same(bus, sender)
        self._judge(request, who, answer)
        return who

    def _same(self, bus: _Bus, sender: str) -> None:
        if bus is not self._bus:
            raise AccessDenied(f"the bus that knew {sender} is gone")

    async def _learn(self, sender: str) -> Credentials:
        """Ask the bus who *sender* is."""
        try:
            said = await self._ask(sender)
            pid, uid = int(said.get("ProcessID", 0)), int(said["UnixUserID"])
            return Credentials(pid, uid, _group(pid, said.get("UnixGroupIDs") or [-1]))
        except Exception as error:  # whatever the library raises when the bus goes away
            raise AccessDenied(f"the bus does not say who {sender} is") from error

    @staticmethod
    async def _challenge(bus: _Bus, polkit: Polkit, request: Request, who: Credentials) -> Answer:
        """Have a person authenticate; gives YES, NO or ABSENT."""
        if bus.dialogues[who.uid] >= DIALOGUES_MAX:
            raise LimitExceeded(f"uid {who.uid} has {DIALOGUES_MAX} authentications under way; finish one of them")
        bus.dialogues[who.uid] += 1
        try:
            answer = await polkit.challenge(request.question)
        finally:
            _take(bus.dialogues, who.uid, 1)
        match answer:
            case Answer.CHALLENGE:
                why = "nobody to ask; start an authentication agent in the caller's session (pkttyagent)"
            case Answer.DISMISSED:
                why = "it was dismissed; try again"
            case Answer.SILENT:
                why = f"nobody did so within {CHALLENGE_SECONDS:g} s; try again"
            case _:
                return answer
        action = request.action
        raise AccessDenied(f"uid {who.uid} may {action.value} once somebody authenticates for {action.id}: {why}")

    def _judge(self, request: Request, who: Credentials, answer: Answer) -> None:
        """Turn a refusal of polkit's into an error."""
        action = request.action.id
        cannot = f"uid {who.uid} may not {request.action.value}"
        cure = f"ask an administrator, join group doorbelld, or see pkaction --verbose --action-id {action}"
        match answer:
            case Answer.YES:
                return
            case Answer.ABSENT:
                self._rule_without_polkit(request.action, who, " while polkit is not there")
            case Answer.CHALLENGE:
                raise InteractiveAuthorizationRequired(
                    f"{cannot} unless somebody authenticates for {action}, and the call does not allow to ask for "
                    f"that; allow interactive authorization, or {cure}"
                )
            case Answer.SILENT:
                raise AccessDenied(
                    f"{cannot}: polkit did not answer within {CHECK_SECONDS:g} s about {action}; try again, call as "
                    "root, or see journalctl -u polkit"
                )
            case _:
                raise AccessDenied(f"{cannot}: polkit does not grant {action}; {cure}")

    def _rule_without_polkit(self, action: Action, who: Credentials, when: str = "") -> None:
        if action is not Action.INSPECT and who.uid not in self._trusted:
            raise AccessDenied(
                f"uid {who.uid} may look, but not {action.value}{when}; "
                f"call as root or as the daemon's user (uid {os.geteuid()})"
            )


def size_of(value: Any) -> int:
    """Estimate the bytes that a message's body occupies; none is smaller than its items are many."""
    match value:
        case str() | bytes():
            return _ITEM_BYTES + len(value)
        case list() | tuple():
            return _ITEM_BYTES + sum(map(size_of, value))
        case dict():
            return _ITEM_BYTES + sum(size_of(key) + size_of(item) for key, item in value.items())
        case Variant():
            return _ITEM_BYTES + size_of(value.value)
    return _ITEM_BYTES


def _check_room(bus: _Bus, uid: int, calls: int, size: int) -> None:
    """Refuse *calls* more of *size* together if they are too much beside what waits; or what waits, if that is."""
    if bus.calls[uid] + calls > CALLS_MAX or bus.sizes[uid] + size > BYTES_MAX:
        raise LimitExceeded(
            f"uid {uid} has {bus.calls[uid]} calls that wait for polkit, and no more fit; wait for their answers"
        )


def _take(counts: Counter[int], key: int, number: int) -> None:
    """Count down, and keep no zeros."""
    counts[key] -= number
    if counts[key] <= 0:
        del counts[key]


def _group(pid: int, groups: list[int]) -> int:
    """Tell which of a caller's *groups* is its first one: the bus sorts them, /proc has it in its place."""
    try:
        with open(f"/proc/{pid}/status", encoding="ascii", errors="replace") as status:
            fields = next(line for line in status if line.startswith("Gid:")).split()
        group = int(fields[2])  # the effective one, after the real one
    except (OSError, StopIteration, ValueError, IndexError):
        group = -1
    return group if group in groups else int(groups[0])
