# SPDX-FileCopyrightText: 2026 The doorbelld authors
# SPDX-License-Identifier: GPL-2.0-or-later
from __future__ import annotations

import errno
import fcntl
import mmap
import os
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from doorbelld.errors import MemoryUnavailable
from doorbelld.ivshmem import memory
from doorbelld.ivshmem.memory import SEALS, Backing, create, huge_page_size
from support.fdcount import no_leaks

SIZE = 1 << 16


@pytest.fixture(autouse=True)
def counted() -> Iterator[None]:
    with no_leaks():
        yield


def free_huge_pages() -> int:
    return int(Path("/proc/sys/vm/nr_hugepages").read_text())


@pytest.mark.parametrize("text", ["memfd", "hugetlb", "shm:name", "file:/a/b"])
def test_parse_and_back(text: str) -> None:
    backing = Backing.parse(text)
    assert str(backing) == text
    assert Backing.parse(str(backing)) == backing


def test_paths() -> None:
    assert Backing.parse("memfd").path == ""
    assert Backing.parse("shm:name").path == Backing.parse("shm:/name").path == "/dev/shm/name"
    assert Backing.parse("file:/a/b").path == "/a/b"


@pytest.mark.parametrize(
    "raw",
    [
        "",
        "memfd:x",
        "hugetlb:2M",
        "shm:",
        "shm:a/b",
        "shm:..",
        "shm:/.",
        "shm:../x",
        "shm:" + "x" * 256,
        "file:",
        "file:rel",
        "file:/a\0b",
        "shm:a\0b",
        "tmpfs:x",
        3,
        None,
        ["memfd"],
    ],
)
def test_parse_refuses(raw: object) -> None:
    with pytest.raises(ValueError, match='is no backing; write "memfd", "hugetlb", "shm:NAME" or "file:/PATH"'):
        Backing.parse(raw)


def test_seals_hold() -> None:
    with create(Backing("memfd"), SIZE, "demo") as fd:
        assert os.fstat(fd.fileno()).st_size == SIZE
        assert os.readlink(f"/proc/self/fd/{fd.fileno()}").startswith("/memfd:doorbelld:demo")
        assert fcntl.fcntl(fd.fileno(), fcntl.F_GETFD) & fcntl.FD_CLOEXEC
        assert fcntl.fcntl(fd.fileno(), fcntl.F_GET_SEALS) == SEALS
        again = os.open(f"/proc/self/fd/{fd.fileno()}", os.O_RDWR)  # as a guest's QEMU might
        for size in (0, SIZE - 1, SIZE + 1):
            for each in (fd.fileno(), again):
                with pytest.raises(PermissionError):
                    os.ftruncate(each, size)
        with pytest.raises(PermissionError):
            fcntl.fcntl(again, fcntl.F_ADD_SEALS, fcntl.F_SEAL_WRITE)
        os.close(again)
        with mmap.mmap(fd.fileno(), SIZE) as mapped:
            mapped[:3] = b"abc"
        assert os.pread(fd.fileno(), 3, 0) == b"abc"


@pytest.mark.skipif(free_huge_pages() > 0, reason="this host has huge pages reserved")
def test_no_huge_pages_is_said_at_once() -> None:
    with pytest.raises(
        MemoryUnavailable, match=r'^region "demo": hugetlb: .*; reserve huge pages \(sysctl vm.nr_hugepages=N\) or use'
    ) as caught:
        create(Backing("hugetlb"), huge_page_size() or 1 << 21, "demo")
    del caught


def test_huge_page_size() -> None:
    assert huge_page_size() in (0, *(1 << bits for bits in range(16, 35)))


def test_file_is_made_allocated_and_kept(tmp_path: Path) -> None:
    path = tmp_path / "mem"
    with create(Backing("file", str(path)), SIZE, "demo") as fd:
        os.pwrite(fd.fileno(), b"kept", 0)
        status = os.stat(path)
        assert (status.st_size, status.st_mode & 0o777) == (SIZE, 0o600)
        assert status.st_blocks * 512 >= SIZE
    with create(Backing("file", str(path)), SIZE, "demo") as fd:
        assert os.pread(fd.fileno(), 4, 0) == b"kept"


def test_shm_can_be_opened_by_name() -> None:
    name = f"doorbelld-test-{os.getpid()}"
    try:
        with create(Backing("shm", name), SIZE, "demo") as fd:
            os.pwrite(fd.fileno(), b"x", 7)
            assert Path("/dev/shm", name).read_bytes()[7:8] == b"x"
    finally:
        os.unlink(f"/dev/shm/{name}")


@pytest.mark.parametrize("size", [1, SIZE - 1, SIZE + 1, SIZE * 2])
def test_wrong_size_of_what_is_there(tmp_path: Path, size: int) -> None:
    path = tmp_path / "mem"
    path.write_bytes(b"\xaa" * size)
    with pytest.raises(
        MemoryUnavailable, match=f"it is {size} bytes long, the region {SIZE}; remove it or set .* {size}$"
    ):
        create(Backing("file", str(path)), SIZE, "demo")
    assert path.read_bytes() == b"\xaa" * size


def test_an_empty_file_is_taken(tmp_path: Path) -> None:
    path = tmp_path / "mem"
    path.touch(0o640)
    with create(Backing("file", str(path)), SIZE, "demo"):
        assert os.stat(path).st_size == SIZE
        assert os.stat(path).st_mode & 0o777 == 0o640


@pytest.mark.parametrize("dangling", [False, True])
def test_symlink_is_refused(tmp_path: Path, dangling: bool) -> None:
    target, link = tmp_path / "target", tmp_path / "link"
    if not dangling:
        target.write_bytes(b"precious")
    link.symlink_to(target)
    with pytest.raises(MemoryUnavailable, match="it is a symbolic link; name the file itself"):
        create(Backing("file", str(link)), SIZE, "demo")
    assert link.is_symlink()
    assert target.exists() is not dangling


@pytest.mark.parametrize("kind", ["fifo", "socket", "device", "folder"])
def test_what_is_no_file_is_refused_and_stays(tmp_path: Path, kind: str) -> None:
    path = str(tmp_path / "thing")
    if kind == "fifo":
        os.mkfifo(path)
    elif kind == "folder":
        os.mkdir(path)
    elif kind == "socket":
        with socket.socket(socket.AF_UNIX) as sock:
            sock.bind(path)
    elif os.getuid():
        pytest.skip("only root makes devices")
    else:
        os.mknod(path, 0o666 | 0o020000, os.makedev(1, 3))  # another /dev/null
    before = os.lstat(path).st_ino
    with pytest.raises(MemoryUnavailable):
        create(Backing("file", path), SIZE, "demo")
    assert os.lstat(path).st_ino == before


def test_no_such_folder(tmp_path: Path) -> None:
    with pytest.raises(MemoryUnavailable, match=r'^region "demo": file:.*: No such file .*; make its directory'):
        create(Backing("file", f"{tmp_path}/no/mem"), SIZE, "demo")


def limited(path: Path) -> subprocess.CompletedProcess[str]:
    """Make the file in a process that may write 4 KiB."""
    script = """if True:
        import resource, signal, sys
        from doorbelld.errors import MemoryUnavailable
        from doorbelld.ivshmem.memory import Backing, create
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (4096, 4096))
        try:
            create(Backing("file", sys.argv[1]), 1 << 16, "demo")
        except MemoryUnavailable as error:
            print(error)
    """
    return subprocess.run([sys.executable, "-c", script, path], capture_output=True, text=True, check=True)


def test_file_too_large_leaves_nothing(tmp_path: Path) -> None:
    path = tmp_path / "mem"
    assert "the file system or RLIMIT_FSIZE allows no file of that size" in limited(path).stdout
    assert not path.exists()


def test_failure_does_not_remove_what_was_there(tmp_path: Path) -> None:
    path = tmp_path / "mem"
    path.touch()
    assert "RLIMIT_FSIZE" in limited(path).stdout
    assert path.exists()


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    if subprocess.run(["mount", "-t", "tmpfs", "-o", "size=64k", "tmpfs", tmp_path], check=False).returncode:
        pytest.skip("may not mount a tmpfs")
    yield tmp_path
    subprocess.run(["umount", tmp_path], check=True)


@pytest.mark.skipif(os.getuid() != 0, reason="only root mounts")
def test_disk_full_is_said_now_and_leaves_nothing(small_disk: Path) -> None:
    with pytest.raises(MemoryUnavailable, match="No space left on device; free some space"):
        create(Backing("file", f"{small_disk}/mem"), 1 << 20, "demo")
    assert os.listdir(small_disk) == []
    with create(Backing("file", f"{small_disk}/mem"), 1 << 15, "demo"):
        pass


def test_every_cure_is_a_sentence() -> None:
    for code in (errno.ENOSPC, errno.EMFILE, errno.EIO):
        assert memory._cure(OSError(code, ""), Backing("memfd"))
        assert "huge pages" in memory._cure(OSError(code, ""), Backing("hugetlb"))
