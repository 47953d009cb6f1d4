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
import os
import stat
import struct
import sys
from collections.abc import Callable
from pathlib import Path

from support.apart import start_module
from support.needs import require

SIZE = 1 << 20
LOOKUP, FORGET, GETATTR, SETATTR, OPEN, READ, WRITE, STATFS, RELEASE = 1, 2, 3, 4, 14, 15, 16, 17, 18
FLUSH, INIT, OPENDIR, RELEASEDIR, SETLK, INTERRUPT, BATCH_FORGET = 25, 26, 27, 29, 32, 36, 42
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
}
"""What it can be told to hang in: *open* hangs in LOOKUP or OPEN, *stat* in GETATTR, *close* in FLUSH."""
_SILENT = (FORGET, INTERRUPT, BATCH_FORGET)
_REQUEST = struct.Struct("<IIQQIIIHH")
_ANSWER = struct.Struct("<IiQ")
_BUFFER = (1 << 20) + 4096
_DETACH = 2
_ROOT = 1


class HangingFiles:
    """The file system at *directory*, which is made; *hang* are names of `OPERATIONS`."""

    def __init__(self, directory: Path, *hang: str) -> None:
        require("/dev/fuse", "a kernel with FUSE")
        directory.mkdir()
        self.directory = directory
        self._process = start_module("support.fuse", str(directory), *(str(OPERATIONS[name]) for name in hang))
        assert self._process.stdout is not None
        assert self._process.stdout.readline() == b"mounted\n", "FUSE could not be mounted"

    def path(self, name: str = "file") -> str:
        """Name a file of it."""
        return str(self.directory / name)

    def end_server(self) -> None:
        """Leave a mount whose server is gone: who waits for it, or touches it from now on, gets an error."""
        self._process.kill()
        self._process.communicate()

    def close(self) -> None:
        """Take it away, and its directory."""
        self.end_server()
        _libc().umount2(os.fsencode(self.directory), _DETACH)
        self.directory.rmdir()

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
    SETLK: lambda node, body: b"",
    RELEASE: lambda node, body: b"",
    RELEASEDIR: lambda node, body: b"",
}


def _serve(device: int, hang: frozenset[int]) -> None:
    while True:
        request = os.read(device, _BUFFER)
        _, operation, unique, node, *_ = _REQUEST.unpack_from(request)
        if operation in hang or operation in _SILENT:
            continue
        answer = _ANSWERS.get(operation)
        body = answer(node, request[_REQUEST.size :]) if answer else b""
        os.write(device, _ANSWER.pack(_ANSWER.size + len(body), 0 if answer else -errno.ENOSYS, unique) + body)


def _main() -> None:
    directory, *hang = sys.argv[1:]
    device = os.open("/dev/fuse", os.O_RDWR | os.O_CLOEXEC)
    options = f"fd={device},rootmode=40000,user_id=0,group_id=0,allow_other"
    if _libc().mount(b"fuse", os.fsencode(directory), b"fuse", 0, options.encode()):
        sys.exit(f"mount: {os.strerror(ctypes.get_errno())}")
    print("mounted", flush=True)
    _serve(device, frozenset(map(int, hang)))


if __name__ == "__main__":
    _main()
