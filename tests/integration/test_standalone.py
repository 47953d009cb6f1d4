# SPDX-FileCopyrightText: 2026 The doorbelld authors
# SPDX-License-Identifier: GPL-2.0-or-later
"""The stand-alone back-end programs as their users start them: by hand, by a launcher, and by systemd's sockets."""

from __future__ import annotations

import json
import os
import random
import signal
import socket
import stat
import struct
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from doorbelld.vhost.frontend import BackendFailed, Frontend
from doorbelld.wire.vhost_requests import BackendRequest
from doorbelld.wire.vhost_requests import FrontendRequest as R
from support.backendprogram import BackendProgram, DiskUser
from support.blkdriver import FLUSH, GET_ID, IN, IOERR, OK, OUT, SECTOR, until
from support.daemon import BIN, DEADLINE

SECTORS = 256
RO = 1 << 5


@pytest.fixture
def image(short_path: Path) -> Path:
    path = short_path / "disk"
    path.write_bytes(random.Random(4).randbytes(SECTORS * SECTOR))
    return path


@pytest.fixture
def path(short_path: Path) -> Path:
    """Where a program may listen."""
    return short_path / "socket"


@contextmanager
def attached(where: Path | socket.socket, queues: int = 1) -> Iterator[Frontend]:
    """Give a front-end whose queues run."""
    made = Frontend.connect(str(where)) if isinstance(where, Path) else Frontend(where)
    with made:
        made.start(queues)
        yield made


def test_a_disk_keeps_what_is_written(short_path: Path, image: Path, path: Path) -> None:
    noise = random.Random(5)
    wanted = bytearray(image.read_bytes())
    with BackendProgram(short_path, "blk", f"--socket-path={path}", f"--blk-file={image}", "--serial=s1") as program:
        with attached(path, queues=2) as f:
            disk = DiskUser(f)
            for turn in range(100):
                queue = turn % 2
                count = noise.randint(1, 16)
                sector = noise.randrange(SECTORS - count)
                part = slice(sector * SECTOR, (sector + count) * SECTOR)
                if turn % 3:
                    wanted[part] = noise.randbytes(count * SECTOR)
                    assert disk.request(OUT, sector, bytes(wanted[part]), queue=queue) == (OK, b"")
                assert disk.read(sector, count, queue) == wanted[part]
            assert disk.request(FLUSH) == (OK, b"")
            assert disk.request(GET_ID, room=20) == (OK, b"s1".ljust(20, b"\0"))
            assert disk.request(IN, SECTORS, room=SECTOR)[0] == IOERR
        with attached(path) as f:  # the next front-end
            assert DiskUser(f).read(0, SECTORS) == wanted
        assert program.stop() == 0
    assert image.read_bytes() == wanted
    assert not path.exists()
    assert "Traceback" not in program.log


def test_a_disk_that_is_for_reading(short_path: Path, image: Path) -> None:
    image.chmod(0o400)
    arguments = ("--socket-path=socket", "--blk-file=disk", "--read-only", "--cache=direct", "--queues=3", "--mode=600")
    with BackendProgram(short_path, "blk", *arguments) as program, attached(short_path / "socket") as f:
        assert f.ask_number(R.GET_QUEUE_NUM) == 3
        assert f.features & RO
        assert stat.S_IMODE((short_path / "socket").stat().st_mode) == 0o600
        disk = DiskUser(f)
        assert disk.read(7, 9) == image.read_bytes()[7 * SECTOR : 16 * SECTOR]
        assert disk.request(OUT, 7, bytes(SECTOR))[0] == IOERR
        assert program.stop() == 0


def test_a_hangup_has_it_look_at_the_size_of_the_image(short_path: Path, image: Path, path: Path) -> None:
    with BackendProgram(short_path, "blk", f"--socket-path={path}", f"--blk-file={image}") as program:
        with attached(path) as f:
            f.open_channel()
            disk = DiskUser(f)
            disk.read(0, 1)  # the ring starts: before that a driver does not listen
            os.truncate(image, 2 * SECTORS * SECTOR)
            program.signal(signal.SIGHUP)
            assert f.hear().request is BackendRequest.CONFIG_CHANGE_MSG
            assert struct.unpack("<Q", f.config(0, 8)) == (2 * SECTORS,)
            assert disk.read(SECTORS, 1) == bytes(SECTOR)
        assert program.stop() == 0


def test_entropy(short_path: Path, path: Path) -> None:
    with BackendProgram(short_path, "rng", f"--socket-path={path}", "--rate=1G") as program:
        with attached(path) as f:
            seen = {f.request(f.queues[0], room=32) for _ in range(50)}
            assert len(seen) == 50 and {len(each) for each in seen} == {32}
        assert program.stop() == 0
    assert not path.exists()


def test_an_inherited_connection_is_served_until_its_end(short_path: Path) -> None:
    ours, theirs = socket.socketpair()
    with theirs, BackendProgram(short_path, "rng", f"--fd={theirs.fileno()}", fds=[theirs.fileno()]) as program:
        theirs.close()
        with attached(ours) as f:
            assert f.request(f.queues[0], room=32) != bytes(32)
        assert program.wait() == 0
    assert "front-end detached" in program.log
    assert "it closed its connection" in program.log


def test_an_inherited_connection_that_breaks_the_protocol_is_76_and_the_log_says_why(short_path: Path) -> None:
    ours, theirs = socket.socketpair()
    with theirs, BackendProgram(short_path, "rng", f"--fd={theirs.fileno()}", fds=[theirs.fileno()]) as program:
        theirs.close()
        with attached(ours) as f:
            f.send_raw(b"\xff" * 12)
            with pytest.raises(BackendFailed):
                f.answer()
        assert program.wait() == 76
    assert "front-end broke the device" in program.log
    assert "reason=" in program.log
    assert "Traceback" not in program.log


def test_an_inherited_connection_that_is_over_already(short_path: Path) -> None:
    ours, theirs = socket.socketpair()
    with theirs:
        ours.close()
        with BackendProgram(short_path, "rng", f"--fd={theirs.fileno()}", fds=[theirs.fileno()]) as program:
            assert program.wait() == 0
    assert "Traceback" not in program.log


def test_an_inherited_connection_ends_with_a_signal_too(short_path: Path) -> None:
    ours, theirs = socket.socketpair()
    with theirs, BackendProgram(short_path, "rng", f"--fd={theirs.fileno()}", fds=[theirs.fileno()]) as program:
        theirs.close()
        with attached(ours) as f:
            assert program.stop() == 0
            with pytest.raises(BackendFailed):
                f.answer()


def test_an_inherited_listening_socket_stays_after_the_end(short_path: Path, image: Path, path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as listening:
        listening.bind(str(path))
        listening.listen()
        number = listening.fileno()
        arguments = (f"--fd={number}", f"--blk-file={image}")
        for _ in range(2):
            with BackendProgram(short_path, "blk", *arguments, fds=[number]) as program:
                for _ in range(2):
                    with attached(path) as f:
                        assert DiskUser(f).read(0, 1) == image.read_bytes()[:SECTOR]
                assert program.stop() == 0
            assert path.is_socket()
        assert f"socket={path}" in program.log


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_under_load_ends_it_and_leaves_no_socket(
    short_path: Path, image: Path, path: Path, number: signal.Signals
) -> None:
    with BackendProgram(short_path, "blk", f"--socket-path={path}", f"--blk-file={image}") as program:
        with attached(path) as f:
            queue = f.queues[0]
            header, status = f.take(16), f.take(1)
            data = [f.take(16 * SECTOR) for _ in range(16)]
            f.memory.write(header, struct.pack("<IIQ", OUT, 0, 0))
            turn = 0
            process = program.process
            assert process is not None

            def work() -> bool:
                """Keep the ring full until the program is gone."""
                nonlocal turn
                while queue.free >= 3:
                    queue.add([(header, 16), (data[turn % 16], 16 * SECTOR)], [(status, 1)])
                    turn += 1
                queue.kick()
                queue.reap()
                if turn > 2000 and not signalled:
                    program.signal(number)
                    signalled.append(True)
                return process.poll() is not None

            signalled: list[bool] = []
            until(work, "the program ends")
            with pytest.raises(BackendFailed):
                f.answer()
        assert program.wait() == 0
    assert not path.exists()
    assert "the program stops" in program.log
    assert "given up" not in program.log


def test_a_front_end_that_breaks_the_protocol_is_told_of_and_the_next_one_served(short_path: Path, path: Path) -> None:
    with BackendProgram(short_path, "rng", f"--socket-path={path}") as program:
        with attached(path) as f:
            f.send_raw(struct.pack("<III", 2, 1, 8) + b"\0" * 8 + struct.pack("<III", 200, 1, 1 << 30))
            with pytest.raises(BackendFailed):
                f.answer()
        with attached(path) as f:
            assert f.request(f.queues[0], room=32) != bytes(32)
        assert program.stop() == 0
    (line,) = [line for line in program.log.splitlines() if "front-end broke the device" in line]
    assert f"pid={os.getpid()}" in line and "reason=" in line


def test_once_ends_with_the_first_front_end(short_path: Path, path: Path) -> None:
    with BackendProgram(short_path, "rng", f"--socket-path={path}", "--once") as program:
        with attached(path) as f:
            assert f.request(f.queues[0], room=32) != bytes(32)
        assert program.wait() == 0
    assert not path.exists()


def test_once_and_a_broken_front_end_is_76(short_path: Path, path: Path) -> None:
    with BackendProgram(short_path, "rng", f"--socket-path={path}", "--once") as program:
        with Frontend.connect(str(path)) as f:
            f.send_raw(b"\xff" * 12)
        assert program.wait() == 76
    assert not path.exists()


def test_what_another_program_uses_is_refused_in_one_line(short_path: Path, image: Path, path: Path) -> None:
    copy = short_path / "copy"
    copy.write_bytes(image.read_bytes())
    with BackendProgram(short_path, "blk", f"--socket-path={path}", f"--blk-file={image}") as program:
        for where, file, status, words in (
            (path, copy, 73, f"{path}: a live server"),
            (short_path / "other", image, 66, f"image {image} is"),
        ):
            command = [program.command[0], f"--socket-path={where}", f"--blk-file={file}"]
            done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=DEADLINE)
            assert done.returncode == status
            (line,) = done.stderr.splitlines()
            assert line.startswith(f"doorbelld-vhost-user-blk: {words}")
        assert not (short_path / "other").exists()
        with attached(path) as f:
            assert DiskUser(f).read(0, 1) == image.read_bytes()[:SECTOR]
        assert program.stop() == 0


@pytest.mark.parametrize(
    ("kind", "capabilities"),
    [("blk", {"type": "block", "features": ["read-only", "blk-file"]}), ("rng", {"type": "rng"})],
)
def test_capabilities_come_before_everything_else(short_path: Path, kind: str, capabilities: dict[str, object]) -> None:
    """Whatever else is on the command line, right or wrong, is ignored."""
    for others in ((), ("--socket-path=socket", "--fd=99", "--no-such-option", "word", "--blk-file")):
        command = [BIN / f"doorbelld-vhost-user-{kind}", *others, "--print-capabilities"]
        done = subprocess.run(command, cwd=short_path, capture_output=True, text=True, check=True, timeout=DEADLINE)
        assert json.loads(done.stdout) == capabilities
        assert done.stderr == ""
    assert list(short_path.iterdir()) == []
