# SPDX-FileCopyrightText: 2026 The doorbelld authors
# SPDX-License-Identifier: GPL-2.0-or-later
"""Listening UNIX sockets: owner, group, mode, and what may lie at the path already.

The inode is born without any permission (``fchmod`` on a socket before ``bind`` sets it), and gets its owner, group
and mode only once it listens, so nobody slips in early and nobody who may connect ever meets a socket that does not
answer. A stale socket is removed; a live one is refused, naming the process that serves it; anything else at the
path is never touched.

A directory that is missing on the way to the socket is made, and removed with the socket if nothing else is in it then.
"""

from __future__ import annotations

import contextlib
import errno
import glob
import grp
import os
import pwd
import socket
import stat
from collections.abc import Sequence

from ..errors import SocketInUse, SocketUnavailable
from .owned import Fd

BACKLOG = 1024
_ID_MAX = (1 << 32) - 2  # the last one stands for "leave it"
PATH_MAX = 107  # sun_path holds 108 bytes with the NUL
_CURES = {
    errno.EACCES: "give the daemon's user the right to write there, or choose another socket path",
    errno.EPERM: "only root may give a socket to another owner or group; leave owner and group out",
    errno.EROFS: "choose a socket path that can be written, such as one below /run",
    errno.EMFILE: "raise the limit on open files (LimitNOFILE=)",
}


class Listener:
    """A listening UNIX stream socket that unlinks its path when closed, if the path is still its own.

    *made* are the directories that were made for it, the uppermost first; they are removed with it if they are empty.
    """

    def __init__(self, sock: socket.socket, path: str, ours: bool = True, made: Sequence[str] = ()) -> None:
        self.sock = sock
        self.path = path
        self.ours = ours
        """Whether the path is ours to remove; it is systemd's if that made the socket."""
        self._inode = _inode(path) if ours else None
        self._made = made

    @classmethod
    def open(cls, path: str, *, owner: str = "", group: str = "", mode: int = 0o660) -> Listener:
        """Make the socket, with its directory if that is missing.

        *owner* and *group* are names or numbers, empty for this process's own.

        Raises:
            SocketInUse: somebody serves there, or something that is no socket is there.
            SocketUnavailable: no permission, no directory, no descriptor.
        """
        try:
            return cls._open(path, owner, group, mode)
        except OSError as error:
            raise _unavailable(error, path) from error

    @classmethod
    def _open(cls, path: str, owner: str, group: str, mode: int) -> Listener:
        made: list[str] = []
        try:
            _make_directory(os.path.dirname(path), made)
            return cls._bind(path, owner, group, mode, made)
        except BaseException:
            remove_empty(made)
            raise

    @classmethod
    def _bind(cls, path: str, owner: str, group: str, mode: int, made: Sequence[str]) -> Listener:
        _clear(path)
        sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_CLOEXEC | socket.SOCK_NONBLOCK)
        try:
            os.fchmod(sock.fileno(), 0)
            sock.bind(path)
            try:
                sock.listen(BACKLOG)
                if owner or group:
                    os.chown(path, user_id(owner), group_id(group), follow_symlinks=False)
                os.chmod(path, mode)
                return cls(sock, path, made=made)
            except BaseException:
                os.unlink(path)
                raise
        except BaseException:
            sock.close()
            raise

    @classmethod
    def adopt(cls, fd: Fd, path: str, ours: bool = True) -> Listener:
        """Take over a listening socket that was handed to us (restart, socket activation)."""
        sock = socket.socket(fileno=fd.steal())
        sock.setblocking(False)
        return cls(sock, path, ours)

    def give_to(self, owner: str, group: str, mode: int) -> None:
        """Change who may connect.

        Raises:
            SocketUnavailable: no permission for that; nothing is changed then.
        """
        try:
            os.chown(self.path, user_id(owner), group_id(group), follow_symlinks=False)
            os.chmod(self.path, mode)
        except OSError as error:
            raise _unavailable(error, self.path) from error

    def steal(self) -> Fd:
        """Hand the socket on, and leave its path alone."""
        return Fd(self.sock.detach())

    def close(self) -> None:
        """Close the socket and remove its path, if nobody else has put another there."""
        if self.sock.fileno() >= 0:
            self.sock.close()
            if self._inode and _inode(self.path) == self._inode:
                with contextlib.suppress(OSError):
                    os.unlink(self.path)
                remove_empty(self._made)


def remove_empty(directories: Sequence[str]) -> None:
    """Remove those of *directories* that are there and empty, the last first."""
    for directory in reversed(directories):
        with contextlib.suppress(OSError):
            os.rmdir(directory)


def bound_to(listening: Fd | None) -> str:
    """Say which path *listening*, which is taken over, is bound to; empty for none."""
    if listening is None:
        return ""
    with listening:
        try:
            sock = socket.socket(fileno=listening.fileno())
        except OSError:  # it is no socket
            return ""
        listening.steal()
        with sock:
            name = sock.getsockname()
    return name if isinstance(name, str) else ""


def user_id(name: str) -> int:
    """Turn a user name or number into a uid; empty gives -1, "leave it".

    Raises:
        KeyError: no such user.
    """
    return -1 if not name else _number(name) if name.isdecimal() else pwd.getpwnam(name).pw_uid


def group_id(name: str) -> int:
    """Turn a group name or number into a gid; empty gives -1, "leave it".

    Raises:
        KeyError: no such group.
    """
    return -1 if not name else _number(name) if name.isdecimal() else grp.getgrnam(name).gr_gid


def _number(digits: str) -> int:
    if len(digits) > 10 or int(digits) > _ID_MAX:
        raise KeyError(digits)
    return int(digits)


def _make_directory(path: str, made: list[str]) -> None:
    """Make the directory *path*, and what is missing above it; *made* gets each as it is made."""
    if not path or os.path.isdir(path):
        return
    _make_directory(os.path.dirname(path), made)
    with contextlib.suppress(FileExistsError):  # somebody else made it meanwhile; if it is no directory, bind says so
        os.mkdir(path, 0o755)
        made.append(path)


def _inode(path: str) -> tuple[int, int] | None:
    try:
        status = os.lstat(path)
    except OSError:
        return None
    return status.st_dev, status.st_ino


def _unavailable(error: OSError, path: str) -> SocketUnavailable:
    cure = _CURES.get(error.errno or 0, "choose another socket path")
    return SocketUnavailable(f"{error.filename or path}: {error.strerror or error}; {cure}")


def clear(path: str) -> None:
    """Remove a stale socket at *path*.

    Raises:
        SocketInUse: a live server listens there, or it is no socket.
        SocketUnavailable: it can't be looked at or removed.
    """
    try:
        _clear(path)
    except OSError as error:
        raise _unavailable(error, path) from error


def _clear(path: str) -> None:
    try:
        status = os.lstat(path)
    except FileNotFoundError:
        return
    if not stat.S_ISSOCK(status.st_mode):
        raise SocketInUse(f"{path}: something that is no socket is there; remove it or choose another socket path")
    # A datagram socket can't connect to a stream socket, so this tells whether somebody holds the socket without
    # becoming a client of theirs: EPROTOTYPE if so, ECONNREFUSED if nobody does.
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as probe:
        refused = probe.connect_ex(path)
    if refused == errno.ECONNREFUSED:
        os.unlink(path)
    elif refused in (0, errno.EPROTOTYPE):
        raise SocketInUse(f"{path}: a live server{_holder(path)} listens there; stop it or choose another socket path")
    else:
        raise OSError(refused, os.strerror(refused), path)


def _holder(path: str) -> str:
    """Name the process that holds the socket bound to *path*, as far as /proc lets us see."""
    with open("/proc/net/unix", encoding="utf-8", errors="replace") as table:
        rows = (line.rstrip("\n").split(None, 7) for line in table)
        inodes = {f"socket:[{row[6]}]" for row in rows if row[7:] == [path]}
    for link in glob.iglob("/proc/[0-9]*/fd/*"):
        with contextlib.suppress(OSError):
            if os.readlink(link) in inodes:
                return f" (pid {link.split('/')[2]})"
    return ""
