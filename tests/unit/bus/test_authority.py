# SPDX-FileCopyrightText: 2026 The doorbelld authors
# SPDX-License-Identifier: GPL-2.0-or-later
"""Who may do what, from whom we know who is who, and that nobody's calls overtake each other."""

from __future__ import annotations

import asyncio
import contextlib
import os
import subprocess
from collections.abc import Awaitable, Callable
from typing import Any

import pytest
from doorbelld.bus import authority
from doorbelld.bus.authority import Action, Authority, InteractiveAuthorizationRequired, Request, size_of
from doorbelld.bus.library import Variant
from doorbelld.bus.polkit import Answer, Polkit, Question
from doorbelld.errors import AccessDenied, BusUnavailable, LimitExceeded
from doorbelld.fds.peercred import Credentials
from hypothesis import given, settings
from hypothesis import strategies as st

STRANGER = os.geteuid() + 4711
NOTIFY = "org.doorbelld.Doorbell1.notify"


class Bus:
    """Answers GetConnectionCredentials."""

    def __init__(self, said: Any = None) -> None:
        self.said = said or {"ProcessID": 0, "UnixUserID": STRANGER, "UnixGroupIDs": [100, 4]}
        self.asked: list[str] = []
        self.may_answer = asyncio.Event()
        self.may_answer.set()

    async def was_asked(self, times: int) -> None:
        async with asyncio.timeout(20):
            while len(self.asked) < times:
                await asyncio.sleep(0)

    async def __call__(self, sender: str) -> dict[str, Any]:
        self.asked.append(sender)
        await self.may_answer.wait()
        if isinstance(self.said, Exception):
            raise self.said
        return dict(self.said)


class FakePolkit(Polkit):
    """Answers what is in ``answers`` and ``challenges``, once `go`; notes who was asked what."""

    def __init__(self, answer: Answer = Answer.YES, challenge: Answer = Answer.YES) -> None:
        self.answer = answer
        self.after_challenge = challenge
        self.known: set[Question] = set()
        self.checked: list[Question] = []
        self.challenged: list[Question] = []
        self.go = asyncio.Event()
        self.go.set()
        self.gone = False

    def granted(self, question: Question) -> bool:
        return question in self.known

    async def check(self, question: Question) -> Answer:
        self.checked.append(question)
        return await self._wait(self.answer)

    async def challenge(self, question: Question) -> Answer:
        self.challenged.append(question)
        return await self._wait(self.after_challenge)

    async def _wait(self, answer: Answer) -> Answer:
        await self.go.wait()
        if self.gone:
            raise BusUnavailable("gone")
        return answer


def request(sender: str = ":1.5", action: Action = Action.INSPECT, **more: Any) -> Request:
    return Request(sender, action, **more)


def in_turn(
    who: Authority, wanted: Request, size: int = 0, begin: Callable[[Credentials], Any] = lambda found: found
) -> asyncio.Future[Any]:
    """Give what *begin* gives, or the reason of the refusal."""
    begun: asyncio.Future[Any] = asyncio.get_running_loop().create_future()
    who.in_turn(wanted, size, lambda found: begun.set_result(begin(found)), begun.set_exception)
    return begun


async def learn(who: Authority, sender: str = ":1.5") -> Credentials:
    """Have a call of *sender*'s begin, and tell as whom."""
    found = await in_turn(who, request(sender))
    assert isinstance(found, Credentials)
    return found


async def spin(turns: int = 20) -> None:
    for _ in range(turns):
        await asyncio.sleep(0)


# Who is who


async def test_the_bus_is_asked_once() -> None:
    bus = Bus()
    who = Authority(bus)
    assert who.decided(request()) is None
    assert await learn(who) == Credentials(0, STRANGER, 100)
    assert who.decided(request()) == Credentials(0, STRANGER, 100)
    assert who.trusted(":1.5") is None
    assert bus.asked == [":1.5"]


async def test_who_waits_for_the_same_answer_asks_once_and_goes_on_in_order() -> None:
    bus = Bus()
    who = Authority(bus)
    bus.may_answer.clear()
    order: list[int] = []
    waiting = [in_turn(who, request(), 0, lambda _, number=number: order.append(number)) for number in range(50)]
    await bus.was_asked(1)
    bus.may_answer.set()
    await asyncio.gather(*waiting)
    assert bus.asked == [":1.5"]
    assert order == list(range(50))


async def test_nobody_overtakes_whoever_comes_just_when_the_answer_does() -> None:
    """Calls that come in the very turns in which the answer arrives, or while those before them go on."""
    bus = Bus()
    who = Authority(bus)
    bus.may_answer.clear()
    order: list[int] = []
    tasks: list[asyncio.Future[None]] = []

    def call(number: int) -> None:
        """What the router does with a call."""
        if who.decided(request()) is not None:
            order.append(number)
        else:
            tasks.append(in_turn(who, request(), 0, lambda _: order.append(number)))

    number = 0
    for turn in range(12):
        if turn == 2:
            await bus.was_asked(1)
            bus.may_answer.set()
        for _ in range(3):
            call(number)
            number += 1
        await asyncio.sleep(0)
    await asyncio.gather(*tasks)
    assert order == list(range(number))
    assert len(tasks) < number, "in the end they are decided on the spot again"
    assert bus.asked == [":1.5"]


async def test_a_new_bus_is_asked_though_the_old_one_has_not_answered() -> None:
    bus = Bus({"ProcessID": 0, "UnixUserID": 0})
    who = Authority(bus)
    bus.may_answer.clear()
    old = asyncio.create_task(learn(who))
    await bus.was_asked(1)
    who.forget()
    new = asyncio.create_task(learn(who))
    await bus.was_asked(2)
    bus.may_answer.set()
    with pytest.raises(AccessDenied, match="is gone"):
        await old
    assert await new == Credentials(0, 0, -1)
    assert who.trusted(":1.5") == Credentials(0, 0, -1)


async def test_another_bus_is_asked_anew() -> None:
    bus = Bus()
    who = Authority(bus)
    await learn(who)
    who.forget()
    assert who.decided(request()) is None
    bus.said = {"UnixUserID": 7}
    assert await learn(who) == Credentials(0, 7, -1)


@pytest.mark.parametrize("begun", [False, True])
async def test_no_call_of_an_old_bus_begins(begun: bool) -> None:
    bus = Bus({"ProcessID": 0, "UnixUserID": 0})
    who = Authority(bus)
    bus.may_answer.clear()
    began: list[Credentials] = []
    calls = [in_turn(who, request(), 0, began.append) for _ in range(3)]
    if begun:
        await bus.was_asked(1)
    who.forget()
    bus.may_answer.set()
    for call in calls:
        with pytest.raises(AccessDenied, match="is gone"):
            await call
    assert (began, who.trusted(":1.5")) == ([], None)


@pytest.mark.parametrize(
    "said",
    [
        {"ProcessID": 12},
        {"UnixUserID": "root"},
        {"UnixUserID": None},
        ValueError("no such name"),
        EOFError(),
        ConnectionError("gone"),
    ],
)
async def test_a_bus_that_does_not_say(said: Any) -> None:
    bus = Bus(said)
    who = Authority(bus)
    for times in (1, 2):
        with pytest.raises(AccessDenied, match=r"does not say who :1\.5 is"):
            await learn(who)
        assert len(bus.asked) == times
        assert who.decided(request()) is None


async def test_the_cache_has_a_bound_and_drops_the_oldest(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(authority, "_CACHE_MAX", 3)
    who = Authority(Bus())
    for number in range(5):
        await learn(who, f":1.{number}")
    known = [who.decided(request(f":1.{number}")) is not None for number in range(5)]
    assert known == [False, False, True, True, True]


@pytest.mark.skipif(os.getuid() != 0, reason="only root can choose its groups")
async def test_of_the_groups_that_the_bus_sorts_the_first_is_found() -> None:
    with subprocess.Popen(
        ["cat"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        user=STRANGER,
        group=300,
        extra_groups=[100, 200],
    ) as process:
        assert process.stdin is not None and process.stdout is not None
        process.stdin.write(b"ready\n")
        process.stdin.flush()
        process.stdout.readline()
        said = {"ProcessID": process.pid, "UnixUserID": STRANGER, "UnixGroupIDs": [100, 200, 300]}
        assert (await learn(Authority(Bus(said)))).gid == 300
        said["UnixGroupIDs"] = [100, 200]  # what the bus does not vouch for is not believed: it may be another process
        assert (await learn(Authority(Bus(said)))).gid == 100
        process.stdin.close()


# The rule without polkit


@pytest.mark.parametrize("uid", [0, os.geteuid()])
@pytest.mark.parametrize("polkit", [False, True])
async def test_root_and_ourselves_may_everything_and_polkit_is_not_asked(uid: int, polkit: bool) -> None:
    asked = FakePolkit(Answer.NO)
    who = Authority(Bus({"UnixUserID": uid}), asked if polkit else None)
    for action in Action:
        assert (await in_turn(who, request(action=action))).uid == uid
        assert who.decided(request(action=action)) == who.trusted(":1.5") == Credentials(0, uid, -1)
    assert asked.checked == []


@pytest.mark.parametrize("action", Action)
async def test_others_may_look_only(action: Action) -> None:
    who = Authority(Bus())
    assert who.all_may_inspect(":1.5")
    for known in (False, True):
        found: Any = None
        try:
            found = who.decided(request(action=action))
            assert (found is not None) is known
            found = await in_turn(who, request(action=action))
        except AccessDenied as error:
            assert action is not Action.INSPECT
            assert f"uid {STRANGER} may look, but not {action.value};" in str(error)
            assert f"call as root or as the daemon's user (uid {os.geteuid()})" in str(error)
        else:
            assert (action, found.uid) == (Action.INSPECT, STRANGER)


# Polkit


async def test_polkit_is_asked_about_strangers_and_what_it_granted_is_decided_on_the_spot() -> None:
    polkit = FakePolkit()
    who = Authority(Bus(), polkit)
    wanted = request(action=Action.NOTIFY, region="demo")
    assert not who.all_may_inspect(":1.5")
    assert (await in_turn(who, wanted)).uid == STRANGER
    assert polkit.checked == [wanted.question] == [Question(":1.5", NOTIFY, "demo")]
    assert who.decided(wanted) is None
    polkit.known.add(wanted.question)
    assert who.decided(wanted) == Credentials(0, STRANGER, 100)
    assert who.decided(request(action=Action.NOTIFY, region="other")) is None
    assert polkit.challenged == []


CURE = f"ask an administrator, join group doorbelld, or see pkaction --verbose --action-id {NOTIFY}"


@pytest.mark.parametrize(
    ("answer", "challenge", "interactive", "challenged", "said"),
    [
        (Answer.NO, Answer.YES, True, False, ("may not notify", f"does not grant {NOTIFY}", CURE)),
        (Answer.CHALLENGE, Answer.YES, False, False, ("may not notify unless somebody authenticates", NOTIFY, CURE)),
        (Answer.CHALLENGE, Answer.NO, True, True, ("may not notify", f"does not grant {NOTIFY}", CURE)),
        (Answer.CHALLENGE, Answer.CHALLENGE, True, True, (NOTIFY, "start an authentication agent", "pkttyagent")),
        (Answer.CHALLENGE, Answer.DISMISSED, True, True, (NOTIFY, "it was dismissed; try again")),
        (Answer.CHALLENGE, Answer.SILENT, True, True, (NOTIFY, "nobody did so within 120 s; try again")),
        (Answer.SILENT, Answer.YES, True, False, (f"did not answer within 10 s about {NOTIFY}", "call as root")),
        (Answer.ABSENT, Answer.YES, True, False, ("may look, but not notify while polkit is not there", "as root")),
        (Answer.CHALLENGE, Answer.ABSENT, True, True, ("may look, but not notify while polkit is not there",)),
    ],
)
async def test_refusals_name_the_caller_the_action_and_the_cure(
    answer: Answer, challenge: Answer, interactive: bool, challenged: bool, said: tuple[str, ...]
) -> None:
    polkit = FakePolkit(answer, challenge)
    who = Authority(Bus(), polkit)
    wanted = request(action=Action.NOTIFY, interactive=interactive)
    began: list[Any] = []
    with pytest.raises(AccessDenied) as caught:
        await in_turn(who, wanted, 0, began.append)
    assert began == []
    assert bool(polkit.challenged) is challenged
    assert isinstance(caught.value, InteractiveAuthorizationRequired) is (answer is Answer.CHALLENGE and not challenged)
    for words in (f"uid {STRANGER} may", *said):
        assert words in str(caught.value)


async def test_a_person_who_authenticates_lets_the_call_begin() -> None:
    polkit = FakePolkit(Answer.CHALLENGE)
    who = Authority(Bus(), polkit)
    wanted = request(action=Action.MANAGE, region="demo", interactive=True)
    assert (await in_turn(who, wanted)).uid == STRANGER
    assert polkit.checked == polkit.challenged == [wanted.question]


async def test_looking_is_everybodys_while_polkit_is_not_there() -> None:
    who = Authority(Bus(), FakePolkit(Answer.ABSENT))
    assert (await learn(who)).uid == STRANGER


@pytest.mark.parametrize("answer", [Answer.YES, Answer.CHALLENGE])
@pytest.mark.parametrize("gone", [False, True])
async def test_the_bus_goes_away_while_polkit_is_asked(answer: Answer, gone: bool) -> None:
    polkit = FakePolkit(answer)
    who = Authority(Bus(), polkit)
    polkit.go.clear()
    began: list[Any] = []
    calls = [in_turn(who, request(interactive=True), 0, began.append) for _ in range(3)]
    await spin()
    assert len(polkit.checked) == 1
    who.forget(polkit)
    polkit.gone = gone
    polkit.go.set()
    for call in calls:
        with pytest.raises(AccessDenied, match="is gone"):
            await call
    assert (began, polkit.challenged, len(polkit.checked)) == ([], [], 1)


async def test_a_user_has_few_dialogues_at_a_time() -> None:
    polkit = FakePolkit(Answer.CHALLENGE)
    who = Authority(Bus(), polkit)
    senders = [f":1.{number}" for number in range(authority.DIALOGUES_MAX)]

    def start(sender: str) -> asyncio.Future[Credentials]:
        return in_turn(who, request(sender, interactive=True))

    for sender in senders:  # who they are first, so that it is the dialogue that waits
        await start(sender)
    polkit.challenged.clear()
    polkit.go.clear()
    open_ones = [start(sender) for sender in senders]
    await spin()
    polkit.go.set()
    for _ in range(2):  # the checks are answered, the challenges wait
        await asyncio.sleep(0)
    polkit.go.clear()
    await spin()
    assert len(polkit.challenged) == authority.DIALOGUES_MAX
    polkit.go.set()
    assert [found.uid for found in await asyncio.gather(*open_ones)] == [STRANGER] * len(senders)
    assert (await start(":1.99")).uid == STRANGER


async def test_one_dialogue_more_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(authority, "DIALOGUES_MAX", 0)
    who = Authority(Bus(), FakePolkit(Answer.CHALLENGE))
    with pytest.raises(LimitExceeded, match=f"uid {STRANGER} has 0 authentications under way; finish one"):
        await in_turn(who, request(interactive=True))


# Bounds


@pytest.mark.parametrize("known", [False, True])
@pytest.mark.parametrize(("limit", "size"), [("CALLS_MAX", 0), ("BYTES_MAX", 1)])
async def test_what_waits_for_polkit_is_bounded(
    monkeypatch: pytest.MonkeyPatch, known: bool, limit: str, size: int
) -> None:
    """By user, over all of its connections; nobody else has to do with it."""
    monkeypatch.setattr(authority, limit, 5)
    polkit = FakePolkit()
    bus = Bus()
    who = Authority(bus, polkit)
    if known:
        for sender in (":1.0", ":1.1"):
            await learn(who, sender)
    polkit.go.clear()
    outcomes: list[str] = []

    async def call(awaited: Awaitable[Any]) -> None:
        try:
            await awaited
            outcomes.append("begun")
        except LimitExceeded as error:
            assert f"uid {STRANGER} has" in str(error)
            outcomes.append("refused")

    tasks = []
    for number in range(9):
        try:
            tasks.append(asyncio.ensure_future(call(in_turn(who, request(f":1.{number % 2}"), size, lambda _: None))))
        except LimitExceeded:
            outcomes.append("refused")
    await spin(60)
    bus.said = {"UnixUserID": 0}
    assert (await learn(who, ":1.2")).uid == 0
    polkit.go.set()
    await asyncio.gather(*tasks)
    assert sorted(outcomes) == ["begun"] * 5 + ["refused"] * 4
    outcomes.clear()
    await call(in_turn(who, request(":1.0"), 5 * size, lambda _: None))
    assert outcomes == ["begun"], "what does not wait any more does not count any more"


async def test_root_is_not_counted(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(authority, "CALLS_MAX", 1)
    who = Authority(Bus({"UnixUserID": 0}), FakePolkit(Answer.NO))
    found = await asyncio.gather(*(in_turn(who, request(), 1 << 40, lambda found: found.uid) for _ in range(50)))
    assert found == [0] * 50


async def test_a_reply_that_fails_does_not_hold_up_its_caller_for_ever() -> None:
    who = Authority(Bus(), FakePolkit(Answer.NO))

    def refuse(error: Exception) -> None:
        raise error

    who.in_turn(request(), 7, lambda _: None, refuse)
    who.in_turn(request(), 7, lambda _: None, lambda _: None)
    (runner,) = who._runners
    with pytest.raises(AccessDenied):
        await runner
    assert not (who._bus.lanes or who._bus.calls or who._bus.sizes)
    with pytest.raises(AccessDenied):
        await in_turn(who, request())


@pytest.mark.parametrize(
    "body",
    [
        [b"x" * 1000],
        ["demo", "x" * 1000],
        ["demo", {"backing": Variant("s", "x" * 1000)}],
        ["demo", {"x" * 1000: Variant("y", 1)}],
        [{"a": Variant("av", [Variant("ay", b"x" * 1000)])}],
        [[(1, 2)] * 16],
        [[[1, 2]] * 16],
    ],
)
def test_no_body_looks_smaller_than_it_is(body: list[Any]) -> None:
    assert 1000 <= size_of(body) <= 5000


# Order, whatever happens

SENDERS = (":1.1", ":1.2")
STEPS = st.lists(
    st.one_of(
        st.tuples(st.just("call"), st.sampled_from(SENDERS), st.sampled_from(Action), st.booleans()),
        st.tuples(st.just("answer"), st.integers(0, 3), st.sampled_from(Answer), st.booleans()),
        st.tuples(st.just("tick"), st.just(0), st.just(0), st.just(False)),
    ),
    min_size=1,
    max_size=40,
)


class Scripted(FakePolkit):
    """Is answered question by question, in any order; keeps grants or not."""

    def __init__(self) -> None:
        super().__init__()
        self.open: list[tuple[Question, asyncio.Future[Answer]]] = []

    async def check(self, question: Question) -> Answer:
        return await self._put(question)

    async def challenge(self, question: Question) -> Answer:
        return await self._put(question)

    async def _put(self, question: Question) -> Answer:
        future: asyncio.Future[Answer] = asyncio.get_running_loop().create_future()
        self.open.append((question, future))
        return await future

    def say(self, index: int, answer: Answer, keep: bool) -> None:
        if self.open:
            question, future = self.open.pop(index % len(self.open))
            if answer is Answer.YES and keep:
                self.known.add(question)
            future.set_result(answer)


@settings(deadline=None, max_examples=300)
@given(STEPS)
def test_the_calls_of_each_caller_begin_in_order_and_each_ends_once(steps: list[Any]) -> None:
    asyncio.run(_play(steps))


async def _play(steps: list[Any]) -> None:
    polkit = Scripted()
    who = Authority(Bus(), polkit)
    begun: dict[str, list[int]] = {sender: [] for sender in SENDERS}
    ended: list[int] = []
    tasks: list[asyncio.Task[None]] = []
    made = 0

    async def wait(number: int, awaited: Awaitable[Any]) -> None:
        with contextlib.suppress(AccessDenied, LimitExceeded):
            await awaited
        ended.append(number)

    def call(number: int, wanted: Request) -> None:
        """What the router does with a call."""

        def begin(_: Credentials) -> None:
            begun[wanted.sender].append(number)

        found = who.decided(wanted)
        if found is not None:
            begin(found)
            ended.append(number)
        else:
            tasks.append(asyncio.create_task(wait(number, in_turn(who, wanted, 0, begin))))

    for kind, first, second, flag in steps:
        if kind == "call":
            call(made, request(first, second, interactive=flag))
            made += 1
        elif kind == "answer":
            polkit.say(first, second, flag)
        else:
            await asyncio.sleep(0)
        assert len({question.sender for question, _ in polkit.open}) == len(polkit.open), "one question per caller"
    while not all(task.done() for task in tasks):
        polkit.say(0, Answer.YES, False)
        await asyncio.sleep(0)
    assert sorted(ended) == list(range(made))
    for numbers in begun.values():
        assert numbers == sorted(numbers)
    assert all(who._bus.lanes.get(sender) is None for sender in SENDERS)
    assert not (who._bus.calls or who._bus.sizes or who._bus.dialogues)
