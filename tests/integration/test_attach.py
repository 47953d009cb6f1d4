# SPDX-FileCopyrightText: 2026 The doorbelld authors
# SPDX-License-Identifier: GPL-2.0-or-later
"""``doorbellctl attach``: real children, with a real daemon, in both ways (staying as the parent, and handing over)."""

from __future__ import annotations

import os
import pty
import re
import select
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from doorbelld.ivshmem.client import Client, Rung
from support import attached
from support.attached import Attached
from support.daemon import BIN, DEADLINE, Daemon
from support.dbusclient import until
from support.needs import require

from .test_ctl import VECTORS, Ctl, complete, ctl, daemon, guest, region
from .test_ctl_live import Running
from .test_restart import Site, site

__all__ = ["ctl", "daemon", "region", "site"]  # fixtures

CONFIG = '[region.other]\nsize = "64K"\n'
HOST = 65535
STAY, OVER = (), ("--hand-over",)
FULL = (1 << 64) - 2
EXAMPLES = Path(__file__).parents[2] / "docs" / "attach.md"
SIGNALLED = 128


def start(ctl: Ctl, region: str, kind: str, *words: object) -> Attached:
    return Attached.start(region, kind, ctl.environment, *words)


def peers(ctl: Ctl, region: str) -> list[int]:
    return [peer["id"] for peer in ctl.json("describe")["regions"][region]["peers"]]


def host_rings(ctl: Ctl) -> list[int]:
    return list(ctl.json("describe")["regions"]["demo"]["host-rings"])


def knows(client: Client, *ids: int) -> None:
    """Have *client* learn of these peers, and of nobody else but the host."""
    client.wait_for(lambda: set(client.peers) == {HOST, *ids} and all(p.vectors == VECTORS for p in client), DEADLINE)


def hears(client: Client, vector: int) -> int:
    """Wait until *client* is rung at *vector*, and give how often."""
    while True:
        events = client.poll(DEADLINE)
        assert events, "nobody rings"
        if count := sum(event.count for event in events if isinstance(event, Rung) and event.vector == vector):
            return count


# What the command finds


@pytest.mark.parametrize("way", [STAY, OVER])
def test_what_a_command_finds(daemon: Daemon, ctl: Ctl, region: str, way: tuple[str, ...]) -> None:
    stale = {"DOORBELL_PEER_9": "77 78", "DOORBELL_GONE_FD": "66", "DOORBELL_SOCKET_FD": "67"}
    with (
        Client(daemon.socket(region)) as other,
        Attached.start(region, "raw", {**ctl.environment, **stale}, *way).greet() as child,
    ):
        known, variables = child.known, child.known["variables"]
        link = "DOORBELL_SOCKET_FD" if way else "DOORBELL_GONE_FD"
        lists = ["DOORBELL_FDS", "DOORBELL_PEER_0", f"DOORBELL_PEER_{HOST}"]
        assert set(variables) == {
            *("DOORBELL_REGION", "DOORBELL_ID", "DOORBELL_VECTORS", "DOORBELL_PEERS"),
            *("DOORBELL_MEMORY_FD", "DOORBELL_MEMORY_SIZE", link, *lists),
        }
        assert known["bus"] == daemon.bus
        assert variables["DOORBELL_REGION"] == region
        assert variables["DOORBELL_VECTORS"] == str(VECTORS)
        assert variables["DOORBELL_MEMORY_SIZE"] == "65536"
        assert {int(word) for word in variables["DOORBELL_PEERS"].split()} == {0, HOST}
        assert all(len(variables[name].split()) == VECTORS for name in lists)
        named = [
            variables["DOORBELL_MEMORY_FD"],
            variables[link],
            *(w for name in lists for w in variables[name].split()),
        ]
        assert known["open"] == sorted([0, 1, 2, *map(int, named)]), "nothing else has leaked into it"
        assert known["blocking"] == [not way] * VECTORS
        assert known["mask"] == []
        assert peers(ctl, region) == [0, child.id]
        assert (known["pid"] == child.process.pid) is bool(way)
        knows(other, child.id)


@pytest.mark.parametrize("way", [STAY, OVER])
@pytest.mark.parametrize("kind", ["raw", "client"])
def test_rings_and_memory_both_ways(daemon: Daemon, ctl: Ctl, region: str, kind: str, way: tuple[str, ...]) -> None:
    with Client(daemon.socket(region)) as other, start(ctl, region, kind, *way).greet() as child:
        knows(other, child.id)
        other.memory[10:15] = b"hello"
        assert child.ask("read", 10, 5) == "hello"
        for vector in range(VECTORS):
            child.ask("ring", other.id, vector)
            assert hears(other, vector) == 1
            if kind == "client" or not way:
                child.tell("take", vector)
                other.notify(child.id, vector)
                assert child.answer() == 1
        ctl("notify", region, child.id)
        assert child.ask("take", 1) == 1
        child.tell("exit", 3)
        assert child.status() == 3
        knows(other)


@pytest.mark.parametrize("way", [STAY, OVER])
def test_rings_from_before_the_start_are_not_lost(daemon: Daemon, ctl: Ctl, region: str, way: tuple[str, ...]) -> None:
    with Client(daemon.socket(region)) as other, start(ctl, region, "client", *way, "--peers", 2) as child:
        knows(other, 1)
        for _ in range(5):
            other.notify(1, 2)
        with Client(daemon.socket(region)):
            child.greet()
            assert sorted(child.known["peers"]) == [0, 2, HOST]
            assert child.ask("take", 2) == 5


def test_a_shell_s_doorbells_block_whatever_others_do(daemon: Daemon, ctl: Ctl, region: str) -> None:
    """They share the real ones, and set them to non-blocking; or fill them."""
    with Client(daemon.socket(region)) as other, start(ctl, region, "raw").greet() as child:
        knows(other, child.id)
        bell = other.search_peer(child.id).eventfds[0]
        for blocking in (False, True):
            os.set_blocking(bell, blocking)
            child.tell("take", 0)
            assert child.process.stdout is not None
            assert not select.select([child.process.stdout], [], [], 0.1)[0], "it waits"
            other.notify(child.id, 0)
            assert child.answer() == 1
        for _ in range(3):  # more than an eventfd holds
            os.eventfd_write(bell, FULL)
            until(lambda: not _pending(bell), "it to be taken")
        assert child.ask("take", 0) == FULL
        other.notify(child.id, 0)
        assert child.ask("take", 0) == 1
        child.tell("exit", 0)
        assert child.status() == 0


def _pending(fd: int) -> int:
    found = re.search(r"eventfd-count:\s*(\w+)", Path(f"/proc/self/fdinfo/{fd}").read_text())
    assert found
    return int(found[1], 16)


@pytest.mark.parametrize("way", [STAY, OVER])
def test_all_vectors_there_can_be(ctl: Ctl, daemon: Daemon, way: tuple[str, ...]) -> None:
    ctl("create", "many", "--size", "64K", "--vectors", 64)
    try:
        with Client(daemon.socket("many")) as other, start(ctl, "many", "client", *way).greet() as child:
            other.wait_for(lambda: len(other.doorbells.get(child.id, ())) == 64, DEADLINE)
            for vector in (0, 63):
                other.notify(child.id, vector)
                assert child.ask("take", vector) == 1
            child.ask("ring", other.id, 63)
            assert hears(other, 63) == 1
    finally:
        ctl("remove", "many", "--yes")


@pytest.mark.parametrize("way", [STAY, OVER])
def test_a_relayed_region(ctl: Ctl, daemon: Daemon, way: tuple[str, ...]) -> None:
    ctl("create", "relayed", "--size", "64K", "--vectors", VECTORS, "--set", "relay=true")
    try:
        with Client(daemon.socket("relayed")) as other, start(ctl, "relayed", "client", *way).greet() as child:
            knows(other, child.id)
            other.notify(child.id, 1)
            assert child.ask("take", 1) == 1
            child.ask("ring", other.id, 2)
            assert hears(other, 2) == 1
    finally:
        ctl("remove", "relayed", "--yes")


# Waiting


def test_it_waits_for_those_that_are_named(daemon: Daemon, ctl: Ctl, region: str) -> None:
    code = "import socket, sys; s = socket.socket(socket.AF_UNIX); s.connect(sys.argv[1]); input()"
    machine = [sys.executable, "-c", code, str(daemon.socket(region)), "-name", "guest=friend"]
    waits = ("--wait-for", "friend", "--wait-for", "2", "--wait-for", "host", "--timeout", "30s")
    with start(ctl, region, "client", *waits) as child:
        until(lambda: peers(ctl, region) == [0], "it to join")
        with subprocess.Popen(machine, stdin=subprocess.PIPE) as friend:
            until(lambda: peers(ctl, region) == [0, 1], "the machine")
            assert child.process.stdout is not None
            assert not select.select([child.process.stdout], [], [], 0.1)[0], "one is missing"
            with Client(daemon.socket(region)):
                assert sorted(child.greet().known["peers"]) == [1, 2, HOST]
            friend.communicate(b"\n")


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("--peers", 2), "2 peers not there after 0.05 s; there is: 0"),
        (("--wait-for", "nobody"), "nobody not there"),
        (("--wait-for", "0", "--wait-for", "9"), ": 9 not there"),
    ],
)
def test_it_does_not_wait_for_ever(daemon: Daemon, ctl: Ctl, region: str, words: tuple[object, ...], said: str) -> None:
    with Client(daemon.socket(region)):
        assert said in ctl.refused("attach", region, *words, "--timeout", "50ms", "--exec", "true", status=124)
    until(lambda: not peers(ctl, region), "it to be gone")


def test_the_region_ends_while_it_waits(ctl: Ctl, region: str) -> None:
    with Running(ctl, "attach", region, "--peers", "5", "--exec", "true") as waiting:
        until(lambda: peers(ctl, region), "it to join")
        ctl("remove", region, "--yes")
        assert waiting.status() == 1
        assert "closed the connection" in waiting.line("stderr")


def test_ctrl_c_while_it_waits(ctl: Ctl, region: str) -> None:
    with Running(ctl, "attach", region, "--peers", "5", "--exec", "true") as waiting:
        until(lambda: peers(ctl, region), "it to join")
        assert waiting.end(signal.SIGINT) == SIGNALLED + signal.SIGINT


# Ends and signals


@pytest.mark.parametrize("way", [STAY, OVER])
def test_a_signal_ends_it(ctl: Ctl, region: str, way: tuple[str, ...]) -> None:
    with start(ctl, region, "raw", *way).greet() as child:
        child.tell("die", signal.SIGKILL)
        assert child.status() == (-signal.SIGKILL if way else SIGNALLED + signal.SIGKILL)
    until(lambda: not peers(ctl, region), "it to be gone")


def test_signals_go_on(ctl: Ctl, region: str) -> None:
    with start(ctl, region, "raw").greet() as child:
        for number in (signal.SIGHUP, signal.SIGINT, signal.SIGUSR1):
            child.process.send_signal(number)
            assert number in child.ask("caught", int(number))
        child.process.send_signal(signal.SIGTERM)
        assert child.status() == SIGNALLED + signal.SIGTERM


def test_ctrl_c_reaches_a_command_once(ctl: Ctl, region: str) -> None:
    """From the terminal, and not from us as well."""
    ours, theirs = pty.openpty()
    command = [str(BIN / "doorbellctl"), "attach", region, "--exec", sys.executable, attached.__file__, "raw"]
    process = subprocess.Popen(
        ["setsid", "--ctty", "--wait", *command],
        stdin=theirs,
        stdout=theirs,
        stderr=theirs,
        env=ctl.environment,
    )
    os.close(theirs)
    written = b""

    def read_until(what: bytes) -> None:
        nonlocal written
        while what not in written:
            assert select.select([ours], [], [], DEADLINE)[0], written
            written += os.read(ours, 4096)

    try:
        read_until(b"}\r\n")
        os.write(ours, b"\x03")
        read_until(b"^C")
        (parent,) = (peer["pid"] for peer in ctl.json("describe")["regions"][region]["peers"])
        os.kill(parent, signal.SIGUSR1)
        written = b""
        os.write(ours, f"caught {int(signal.SIGUSR1)}\n".encode())
        read_until(b"]\r\n")
        assert f"[{int(signal.SIGINT)}, {int(signal.SIGUSR1)}]".encode() in written
        os.write(ours, b"exit 4\n")
        assert process.wait(DEADLINE) == 4
    finally:
        process.kill()
        process.wait()
        os.close(ours)


@pytest.mark.parametrize("way", [STAY, OVER])
def test_what_can_not_be_run(ctl: Ctl, region: str, way: tuple[str, ...]) -> None:
    assert "PATH" in ctl.refused("attach", region, *way, "--exec", "no-such-program", status=127)
    assert "bash -c" in ctl.refused("attach", region, *way, "--exec", "echo hello", status=127)
    assert "chmod" in ctl.refused("attach", region, *way, "--exec", "/etc/passwd", status=126)
    until(lambda: not peers(ctl, region), "them to be gone")


def test_all_after_exec_is_the_command_s(ctl: Ctl, region: str) -> None:
    assert ctl("attach", region, "--exec", "echo", "--hand-over", "-h", "--", "x") == "--hand-over -h -- x\n"
    assert ctl("attach", region, "--", "echo", "--exec") == "--exec\n"


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("--exec",), "needs a command"),
        (("--",), "needs a command"),
        (("--hand-over",), "--hand-over needs --exec"),
        (("--kill-on-disconnect",), "--kill-on-disconnect needs --exec"),
        (("--hand-over", "--kill-on-disconnect", "--exec", "true"), "nobody is left"),
        (("--verbose", "--exec", "true"), "--verbose"),
        (("--timeout", "soon", "--exec", "true"), "not a duration"),
    ],
)
def test_a_wrong_command_line(ctl: Ctl, words: tuple[str, ...], said: str) -> None:
    assert said in ctl.refused("attach", "other", *words, status=2)


def test_it_is_refused(ctl: Ctl, daemon: Daemon) -> None:
    assert "nowhere" in ctl.refused("attach", "nowhere", "--exec", "true")
    ctl("create", "closed", "--size", "64K", "--max-peers", 1)
    try:
        with Client(daemon.socket("closed")):
            assert "raise max-peers" in ctl.refused("attach", "closed", "--exec", "true")
    finally:
        ctl("remove", "closed", "--yes")


# The region goes, or we do


@pytest.mark.parametrize("kind", ["raw", "client"])
def test_the_region_is_removed(ctl: Ctl, region: str, kind: str) -> None:
    with start(ctl, region, kind).greet() as child:
        child.tell("gone")
        ctl("remove", region, "--yes")
        assert child.answer() == (True if kind == "raw" else "ServerClosed")
        assert "runs, it keeps the memory" in child.complaint()
        child.tell("exit", 5)
        assert child.status() == 5


def test_who_waits_for_a_ring_is_woken_at_the_end(ctl: Ctl, region: str) -> None:
    with start(ctl, region, "raw").greet() as child:
        child.tell("take", 1)
        ctl("disconnect", region, child.id, "--yes")
        assert child.answer() == 1
        assert child.ask("gone") is True
        assert child.ask("take", 2) == 1


def test_the_region_is_removed_after_the_place_was_handed_over(ctl: Ctl, region: str) -> None:
    with start(ctl, region, "client", *OVER).greet() as child:
        child.tell("gone")
        ctl("remove", region, "--yes")
        assert child.answer() == "ServerClosed"


def test_a_command_that_shall_not_outlive_the_region(ctl: Ctl, region: str) -> None:
    with start(ctl, region, "raw", "--kill-on-disconnect").greet() as child:
        ctl("disconnect", region, child.id, "--yes")
        assert child.status() == SIGNALLED + signal.SIGTERM
        assert "SIGTERM" in child.complaint()


def test_killed_it_leaves_nothing_in_the_region(daemon: Daemon, ctl: Ctl, region: str) -> None:
    before = daemon.descriptors()
    with start(ctl, region, "raw").greet() as child:
        child.process.kill()
        assert child.ask("gone") is True
        until(lambda: not peers(ctl, region), "it to be gone")
    until(lambda: daemon.descriptors() == before, "its descriptors to be closed")


# The daemon is restarted


@pytest.mark.parametrize("way", [STAY, OVER])
def test_a_restart_of_the_daemon_is_not_noticed(site: Site, way: tuple[str, ...]) -> None:
    """However it ended. Who was given the connection hears of those who come later, too."""
    site.configure(f'[region.demo]\nsize = "64K"\nvectors = {VECTORS}\n')
    site.manage().start()
    ctl = Ctl(site.bus)
    with Client(site.path()) as other, start(ctl, "demo", "client", "--name", "w", *way).greet() as child:
        knows(other, child.id)
        other.memory[0:5] = b"still"
        for turn, number in enumerate((signal.SIGKILL, signal.SIGTERM), 1):
            other.notify(child.id, 0)
            site.systemd.restart(number)
            site.client()
            assert peers(ctl, "demo") == [other.id, child.id]
            assert [peer["label"] for peer in ctl.json("peers", "demo", "--json")] == ["", "w"]
            assert child.ask("take", 0) == 1
            child.ask("ring", other.id, 1)
            assert hears(other, 1) == 1
            child.ask("ring", HOST, 2)
            until(lambda times=turn: host_rings(ctl)[2] == times, "the host to be rung")  # type: ignore[misc]
            assert child.ask("read", 0, 5) == "still"
        with Client(site.path()) as newcomer:
            knows(newcomer, other.id, child.id)
            newcomer.notify(child.id, 2)
            assert child.ask("take", 2) == 1
            if way:
                assert newcomer.id in child.ask("joined", newcomer.id, VECTORS)
                child.ask("ring", newcomer.id, 0)
                assert hears(newcomer, 0) == 1
            gone = newcomer.id
        if way:
            assert gone not in child.ask("left", gone)


# Typing


def test_words_through_a_pipe(daemon: Daemon, ctl: Ctl, region: str) -> None:
    with Client(daemon.socket(region)) as other:
        done = ctl.feed(f"int {other.id} 1\ndump\nquit\n".encode(), "attach", region, "--wait-for", other.id)
        assert done.returncode == 0, done.stderr
        assert b"our ID: 1" in done.stdout
        assert hears(other, 1) == 1
        wrong = ctl.feed(b"int 7 0\n", "attach", region)
        assert (wrong.returncode, b"no peer 7" in wrong.stdout) == (1, True)


def test_completion(daemon: Daemon, ctl: Ctl, region: str) -> None:
    with Client(daemon.socket(region)):
        assert region in complete(ctl, "attach", "")
        assert complete(ctl, "attach", region, "--wait-for", "") == ["0"]
        assert complete(ctl, "ping", region, "") == ["0"]
        assert complete(ctl, "ping", region, "0", "--vector", "") == ["0", "1", "2"]
        assert complete(ctl, "echo", region, "--to", "") == ["0"]
        assert region in complete(ctl, "bench", "")


# Names that processes give themselves


def test_name_of_attached_process_is_shown_and_taken_for_it(daemon: Daemon, ctl: Ctl, region: str) -> None:
    with start(ctl, region, "raw", "--name", "worker").greet() as child:
        (peer,) = ctl.json("peers", region, "--json")
        assert (peer["vm"], peer["label"], peer["program"]) == ("", "worker", "doorbellctl")
        assert re.search(r"^ +0  worker \(doorbellctl\) ", ctl("peers", region), re.M)
        assert "peer 0" in ctl("notify", region, "worker", 1)
        child.tell("take", 1)
        said = ctl.refused("disconnect", region, "worker")
        assert f'worker (pid {peer["pid"]}), peer 0 of region "{region}"' in said
        assert ctl("attach", region, "--wait-for", "worker", "--timeout", "10s", "--exec", "echo", "there") == "there\n"


def test_name_of_attached_process_does_not_pass_rule_for_vm(daemon: Daemon, ctl: Ctl) -> None:
    ctl("create", "ruled", "--size", "64K", "--set", 'peer=[{match={vm="guest1"}}]')
    try:
        assert "no rule" in ctl.refused("attach", "ruled", "--name", "guest1", "--exec", "true")
    finally:
        ctl("remove", "ruled", "--yes")


def test_vm_goes_before_process_of_the_same_name(daemon: Daemon, ctl: Ctl, region: str) -> None:
    with start(ctl, region, "raw", "--name", "guest1").greet(), guest(daemon, region, "guest1"):
        assert "peer 1" in ctl("notify", region, "guest1", 0)


@pytest.mark.parametrize("name", ["7", "host:x", "a b", "x" * 65, "\x1b[2J"])
def test_name_that_is_none_is_refused(ctl: Ctl, region: str, name: str) -> None:
    assert "is no name" in ctl.refused("attach", region, "--name", name, "--exec", "true")


# The examples in docs/attach.md, as they are written there


@pytest.fixture
def example(short_path: Path) -> dict[str, list[str]]:
    """Put the examples into files; gives how to start each, by its language."""
    blocks = dict(re.findall(r"^```(\w+)\n(.*?)^```$", EXAMPLES.read_text(), re.M | re.S))
    assert set(blocks) == {"c", "python", "bash"}
    for language, text in blocks.items():
        (short_path / f"upper.{language}").write_text(text)
    program = str(short_path / "upper")
    strict = ["-Wall", "-Wextra", "-Werror", "-O2"]
    subprocess.run([require("gcc", "gcc"), *strict, "-o", program, "-x", "c", f"{program}.c"], check=True)
    return {
        "c": [program],
        "python": [sys.executable, f"{program}.python"],
        "bash": [str(require("bash", "bash")), f"{program}.bash"],
    }


@pytest.mark.parametrize(("language", "way"), [("c", STAY), ("bash", STAY), ("python", STAY), ("python", OVER)])
def test_an_example_works(
    daemon: Daemon, ctl: Ctl, region: str, example: dict[str, list[str]], language: str, way: tuple[str, ...]
) -> None:
    words = ("attach", region, *way, "--exec", *example[language])
    with Client(daemon.socket(region)) as other, Running(ctl, *words) as child:
        try:
            knows(other, 1)
            for text in (b"hello", b"World"):
                other.memory[0:5] = text
                other.notify(1, 0)
                assert hears(other, 0) == 1
                assert other.memory[64:69] == text.upper()
            if way:
                with Client(daemon.socket(region)) as newcomer:
                    assert child.line() == f"peer {newcomer.id} joined"
        finally:
            ctl("remove", region, "--yes")  # which ends it, whatever it waits for
        assert child.status() == 0
        if language == "bash":
            assert [child.line() for _ in range(2)] == ["rung, times:                    1"] * 2
        if language == "python":
            assert child.line() == "the region is gone"


@pytest.mark.parametrize("language", ["c", "bash", "python"])
def test_example_and_echo_do_not_ring_each_other_for_ever(
    daemon: Daemon, ctl: Ctl, region: str, example: dict[str, list[str]], language: str
) -> None:
    def answers() -> int:
        return int(ctl.json("status", region, "--json")["host-rings"][0])  # an echo does not ring the host

    with Client(daemon.socket(region)) as other, Running(ctl, "echo", region) as echo:
        assert "rings everybody else back" in echo.line()
        with Running(ctl, "attach", region, "--exec", *example[language]) as child:
            try:
                knows(other, 1, 2)
                for number in range(3):
                    other.memory[0:1] = b"abc"[number : number + 1]
                    other.notify(2, 0)
                    until(lambda: answers() > number, "an answer")  # noqa: B023
                    other.notify(1, 0)  # the echo rings the example
                    assert answers() == number + 1
            finally:
                ctl("remove", region, "--yes")  # which ends it, whatever it waits for
            assert child.status() == 0


def test_an_example_says_how_to_start_it(example: dict[str, list[str]]) -> None:
    for language in ("c", "python"):
        done = subprocess.run(example[language], capture_output=True, text=True, check=False, timeout=DEADLINE)
        assert done.returncode == 1
        assert "doorbellctl attach REGION --exec" in done.stderr
