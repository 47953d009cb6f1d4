# SPDX-FileCopyrightText: 2026 The doorbelld authors
# SPDX-License-Identifier: GPL-2.0-or-later
"""doorbellctl on a terminal of 80 and of 200 columns: what a person sees there."""

from __future__ import annotations

import contextlib
import itertools
import re
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from support.daemon import BIN, Daemon
from support.dbusclient import until
from support.screen import Screen, Session

from .test_ctl import Ctl, ctl, guest, join
from .test_ctl_clients import settle

__all__ = ["ctl"]  # a fixture

CONFIG = """[region.demonstration]
vectors = 3
[region.other]
vectors = 3
[client.laboratory]
socket = "{0}/other/socket"
[flat.microcontroller]
socket = "{0}/other/socket"
[device.disk-of-the-first-guest]
type = "loopback"
[device.entropy]
type = "rng"
"""
NAMES = ("demonstration", "laboratory", "microcontroller", "disk-of-the-first-guest", "entropy")
NARROW, WIDE = 80, 200
TABLES = [
    *([], ["clients"], ["flats"], ["devices"], ["peers", "demonstration"], ["queues", "entropy"]),
    *(["status", "demonstration"], ["peers", "laboratory"], ["top", "-n", "2", "-d", "0.05"]),
]


@pytest.fixture(scope="module")
def daemon() -> Iterator[Daemon]:
    """A daemon whose sockets have paths that do not fit into a table on 80 columns."""
    directory = Path(tempfile.mkdtemp(prefix="a-long-directory-"))
    with Daemon(directory, CONFIG.format(directory / "run")) as running:
        settle(Ctl(running.bus))
        with (
            join(running, "demonstration"),
            guest(running, "demonstration", "a-guest-with-a-rather-long-name-of-its-own"),
        ):
            yield running
    shutil.rmtree(directory)


def shown(ctl: Ctl, columns: int, *words: str) -> list[str]:
    """Run it on a terminal of 24 rows, and give all rows that were ever on it."""
    environment = {name: value for name, value in ctl.environment.items() if name.startswith("DOORBELLD")}
    screen = Screen(24, columns)
    with Session([BIN / "doorbellctl", *words], screen=screen, environment=environment) as session:
        assert session.ends() == 0
    return screen.all


def tables(rows: list[str]) -> list[list[list[str]]]:
    """Give the tables in *rows*, as cells; the paths below their rows are left out."""
    blocks = [list(block) for blank, block in itertools.groupby(rows, lambda row: not row) if not blank]
    return [
        [re.split(r" {2,}", row.strip()) for row in block if not row.startswith("  /")]
        for block in blocks
        if re.fullmatch(r"[A-Z /()-]+", block[0])
    ]


def table(rows: list[str], heading: str) -> list[list[str]]:
    """Give the first table whose first heading is *heading*."""
    return next(found for found in tables(rows) if found[0][0] == heading)


@pytest.mark.parametrize("columns", [NARROW, WIDE])
@pytest.mark.parametrize("words", TABLES, ids=" ".join)
def test_each_row_of_table_is_one_line(ctl: Ctl, daemon: Daemon, words: list[str], columns: int) -> None:
    found = tables(shown(ctl, columns, *words))
    assert found
    for headings, *rows in found:
        assert rows
        assert {len(row) for row in rows} == {len(headings)}, rows


@pytest.mark.parametrize("columns", [NARROW, WIDE])
def test_names_and_paths_are_whole_on_any_terminal(ctl: Ctl, daemon: Daemon, columns: int) -> None:
    rows = shown(ctl, columns)
    names = [cells[0] for heading in ("CLIENT", "FLAT DEVICE", "DEVICE") for cells in table(rows, heading)[1:]]
    assert set(names) == {*NAMES} - {"demonstration"}
    for name in ("demonstration", "disk-of-the-first-guest", "entropy"):
        path = str(daemon.socket(name))
        assert (f"  {path}" in rows) is (columns == NARROW)
        assert any(row.endswith(f"  {path}") for row in rows)
    assert any("a-guest-with-a-rather-long-name-of-its-own" in row for row in rows)


def test_since_is_age_on_terminal_and_date_with_no_trunc(ctl: Ctl, daemon: Daemon) -> None:
    wide, narrow = (shown(ctl, columns, "peers", "demonstration") for columns in (WIDE, NARROW))
    assert re.search(r" a-guest-with-a-rather-long-name-of-its-own .* \d+ (s|min) ", wide[2])
    assert "UID" in wide[0]
    assert "UID" not in narrow[0]
    for words in (["--no-trunc", "peers", "demonstration"], ["peers", "--no-trunc", "demonstration"]):
        whole = "".join(shown(ctl, NARROW, *words))
        assert re.search(r" a-guest-with-a-rather-long-name-of-its-own .* 20\d\d-\d\d-\d\d ", whole)
        assert "UID" in whole


def test_top_leaves_last_look_on_terminal(ctl: Ctl, daemon: Daemon) -> None:
    with Session(
        [BIN / "doorbellctl", "top", "-n", "2", "-d", "0.05"],
        screen=Screen(24, NARROW),
        environment={"DOORBELLD_BUS": daemon.bus},
    ) as session:
        assert session.ends() == 0
        assert session.left_in_order()
    rows = session.screen.text
    assert re.fullmatch(r"\d\d:\d\d:\d\d  every 0.05 s", rows[0])
    assert {cells[0] for cells in table(rows, "REGION")[1:]} == {"demonstration", "other"}
    assert {cells[0] for cells in table(rows, "DEVICE")[1:]} == {"disk-of-the-first-guest", "entropy"}
    assert table(rows, "REGION")[0][:3] == ["REGION", "PEERS", "BACKLOG"]


@contextlib.contextmanager
def at_terminal(daemon: Daemon, *words: str) -> Iterator[Session]:
    """Run it on a terminal of 200 columns, to be typed at."""
    environment = {"DOORBELLD_BUS": daemon.bus, "PS1": "", "ENV": ""}
    with Session([BIN / "doorbellctl", *words], screen=Screen(24, WIDE), environment=environment) as session:
        yield session


def test_wait_on_terminal_says_how_to_end_it(ctl: Ctl, daemon: Daemon) -> None:
    with at_terminal(daemon, "wait", "other", "1") as session:
        session.shows("waiting for a ring of other; Ctrl-C ends it")
        ctl("notify", "other", "host", 1)
        session.shows("other: vector 1: 1 ring, 1 in all")
        assert session.ends() == 0


def test_attach_on_terminal_tells_joins_knows_host_and_how_to_end_it(ctl: Ctl, daemon: Daemon) -> None:
    with at_terminal(daemon, "attach", "other") as session:
        session.shows("type help for the words; quit or Ctrl-D ends it (Ctrl-C only drops the line)")
        before = ctl.json("status", "other", "--json")["host-rings"][2]
        session.type("int host 2\r")
        until(lambda: ctl.json("status", "other", "--json")["host-rings"][2] == before + 1, "the host to be rung")
        with join(daemon, "other"):
            session.until(lambda screen: any(re.fullmatch(r"peer \d+ joined", row) for row in screen.all))
        session.until(lambda screen: any(re.fullmatch(r"peer \d+ left", row) for row in screen.all))
        session.type("quit\r")
        assert session.ends() == 0


def test_shell_that_is_a_peer_says_so_on_terminal(ctl: Ctl, daemon: Daemon) -> None:
    with at_terminal(daemon, "attach", "other", "--exec", "sh") as session:
        session.until(
            lambda screen: any(re.match(r"in this shell you are peer \d+ of other: ", row) for row in screen.all)
        )
        session.type("exit\r")
        assert session.ends() == 0
