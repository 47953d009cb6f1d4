# SPDX-FileCopyrightText: 2026 The doorbelld authors
# SPDX-License-Identifier: GPL-2.0-or-later
"""A file system that answers when it likes: what the owner of any FUSE mount can do to whoever touches its files.

`HangingFiles` mounts it, for every user. In its one directory there is each file that somebody asks for: `SIZE` zero
bytes that everybody may read and write. The server is a process of its own (this module) that speaks the kernel's FUSE
protocol (linux/fuse.h) and gives no answer, ever, to requests of the kinds that it was told. Who waits for one waits in
state D, past SIGKILL, until the server ends.

It needs root and /dev/fuse.
"""

from __future__ import annotations

import ctypes
import errno
import fcntl
import os
import stat
import struct
import sys
import threading
from collections.abc import Callable
from pathlib import Path

from support.apart import start_module
from support.needs import require

SIZE = 1 << 20
LOOKUP, FORGET, GETATTR, SETATTR, OPEN, READ, WRITE, STATFS, RELEASE = 1, 2, 3, 4, 14, 15, 16, 17, 18
FLUSH, INIT, OPENDIR, RELEASEDIR, GETLK, SETLK, INTERRUPT, BATCH_FORGET = 25, 26, 27, 29, 31, 32, 36, 42
FALLOCATE = 43
SECOND_READ = 1000
OPERATIONS = {
    "LOOKUP": LOOKUP,
    "GETATTR": GETATTR,
    "SETATTR": SETATTR,
    "OPEN": OPEN,
    "READ": READ,
    "WRITE": WRITE,
    "STATFS": STATFS,
    "FLUSH": FLUSH,
    "SETLK": SETLK,
    "FALLOCATE": FALLOCATE,
    "SECOND_READ": SECOND_READ,
}
"""What it can be told to hang in: *open* hangs in LOOKUP or OPEN, *stat* in GETATTR, *close* in FLUSH.

With SECOND_READ the first READ fails, and no later one is answered. A page fault that has to read twice holds the mmap
lock the second time.
"""
_SILENT = (FORGET, INTERRUPT, BATCH_FORGET)
_REQUEST = struct.Struct("<IIQQIIIHH")
_ANSWER = struct.Struct("<IiQ")
_BUFFER = (1 << 20) + 4096
_DETACH = 2
_POSIX_LOCKS = 1 << 1
"""Flag of INIT: locks are asked of the server."""
_ROOT = 1


class HangingFiles:
    """The file system at *directory*, which is made; *hang* are names of `OPERATIONS`.

    With *init* it is mounted in the mount namespace of that process, where *directory* is there already.
    """

    def __init__(self, directory: Path, *hang: str, init: int = 0) -> None:
        require("/dev/fuse", "a kernel with FUSE")
        if not init:
            directory.mkdir()
        self.directory = directory
        self._closed, self._init = False, init
        numbers = (str(OPERATIONS[name]) for name in hang)
        self._process = start_module("support.fuse", str(init), str(directory), *numbers)
        assert self._process.stdout is not None
        assert self._process.stdout.readline() == b"mounted\n", "FUSE could not be mounted"

    def path(self, name: str = "file") -> str:
        """Name a file of it."""
        return str(self.directory / name)

    def hang(self, name: str) -> None:
        """Give no answer to requests of that kind from now on."""
        assert self._process.stdin is not None and self._process.stdout is not None
        self._process.stdin.write(b"%d\n" % OPERATIONS[name])
        self._process.stdin.flush()
        assert self._process.stdout.readline() == b"hangs\n"

    def end_server(self) -> None:
        """Leave a mount whose server is gone: who waits for it, or touches it from now on, gets an error."""
        if self._process.returncode is None:
            self._process.kill()
            self._process.communicate()

    def close(self) -> None:
        """Take it away, but not its directory. A second time does nothing."""
        if self._closed:
            return
        self._closed = True
        self.end_server()
        if self._init:  # it goes with that namespace
            return
        _libc().umount2(os.fsencode(self.directory), _DETACH)

    def __enter__(self) -> HangingFiles:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def _libc() -> ctypes.CDLL:
    return ctypes.CDLL(None, use_errno=True)


def _attributes(node: int) -> bytes:
    mode = stat.S_IFDIR | 0o777 if node == _ROOT else stat.S_IFREG | 0o666
    return struct.pack("<6Q10I", node, SIZE, SIZE // 512, 0, 0, 0, 0, 0, 0, mode, 1, 0, 0, 0, 4096, 0)


def _read(_: int, body: bytes) -> bytes:
    _, offset, size = struct.unpack_from("<QQI", body)
    return bytes(min(size, max(0, SIZE - offset)))


_ANSWERS: dict[int, Callable[[int, bytes], bytes]] = {
    INIT: lambda node, body: struct.pack("<IIIIHHIIHHI28x", 7, 31, 1 << 17, 0, 16, 12, 1 << 17, 1, 32, 0, 0),
    LOOKUP: lambda node, body: struct.pack("<QQQQII", 2, 1, 0, 0, 0, 0) + _attributes(2),
    GETATTR: lambda node, body: struct.pack("<QII", 0, 0, 0) + _attributes(node),
    SETATTR: lambda node, body: struct.pack("<QII", 0, 0, 0) + _attributes(node),
    OPEN: lambda node, body: struct.pack("<QII", 1, 0, 0),
    OPENDIR: lambda node, body: struct.pack("<QII", 1, 0, 0),
    READ: _read,
    WRITE: lambda node, body: struct.pack("<II", struct.unpack_from("<QQI", body)[2], 0),
    STATFS: lambda node, body: struct.pack("<5Q4I24x", 1 << 20, 1 << 19, 1 << 19, 1 << 10, 1 << 9, 4096, 255, 4096, 0),
    FLUSH: lambda node, body: b"",
    GETLK: lambda node, body: struct.pack("<QQII", 0, 0, fcntl.F_UNLCK, 0),
    SETLK: lambda node, body: b"",
    FALLOCATE: lambda node, body: b"",
    RELEASE: lambda node, body: b"",
    RELEASEDIR: lambda node, body: b"",
}


def _serve(device: int, hang: set[int]) -> None:
    reads = 0
    while True:
        request = os.read(device, _BUFFER)
        _, operation, unique, node, *_ = _REQUEST.unpack_from(request)
        if operation in hang or operation in _SILENT:
            continue
        if operation == READ and SECOND_READ in hang:
            reads += 1
            if reads == 1:
                os.write(device, _ANSWER.pack(_ANSWER.size, -errno.EIO, unique))
            continue
        answer = _ANSWERS.get(operation)
        body = answer(node, request[_REQUEST.size :]) if answer else b""
        if operation == INIT and SETLK in hang:
            body = body[:12] + struct.pack("<I", _POSIX_LOCKS) + body[16:]
        os.write(device, _ANSWER.pack(_ANSWER.size + len(body), 0 if answer else -errno.ENOSYS, unique) + body)


def _take_orders(hang: set[int]) -> None:
    for line in sys.stdin:
        hang.add(int(line))
        print("hangs", flush=True)


def _main() -> None:
    init, directory, *hang = sys.argv[1:]
    device = os.open("/dev/fuse", os.O_RDWR | os.O_CLOEXEC)
    if int(init):
        with open(f"/proc/{init}/ns/mnt") as namespace:
            if _libc().setns(namespace.fileno(), 0):
                sys.exit(f"setns: {os.strerror(ctypes.get_errno())}")
    options = f"fd={device},rootmode=40000,user_id=0,group_id=0,allow_other"
    if _libc().mount(b"fuse", os.fsencode(directory), b"fuse", 0, options.encode()):
        sys.exit(f"mount: {os.strerror(ctypes.get_errno())}")
    print("mounted", flush=True)
    hanging = set(map(int, hang))
    threading.Thread(target=_take_orders, args=(hanging,), daemon=True).start()
    _serve(device, hanging)


if __name__ == "__main__":
    _main()
