# SPDX-FileCopyrightText: 2026 The doorbelld authors
# SPDX-License-Identifier: GPL-2.0-or-later
"""The journal sink: what journald would read is what was logged, and whatever journald does holds nobody up."""

from __future__ import annotations

import array
import enum
import fcntl
import logging
import os
import re
import select
import socket
import struct
import syslog
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any, cast

import pytest
import structlog
from doorbelld.log import LOST, Limiter, set_up
from doorbelld.service.journal import CACHE_MAX, NAME_MAX, Journal, encode, field_name, in_words
from doorbelld.service.messages import MESSAGE_IDS
from hypothesis import given
from hypothesis import strategies as st

WHERE = ("/a/file.py", 12, "function")
DEADLINE = 30.0
NAMES = st.from_regex(r"[A-Z][A-Z0-9_]{0,63}", fullmatch=True)


def decode(data: bytes) -> list[tuple[str, bytes]]:
    """Read the native format as its documentation says, strictly; without a line of the encoder's."""
    fields = []
    while data:
        line, newline, rest = data.partition(b"\n")
        assert newline, "the last line does not end; journald ignores it then"
        name, equals, value = line.partition(b"=")
        if not equals:
            (size,) = struct.unpack_from("<Q", rest)
            value, end, rest = rest[8 : 8 + size], rest[8 + size : 9 + size], rest[9 + size :]
            assert (len(value), end) == (size, b"\n")
        assert re.fullmatch(rb"[A-Z][A-Z0-9_]{0,63}", name), f"journald takes no field {name!r}"
        fields.append((name.decode(), value))
        data = rest
    return fields


class Journald:
    """What listens at the socket."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.socket: socket.socket
        self.start()

    def start(self) -> None:
        self.socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self.socket.settimeout(DEADLINE)
        self.socket.bind(os.fspath(self.path))

    def stop(self, *, tidily: bool) -> None:
        """Stop; *tidily* without leaving the socket behind."""
        self.socket.close()
        if tidily:
            self.path.unlink()

    def start_again(self) -> None:
        self.path.unlink(missing_ok=True)
        self.start()

    def receive(self) -> dict[str, str]:
        """Take the next event; its fields, which are text and there once each."""
        fields = decode(self.socket.recv(1 << 20))
        assert len(dict(fields)) == len(fields)
        return {name: value.decode() for name, value in fields}

    def is_empty(self) -> bool:
        return not select.select([self.socket], [], [], 0)[0]

    def drain(self) -> int:
        """Take all that waits; how many that were."""
        count = 0
        while not self.is_empty():
            self.receive()
            count += 1
        return count


@pytest.fixture
def journald(short_path: Path) -> Iterator[Journald]:
    one = Journald(short_path / "socket")
    yield one
    one.socket.close()


@pytest.fixture
def journal(journald: Journald) -> Iterator[Journal]:
    with Journal(str(journald.path)) as one:
        yield one


@pytest.fixture
def configured(journal: Journal) -> Iterator[Journal]:
    """Set the log up with the sink, for the time of a test."""
    root = logging.getLogger()
    handlers, level = root.handlers[:], root.level
    set_up("info", journal)
    yield journal
    root.handlers[:] = handlers
    root.setLevel(level)
    structlog.reset_defaults()


def text_of(value: bytes) -> str:
    return value.decode(errors="surrogateescape")


# The format


@given(st.lists(st.tuples(NAMES, st.text(st.characters(exclude_categories=["Cs"])))))
def test_what_is_encoded_can_be_read(fields: list[tuple[str, str]]) -> None:
    read = decode(encode([f"{name}={value}" for name, value in fields]))
    assert [(name, value.decode()) for name, value in read] == fields


@given(st.lists(st.tuples(NAMES, st.binary())))
def test_bytes_that_are_no_utf8_arrive_as_they_are(fields: list[tuple[str, bytes]]) -> None:
    assert decode(encode([f"{name}={text_of(value)}" for name, value in fields])) == fields


@given(st.lists(st.tuples(NAMES, st.text())))
def test_no_text_at_all_breaks_the_format(fields: list[tuple[str, str]]) -> None:
    read = decode(encode([f"{name}={value}" for name, value in fields]))
    assert [name for name, _ in read] == [name for name, _ in fields]


@pytest.mark.parametrize(
    ("value", "encoded"),
    [
        ("demo", b"REGION=demo\n"),
        ("", b"REGION=\n"),
        ("a=b", b"REGION=a=b\n"),
        ("\n", b"REGION\n\x01\0\0\0\0\0\0\0\n\n"),
        ("two\nlines", b"REGION\n\x09\0\0\0\0\0\0\0two\nlines\n"),
        ("\xe4\n", b"REGION\n\x03\0\0\0\0\0\0\0\xc3\xa4\n\n"),
        ("\udcff", b"REGION=\xff\n"),
        ("\ud800", b"REGION=\\ud800\n"),
    ],
)
def test_the_very_bytes(value: str, encoded: bytes) -> None:
    assert encode([f"REGION={value}"]) == encoded


@pytest.mark.parametrize(
    ("key", "name"),
    [
        ("peer", "DOORBELLD_PEER"),
        ("region", "DOORBELLD_REGION"),
        ("errno", "ERRNO"),
        ("vm-name", "DOORBELLD_VM_NAME"),
        ("_hidden", "DOORBELLD__HIDDEN"),
        ("gr\xf6\xdfe", "DOORBELLD_GR_SSE"),
        ("a=b\nMESSAGE", "DOORBELLD_A_B_MESSAGE"),
    ],
)
def test_names(key: str, name: str) -> None:
    assert field_name(key) == name


@given(st.text())
def test_any_key_makes_a_name_that_journald_takes(key: str) -> None:
    assert re.fullmatch(rf"[A-Z][A-Z0-9_]{{0,{NAME_MAX - 1}}}", field_name(key))


@pytest.mark.parametrize(
    ("value", "words"),
    [
        ("demo", "demo"),
        ("/run/a-b.c@d:e", "/run/a-b.c@d:e"),
        (7, "7"),
        (None, "None"),
        (Path("/run/s"), "/run/s"),
        ("no rule", "'no rule'"),
        ("", "''"),
        ("a\nb", "'a\\nb'"),
        ("\x1b[31m", "'\\x1b[31m'"),
        ("\u202eevil", "'\\u202eevil'"),
        ("\udcff", "'\\udcff'"),
        ("gr\xfc\xdfe", "gr\xfc\xdfe"),
    ],
)
def test_values_in_words(value: object, words: str) -> None:
    assert in_words(value) == words


@given(st.text())
def test_a_message_is_one_line_that_a_terminal_may_see(value: str) -> None:
    assert in_words(value).isprintable()


# Events


def test_an_event(configured: Journal, journald: Journald) -> None:
    log = structlog.get_logger()
    log.info("peer joined", region="demo", peer=3, vm="my guest")
    fields = journald.receive()
    assert int(fields.pop("CODE_LINE")) > 0
    assert fields == {
        "MESSAGE": "peer joined region=demo peer=3 vm='my guest'",
        "PRIORITY": "6",
        "MESSAGE_ID": MESSAGE_IDS["peer joined"],
        "SYSLOG_IDENTIFIER": "doorbelld",
        "DOORBELLD_REGION": "demo",
        "DOORBELLD_PEER": "3",
        "DOORBELLD_VM": "my guest",
        "CODE_FILE": __file__,
        "CODE_FUNC": "test_an_event",
    }
    assert journald.is_empty()


def test_an_event_that_nobody_knows_has_no_id(configured: Journal, journald: Journald) -> None:
    for _ in range(2):
        structlog.get_logger().warning("never heard of", device="blk0", queue=1, errno=5)
        fields = journald.receive()
        assert "MESSAGE_ID" not in fields
        assert (fields["PRIORITY"], fields["ERRNO"]) == (str(syslog.LOG_WARNING), "5")
        assert (fields["DOORBELLD_DEVICE"], fields["DOORBELLD_QUEUE"]) == ("blk0", "1")


def test_the_same_event_at_another_level_has_that_priority(configured: Journal, journald: Journald) -> None:
    log = structlog.get_logger()
    log.info("ready")
    log.error("ready")
    assert [journald.receive()["PRIORITY"] for _ in range(2)] == [str(syslog.LOG_INFO), str(syslog.LOG_ERR)]


def test_values_of_all_kinds(configured: Journal, journald: Journald) -> None:
    class Colour(enum.IntEnum):
        RED = 1

    structlog.get_logger().info("kinds", a=True, b=None, c=1.5, d=Path("/x"), e=Colour.RED, f=[1, 2], g="one\ntwo")
    fields = journald.receive()
    assert [fields[f"DOORBELLD_{key}"] for key in "ABCDEFG"] == [
        "True", "None", "1.5", "/x", "1", "[1, 2]", "one\ntwo",
    ]  # fmt: skip
    assert fields["MESSAGE"] == "kinds a=True b=None c=1.5 d=/x e=1 f='[1, 2]' g='one\\ntwo'"


def test_a_guest_can_not_make_up_fields(configured: Journal, journald: Journald) -> None:
    structlog.get_logger().info("peer joined", region="demo", vm="x\nPRIORITY=0\nMESSAGE=all is lost")
    fields = journald.receive()
    assert fields["PRIORITY"] == "6"
    assert fields["DOORBELLD_VM"] == "x\nPRIORITY=0\nMESSAGE=all is lost"
    assert fields["MESSAGE"].startswith("peer joined region=demo vm='x")


@pytest.mark.parametrize("way", ["exception", "true", "itself", "tuple"])
def test_an_exception(way: str, configured: Journal, journald: Journald) -> None:
    log = structlog.get_logger()
    try:
        raise RuntimeError("a reason\nin two lines")
    except RuntimeError as error:
        match way:
            case "exception":
                log.exception("failed", region="demo")
            case "true":
                log.error("failed", region="demo", exc_info=True)
            case "itself":
                log.error("failed", region="demo", exc_info=error)
            case "tuple":
                log.error("failed", region="demo", exc_info=(type(error), error, error.__traceback__))
    fields = journald.receive()
    assert fields["MESSAGE"] == "failed region=demo exception='RuntimeError: a reason\\nin two lines'"
    assert fields["EXCEPTION"].startswith("Traceback (most recent call last):\n")
    assert fields["EXCEPTION"].endswith("RuntimeError: a reason\nin two lines")
    assert "DOORBELLD_EXC_INFO" not in fields


@pytest.mark.parametrize("given", [True, None, False, (None, None, None)])
def test_no_exception_after_all(given: object, configured: Journal, journald: Journald) -> None:
    structlog.get_logger().error("failed", exc_info=given)
    fields = journald.receive()
    assert fields["MESSAGE"] == "failed"
    assert "EXCEPTION" not in fields


def test_what_a_library_logs(configured: Journal, journald: Journald) -> None:
    logging.getLogger("asyncio").warning("took %d ms", 7)
    fields = journald.receive()
    assert fields["MESSAGE"] == "took 7 ms logger=asyncio"
    assert (fields["PRIORITY"], fields["DOORBELLD_LOGGER"]) == (str(syslog.LOG_WARNING), "asyncio")
    assert (fields["CODE_FILE"], fields["CODE_FUNC"]) == (__file__, "test_what_a_library_logs")


def test_what_goes_through_a_limiter_comes_from_its_caller(configured: Journal, journald: Journald) -> None:
    Limiter()(structlog.get_logger().info, "k", "peer joined", region="demo")
    fields = journald.receive()
    assert fields["CODE_FUNC"] == "test_what_goes_through_a_limiter_comes_from_its_caller"


def test_what_is_remembered_is_bounded(journal: Journal, journald: Journald) -> None:
    for number in range(CACHE_MAX + 10):
        journal(6, f"event {number}", {f"key {number}": number}, ("/f", number, "f"))
        fields = journald.receive()
        assert (fields[f"DOORBELLD_KEY_{number}"], fields["CODE_LINE"]) == (str(number), str(number))
    assert len(journal._names) <= CACHE_MAX
    assert len(journal._places) <= CACHE_MAX
    assert journal._heads == {}


# When journald is not up to it


def fill(journal: Journal) -> int:
    """Log until nothing gets through; how many did."""
    for number in range(100_000):
        journal(6, "peer joined", {"peer": number}, WHERE)
        if journal.lost:
            return number
    raise AssertionError("the socket is never full")


def test_a_full_socket_holds_nobody_up_and_the_loss_is_told(journal: Journal, journald: Journald) -> None:
    room = fill(journal)
    assert room >= 1
    for number in range(1000):
        journal(6, "peer left", {"peer": number}, WHERE)
    assert journal.lost == 1001
    assert journald.drain() == room
    journal(6, "ready", {}, WHERE)
    assert journald.receive()["MESSAGE"] == "ready"
    told = journald.receive()
    assert told["MESSAGE"] == f"{LOST} count=1001"
    assert (told["PRIORITY"], told["DOORBELLD_COUNT"]) == (str(syslog.LOG_WARNING), "1001")
    assert told["MESSAGE_ID"] == MESSAGE_IDS[LOST]
    journal(6, "stopping", {}, WHERE)
    assert journald.receive()["MESSAGE"] == "stopping"
    assert (journald.is_empty(), journal.lost) == (True, 0)


def test_with_room_for_one_the_event_goes_first_and_the_count_is_kept(
    journal: Journal, monkeypatch: pytest.MonkeyPatch
) -> None:
    room, sent = 0, []

    def send(data: bytes) -> bool:
        nonlocal room
        if room:
            room -= 1
            sent.append(dict(decode(data))["MESSAGE"].decode())
            return True
        return False

    monkeypatch.setattr(journal, "_send", send)
    for event, free in (("one", 0), ("two", 1), ("three", 0), ("four", 1), ("five", 2), ("six", 2)):
        room = free
        journal(6, event, {}, WHERE)
    assert sent == ["two", "four", "five", f"{LOST} count=2", "six"]
    assert journal.lost == 0


@pytest.mark.parametrize("tidily", [True, False], ids=["no socket", "nobody behind the socket"])
def test_journald_stops_and_comes_back(tidily: bool, journal: Journal, journald: Journald) -> None:
    journal(6, "one", {}, WHERE)
    assert journald.receive()["MESSAGE"] == "one"
    for count in (3, 5):
        journald.stop(tidily=tidily)
        for _ in range(count):
            journal(6, "lost", {}, WHERE)
        assert journal.lost == count
        journald.start_again()
        journal(6, "two", {}, WHERE)
        assert [journald.receive()["MESSAGE"] for _ in range(2)] == ["two", f"{LOST} count={count}"]
        assert (journald.is_empty(), journal.lost) == (True, 0)


def test_a_sink_that_was_closed_counts(journal: Journal, journald: Journald) -> None:
    journal.close()
    journal(6, "one", {}, WHERE)
    assert journal.lost == 1
    assert journald.is_empty()


def test_threads_may_log(journal: Journal, journald: Journald) -> None:
    threads = [threading.Thread(target=journal, args=(6, f"from {n}", {"peer": n}, WHERE)) for n in range(4)]
    for thread in threads:
        thread.start()
    said = {journald.receive()["MESSAGE"] for _ in threads}
    for thread in threads:
        thread.join(DEADLINE)
    assert said == {f"from {n} peer={n}" for n in range(4)}


# Large events


def receive_large(journald: Journald) -> tuple[bytes, int]:
    """Take an event that comes as a descriptor: its bytes, and its seals."""
    data, ancillary, flags, _ = journald.socket.recvmsg(1 << 20, socket.CMSG_SPACE(4))
    assert (data, flags & socket.MSG_CTRUNC) == (b"", 0)
    ((level, kind, raw),) = ancillary
    assert (level, kind) == (socket.SOL_SOCKET, socket.SCM_RIGHTS)
    (fd,) = array.array("i", raw)
    try:
        size = os.fstat(fd).st_size
        return os.pread(fd, size, 0), fcntl.fcntl(fd, fcntl.F_GET_SEALS)
    finally:
        os.close(fd)


def test_an_event_that_is_too_large_comes_in_a_sealed_memfd(journal: Journal, journald: Journald) -> None:
    large = "x" * (4 << 20)
    before = os.listdir("/proc/self/fd")
    journal(4, "peer left", {"region": "demo", "reason": large}, WHERE)
    data, seals = receive_large(journald)
    fields = {name: value.decode() for name, value in decode(data)}
    assert fields["DOORBELLD_REASON"] == large
    assert fields["MESSAGE"] == f"peer left region=demo reason={large}"
    assert seals == fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW | fcntl.F_SEAL_WRITE | fcntl.F_SEAL_SEAL
    assert os.listdir("/proc/self/fd") == before
    assert journal.lost == 0


def test_a_large_event_is_lost_like_any_other(journal: Journal, journald: Journald) -> None:
    room = fill(journal)
    journal(4, "peer left", {"reason": "x" * (4 << 20)}, WHERE)
    assert journal.lost == 2
    assert journald.drain() == room


def test_without_memfds_a_large_event_is_lost(
    journal: Journal, journald: Journald, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: Any) -> int:
        raise OSError(24, "Too many open files")

    monkeypatch.setattr(os, "memfd_create", refuse)
    journal(4, "peer left", {"reason": "x" * (4 << 20)}, WHERE)
    assert journal.lost == 1
    journal(4, "ready", {}, WHERE)
    assert [journald.receive()["MESSAGE"] for _ in range(2)] == ["ready", f"{LOST} count=1"]


# Is standard error the journal's?


@pytest.fixture
def stream() -> Iterator[socket.socket]:
    """Stand in for what systemd connects to standard error."""
    ours, theirs = socket.socketpair()
    with ours, theirs:
        yield ours


def named(stream: socket.socket) -> dict[str, str]:
    status = os.fstat(stream.fileno())
    return {"JOURNAL_STREAM": f"{status.st_dev}:{status.st_ino}"}


def test_our_stream_is_the_journals(stream: socket.socket, journald: Journald) -> None:
    journal = Journal.of_stderr(named(stream), stream.fileno(), str(journald.path))
    assert journal is not None
    with journal:
        assert journald.is_empty(), "asking whether it is there is no event"
        journal(6, "ready", {}, WHERE)
        assert journald.receive()["MESSAGE"] == "ready"


@pytest.mark.parametrize("value", [None, "", "1:2", "nonsense", "8:", ":"])
def test_another_stream_is_not(value: str | None, stream: socket.socket, journald: Journald) -> None:
    environ = {} if value is None else {"JOURNAL_STREAM": value}
    assert Journal.of_stderr(environ, stream.fileno(), str(journald.path)) is None


def test_a_variable_that_was_inherited_is_not_ours(stream: socket.socket, journald: Journald) -> None:
    with open(os.devnull, "wb") as other:
        assert Journal.of_stderr(named(stream), other.fileno(), str(journald.path)) is None


def test_no_standard_error_at_all(stream: socket.socket, journald: Journald) -> None:
    environ, number = named(stream), stream.fileno()
    closed = os.dup(number)
    os.close(closed)
    assert Journal.of_stderr(environ, closed, str(journald.path)) is None


@pytest.mark.parametrize("tidily", [True, False], ids=["no socket", "nobody behind the socket"])
def test_a_journal_that_is_not_there_is_not_used(tidily: bool, stream: socket.socket, journald: Journald) -> None:
    journald.stop(tidily=tidily)
    assert Journal.of_stderr(named(stream), stream.fileno(), str(journald.path)) is None


def test_without_a_journal_lines_go_to_standard_error(
    stream: socket.socket, configured: Journal, capfd: pytest.CaptureFixture[str]
) -> None:
    set_up("info", Journal.of_stderr({}, stream.fileno()))
    structlog.get_logger().info("peer joined", region="demo")
    assert "peer joined" in capfd.readouterr().err


def test_the_place_in_the_source_is_told_to_the_line(configured: Journal, journald: Journald) -> None:
    first = cast(Any, test_the_place_in_the_source_is_told_to_the_line).__code__.co_firstlineno
    structlog.get_logger().info("ready")
    assert int(journald.receive()["CODE_LINE"]) == first + 2
