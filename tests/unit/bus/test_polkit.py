# SPDX-FileCopyrightText: 2026 The doorbelld authors
# SPDX-License-Identifier: GPL-2.0-or-later
"""What polkit is asked, what is made of its answers, for how long; and the files that it reads."""

from __future__ import annotations

import asyncio
import re
import xml.etree.ElementTree as ET
from pathlib import Path
from typing import Any

import pytest
import structlog
from doorbelld.bus import polkit
from doorbelld.bus.authority import Action
from doorbelld.bus.library import Message, MessageFlag, MessageType, unwrap
from doorbelld.bus.polkit import Answer, Polkit, Question
from doorbelld.errors import BusUnavailable

DBUS_FILES = Path(__file__).parents[3] / "dbus"
QUESTION = Question(":1.5", "org.doorbelld.Doorbell1.notify", "demo")
OTHER = Question(":1.6", "org.doorbelld.Doorbell1.notify", "demo")
ERROR = "org.freedesktop.DBus.Error."


def said(authorized: bool, challenge: bool, **details: str) -> Any:
    """Make polkit's reply."""
    return Message(
        message_type=MessageType.METHOD_RETURN,
        reply_serial=1,
        signature="(bba{ss})",
        body=[[authorized, challenge, {f"polkit.{key}": value for key, value in details.items()}]],
    )


def failed(name: str) -> Any:
    return Message(message_type=MessageType.ERROR, reply_serial=1, error_name=name, signature="s", body=["the reason"])


def signal(interface: str, member: str, *body: str) -> Any:
    return Message(
        message_type=MessageType.SIGNAL,
        path="/x",
        interface=interface,
        member=member,
        signature="s" * len(body),
        body=list(body),
    )


YES, NO, CHALLENGE = said(True, False), said(False, False), said(False, True)
CHANGED = signal(polkit.INTERFACE, "Changed")


class Bench:
    """A Polkit whose bus we are, with a clock that we set."""

    def __init__(self, reply: Any = YES) -> None:
        self.reply = reply
        self.sent: list[Any] = []
        self.now = 100.0
        self.may_answer = asyncio.Event()
        self.may_answer.set()
        self.polkit = Polkit(self._call, lambda: self.now)

    async def _call(self, message: Any) -> Any:
        self.sent.append(message)
        if message.flags & MessageFlag.NO_REPLY_EXPECTED:
            return None
        await self.may_answer.wait()
        if isinstance(self.reply, Exception):
            raise self.reply
        return self.reply

    async def was_asked(self) -> None:
        async with asyncio.timeout(20):
            while not self.sent:
                await asyncio.sleep(0)


@pytest.mark.parametrize("interactive", [False, True])
async def test_the_question_as_polkit_documents_it(interactive: bool) -> None:
    bench = Bench()
    for _ in range(2):
        answer = await (bench.polkit.challenge(QUESTION) if interactive else bench.polkit.check(QUESTION))
        assert answer is Answer.YES
        bench.polkit.forget()
    first, second = bench.sent
    assert (first.destination, first.path) == ("org.freedesktop.PolicyKit1", "/org/freedesktop/PolicyKit1/Authority")
    assert (first.interface, first.member) == ("org.freedesktop.PolicyKit1.Authority", "CheckAuthorization")
    assert first.signature == "(sa{sv})sa{ss}us"
    subject, action, details, flags, cancellation = unwrap(first.body)
    assert subject == ["system-bus-name", {"name": ":1.5"}]
    assert (action, details) == ("org.doorbelld.Doorbell1.notify", {"region": "demo"})
    assert flags == int(interactive)
    assert bool(cancellation) is interactive
    assert not interactive or cancellation != second.body[4], "an ID for each dialogue"
    assert first._marshall(False), "both libraries can send it"


async def test_what_is_about_no_region_has_no_details() -> None:
    bench = Bench()
    await bench.polkit.check(QUESTION._replace(region=""))
    assert bench.sent[0].body[2] == {}


@pytest.mark.parametrize("interactive", [False, True])
@pytest.mark.parametrize(
    ("reply", "answer"),
    [
        (YES, Answer.YES),
        (said(True, False, temporary_authorization_id="tmp1"), Answer.YES),
        (NO, Answer.NO),
        (CHALLENGE, Answer.CHALLENGE),
        (said(False, True, retains_authorization_after_challenge="1"), Answer.CHALLENGE),
        (said(False, False, dismissed="true"), Answer.DISMISSED),
        (failed(f"{ERROR}ServiceUnknown"), Answer.ABSENT),
        (failed(f"{ERROR}NameHasNoOwner"), Answer.ABSENT),
        (failed(f"{ERROR}NoReply"), Answer.ABSENT),
        (failed(f"{ERROR}Spawn.ChildExited"), Answer.ABSENT),
        (failed(f"{ERROR}LimitsExceeded"), Answer.SILENT),
        (failed(f"{ERROR}TimedOut"), Answer.SILENT),
        (failed(f"{ERROR}AccessDenied"), Answer.ABSENT),
        (failed("org.freedesktop.PolicyKit1.Error.Failed"), Answer.ABSENT),
        (failed("org.freedesktop.PolicyKit1.Error.NotAuthorized"), Answer.ABSENT),
        (Message(message_type=MessageType.METHOD_RETURN, reply_serial=1, signature="b", body=[True]), Answer.ABSENT),
        (Message(message_type=MessageType.METHOD_RETURN, reply_serial=1), Answer.ABSENT),
    ],
)
async def test_what_is_made_of_a_reply(reply: Any, answer: Answer, interactive: bool) -> None:
    bench = Bench(reply)
    with structlog.testing.capture_logs():
        asked = bench.polkit.challenge(QUESTION) if interactive else bench.polkit.check(QUESTION)
        assert await asked is answer
    assert bench.polkit.granted(QUESTION) is (answer is Answer.YES and not interactive)


@pytest.mark.parametrize("reply", [None, EOFError(), OSError(32, "Broken pipe"), BusUnavailable("gone")])
@pytest.mark.parametrize("method", ["check", "challenge"])
async def test_a_bus_that_goes_away(reply: Any, method: str) -> None:
    with pytest.raises(BusUnavailable, match="went away"):
        await getattr(Bench(reply).polkit, method)(QUESTION)


async def test_a_yes_holds_for_some_seconds_and_only_for_what_was_asked() -> None:
    bench = Bench()
    assert await bench.polkit.check(QUESTION) is Answer.YES
    for question in (OTHER, QUESTION._replace(region=""), QUESTION._replace(action="org.doorbelld.Doorbell1.manage")):
        assert not bench.polkit.granted(question)
    bench.reply = NO
    bench.now += polkit.FRESH_SECONDS - 0.1
    assert bench.polkit.granted(QUESTION)
    assert await bench.polkit.check(QUESTION) is Answer.YES
    assert len(bench.sent) == 1
    bench.now += 0.2
    assert not bench.polkit.granted(QUESTION)
    assert await bench.polkit.check(QUESTION) is Answer.NO
    assert len(bench.sent) == 2


@pytest.mark.parametrize("reply", [NO, CHALLENGE])
async def test_what_is_not_a_yes_is_asked_again(reply: Any) -> None:
    bench = Bench(reply)
    await bench.polkit.check(QUESTION)
    bench.reply = YES
    assert await bench.polkit.check(QUESTION) is Answer.YES


ENDS = [
    CHANGED,
    signal("org.freedesktop.DBus", "NameOwnerChanged", polkit.NAME, ":1.9", ""),
    signal("org.freedesktop.DBus", "NameOwnerChanged", polkit.NAME, "", ":1.10"),
]
KEEPS = [
    signal("org.freedesktop.DBus", "NameOwnerChanged", ":1.5", ":1.5", ""),
    signal("org.freedesktop.DBus", "NameOwnerChanged"),
    signal("a.b", "Changed"),
    signal(polkit.INTERFACE, "Other"),
    YES,
]


@pytest.mark.parametrize("message", [*ENDS, *KEEPS])
async def test_what_ends_a_yes(message: Any) -> None:
    bench = Bench()
    await bench.polkit.check(QUESTION)
    bench.polkit.hear(message)
    assert bench.polkit.granted(QUESTION) is (message in KEEPS)


async def test_an_answer_from_before_a_change_is_not_kept() -> None:
    bench = Bench()
    bench.may_answer.clear()
    asking = asyncio.create_task(bench.polkit.check(QUESTION))
    await bench.was_asked()
    bench.polkit.hear(CHANGED)
    bench.may_answer.set()
    assert await asking is Answer.YES
    assert not bench.polkit.granted(QUESTION)


async def test_only_so_many_answers_are_kept_the_latest(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(polkit, "_CACHE_MAX", 3)
    bench = Bench()
    questions = [QUESTION._replace(sender=f":1.{number}") for number in range(5)]
    for question in questions:
        await bench.polkit.check(question)
    assert [bench.polkit.granted(question) for question in questions] == [False, False, True, True, True]


async def test_where_there_is_no_polkit_nobody_asks_for_a_while_or_until_it_comes() -> None:
    bench = Bench(failed(f"{ERROR}ServiceUnknown"))
    with structlog.testing.capture_logs() as logged:
        for question in (QUESTION, OTHER, QUESTION):
            assert await bench.polkit.check(question) is Answer.ABSENT
        assert len(bench.sent) == 1
        bench.now += polkit.FRESH_SECONDS + 0.1
        assert await bench.polkit.check(QUESTION) is Answer.ABSENT
        assert len(bench.sent) == 2
        bench.reply = YES
        bench.polkit.hear(ENDS[-1])
        assert await bench.polkit.check(QUESTION) is Answer.YES
        assert await bench.polkit.check(OTHER) is Answer.YES
    assert [(line["log_level"], line["event"]) for line in logged] == [
        ("warning", "polkit is not there; only root and the daemon's own user may change anything"),
        ("info", "polkit is there again"),
    ]
    assert (logged[0]["reason"], "polkitd" in logged[0]["cure"]) == ("the reason", True)


async def test_a_polkit_that_can_not_tell_is_asked_on_and_said_so_twice_at_most() -> None:
    bench = Bench(failed("org.freedesktop.PolicyKit1.Error.Failed"))
    with structlog.testing.capture_logs() as logged:
        for _ in range(5):
            assert await bench.polkit.check(QUESTION) is Answer.ABSENT
    assert len(bench.sent) == 5
    assert [line["event"] for line in logged] == [
        "polkit can't tell; only root and the daemon's own user may change anything"
    ] * 2


@pytest.mark.parametrize("method", ["check", "challenge"])
async def test_a_polkit_that_hangs(monkeypatch: pytest.MonkeyPatch, method: str) -> None:
    monkeypatch.setattr(polkit, "CHECK_SECONDS", 0.01)
    monkeypatch.setattr(polkit, "CHALLENGE_SECONDS", 0.01)
    bench = Bench()
    bench.may_answer.clear()
    assert await getattr(bench.polkit, method)(QUESTION) is Answer.SILENT
    asked, *rest = bench.sent
    if method == "challenge":  # the dialogue is taken away
        (cancel,) = rest
        assert (cancel.member, cancel.body) == ("CancelCheckAuthorization", [asked.body[4]])
        assert (cancel.signature, cancel.destination) == ("s", polkit.NAME)
    else:
        assert rest == []
    assert not bench.polkit.granted(QUESTION)


# On which bus


@pytest.mark.parametrize(
    ("address", "system"),
    [
        ("unix:path=/run/dbus/system_bus_socket", True),
        ("unix:path=/run/../run/dbus/system_bus_socket", True),
        ("unix:path=/run/dbus/system_bus_socket,guid=0123456789abcdef", True),
        ("unix:guid=0123456789abcdef,path=/run/dbus/system_bus_socket", True),
        ("unix:path=/run/user/1000/bus", False),
        ("unix:abstract=/run/dbus/system_bus_socket", False),
        ("tcp:host=localhost,port=1", False),
        ("unix:", False),
    ],
)
def test_which_bus_is_the_system_bus(monkeypatch: pytest.MonkeyPatch, address: str, system: bool) -> None:
    monkeypatch.delenv("DBUS_SYSTEM_BUS_ADDRESS", raising=False)
    assert polkit.answers_for(address) is system


def test_the_environment_may_say_where_the_system_bus_is(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to(tmp_path)
    monkeypatch.setenv("DBUS_SYSTEM_BUS_ADDRESS", f"unix:path={tmp_path}/bus")
    assert polkit.answers_for(f"unix:path={tmp_path}/link/bus")
    assert not polkit.answers_for("unix:path=/run/dbus/system_bus_socket")
    monkeypatch.setenv("DBUS_SYSTEM_BUS_ADDRESS", "tcp:host=localhost,port=1")
    assert polkit.answers_for("tcp:host=localhost,port=1")


# The files

DEFAULTS = {
    "inspect": ("auth_admin", "auth_admin", "yes"),
    "notify": ("auth_admin", "auth_admin", "auth_admin_keep"),
    "open-memory": ("auth_admin", "auth_admin", "auth_admin_keep"),
    "manage": ("auth_admin", "auth_admin", "auth_admin_keep"),
}
ANNOTATION = "org.freedesktop.policykit."


def policy() -> dict[str, ET.Element]:
    root = ET.parse(DBUS_FILES / "org.doorbelld.Doorbell1.policy").getroot()
    assert (root.tag, bool(root.findtext("vendor"))) == ("policyconfig", True)
    return {action.get("id", ""): action for action in root.findall("action")}


def test_every_action_is_in_the_policy_file_and_no_other() -> None:
    assert set(policy()) == {action.id for action in Action}
    assert set(DEFAULTS) == {action.value for action in Action}


@pytest.mark.parametrize("action", Action)
def test_an_action_says_what_it_is_and_who_may(action: Action) -> None:
    element = policy()[action.id]
    description, message = element.findtext("description", ""), element.findtext("message", "")
    assert description and not description.endswith(".")
    assert message.startswith("Authentication is required to ") and message.endswith(".")
    found = tuple(element.findtext(f"defaults/allow_{who}") for who in ("any", "inactive", "active"))
    assert found == DEFAULTS[action.value]
    notes = {note.get("key", ""): note.text for note in element.findall("annotate")}
    # without it polkit tells a daemon that is not root nothing about others
    assert notes[f"{ANNOTATION}owner"] == "unix-user:doorbelld"
    implied = (notes.get(f"{ANNOTATION}imply") or "").split()
    wanted = {Action.INSPECT: [], Action.MANAGE: [Action.INSPECT, Action.NOTIFY, Action.OPEN_MEMORY]}
    assert implied == [other.id for other in wanted.get(action, [Action.INSPECT])]
    assert set(notes) <= {f"{ANNOTATION}owner", f"{ANNOTATION}imply"}


def test_the_rules_are_javascript_that_every_polkit_takes() -> None:
    """Its engine was an ES5 one until lately."""
    text = (DBUS_FILES / "org.doorbelld.Doorbell1.rules").read_text()
    code = re.sub(r"//[^\n]*", "", text)
    words = set(re.findall(r"[A-Za-z_]+", re.sub(r'"[^"\n]*"', '""', code)))
    assert not words & {"let", "const", "class", "of", "async", "await", "import", "startsWith", "includes"}
    assert "=>" not in code and "`" not in code and "..." not in code
    for opening, closing in ("()", "{}", "[]"):
        assert code.count(opening) == code.count(closing)
    assert code.count("polkit.addRule(function (action, subject) {") == 1
    assert 'subject.isInGroup("doorbelld")' in code
    assert '"org.doorbelld.Doorbell1."' in code
    assert code.rstrip().endswith("});")


def test_the_bus_policy_lets_root_and_the_daemons_user_own_the_name_and_nobody_else() -> None:
    name = "org.doorbelld.Doorbell1"
    root = ET.parse(DBUS_FILES / f"{name}.conf").getroot()
    owners = [entry.get("user") for entry in root.findall("policy") if entry.find("allow[@own]") is not None]
    assert owners == ["doorbelld", "root"]
    (default,) = [entry for entry in root.findall("policy") if entry.get("context") == "default"]
    assert [rule.attrib for rule in default] == [{"send_destination": name}, {"receive_sender": name}]
