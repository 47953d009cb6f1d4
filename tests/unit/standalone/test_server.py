# SPDX-FileCopyrightText: 2026 The doorbelld authors
# SPDX-License-Identifier: GPL-2.0-or-later
"""What ``doorbell-server`` makes of its command line, its memory and its PID file; processes: tests/integration."""

from __future__ import annotations

import errno
import os
from pathlib import Path
from typing import Any

import pytest
from doorbelld.errors import MemoryUnavailable
from doorbelld.ivshmem.memory import Backing
from doorbelld.ivshmem.spec import RegionSpec
from doorbelld.log import set_up
from doorbelld.standalone import server as server_module
from doorbelld.standalone.background import PidFile, Unwritable
from doorbelld.standalone.server import Place, fit, parse_size, prepare, program
from hypothesis import given
from hypothesis import strategies as st
from support.fdcount import no_leaks
from support.ivshmemtools import shared_name

Seen = list[tuple[RegionSpec, Place, bool]]


@pytest.fixture
def served(monkeypatch: pytest.MonkeyPatch) -> Seen:
    """Give what servers are made of, which end at once."""
    seen: Seen = []

    class Served:
        def __init__(self, spec: RegionSpec, place: Place, *, verbose: bool) -> None:
            seen.append((spec, place, verbose))

        async def run(self) -> int:
            return 0

    monkeypatch.setattr(server_module, "Server", Served)
    monkeypatch.setattr(server_module, "set_up", lambda *_: None)
    return seen


def test_the_defaults_are_those_of_ivshmem_server(served: Seen) -> None:
    assert program.run(["-F"]) == 0
    ((spec, place, verbose),) = served
    assert (spec.socket, spec.size, spec.vectors) == ("/tmp/ivshmem_socket", 4 << 20, 1)
    assert (spec.host_peer, spec.first_id, spec.max_peers, spec.name) == (False, 0, 65536, "ivshmem")
    assert place == Place(shm="ivshmem") and spec.backing == Backing("shm", "ivshmem") and not verbose
    defaults = {parameter.name: parameter.default for parameter in program.params}
    assert defaults["pid_file"] == "/var/run/ivshmem-server.pid"


@pytest.mark.parametrize(
    ("written", "size"),
    [
        ("4194304", 4 << 20),
        *(("4k", 4096), ("4K", 4096), ("4096B", 4096), ("1T", 1 << 40), ("1P", 1 << 50), ("1e", 1 << 60)),
        *(("1.5M", 3 << 19), ("12.345M", 12944671), ("0.5g", 1 << 29), (".5G", 1 << 29), ("1.k", 1024), ("9.0", 9)),
        *(("0x100000", 1 << 20), ("0XfF", 255), ("0x1B", 27), ("0x1e", 30)),
        *((" 4M", 4 << 20), ("+4M", 4 << 20), ("010", 10)),
        *(("4MiB", 4 << 20), ("4 MB", 4 << 20)),  # which ivshmem-server refuses
    ],
)
def test_sizes_are_those_of_ivshmem_server(written: str, size: int) -> None:
    assert parse_size(written) == size


@pytest.mark.parametrize(
    "written",
    [
        "",
        "M",
        "0",
        "0.0M",
        "0x0",
        "0x",
        "-1",
        "-0x1",
        "1.5",
        "1.5B",
        "0x10K",
        "0x1.8",
        "1e3",
        "1.5e3",
        "4M4",
        "8E",
        "1..5M",
    ],
)
def test_what_ivshmem_server_refuses_is_no_size(written: str) -> None:
    with pytest.raises(ValueError, match=r"; write "):
        parse_size(written)


def test_size_that_is_no_power_of_two_is_rounded_up(served: Seen) -> None:
    for written, size in (("1.5M", 2 << 20), ("0x100000", 1 << 20), ("0x100001", 2 << 20), (".5K", 4096)):
        assert program.run(["-F", "-l", written]) == 0
        assert served[-1][0].size == size


@pytest.mark.parametrize(
    ("arguments", "place"),
    [
        (["-M", "a", "-m", "/b"], Place(directory="/b")),
        (["-m", "/b", "-M", "a"], Place(shm="a")),
        (["-M", "a", "-m", "/b", "-M", "c"], Place(shm="c")),
        (["-m", "/b", "-M", "a", "-m/c"], Place(directory="/c")),
        (["--directory=/b", "--shm-name=/a"], Place(shm="a")),
        (["-m", "-M"], Place(directory="-M")),
    ],
)
def test_the_later_place_counts(
    served: Seen, monkeypatch: pytest.MonkeyPatch, arguments: list[str], place: Place
) -> None:
    monkeypatch.chdir("/")
    assert program.run(["-F", *arguments]) == 0
    want = Place(directory="/-M") if place.directory == "-M" else place
    assert served[0][1] == want


def test_a_name_that_is_none_for_a_region(served: Seen) -> None:
    assert program.run(["-F", "-M", "a b"]) == 0
    assert (served[0][0].name, served[0][1].shm) == ("ivshmem", "a b")


def test_verbose_and_other_spellings(served: Seen, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert program.run(["--foreground", "--verbose", "--socket=s", "--size=1G", "--vectors=64"]) == 0
    ((spec, _, verbose),) = served
    assert verbose and (spec.socket, spec.size, spec.vectors) == (f"{tmp_path}/s", 1 << 30, 64)


@given(st.integers(1, 1 << 40))
def test_sizes_fit(size: int) -> None:
    made = fit(size)
    assert made >= max(size, 4096) and made & (made - 1) == 0
    assert made == 4096 or made // 2 < size


def test_memory_without_a_name(tmp_path: Path) -> None:
    with no_leaks():
        fd, size = prepare(Place(directory=str(tmp_path)), 8192)
        assert fd is not None and size == 8192
        with fd:
            assert os.fstat(fd.fileno()).st_size == 8192 and os.fstat(fd.fileno()).st_blocks * 512 >= 8192
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("error", [errno.EOPNOTSUPP, errno.EISDIR])
def test_where_there_are_no_files_without_a_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: int) -> None:
    real = os.open

    def without(path: Any, flags: int, *more: int, **others: Any) -> int:
        if flags & os.O_TMPFILE == os.O_TMPFILE:
            raise OSError(error, os.strerror(error))
        return real(path, flags, *more, **others)

    monkeypatch.setattr(os, "open", without)
    with no_leaks():
        fd, _ = prepare(Place(directory=str(tmp_path)), 8192)
        assert fd is not None
        fd.close()
    assert list(tmp_path.iterdir()) == []


def test_memory_is_as_large_as_pages_want_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real = os.ftruncate

    def huge(fd: int, size: int) -> None:
        if size % (1 << 21):
            raise OSError(errno.EINVAL, os.strerror(errno.EINVAL))
        real(fd, size)

    monkeypatch.setattr(os, "ftruncate", huge)
    fd, size = prepare(Place(directory=str(tmp_path)), 4096)
    assert fd is not None and size == 1 << 21
    fd.close()

    def never(fd: int, size: int) -> None:
        raise OSError(errno.EINVAL, os.strerror(errno.EINVAL))

    monkeypatch.setattr(os, "ftruncate", never)
    with no_leaks(), pytest.raises(MemoryUnavailable, match="Invalid argument; name another place with -m or -M"):
        prepare(Place(directory=str(tmp_path)), 4096)


def test_an_object_grows_only(tmp_path: Path) -> None:
    for size, after in ((4096, 8192), (8192, 8192), (16384, 16384), (0, 0)):
        with shared_name(size) as name:
            assert prepare(Place(shm=name), 8192) == (None, 8192)
            assert Path("/dev/shm", name).stat().st_size == after
    with shared_name() as name:
        prepare(Place(shm=name), 8192)
        assert not Path("/dev/shm", name).exists(), "the region makes it"


def test_a_link_is_not_followed(tmp_path: Path) -> None:
    precious = tmp_path / "precious"
    precious.write_bytes(b"x")
    with shared_name() as name:
        Path("/dev/shm", name).symlink_to(precious)
        with pytest.raises(MemoryUnavailable, match=f"shared memory object {name}: .*; name another"):
            prepare(Place(shm=name), 8192)
    assert precious.read_bytes() == b"x"


def test_a_pid_file_is_written_in_place(tmp_path: Path) -> None:
    path = tmp_path / "pid"
    path.write_text("a longer text than that\n")
    inode = path.stat().st_ino
    made = PidFile(str(path))
    assert path.read_text() == f"{os.getpid()}\n" and path.stat().st_ino == inode
    made.remove()
    assert not path.exists()
    made.remove()


def test_a_pid_file_that_was_replaced_stays(tmp_path: Path) -> None:
    path = tmp_path / "pid"
    made = PidFile(str(path))
    other = tmp_path / "other"
    other.write_text(f"{os.getpid()}\n")
    other.replace(path)
    made.remove()
    assert path.exists()


def test_a_pid_file_that_is_a_link_is_not_followed(tmp_path: Path) -> None:
    precious, link = tmp_path / "precious", tmp_path / "pid"
    precious.write_text("do not touch")
    link.symlink_to(precious)
    with pytest.raises(Unwritable, match="with -p"):
        PidFile(str(link))
    assert precious.read_text() == "do not touch"
    assert link.is_symlink()


def test_a_pid_file_that_can_not_be(tmp_path: Path) -> None:
    with no_leaks(), pytest.raises(Unwritable, match="Is a directory; name a file"):
        PidFile(str(tmp_path))


@pytest.fixture(autouse=True)
def quiet() -> None:
    """Have the log be as it is by default, whatever a test left."""
    set_up("info")
