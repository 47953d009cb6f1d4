# SPDX-FileCopyrightText: 2026 The doorbelld authors
# SPDX-License-Identifier: GPL-2.0-or-later
"""Outputs: what the kernel takes at once is written, the rest is dropped and counted, and nothing waits or raises."""

from __future__ import annotations

import os
import pty
import select
import socket
import subprocess
import sys
import termios
import tty
from collections.abc import Iterator
from pathlib import Path

import pytest
from doorbelld.log import LOST, Console
from doorbelld.stdio import Output
from support.daemon import DEADLINE
from support.dbusclient import until
from support.fdcount import no_leaks
from support.unread import UNREAD, Unread

LINE = b"0123456789 0123456789\n"


class OfAnother(Output):
    """An output on a stream of another user, which may not be opened again."""

    def _open_again(self) -> int:
        raise PermissionError


KINDS = pytest.mark.parametrize("kind", [Output, OfAnother], ids=["own description", "helper thread"])


def fill(output: Output, line: bytes = LINE) -> int:
    """Write lines until none is taken; gives how many were."""
    for count in range(1 << 16):
        if not output.put(line):
            return count
    raise AssertionError("it takes everything")


def read(fd: int, count: int) -> bytes:
    """Read exactly *count* bytes."""
    got = b""
    while len(got) < count:
        assert select.select([fd], [], [], DEADLINE)[0], f"{len(got)} of {count} bytes came"
        got += os.read(fd, count - len(got))
    return got


@KINDS
def test_full_pipe_takes_nothing_until_somebody_reads(kind: type[Output]) -> None:
    with no_leaks():
        reading, writing = os.pipe()
        with kind(writing) as output:
            count = fill(output)
            assert os.get_blocking(writing)
            assert read(reading, count * len(LINE)) == LINE * count
            assert output.put(b"next\n")
            assert read(reading, 5) == b"next\n"
        os.close(reading)
        os.close(writing)


@KINDS
def test_long_text_is_written_to_its_end_before_the_next(kind: type[Output]) -> None:
    reading, writing = os.pipe()
    text = os.urandom(200_000).hex().encode() + b"\n"
    with kind(writing) as output:
        assert output.put(text)  # in part
        assert not output.put(b"between\n")
        got = b""
        while len(got) < len(text):
            got += read(reading, min(4096, len(text) - len(got)))
            output.put(b"")
        assert got == text
        assert output.put(b"next\n")
        assert read(reading, 5) == b"next\n"
    os.close(reading)
    os.close(writing)


@KINDS
@pytest.mark.parametrize("stopped", [True, False])
def test_terminal_that_is_not_read_takes_what_there_is_room_for(kind: type[Output], stopped: bool) -> None:
    ours, theirs = pty.openpty()
    tty.setraw(theirs)
    with kind(theirs) as output:
        assert output.isatty()
        if stopped:
            termios.tcflow(theirs, termios.TCOOFF)
        count = fill(output)
        assert (count == 0) is (stopped and kind is Output)
        if stopped:
            termios.tcflow(theirs, termios.TCOON)
        written = LINE * count
        now = read(ours, len(written) - len(output._rest))
        assert output.put(b"next\n")  # after the rest of what was written in part
        assert now + read(ours, len(written) - len(now)) == written
        assert read(ours, 5) == b"next\n"
    os.close(ours)
    os.close(theirs)


def test_helper_thread_writes_the_last_lines_before_the_end() -> None:
    reading, writing = os.pipe()
    with OfAnother(writing) as output:
        assert output.put(LINE * 3)
    os.close(writing)
    assert os.read(reading, 1000) == LINE * 3
    os.close(reading)


def test_reader_that_is_gone_is_noticed_behind_the_helper_thread() -> None:
    with no_leaks(), Unread("reader gone") as stream, OfAnother(stream.theirs) as output:
        stream.spoil()
        until(lambda: not output.put(LINE), "the end of the helper thread")


@pytest.mark.parametrize("way", ["reader gone", "terminal closed"])
def test_reader_that_is_gone_raises_nothing(way: str) -> None:
    with Unread(way) as stream, Output(stream.theirs) as output:
        stream.spoil()
        assert not output.put(LINE)
        output.write(LINE * 3)
        assert output.lost == 3


@pytest.mark.parametrize("way", ["reader gone", "terminal closed"])
def test_reader_that_was_gone_before_raises_nothing(way: str) -> None:
    with Unread(way) as stream:
        stream.spoil()
        with Output(stream.theirs) as output:
            until(lambda: not output.put(LINE), "the end of the helper thread")


def test_socket_is_written_to_without_waiting() -> None:
    with no_leaks():
        ours, theirs = socket.socketpair()
        with theirs, Output(theirs.fileno()) as output:
            assert fill(output) > 0
            assert theirs.getblocking()
            ours.close()
            assert not output.put(LINE)


def test_file_is_appended_to_where_others_write_too(tmp_path: Path) -> None:
    with (tmp_path / "log").open("wb", buffering=0) as file, Output(file.fileno()) as output:
        file.write(b"theirs\n")
        assert output.put(b"ours\n")
        file.write(b"theirs\n")
    assert (tmp_path / "log").read_bytes() == b"theirs\nours\ntheirs\n"


def test_closed_descriptor_raises_nothing() -> None:
    reading, writing = os.pipe()
    os.close(reading)
    os.close(writing)
    with Output(writing) as output:
        assert not output.put(LINE)


def test_console_tells_how_many_lines_were_lost_before_the_next() -> None:
    with Unread("pipe full") as stream, Output(stream.theirs) as output:
        console = Console(output)
        stream.spoil()
        for number in range(3):
            console(6, "peer joined", {"peer": number}, ("f", 1, "g"))
        stream.mend()
        console(6, "next", {}, ("f", 1, "g"))
        console(6, "last", {}, ("f", 1, "g"))
        said = [line.split(" ", 1)[1] for line in stream.until(b"last\n").decode().splitlines() if " " in line]
    assert said == [f"[warning] {LOST} count=3", "[info] next", "[info] last"]


@pytest.mark.parametrize(
    ("environment", "colored"), [({}, True), ({"NO_COLOR": "1"}, False), ({"TERM": "dumb"}, False)]
)
def test_console_is_coloured_on_a_terminal(
    environment: dict[str, str], colored: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in {"NO_COLOR": "", "TERM": "xterm", **environment}.items():
        monkeypatch.setenv(name, value)
    with Unread("terminal stopped") as stream, Output(stream.theirs) as output:
        Console(output)(6, "ready", {"a": 1}, ("f", 1, "g"))
        said = stream.until(b"\n")
    assert (b"\x1b[" in said) is colored
    assert b"ready" in said and b"1" in said


SAYS_IT_ALL = """
import asyncio, faulthandler, logging, os, sys, threading, warnings
faulthandler.enable()
from doorbelld.log import catch_all, get_logger, set_up
from doorbelld.stdio import shield

shield("stdout", "stderr")
set_up("info")
catch_all()


class Bad:
    def __del__(self):
        raise ValueError("ignored")


def fail(*_):
    raise ValueError("uncaught")


async def fail_in_loop():
    asyncio.get_running_loop().call_soon(fail)
    asyncio.get_running_loop().call_exception_handler({"message": "odd"})
    await asyncio.sleep(0.01)

for _ in range(400):
    print("printed")
    print("printed", file=sys.stderr)
    os.write(int(sys.argv[1]), b".")
    get_logger().info("logged")
    logging.getLogger("library").error("logged")
    warnings.warn("warned")
    Bad()
thread = threading.Thread(target=fail)
thread.start()
thread.join()
asyncio.run(fail_in_loop())
os.write(int(sys.argv[1]), b"end")
fail()
"""
"""Says all that there is to say, each in its way, and its progress on a descriptor."""


@pytest.fixture
def progress() -> Iterator[tuple[int, int]]:
    pipe = os.pipe()
    yield pipe
    for fd in pipe:
        os.close(fd)


@pytest.mark.parametrize("way", UNREAD)
def test_whatever_python_says_itself_waits_for_nobody(way: str, progress: tuple[int, int], tmp_path: Path) -> None:
    reading, writing = progress
    (tmp_path / "script.py").write_text(SAYS_IT_ALL)
    with Unread(way) as stream:
        stream.spoil()
        done = subprocess.run(
            [sys.executable, tmp_path / "script.py", str(writing)],
            stdout=stream.theirs,
            stderr=stream.theirs,
            pass_fds=[writing],
            timeout=DEADLINE,
            check=False,
        )
    assert done.returncode == 1  # that of an exception
    assert os.read(reading, 1000).endswith(b"end")


def test_whatever_python_says_itself_is_logged(tmp_path: Path) -> None:
    (tmp_path / "script.py").write_text(SAYS_IT_ALL.replace("400", "1"))
    done = subprocess.run(
        [sys.executable, tmp_path / "script.py", "1"], capture_output=True, text=True, timeout=DEADLINE, check=False
    )
    for said in (
        "[warning] ",
        "UserWarning: warned",
        "[error] exception ignored",
        "ValueError: ignored",
        "[critical] uncaught exception thread='Thread-",
        "[error] odd logger=asyncio",
        "[critical] uncaught exception\n",
        "ValueError: uncaught",
    ):
        assert said in done.stderr
    assert done.returncode == 1


def test_closed_streams_are_not_taken_by_other_files(tmp_path: Path) -> None:
    (tmp_path / "script.py").write_text(
        "import os\n"
        "from doorbelld.stdio import shield\n"
        "shield('stdout', 'stderr')\n"
        "assert os.open('/dev/null', os.O_RDONLY) > 2\n"
        "print('said')\n"
    )
    command = ["sh", "-c", '"$@" <&- >&- 2>&-', "sh", sys.executable, tmp_path / "script.py"]
    assert subprocess.run(command, timeout=DEADLINE, check=False).returncode == 0
