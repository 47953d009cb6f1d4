# SPDX-FileCopyrightText: 2026 The doorbelld authors
# SPDX-License-Identifier: GPL-2.0-or-later
"""Each kind of event has an ID and an explanation, and none is forgotten."""

from __future__ import annotations

import ast
import re
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import pytest
from doorbelld.log import LOST, UNPRINTABLE
from doorbelld.service.journal import field_name
from doorbelld.service.messages import MESSAGE_IDS
from support.needs import require

ROOT = Path(__file__).parents[3]
PACKAGE = ROOT / "daemon" / "doorbelld"
CATALOG = ROOT / "packaging" / "doorbelld.catalog"
TOLD = ("info", "warning", "error", "critical", "exception")
"""Levels whose events need an ID."""
LEVELS = (*TOLD, "debug")


@dataclass
class Entry:
    """One entry of the catalog."""

    headers: dict[str, str] = field(default_factory=dict)
    body: str = ""


def catalog(text: str) -> dict[str, Entry]:
    """Read a catalog as journalctl does: comments anywhere, headers up to the first blank line."""
    entries: dict[str, Entry] = {}
    entry = Entry()
    in_headers = True
    for line in text.splitlines():
        if line.startswith(("#", ";")):
            continue
        if match := re.fullmatch(r"-- ([0-9a-f]{32})", line):
            assert match[1] not in entries, f"{match[1]} is there twice"
            entry = entries[match[1]] = Entry()
            in_headers = True
        elif in_headers and line:
            name, _, value = line.partition(": ")
            entry.headers[name] = value
        else:
            in_headers = False
            entry.body += line + "\n"
    return entries


@pytest.fixture(scope="module")
def entries() -> dict[str, Entry]:
    return catalog(CATALOG.read_text())


def test_ids_are_unique_and_well_formed() -> None:
    assert len(set(MESSAGE_IDS.values())) == len(MESSAGE_IDS)
    for event, identity in MESSAGE_IDS.items():
        assert re.fullmatch(r"[0-9a-f]{32}", identity), event
        assert (identity[12], identity[16] in "89ab") == ("4", True), f"{event}: not a random one (UUID version 4)"


def test_the_catalog_explains_each_event_and_nothing_else(entries: dict[str, Entry]) -> None:
    events = {identity: event for event, identity in MESSAGE_IDS.items()}
    assert [event for identity, event in events.items() if identity not in entries] == []
    assert [entry.headers for identity, entry in entries.items() if identity not in events] == []


def test_each_entry_is_whole(entries: dict[str, Entry]) -> None:
    for event, identity in MESSAGE_IDS.items():
        entry = entries[identity]
        assert entry.headers.keys() == {"Subject", "Defined-By", "Documentation"}, event
        assert entry.headers["Defined-By"] == "doorbelld", event
        assert len(entry.body.split()) >= 12, f"{event}: that explains nothing"
        assert max(map(len, entry.body.splitlines())) <= 85, f"{event}: journalctl does not wrap it"
        assert "@" not in re.sub(r"@[A-Z_]+@", "", entry.body + entry.headers["Subject"]), event


# What the source says


@dataclass(frozen=True)
class Said:
    """A place that logs: the sentence and its keys, or what keeps us from knowing them."""

    sentence: str
    keys: frozenset[str]
    where: str
    level: str
    unclear: str = ""


def said(source: str, name: str) -> Iterator[Said]:
    """Find what a module logs: ``log.info(sentence, ...)``, and ``limited(log.info, key, sentence, ...)``."""
    tree = ast.parse(source)
    loggers, constants = set(), {}
    for node in ast.walk(tree):
        if isinstance(node, ast.Assign) and isinstance(node.targets[0], ast.Name):
            if isinstance(node.value, ast.Call) and ast.unparse(node.value.func).endswith("get_logger"):
                loggers.add(node.targets[0].id)
            if isinstance(node.value, ast.Constant) and isinstance(node.value.value, str):
                constants.setdefault(node.targets[0].id, []).append((node.lineno, node.value.value))
    clear: set[ast.expr] = set()

    def methods(nodes: list[ast.expr]) -> list[int]:
        return [index for index, node in enumerate(nodes) if _method(node, loggers)]

    for node in ast.walk(tree):
        if not isinstance(node, ast.Call):
            continue
        if methods([node.func]):
            method, rest = node.func, node.args
        elif passed := methods(node.args):
            method, rest = node.args[passed[0]], node.args[passed[0] + 2 :]
        else:
            continue
        clear.add(method)
        level = method.attr if isinstance(method, ast.Attribute) else ""
        where = f"{name}:{node.lineno}"
        keys = frozenset(word.arg for word in node.keywords if word.arg)
        match rest:
            case [ast.Constant(value=str(sentence)), *_]:
                yield Said(sentence, keys, where, level)
            case [ast.Name(id=variable), *_] if variable in constants:
                above = [text for line, text in sorted(constants[variable]) if line <= node.lineno]
                yield Said(above[-1] if above else constants[variable][0][1], keys, where, level)
            case _:
                yield Said("", keys, where, level, "the sentence is no literal: give details as keys")
    for node in ast.walk(tree):
        if isinstance(node, ast.expr) and _method(node, loggers) and node not in clear:
            yield Said("", frozenset(), f"{name}:{node.lineno}", "", "this use of a log method can't be followed")


def _method(node: ast.expr, loggers: set[str]) -> bool:
    """Tell whether *node* is ``log.info`` or the like."""
    if not isinstance(node, ast.Attribute) or node.attr not in LEVELS:
        return False
    owner = node.value
    return (
        ast.unparse(owner.func).endswith("get_logger")
        if isinstance(owner, ast.Call)
        else (isinstance(owner, ast.Name) and owner.id in loggers)
    )


def everything() -> list[Said]:
    return [
        one for file in sorted(PACKAGE.rglob("*.py")) for one in said(file.read_text(), str(file.relative_to(PACKAGE)))
    ]


def test_each_sentence_of_the_source_has_an_id() -> None:
    there = everything()
    assert [f"{one.where}: {one.unclear}" for one in there if one.unclear] == []
    missing = {f"{one.where}: {one.sentence}" for one in there if one.level in TOLD and one.sentence not in MESSAGE_IDS}
    assert missing == set(), "give each an entry in service/messages.py and packaging/doorbelld.catalog"


def test_the_search_finds_what_is_known_to_be_there() -> None:
    sentences = {one.sentence for one in everything()}
    assert {"ready", "peer joined", "connection refused", "no message bus yet"} <= sentences
    assert "max-peers is more than the descriptor limit allows" in sentences  # in a variable


def test_what_the_log_says_of_itself_has_an_id() -> None:
    assert {LOST, UNPRINTABLE} <= MESSAGE_IDS.keys()


@pytest.mark.parametrize("call", ["log.info(f'peer {n} joined')", "log.info(sentence)", "limited(log.info, 'k')"])
def test_a_sentence_that_is_not_literal_is_found(call: str) -> None:
    (one,) = said(f"log = structlog.get_logger()\n{call}\n", "m.py")
    assert "no literal" in one.unclear


def test_a_logger_made_on_the_spot_is_found() -> None:
    (one,) = said("structlog.get_logger().error('oops', errno=5)\n", "m.py")
    assert (one.sentence, one.keys, one.level) == ("oops", {"errno"}, "error")


def test_a_log_method_that_goes_astray_is_found() -> None:
    (one,) = said("log = structlog.get_logger()\nsay = log.info\n", "m.py")
    assert "can't be followed" in one.unclear


def test_entries_name_fields_that_their_events_have(entries: dict[str, Entry]) -> None:
    keys: dict[str, list[frozenset[str]]] = {}
    for one in everything():
        keys.setdefault(one.sentence, []).append(one.keys)
    for event, identity in MESSAGE_IDS.items():
        entry = entries[identity]
        used = set(re.findall(r"@([A-Z_]+)@", entry.headers["Subject"] + entry.body)) - {"MESSAGE_ID"}
        for given in keys.get(event, []):
            assert used <= {field_name(key) for key in given}, event


def test_journalctl_takes_the_catalog(tmp_path: Path, entries: dict[str, Entry]) -> None:
    journalctl = require("journalctl", "systemd")
    folder = tmp_path / "usr/lib/systemd/catalog"
    folder.mkdir(parents=True)
    (folder / CATALOG.name).write_text(CATALOG.read_text())
    subprocess.run([journalctl, f"--root={tmp_path}", "--update-catalog"], check=True, capture_output=True)
    listed = subprocess.run(
        [journalctl, f"--root={tmp_path}", "--list-catalog"], check=True, capture_output=True, text=True
    ).stdout
    assert dict(line.split(" ", 1) for line in listed.splitlines()) == {
        identity: f"doorbelld: {entry.headers['Subject']}" for identity, entry in entries.items()
    }
