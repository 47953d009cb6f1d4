# SPDX-FileCopyrightText: 2026 The doorbelld authors
# SPDX-License-Identifier: GPL-2.0-or-later
"""The words of a client, against an independent server. Processes and terminals: tests/integration."""

from __future__ import annotations

import contextlib
import os
import queue
import socket
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from doorbelld.ivshmem.client import Client
from doorbelld.standalone import repl as repl_module
from doorbelld.standalone.repl import FAILED, HELP, WORDS, Repl
from support.daemon import DEADLINE
from support.fdcount import no_leaks
from support.otherserver import LIES, OtherServer
from support.rawclient import RawClient


class Fake:
    """A screen: a test puts lines into it, and sees what was told."""

    def __init__(self, *lines: str | None, interactive: bool = False) -> None:
        self.interactive = interactive
        self.lines: queue.Queue[str | None] = queue.Queue()
        self.told: list[str] = []
        self.notes: list[str] = []
        self.closed = False
        self._news = threading.Condition()
        for line in lines:
            self.lines.put(line)

    def read(self) -> str | None:
        return self.lines.get(timeout=DEADLINE)

    def tell(self, text: str) -> None:
        with self._news:
            self.told.append(text)
            self._news.notify_all()

    def note(self, text: str) -> None:
        with self._news:
            self.notes.append(text)
            self._news.notify_all()

    def until(self, condition: Callable[[], object]) -> None:
        with self._news:
            assert self._news.wait_for(condition, DEADLINE), (self.told, self.notes)

    def interrupt(self) -> None:
        self.lines.put(None)

    def close(self) -> None:
        self.closed = True


@pytest.fixture
def server(short_path: Path) -> Iterator[OtherServer]:
    with OtherServer(str(short_path / "s"), vectors=3) as made:
        yield made


def run(server: OtherServer, *lines: str | None, **options: bool) -> tuple[int, Fake]:
    """Do *lines*, and give the exit status and the screen."""
    screen = Fake(*lines, interactive=options.pop("interactive", False))
    with contextlib.closing(Client(server.path)) as client:
        status = Repl(client, screen=screen, **options).run()
    assert screen.closed
    return status, screen


def test_nothing_is_left_behind(server: OtherServer) -> None:
    run(server, "quit")  # what is imported and made once
    server.wait_for(lambda: server.connections == 0)
    with no_leaks():
        assert run(server, "int 1 0", "quit")[0] == 0
        server.wait_for(lambda: server.connections == 0)


def test_each_word_of_the_help_is_one(server: OtherServer) -> None:
    assert {line.split()[0].rstrip(",") for line in HELP.splitlines()[:-1]} == set(WORDS)
    status, screen = run(server, "help; ?;;  ; \t", None)
    assert (status, screen.told) == (0, [HELP, HELP])


def test_all_but_us_are_rung_by_int_all(server: OtherServer) -> None:
    with RawClient(server.path, keep=True) as first, RawClient(server.path, keep=True) as second:
        first.greet(3), second.greet(3)
        status, screen = run(server, "int all", "int 1 all", "int 0 2", "quit")
        assert (status, screen.told) == (0, [])
        assert [os.eventfd_read(fd) for fd in first.fds[0]] == [1, 1, 2]
        assert [os.eventfd_read(fd) for fd in second.fds[1]] == [2, 2, 2]


def test_a_ring_of_ours_is_told_before_the_end(server: OtherServer) -> None:
    status, screen = run(server, "int 0 2; int 0 all; quit; int 0 1")
    assert status == 0
    assert set(screen.told) == {f"receive notification from peer_id=0 vector={vector}" for vector in range(3)}


@pytest.mark.parametrize("interactive", [True, False])
def test_only_a_script_fails_with_its_commands(
    server: OtherServer, monkeypatch: pytest.MonkeyPatch, interactive: bool
) -> None:
    monkeypatch.setattr(repl_module, "SETTLE", 0.0)
    status, screen = run(server, "int 5 0", "dump", "quit", interactive=interactive)
    assert status == (0 if interactive else FAILED)
    errors = [line for line in screen.told if "no peer 5" in line]
    assert len(errors) == 1 and any("our ID: 0" in line for line in screen.told)


@pytest.mark.parametrize(
    ("command", "said"),
    [
        ("int 0", "int takes a peer and a vector"),
        ("int", "int takes a peer and a vector"),
        ("int 0 0 0", "int takes a peer and a vector"),
        ("int one 0", "'one' is no peer ID; write a number, or all"),
        ("int 0 ²", "'²' is no vector"),
        ("int 0 -1", "'-1' is no vector"),
        ("int 9999999999999999999999 0", "is no peer ID"),
        ("int 0 999999999", "peer 0 has vectors 0 to 2, not 999999999"),
        ("int all 0", "'all' is no peer ID"),
        ("quit now", "quit takes nothing after it"),
        ("Dump", "did you mean dump?"),
        ("xyz", "type help for those there are"),
    ],
)
def test_errors_name_the_cure(server: OtherServer, monkeypatch: pytest.MonkeyPatch, command: str, said: str) -> None:
    monkeypatch.setattr(repl_module, "SETTLE", 0.0)
    status, screen = run(server, command, "quit")
    assert status == FAILED
    (line,) = screen.told
    assert said in line


def test_a_peer_that_is_about_to_come_is_waited_for(server: OtherServer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(repl_module, "SETTLE", DEADLINE)
    screen = Fake("int 1 2", "quit")
    with contextlib.closing(Client(server.path)) as client, contextlib.ExitStack() as later:
        late = threading.Thread(target=lambda: later.enter_context(RawClient(server.path, keep=True)))
        server_told = screen.note

        def note(text: str) -> None:
            server_told(text)
            late.start()

        screen.note = note  # type: ignore[method-assign]
        assert Repl(client, screen=screen).run() == 0
        late.join()
    assert screen.told == []


def test_comings_and_goings_are_told_to_the_verbose_only(server: OtherServer) -> None:
    for verbose in (True, False):
        screen = Fake()
        with contextlib.closing(Client(server.path)) as client:
            runner = Repl(client, verbose=verbose, screen=screen)

            def play(screen: Fake = screen) -> None:
                screen.until(lambda: screen.notes)
                with RawClient(server.path, keep=True) as raw:
                    raw.greet(3)
                    own, other = client.id, raw.id
                    os.eventfd_write(raw.fds[own][1], 3)
                    screen.until(lambda: any("vector=1" in line for line in screen.told))
                server.wait_for(lambda: other not in server.ids)
                screen.lines.put(None)  # what has been sent by now is told before the end

            player = threading.Thread(target=play)
            player.start()
            runner.run()
            player.join()
        own = int(screen.notes[0].partition("as peer ")[2].split()[0])
        ring = f"receive notification from peer_id={own} vector=1"
        joined, left = f"peer {own + 1} joined", f"peer {own + 1} left"
        assert screen.told == ([joined, f"{ring} (3 times)", left] if verbose else [ring])


def test_an_adopted_client_stays_its_owner_s(server: OtherServer) -> None:
    sock = socket.socket(socket.AF_UNIX)
    sock.connect(server.path)
    screen = Fake("int 0 0", "quit")
    with contextlib.closing(Client.adopt(sock)) as client:
        assert Repl(client, again=False, screen=screen).run() == 0
        assert client.connected and screen.notes == ["connected as peer 0 with 3 vectors; others here: nobody"]
        assert screen.told == ["receive notification from peer_id=0 vector=0"]


def test_without_again_the_end_of_the_server_is_the_end(server: OtherServer) -> None:
    screen = Fake(interactive=True)
    with contextlib.closing(Client(server.path)) as client:
        kicker = threading.Thread(target=lambda: (screen.until(lambda: screen.notes), server.kick(0)))
        kicker.start()
        assert Repl(client, again=False, screen=screen).run() == FAILED
        kicker.join()
    assert screen.notes[-1].endswith("closed the connection; that is the end")


def test_without_again_no_server_is_the_end(short_path: Path) -> None:
    screen = Fake()
    assert Repl(Client(short_path / "nobody"), again=False, screen=screen).run() == FAILED
    (note,) = screen.notes
    assert "no ivshmem server at" in note and "trying again" not in note


def test_a_server_that_lies_is_told(short_path: Path) -> None:
    screen = Fake()
    path = str(short_path / "s")
    with OtherServer(path, script=LIES["version 1"]), contextlib.closing(Client(path)) as client:
        assert Repl(client, again=False, screen=screen).run() == FAILED
    assert "version 1" in screen.notes[-1]


def test_a_server_without_vectors_is_served_after_a_while(short_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(repl_module, "GREETING", 0.01)
    with OtherServer(str(short_path / "s"), vectors=0) as server:
        status, screen = run(server, "dump", "quit")
    assert status == 0
    assert "as peer 0 with 0 vectors" in screen.notes[0] and "our ID: 0" in screen.told[0]


def test_a_person_is_told_that_there_is_no_server(short_path: Path) -> None:
    screen = Fake(interactive=True)
    server = OtherServer(str(short_path / "s")).start()
    with contextlib.closing(Client(server.path)) as client:
        runner = Repl(client, screen=screen)

        def play() -> None:
            screen.until(lambda: "type help for the words" in screen.told)
            server.stop()
            screen.until(lambda: any("trying again" in note for note in screen.notes))
            for line in ("int 0 0", "dump", "quit"):
                screen.lines.put(line)

        player = threading.Thread(target=play)
        player.start()
        assert runner.run() == 0
        player.join()
    wrong = [line for line in screen.told if line.startswith("not connected to")]
    assert len(wrong) == 2 and "wait for it" in wrong[0]


@pytest.mark.parametrize(
    ("line", "word", "choices"),
    [
        ("", "", ["dump", "help", "int ", "quit"]),
        ("", "i", ["int "]),
        ("int ", "", ["all", "0 ", "1 "]),
        ("int ", "a", ["all"]),
        ("dump ; int ", "1", ["1 "]),
        ("int 1 ", "", ["all", "0", "1", "2"]),
        ("int 9 ", "", ["all"]),
        ("int x ", "", []),
        ("int all ", "", []),
        ("int 1 0 ", "", []),
        ("int 1 0;", "du", ["dump"]),
        ("dump ", "", []),
    ],
)
def test_completion(server: OtherServer, line: str, word: str, choices: list[str]) -> None:
    got: list[list[str]] = []
    with contextlib.closing(Client(server.path)) as client, RawClient(server.path) as raw:
        raw.greet(3)

        class Asking(Fake):
            def read(self) -> str | None:
                got.append(runner.complete(line, word))
                return None

        runner = Repl(client, screen=Asking())
        assert runner.complete("int ", "") == ["all"], "nothing is known without a server"
        runner.run()
    assert got == [choices]
