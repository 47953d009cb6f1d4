# SPDX-FileCopyrightText: 2026 The doorbelld authors
# SPDX-License-Identifier: GPL-2.0-or-later
"""``doorbell-server`` and ``doorbell-client`` as scripts and people use them that knew QEMU's ivshmem programs."""

from __future__ import annotations

import os
import shlex
import signal
import socket
import stat
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
from support.daemon import DEADLINE
from support.guest.qemu import IdleQemu, Qemu
from support.ivshmemtools import CLIENT, SERVER, Background, Foreground, Piped, run, shared_name
from support.otherserver import OtherServer, message, play
from support.rawclient import RawClient
from support.screen import Screen, Session


@pytest.fixture
def shm() -> Iterator[str]:
    """Give the name of a shared memory object that is not there yet."""
    with shared_name() as name:
        yield name


@pytest.fixture
def server(short_path: Path, shm: str) -> Iterator[Background]:
    """Give a server with two vectors in the background."""
    with Background(short_path, "-M", shm, "-n", "2") as made:
        yield made


def rung(client: RawClient, vector: int) -> int:
    """Take the rings of an own doorbell, of which there are some by now."""
    assert client.id is not None
    return os.eventfd_read(client.fds[client.id][vector])


# doorbell-server: the way into the background, and out


def test_it_serves_when_the_command_ends_and_speaks_as_ivshmem_server_does(server: Background, shm: str) -> None:
    with RawClient(str(server.socket)) as first, RawClient(str(server.socket)) as second:
        assert [first.message() for _ in range(3)] == [(0, False), (0, False), (-1, True)]
        assert [first.message() for _ in range(4)] == [(0, True), (0, True), (1, True), (1, True)]
        said = [second.message() for _ in range(7)]
        assert said == [(0, False), (1, False), (-1, True), (0, True), (0, True), (1, True), (1, True)]
        assert first.memory is not None and os.fstat(first.memory).st_size == 4 << 20
        second.close()
        assert first.message() == (1, False)
        os.pwrite(first.memory, b"hello", 0)
    server.end()
    assert not server.socket.exists() and not server.pid_file.exists()
    assert Path("/dev/shm", shm).read_bytes()[:5] == b"hello"
    assert "Traceback" not in server.log and "peer left" in server.log


def test_who_reads_its_output_to_the_end_does_not_wait_for_ever(short_path: Path, shm: str) -> None:
    server = Background(short_path, "-M", shm)
    done = run(SERVER, *server.arguments)  # reads pipes to their ends
    assert (done.returncode, done.stdout) == (0, "")
    pid = server.pid
    try:
        assert os.getsid(pid) == pid
        links = {fd: os.readlink(f"/proc/{pid}/fd/{fd}") for fd in range(3)}
        assert links == dict.fromkeys(range(3), "/dev/null")
        RawClient(str(server.socket)).greet(1).close()
    finally:
        pidfd = os.pidfd_open(pid)
        server._pidfd = pidfd
        server.end(signal.SIGINT)
    assert not server.socket.exists() and not server.pid_file.exists()


def test_a_live_socket_is_an_error_and_harms_nobody(server: Background, short_path: Path, shm: str) -> None:
    other = short_path / "other.pid"
    for arguments in (("-p", other), ("-F",)):
        done = run(SERVER, "-S", server.socket, "-M", shm, *arguments)
        assert done.returncode == 1
        (line,) = done.stderr.splitlines()
        assert f"a live server (pid {server.pid}) listens there; stop it or choose another path with -S" in line
        assert not other.exists()
    with RawClient(str(server.socket)) as client:
        assert client.greet(2).id == 0


def test_a_socket_that_a_killed_server_left_is_replaced(server: Background) -> None:
    server.end(signal.SIGKILL)
    assert server.socket.is_socket() and server.pid_file.exists()
    server.start()
    with RawClient(str(server.socket)) as client:
        assert client.greet(2).id == 0
    server.end()
    assert not server.socket.exists() and not server.pid_file.exists()


def test_a_pid_file_that_is_another_process_s_by_now_stays(server: Background) -> None:
    server.pid_file.write_text("1\n")
    server.end()
    assert server.pid_file.read_text() == "1\n"


def test_a_pid_file_that_can_not_be_written(short_path: Path, shm: str) -> None:
    done = run(SERVER, "-S", short_path / "socket", "-M", shm, "-p", short_path / "no" / "pid")
    assert done.returncode == 1
    assert f"PID file {short_path}/no/pid: No such file or directory; name a file" in done.stderr
    assert not (short_path / "socket").exists()


def test_no_pid_file_is_dev_null(short_path: Path, shm: str) -> None:
    server = Background(short_path, "-M", shm)
    assert run(SERVER, "-S", server.socket, "-M", shm, "-p", "/dev/null").returncode == 0
    assert stat.S_ISCHR(os.stat("/dev/null").st_mode)
    done = run(SERVER, "-S", server.socket, "-M", shm, "-F")
    pid = int(done.stderr.partition("(pid ")[2].partition(")")[0])
    server._pidfd = os.pidfd_open(pid)
    server.end()
    assert stat.S_ISCHR(os.stat("/dev/null").st_mode)


def test_streams_that_are_closed(short_path: Path, shm: str) -> None:
    server = Background(short_path, "-M", shm, "-n", "3")
    words = shlex.join([str(SERVER), *map(str, server.arguments)])
    subprocess.run(["sh", "-c", f"{words} <&- >&- 2>&-"], check=True, timeout=DEADLINE)
    server._pidfd = os.pidfd_open(server.pid)
    with RawClient(str(server.socket)) as client:
        assert client.greet(3).id == 0
    server.end()


# doorbell-server: in the foreground


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_the_foreground_says_when_it_is_ready_and_ends_on_a_signal(
    short_path: Path, shm: str, number: signal.Signals
) -> None:
    arguments = ("-vF", "-Ssocket", f"-M{shm}", "-l64K", "-n", "0x3")
    with Foreground(short_path, *arguments) as server, RawClient(str(server.socket)) as client:
        client.greet(3)
        assert client.memory is not None and os.fstat(client.memory).st_size == 65536
        assert server.end(number) == 0
        client.until_eof()
    assert not server.socket.exists()
    for sentence in ("region serves", "peer joined", "stopping", "peer left", "region removed"):
        assert sentence in server.log
    assert "Traceback" not in server.log


def test_without_v_only_what_is_odd_is_told(short_path: Path, shm: str) -> None:
    with Foreground(short_path, "--foreground", "--socket=socket", "--shm-name", shm) as server:
        RawClient(str(server.socket)).greet(1).close()
        with RawClient(str(server.socket)) as rude:
            rude.greet(1)
            rude.sock.send(b"hello")
            rude.until_eof()
        assert server.end() == 0
    assert "peer joined" not in server.log and "it closed its connection" not in server.log
    assert server.log.count("peer left") == 1 and "it sent 5 bytes" in server.log


@pytest.mark.parametrize(("umask", "mode"), [(0o022, 0o755), (0o077, 0o700), (0, 0o777)])
def test_who_may_connect_is_up_to_the_umask(short_path: Path, shm: str, umask: int, mode: int) -> None:
    with Foreground(short_path, "-F", "-S", "socket", "-M", shm, umask=umask) as server:
        assert stat.S_IMODE(server.socket.stat().st_mode) == mode
        assert server.end() == 0


def memory_of(server: Foreground) -> tuple[int, bytes]:
    """Give the size of the memory, and what it begins with."""
    with RawClient(str(server.socket)) as client:
        client.greet(1)
        assert client.memory is not None
        return os.fstat(client.memory).st_size, os.pread(client.memory, 5, 0)


def test_a_directory_gets_a_file_without_a_name(short_path: Path) -> None:
    place = short_path / "memory"
    place.mkdir()
    with Foreground(short_path, "-F", "-S", "socket", "-M", "doorbell/is/no/name", "-m", "memory") as server:
        assert memory_of(server) == (4 << 20, bytes(5))
        assert list(place.iterdir()) == []
        assert server.end() == 0


def test_of_a_directory_and_a_name_the_later_one_counts(short_path: Path, shm: str) -> None:
    with Foreground(short_path, "-F", "-S", "socket", "-m", "/nowhere", "-M", shm) as server:
        assert Path("/dev/shm", shm).stat().st_size == memory_of(server)[0] == 4 << 20
        assert server.end() == 0


def test_an_object_that_is_there_is_used(short_path: Path, shm: str) -> None:
    path = Path("/dev/shm", shm)
    path.write_bytes(b"hello".ljust(8192))
    with Foreground(short_path, "-F", "-S", "socket", "-M", f"/{shm}", "-l", "8K") as server:
        assert memory_of(server) == (8192, b"hello")
        assert server.end() == 0


def test_an_object_that_is_there_grows_but_never_shrinks(short_path: Path, shm: str) -> None:
    path = Path("/dev/shm", shm)
    path.write_bytes(b"hello".ljust(8192))
    with Foreground(short_path, "-F", "-S", "socket", "-M", shm, "-l", "16K") as server:
        assert memory_of(server) == (16384, b"hello")
        assert server.end() == 0
    done = run(SERVER, "-F", "-S", short_path / "socket", "-M", shm, "-l", "4K")
    assert done.returncode == 1
    assert "it is 16384 bytes long, the region 4096; remove it or give its size with -l: 16384" in done.stderr
    assert path.stat().st_size == 16384


@pytest.mark.parametrize(
    ("asked", "given", "said"),
    [("3M", 4 << 20, "-l: 3M is no power of two; using 4M"), ("1K", 4096, "-l: 1K is less than a page; using 4K")],
)
def test_sizes_are_rounded_up_as_there(short_path: Path, shm: str, asked: str, given: int, said: str) -> None:
    with Foreground(short_path, "-F", "-S", "socket", "-M", shm, "-l", asked) as server:
        assert memory_of(server)[0] == given
        assert said in server.log
        assert server.end() == 0


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("-v",), "-v needs -F"),
        (("-n", "0"), "a client can have 1 to 64 vectors, not 0"),
        (("-n", "65"), "a client can have 1 to 64 vectors, not 65"),
        (("-n", "two"), "'two' is no number; write one from 1 to 64"),
        (("-n", "0x"), "'0x' is no number"),
        (("-l", "0"), "is out of range; write a positive size"),
        (("-l", "many"), "is not a size; write bytes or K, M, G"),
        (("-M", "a/b"), "use at most 255 characters and no /, or name a directory with -m"),
        (("-m", "/nowhere/at/all"), "/nowhere/at/all: No such file or directory; name a directory that is there"),
        (("-m", "/dev/null"), "/dev/null: Not a directory; name a directory"),
        (("-S", "/" + "x" * 120), "-S: /xxx"),
        (("-S", ""), "-S: "),
        (("-S",), "requires an argument"),
        (("-x",), "No such option"),
        (("extra",), "unexpected extra argument"),
    ],
)
def test_what_is_wrong_is_1_and_one_line_that_names_it(
    short_path: Path, shm: str, arguments: tuple[str, ...], said: str
) -> None:
    done = run(SERVER, "-S", short_path / "socket", "-M", shm, "-p", short_path / "pid", *arguments)
    assert (done.returncode, done.stdout) == (1, "")
    (line,) = done.stderr.splitlines()
    assert line.startswith("doorbell-server: ") and said.lower() in line.lower()
    assert list(short_path.iterdir()) == []


@pytest.mark.parametrize("program", [SERVER, CLIENT])
def test_help_and_version(program: Path) -> None:
    for flag in ("-h", "--help"):
        done = run(program, flag)
        assert done.returncode == 0 and "QEMU's" in done.stdout and "Examples:" in done.stdout
    done = run(program, "--version")
    assert done.returncode == 0 and done.stdout.startswith(f"{program.name} ")


# doorbell-client in scripts


def test_a_script_rings(server: Background) -> None:
    with RawClient(str(server.socket), keep=True) as raw:
        raw.greet(2)
        done = run(CLIENT, "-S", server.socket, given="int 0 1\nquit\nint 0 0\n")
        assert (done.returncode, done.stdout) == (0, "")
        assert f"connected to {server.socket} as peer 1 with 2 vectors; others here: 0" in done.stderr
        assert rung(raw, 1) == 1
        assert run(CLIENT, "-S", server.socket, given="int 0 0; int 0 all\r\n;int all").returncode == 0
        assert (rung(raw, 0), rung(raw, 1)) == (3, 2)
        assert run(CLIENT, f"-vS{server.socket}", given="int 0 0;quit;int 0 1").returncode == 0
        assert rung(raw, 0) == 1
        with pytest.raises(BlockingIOError):
            rung(raw, 1)


def test_what_a_script_gets_wrong_is_told_with_the_cure(server: Background) -> None:
    with RawClient(str(server.socket)) as raw:
        raw.greet(2)
        wrong = "int 7 0; int 0 2; int 0 x; int -1 0; int 0; int; dmp; frobnicate; dump now; int 0 1 2\n"
        done = run(CLIENT, "-S", server.socket, given=wrong)
    assert done.returncode == 1
    said = done.stdout.splitlines()
    expected = (
        "no peer 7; there is: 0", "peer 0 has vectors 0 to 1, not 2", "'x' is no vector; write a number",
        "'-1' is no peer ID; write a number", 'write "int 0 1", "int 0 all" or "int all"', "int takes a peer",
        "did you mean dump?", "type help", "dump takes nothing after it", "int takes a peer",
    )  # fmt: skip
    assert len(said) == len(expected)
    for line, words in zip(said, expected, strict=True):
        assert words in line


def test_words_that_show(server: Background) -> None:
    done = run(CLIENT, "-S", server.socket, given="dump\n")
    assert done.returncode == 0 and "our ID: 0" in done.stdout and done.stdout.count("vector") == 2
    helped = run(CLIENT, "-S", server.socket, given="help\n?").stdout
    assert helped.count("int <peer> <vector>") == 2 and "cmd>" not in helped


def test_rings_are_told_as_they_come_in_the_words_of_ivshmem_client(server: Background) -> None:
    with RawClient(str(server.socket), keep=True) as raw, Piped(server.socket, "-v") as client:
        raw.greet(2)
        client.until("connected to .* as peer 1", "notes")
        raw.take(2, timeout=DEADLINE)
        for vector in (1, 0, 1):
            os.eventfd_write(raw.fds[1][vector], 1)
            client.until(rf"^receive notification from peer_id=1 vector={vector}$")
        os.eventfd_write(raw.fds[1][0], 5)
        client.until(r"^receive notification from peer_id=1 vector=0 \(5 times\)$")
        with RawClient(str(server.socket)) as third:
            third.greet(2)
            client.until("^peer 2 joined$")
        client.until("^peer 2 left$")
        client.write("int 1 1\n")
        client.until("vector=1$")
        assert client.ends() == 0
        assert client.said["answers"] == "\n" and client.said["notes"].count("\n") == 1, "nothing else was said"


def test_what_came_before_the_end_is_told(server: Background) -> None:
    for _ in range(5):
        done = run(CLIENT, "-S", server.socket, given="int 0 0;quit")
        assert done.stdout == "receive notification from peer_id=0 vector=0\n"


def test_it_waits_for_a_server_and_says_so_once(short_path: Path, shm: str) -> None:
    with Piped(short_path / "socket") as client:
        client.write("int 0 0\n")
        client.until("no ivshmem server at .*; trying again until it works$", "notes")
        with Background(short_path, "-M", shm):
            client.until("^receive notification from peer_id=0 vector=0$")
            assert client.ends() == 0
        assert client.said["notes"].count("\n") == 2  # the rest of that line, and that it is connected


def test_a_server_that_goes_away_and_comes_back(server: Background) -> None:
    with Piped(server.socket) as client:
        client.until("connected", "notes")
        server.end(signal.SIGKILL)
        client.until("closed the connection; connecting again$", "notes")
        client.write("dump; int 0 1\n")
        server.start()
        client.until("connected to .* as peer 0 with 2 vectors; others here: nobody", "notes")
        client.until("^our ID: 0$")
        client.until("vector=1$")
        assert client.ends() == 0


def test_another_server_and_peers_that_join_later(short_path: Path) -> None:
    path = short_path / "other"
    with OtherServer(str(path), vectors=3, split=5) as other, Piped(path) as client:
        client.until("as peer 0 with 3 vectors|has 3 vectors now", "notes")
        with RawClient(str(path), keep=True) as raw:
            raw.greet(3)
            client.write("int 1 2\n")
            client.write("int 0 2\n")
            client.until("vector=2$")
            assert rung(raw, 2) == 1
        other.wait_for(lambda: other.ids == [0])
        client.write("dump\n")
        client.until("^our ID: 0$")
        assert client.ends() == 0


def test_vectors_that_come_late_are_told(short_path: Path) -> None:
    path = short_path / "other"
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(path))
        listener.listen()
        with Piped(path) as client, listener.accept()[0] as server:
            play(server, [message(0), message(0), message(-1, "memory"), message(0, "eventfd")])
            client.until("as peer 0 with 1 vectors", "notes")
            play(server, [message(0, "eventfd")])
            client.until("^peer 0, which is us, has 2 vectors now$", "notes")
            assert client.ends() == 0


def test_who_reads_the_output_may_stop(server: Background) -> None:
    command = f"yes 'int 0 0; dump' | {CLIENT} -S {server.socket} 2>&1 | head -n 3"
    done = subprocess.run(["sh", "-c", command], capture_output=True, text=True, check=True, timeout=DEADLINE)
    assert len(done.stdout.splitlines()) == 3 and "Traceback" not in done.stderr


def test_signals_end_a_client(short_path: Path) -> None:
    for number, status in ((signal.SIGTERM, 143), (signal.SIGINT, 130)):
        with Piped(short_path / "nobody") as client:
            client.until("trying again", "notes")
            client.process.send_signal(number)
            assert client.ends() == status


def test_usage_errors_are_1() -> None:
    done = run(CLIENT, "-Z")
    assert done.returncode == 1 and "doorbell-client: No such option '-Z'; see doorbell-client -h" in done.stderr


def test_qemu_joins_as_a_peer_that_can_be_rung(server: Background, qemu: Qemu, short_path: Path) -> None:
    with RawClient(str(server.socket)) as raw:
        raw.greet(2)
        with IdleQemu(qemu, short_path / "output", name="vm1", ivshmem=[(server.socket, 2)]) as idle:
            assert [raw.message() for _ in range(2)] == [(1, True), (1, True)]
            done = run(CLIENT, "-S", server.socket, given="int 1 0; int 1 1; int 1 2")
            assert done.stdout == "peer 1 has vectors 0 to 1, not 2\n"
            assert idle.quit() == 0
        while ("left", 1) not in raw.log:
            assert raw.message() is not None
    assert "vm=vm1" in server.log


# doorbell-client at a terminal


@pytest.fixture
def at_terminal(server: Background, short_path: Path) -> Iterator[Session]:
    """Give a client at a terminal, as peer 0, ready for commands."""
    command, state = [CLIENT, "-v", "-S", server.socket], {"XDG_STATE_HOME": str(short_path)}
    with Session(command, screen=Screen(columns=200), environment=state) as session:
        session.shows("type help for the words")
        session.shows_last("cmd>")
        yield session


def test_rings_do_not_disturb_the_line_that_is_typed(at_terminal: Session, server: Background) -> None:
    session = at_terminal
    with RawClient(str(server.socket), keep=True) as raw:
        raw.greet(2)
        session.shows("peer 1 joined")
        session.type("int 7 0")
        session.shows_last("cmd> int 7 0")
        session.type("\x02" * 3)  # three to the left: over the 7
        session.until(lambda screen: screen.column == len("cmd> int "))
        for count in range(1, 20):  # from the top of the screen to scrolling
            os.eventfd_write(raw.fds[0][count % 2], 1)
            session.until(lambda screen, count=count: sum("receive" in row for row in screen.all) == count)
            session.until(lambda screen: (screen.text[-1], screen.column) == ("cmd> int 7 0", len("cmd> int ")))
        session.type("\x041")  # delete under the cursor, and type
        session.shows_last("cmd> int 1 0")
        session.type("\r")
        session.shows_last("cmd>")
        assert rung(raw, 0) == 1
        rows = [row for row in session.screen.all if row.startswith("receive")]
        assert rows == [f"receive notification from peer_id=0 vector={count % 2}" for count in range(1, 20)]
        assert session.screen.all[-2] == "cmd> int 1 0"


def test_a_long_line_stays_on_one_row(at_terminal: Session) -> None:
    session = at_terminal
    session.type("int 0 0;" * 30)
    session.until(lambda screen: screen.text[-1].endswith("int 0 0;"))
    session.type("int 0 1\r")
    session.until(lambda screen: any(row.endswith("vector=1") for row in screen.all))
    session.shows_last("cmd>")
    assert sum(row.startswith("receive") for row in session.screen.all) >= 2


def test_what_is_longer_than_a_row_takes_several(server: Background) -> None:
    with RawClient(str(server.socket), keep=True) as raw:
        raw.greet(2)
        with Session([CLIENT, "-S", server.socket], screen=Screen(8, 30)) as session:
            session.shows_last("cmd>")
            session.type("int 0")
            session.shows_last("cmd> int 0")
            raw.take(2, timeout=DEADLINE)
            for count in range(1, 6):
                os.eventfd_write(raw.fds[1][1], 1)
                session.until(lambda screen, count=count: screen.all.count("_id=1 vector=1") == count)
            session.shows_last("cmd> int 0")
            assert session.screen.all[-11:-1] == ["receive notification from peer", "_id=1 vector=1"] * 5


def test_words_ids_and_vectors_are_completed(at_terminal: Session, server: Background) -> None:
    session = at_terminal
    with RawClient(str(server.socket), keep=True) as raw:
        raw.greet(2)
        session.shows("peer 1 joined")
        session.type("du\t;i\t1\t")
        session.shows_last("cmd> dump;int 1")
        session.type("\t\t")
        session.until(lambda screen: {"0", "1", "all"} <= set(screen.all[-2].split()))
        session.shows_last("cmd> dump;int 1")
        session.type("a\t")
        session.shows_last("cmd> dump;int 1 all")
        session.type("\r")
        session.until(lambda screen: "our ID: 0" in screen.all)
        session.shows_last("cmd>")
        assert (rung(raw, 0), rung(raw, 1)) == (1, 1)


def test_the_history_is_kept(at_terminal: Session, server: Background, short_path: Path) -> None:
    session = at_terminal
    session.type("int 0 1\r")
    session.until(lambda screen: any(row.endswith("vector=1") for row in screen.all))
    session.shows_last("cmd>")
    session.type("\x04")
    assert session.ends() == 0 and session.left_in_order()
    history = short_path / "doorbelld" / "client_history"
    assert history.read_text() == "int 0 1\n"
    assert stat.S_IMODE(history.stat().st_mode) == 0o600
    command = [CLIENT, "-S", server.socket]
    with Session(command, environment={"XDG_STATE_HOME": str(short_path)}) as again:
        again.shows_last("cmd>")
        again.type("\x10")  # the line before
        again.shows_last("cmd> int 0 1")
        again.type("\x15quit\r")
        assert again.ends() == 0
    assert history.read_text() == "int 0 1\nquit\n"


def test_ctrl_c_gives_up_the_line(at_terminal: Session) -> None:
    session = at_terminal
    session.type("frobnicate")
    session.shows_last("cmd> frobnicate")
    session.type("\x03")
    session.shows("cmd> frobnicate^C")
    session.shows_last("cmd>")
    session.type("frob\r")
    session.shows("'frob' is no command; type help for those there are")
    session.type("quit\r")
    assert session.ends() == 0, "a person has seen what was wrong"
    assert session.left_in_order()


def test_sigterm_leaves_the_terminal_in_order(at_terminal: Session) -> None:
    at_terminal.signal(signal.SIGTERM)
    assert at_terminal.ends() == 143
    assert at_terminal.left_in_order()


def test_a_server_that_is_away_is_told_to_a_person(at_terminal: Session, server: Background) -> None:
    session = at_terminal
    session.type("int 0")
    session.shows_last("cmd> int 0")
    server.end(signal.SIGKILL)
    session.until(lambda screen: "trying again until it works" in "".join(screen.all))
    session.shows_last("cmd> int 0")
    session.type(" 1\r")
    session.until(lambda screen: "not connected to" in "".join(screen.all))
    server.start()
    session.until(lambda screen: "".join(screen.all).count("as peer 0 with 2 vectors") == 2)
    session.type("int 0 1\r")
    session.until(lambda screen: any(row.endswith("vector=1") for row in screen.all))


def test_a_terminal_that_knows_no_sequences(server: Background) -> None:
    with Session([CLIENT, "-S", server.socket], screen=Screen(columns=132), environment={"TERM": "dumb"}) as session:
        session.shows_last("cmd>")
        session.type("int 0 1\r")
        session.until(lambda screen: any(row.endswith("vector=1") for row in screen.all))
        session.type("quit\r")
        assert session.ends() == 0


def test_a_home_that_can_not_be_written_is_no_trouble(server: Background) -> None:
    with Session([CLIENT, "-S", server.socket], environment={"XDG_STATE_HOME": "/dev/null"}) as session:
        session.shows_last("cmd>")
        session.type("quit\r")
        assert session.ends() == 0
    assert "Traceback" not in "".join(session.screen.all)


def test_a_socket_that_is_no_server_is_told(short_path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as listening:
        listening.bind(str(short_path / "s"))
        listening.listen()
        with Piped(short_path / "s") as client:
            connection, _ = listening.accept()
            connection.close()
            client.until("closed the connection.*; trying again until it works$", "notes")
            silent, _ = listening.accept()
            with silent:  # who wants to leave does not wait for it
                client.process.send_signal(signal.SIGTERM)
                assert client.ends() == 143
