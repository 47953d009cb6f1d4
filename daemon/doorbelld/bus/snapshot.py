# SPDX-FileCopyrightText: 2026 The doorbelld authors
# SPDX-License-Identifier: GPL-2.0-or-later
"""The answer to GetManagedObjects: made in pieces, and once for all who ask meanwhile.

Theory of operation
-------------------
With a thousand peers the answer takes a tenth of a second to make. So it is made of parts, one for each object, a few
milliseconds' worth in a turn of the loop. Who asks while one is being made is given the next one: it must show what the
caller did before it asked.

An answer must fit the signals around it: what was told before it is in it, what is told after it is not. When all parts
are there, those of objects that are gone are left out, and those of objects that are new, or that a signal told of
(`changed`), are made again; if these are many, in turns again. If that goes on, because objects come and go faster than
parts are made, the rest is made at once after `_ROUNDS_MAX` rounds.

A small host's answer takes one turn, and is given before `ask` returns.

Those who ask get their answers by turns, one each. While the bus takes nothing of what we write, nobody does but the
first `_LEAST`; the others are given the same answer afterwards if no signal was sent meanwhile, or else the next one. A
caller may have `WAITING_MAX` calls that wait.
"""

from __future__ import annotations

import asyncio
import time
from collections import OrderedDict, deque
from collections.abc import Callable
from typing import Any

from ..log import get_logger
from .library import Message
from .tree import Tree
from .views import View

log = get_logger()

TURN_SECONDS = 0.002
_PAUSE_SECONDS = 0.004
WAITING_MAX = 128
_ROUNDS_MAX = 8
_SIGNATURE = "a{oa{sa{sv}}}"
_LEAST = 4
_AT_ONCE = 16  # objects that are made again without waiting for another turn

Answer = Callable[[bytes], None]
"""Takes the body of the reply; an empty one if there is none."""


class Snapshot:
    """Gathers what *describe* says of all objects in *tree*."""

    def __init__(self, tree: Tree, describe: Callable[[View], dict[str, dict[str, Any]]]) -> None:
        self._tree = tree
        self._describe = describe
        self._asking: OrderedDict[str, deque[Answer]] = OrderedDict()
        """Who waits for the next answer, by caller."""
        self._served: OrderedDict[str, deque[Answer]] = OrderedDict()
        """Who waits for the one that is being made."""
        self._parts: dict[str, bytes] = {}
        self._todo: deque[str] = deque()
        self._whole = b""
        """The last answer, as long as it is one."""
        self._rounds = 0
        self._running = False
        self._pressed = False
        self._turn: asyncio.Handle | None = None

    def ask(self, sender: str, answer: Answer) -> bool:
        """Have *answer* called, now or later; False if too many calls of *sender* wait."""
        waiting = sum(len(queue[sender]) for queue in (self._asking, self._served) if sender in queue)
        if waiting >= WAITING_MAX:
            return False
        self._asking.setdefault(sender, deque()).append(answer)
        if not self._running and self._turn is None and not self._pressed:
            self._run()
        return True

    def changed(self, path: str) -> None:
        """Learn that a signal told of the object at *path*."""
        self._whole = b""
        if self._running:
            self._parts.pop(path, None)

    def press(self, pressed: bool) -> None:
        """Learn whether the bus is slow to take what we write."""
        self._pressed = pressed
        self._go_on()

    def clear(self) -> None:
        """Forget who waits: their bus is gone."""
        self._asking.clear()
        self._end()
        self._served.clear()
        self._whole = b""
        self._pressed = False
        if self._turn is not None:
            self._turn.cancel()
            self._turn = None

    def _go_on(self) -> None:
        if self._turn is None and not self._pressed and (self._running or self._asking or self._served):
            loop = asyncio.get_running_loop()
            self._turn = loop.call_later(_PAUSE_SECONDS, self._run)  # most of the time is others'

    def _run(self) -> None:
        """Make parts, for one turn; give the answer if all are there."""
        self._turn = None
        if self._pressed:
            return
        if not self._running:
            self._serve()
            if self._pressed or not (self._served or self._asking):
                return
            for sender, answers in self._asking.items():
                self._served.setdefault(sender, deque()).extend(answers)
            self._asking = OrderedDict()
            self._running, self._rounds = True, 0
            self._todo.extend(self._tree.listed())
        end = time.monotonic() + TURN_SECONDS
        try:
            whole = self._make(end)
        except Exception as error:  # of a view: ours
            log.error("the objects can't be listed for a reason that is ours", exc_info=error)
            self._end()
            whole, served, self._served = False, self._served, OrderedDict()
            for answer in (answer for answers in served.values() for answer in answers):
                answer(b"")
        if whole:
            self._give()
        self._go_on()

    def _make(self, end: float) -> bool:
        """Make parts until *end*; True if all are there."""
        while True:
            while self._todo:
                path = self._todo.popleft()
                view = self._tree.find(path)
                self._parts[path] = b"" if view is None else _part(path, self._describe(view))
                if time.monotonic() > end and self._rounds <= _ROUNDS_MAX and self._todo:
                    return False
            missing = [path for path in self._tree.listed() if path not in self._parts]
            if not missing:
                return True
            self._rounds += 1
            self._todo.extend(missing)
            if len(missing) > _AT_ONCE and time.monotonic() > end and self._rounds <= _ROUNDS_MAX:
                return False

    def _give(self) -> None:
        """Answer those who wait, one call of each by turns."""
        parts = filter(None, [self._parts[path] for path in self._tree.listed()])
        body = bytearray(8)  # the length, and padding to the first entry
        for part in parts:
            body += bytes(-len(body) % 8)
            body += part
        body[:4] = (len(body) - 8).to_bytes(4, "little")
        self._whole = bytes(body)
        self._end()
        self._serve(_LEAST)

    def _serve(self, least: int = 0) -> None:
        """Give the answer that there is to those who wait for it: while the bus takes it, or to *least* of them."""
        while self._served and self._whole and (least > 0 or not self._pressed):
            sender, answers = self._served.popitem(last=False)
            answers.popleft()(self._whole)
            if answers:
                self._served[sender] = answers
            least -= 1
        if not self._served:
            self._whole = b""

    def _end(self) -> None:
        self._running = False
        self._parts = {}
        self._todo.clear()


def _part(path: str, interfaces: dict[str, dict[str, Any]]) -> bytes:
    """Marshal one entry of the answer."""
    message = Message(path="/", interface="a.b", member="C", signature=_SIGNATURE, body=[{path: interfaces}], serial=1)
    raw = bytes(message._marshall(False))
    size = int.from_bytes(raw[4:8], "little")
    return raw[len(raw) - size + 8 :]
