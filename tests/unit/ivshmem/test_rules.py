# SPDX-FileCopyrightText: 2026 The doorbelld authors
# SPDX-License-Identifier: GPL-2.0-or-later
from __future__ import annotations

import json
from pathlib import Path

import pytest
from doorbelld.errors import InvalidOptions
from doorbelld.fds.peercred import Credentials
from doorbelld.ivshmem.rules import Match, PeerRule, describe, first_match, parse_rules, takes_leaves

WHO = Credentials(pid=100, uid=1000, gid=1001, vm_name="web1", unit="qemu@web1.service")


@pytest.mark.parametrize(
    ("match", "hit"),
    [
        (Match(), True),
        (Match(vm="web1"), True),
        (Match(vm="web*"), True),
        (Match(vm="WEB1"), False),
        (Match(vm="web"), False),
        (Match(uid=1000), True),
        (Match(uid=0), False),
        (Match(gid=1001), True),
        (Match(gid=0), False),
        (Match(unit="qemu@*.service"), True),
        (Match(unit="qemu"), False),
        (Match(vm="web1", uid=1000, gid=1001, unit="qemu@*"), True),
        (Match(vm="web1", uid=1001), False),
        (Match(pid_file="/no/such/file"), False),
    ],
)
def test_match(match: Match, hit: bool) -> None:
    assert match(WHO) is hit


@pytest.mark.parametrize("match", [Match(vm="*"), Match(unit="*")])
def test_the_unknown_match_no_pattern(match: Match) -> None:
    assert not match(Credentials(1, 0, 0))


@pytest.mark.parametrize(("text", "hit"), [("100", True), (" 100\n", True), ("101", False), ("x", False), ("", False)])
def test_pid_file(tmp_path: Path, text: str, hit: bool) -> None:
    (tmp_path / "pid").write_text(text)
    assert Match(pid_file=str(tmp_path / "pid"))(WHO) is hit


def test_first_match_counts() -> None:
    first, second, third = PeerRule(Match(vm="db")), PeerRule(Match(uid=1000)), PeerRule(Match())
    assert first_match([first, second, third], WHO) is second
    assert first_match([first], WHO) is None
    assert first_match([], WHO) is None


@pytest.mark.parametrize(
    ("may_ring", "peer_id", "vm", "is_host", "allowed"),
    [
        (("*",), 3, "", False, True),
        ((), 3, "x", False, False),
        (("3",), 3, "", False, True),
        (("3",), 33, "", False, False),
        (("web*",), 3, "web9", False, True),
        (("web*",), 3, "db", False, False),
        (("host",), 65535, "", True, True),
        (("host",), 3, "web", False, False),
        (("web",), 65535, "web", True, False),
        (("65535",), 65535, "", True, True),
        (("a", "b"), 1, "b", False, True),
        (("7",), 3, "7", False, False),
        (("host",), 3, "host", False, False),
        (("h*",), 65535, "", True, False),
    ],
)
def test_may_ring(may_ring: tuple[str, ...], peer_id: int, vm: str, is_host: bool, allowed: bool) -> None:
    rule = PeerRule(Match(), may_ring=may_ring)
    assert rule.allows(peer_id, vm, is_host) is allowed
    assert rule.allows_all is (may_ring == ("*",))


def test_parse() -> None:
    rules = parse_rules(
        [
            {"match": {"vm": "web1", "uid": "root", "gid": 0, "pid-file": "/run/x"}, "id": 7, "may-ring": ["host"]},
            {"match": {}},
        ]
    )
    assert rules == (
        PeerRule(Match(vm="web1", uid=0, gid=0, pid_file="/run/x"), id=7, may_ring=("host",)),
        PeerRule(Match()),
    )


def test_parse_lists_all_problems() -> None:
    with pytest.raises(InvalidOptions) as caught:
        parse_rules(
            [
                {"match": {"units": "x", "uid": "no-such-user-here"}, "id": 65536},
                {"id": 7},
                {"match": 3, "may_ring": []},
                "x",
                {"match": {"uid": True}},
            ]
        )
    text = str(caught.value).splitlines()
    assert text[0] == '[0].match.units: unknown key; did you mean "unit"?'
    assert text[1:] == [
        "[0].match.uid: 'no-such-user-here' is not known on this host; write a name that is, or a number",
        "[0].id: 65536 is out of range; write a number from 0 to 65535",
        "[1].match: missing; it has no default, so write it",
        '[2].match: 3 is no table; write one such as { vm = "guest1" }',
        '[2].may_ring: unknown key; did you mean "may-ring"?',
        "[3]: is no table; write [[region.NAME.peer]]",
        "[4].match.uid: True is not a name; write a string in quotes",
    ]


def test_an_id_has_one_rule() -> None:
    with pytest.raises(InvalidOptions, match="ID 7 is given to two rules; give each its own"):
        parse_rules([{"match": {"vm": "a"}, "id": 7}, {"match": {"vm": "b"}, "id": 7}])
    with pytest.raises(ValueError, match="is no array of tables"):
        parse_rules({"match": {}})


def test_describe() -> None:
    assert describe(Match()) == "anybody"
    assert describe(Match(vm="web*", pid_file="/x")) == "vm=web*, pid-file=/x"


@pytest.mark.parametrize(
    "rule",
    [
        PeerRule(Match()),
        PeerRule(Match(), may_ring=()),
        PeerRule(Match(vm="web*", uid=0, gid=4294967294, unit="u", pid_file="/x"), id=0, may_ring=("host", "7", "*")),
        PeerRule(Match(uid=0)),
        PeerRule(Match(vm="\u00e9"), id=65535),
    ],
)
def test_raw_read_back_is_the_same(rule: PeerRule) -> None:
    """The rule under which a peer came is part of its region's state."""
    assert PeerRule.from_raw(json.loads(json.dumps(rule.raw()))) == rule
    assert parse_rules([rule.raw()]) == (rule,)


@pytest.mark.parametrize("raw", [{}, {"match": {"vm": 3}}, {"match": {}, "id": -1}, {"match": {}, "may-ring": "x"}])
def test_raw_that_is_no_rule_is_refused(raw: dict[str, object]) -> None:
    with pytest.raises(InvalidOptions):
        PeerRule.from_raw(raw)


@pytest.mark.parametrize(
    ("said", "asked", "program", "takes"),
    [
        (None, None, "doorbell-client", True),
        (None, None, "doorbelld", True),
        (None, None, "qemu-system-x86_64", False),
        (None, None, "my-doorbell-client", False),
        (None, None, "doorbell-client\n", False),
        (None, None, "", False),
        (None, True, "qemu-system-x86_64", True),
        (None, False, "doorbell-client", False),
        (True, False, "qemu-system-x86_64", True),
        (False, True, "doorbell-client", False),
        (False, None, "doorbell-client", False),
    ],
)
def test_leaves_are_told_as_the_rule_says_then_the_caller_then_the_program(
    said: bool | None, asked: bool | None, program: str, takes: bool
) -> None:
    who = Credentials(pid=100, uid=1000, gid=1000, program=program)
    assert takes_leaves(PeerRule(Match(), tell_leaves=said), who, asked) is takes
    if said is None:
        assert takes_leaves(None, who, asked) is takes
