# SPDX-FileCopyrightText: 2026 The doorbelld authors
# SPDX-License-Identifier: GPL-2.0-or-later
"""``doorbell-server``: one ivshmem region in one process, for scripts that start QEMU's example ``ivshmem-server``.

Theory of operation
-------------------
The region is that of the daemon, without a host peer, so IDs and messages are those that the example sends. What the
example does with sizes is done here too: they are rounded up to a power of two, and what file systems with huge pages
refuse is doubled. The memory is a POSIX object that stays there, or a file without a name.

Two things are not as there. An object that others left is grown if need be but never shrunk, since who has it mapped
would die of SIGBUS; and the way into the background ends once the PID file is written, too (`background`).
"""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import errno
import math
import os
import re
import signal
import stat
import tempfile
from fractions import Fraction

import click

from ..errors import MemoryUnavailable
from ..fds import limits
from ..fds.owned import Fd
from ..fds.spare import Spare
from ..host.events import PeerAdded, PeerRemoved, RegionAdded, RegionEvent, RegionRemoved
from ..ivshmem.memory import Backing
from ..ivshmem.region import Region
from ..ivshmem.spec import NAME, SIZE_MIN, VECTORS_MAX, RegionSpec, in_units
from ..log import catch_all, get_logger, set_up
from ..options import parse
from ..options import size as read_size
from ..service.chronicle import Chronicle
from ..service.journal import Journal
from ..service.readiness import Readiness, notifier
from ..wire.ivshmem import ID_MAX
from . import background
from .tool import DEFAULT_SOCKET, Tool

log = get_logger()

DEFAULT_PID_FILE = "/var/run/ivshmem-server.pid"
DEFAULT_SHM = "ivshmem"
DEFAULT_SIZE = "4M"
HUGE_PAGE_MAX = 1 << 30
_HEX = re.compile(r"\s*\+?0x[0-9a-f]+", re.I | re.A)
_DECIMAL = re.compile(r"\s*\+?(\d+\.?\d*|\.\d+)([BKMGTPE]?)", re.I | re.A)
_UNITS = {unit: 1 << 10 * power for power, unit in enumerate("BKMGTPE")} | {"": 1}
ORDINARY = ("it closed its connection", "the server stops")
"""Ends of connections that are told with ``-v`` only."""

_ABOUT = """\
Serve a region of shared memory and doorbells to virtual machines and programs, as QEMU's ivshmem-server does.

It takes the same flags and speaks the same protocol, so it can stand in for it in scripts. It goes to the background,
once clients can connect, unless told otherwise. SIGTERM and SIGINT stop it.

\b
Where it differs from ivshmem-server:
  - No message is lost, however many clients there are. A client that reads
    nothing for 30 seconds though there is something to tell it is dropped.
  - Who comes gets the lowest free ID; there, the next higher one.
  - A socket that a killed server left is replaced; a live one is an error.
  - The PID file is there before the command ends.
  - Socket and PID file are removed at the end. The shared memory object
    stays, as there.
  - A shared memory object that is there may grow, but never shrinks.
  - A PID file that is a symbolic link is an error.
"""
_STATUSES = """\
  0   stopped by SIGTERM or SIGINT; or, without -F, it serves in the background
  1   the command line is wrong, or memory, socket or PID file can't be had
"""
_EXAMPLES = """\
  doorbell-server -S /tmp/ivshmem_socket -M demo -l 4M -n 2 -p /tmp/doorbell-server.pid
  qemu-system-x86_64 -chardev socket,id=bells,path=/tmp/ivshmem_socket \\
      -device ivshmem-doorbell,chardev=bells,vectors=2
  kill "$(cat /tmp/doorbell-server.pid)"
"""


def parse_size(value: str) -> int:
    """Read a size as ivshmem-server does (QEMU: qemu_strtosz()), or as the configuration does.

    That is a hexadecimal number of bytes, or a decimal number, with a fraction if a unit other than B follows.

    Raises:
        ValueError: the text names the cause and the cure.
    """
    if _HEX.fullmatch(value):
        return read_size(int(value, 16))
    if match := _DECIMAL.fullmatch(value):
        unit = _UNITS[match[2].upper()]
        number = Fraction(match[1]) * unit
        if unit > 1 or number.denominator == 1:
            return read_size(math.floor(number + Fraction(1, 2)))
    return read_size(value)


def _size(ctx: click.Context, param: click.Parameter, value: str) -> int:
    """Read the value of ``-l``."""
    try:
        return parse_size(value)
    except ValueError as error:
        raise click.BadParameter(str(error)) from error


def _vectors(ctx: click.Context, param: click.Parameter, value: str) -> int:
    """Read a number of vectors, which may be written as in C."""
    try:
        number = int(value, 16 if value[:2].lower() == "0x" else 10)
    except ValueError:
        raise click.BadParameter(f"{value!r} is no number; write one from 1 to {VECTORS_MAX}") from None
    if not 1 <= number <= VECTORS_MAX:
        raise click.BadParameter(f"a client can have 1 to {VECTORS_MAX} vectors, not {number}")
    return number


class _Server(Tool):
    """The command line, less what click has no notion of: of ``-M`` and ``-m``, the later one counts."""

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        """Read the command line."""
        if not ctx.resilient_parsing:
            _, _, order = self.make_parser(ctx).parse_args(list(args))
            named = [param.name for param in order if param.name in ("shm_name", "directory")]
            ctx.meta["unnamed"] = named[-1:] == ["directory"]
        return super().parse_args(ctx, args)


@dataclasses.dataclass(frozen=True, slots=True)
class Place:
    """Where the memory is: a POSIX object of that name, or a file without a name in a directory."""

    shm: str = ""
    directory: str = ""

    @property
    def backing(self) -> Backing:
        """Put it in the words of a region."""
        return Backing("shm", self.shm) if self.shm else Backing("file", self.directory)


def fit(size: int) -> int:
    """Round *size* up to what a PCI device can show: a power of two, and a page at least."""
    return max(SIZE_MIN, 1 << (size - 1).bit_length())


def prepare(place: Place, size: int) -> tuple[Fd | None, int]:
    """Make the memory, as far as the region can't do it; gives it, and its size.

    Raises:
        MemoryUnavailable: with the cause and the cure.
    """
    try:
        if place.shm:
            _grow(place.backing.path, size)
            return None, size
        return _unnamed(place.directory, size)
    except OSError as error:
        where = place.directory or f"shared memory object {place.shm}"
        cure = {
            errno.ENOSPC: "free some space there; on hugetlbfs, reserve pages (sysctl vm.nr_hugepages=N)",
            errno.ENOMEM: "on hugetlbfs, reserve pages (sysctl vm.nr_hugepages=N)",
            errno.ENOENT: "name a directory that is there, or a shared memory object with -M",
            errno.ENOTDIR: "name a directory, or a shared memory object with -M",
            errno.EACCES: "name another with -m or -M, or become its owner",
        }.get(error.errno or 0, "name another place with -m or -M")
        raise MemoryUnavailable(f"{where}: {error.strerror}; {cure}") from error


def _grow(path: str, size: int) -> None:
    """Have an object at *path*, if there is one, be *size* bytes long if it is shorter."""
    try:
        fd = Fd(os.open(path, os.O_RDWR | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK))
    except FileNotFoundError:
        return
    with fd:
        status = os.fstat(fd.fileno())
        if stat.S_ISREG(status.st_mode) and 0 < status.st_size < size:
            os.ftruncate(fd.fileno(), size)


def _unnamed(directory: str, size: int) -> tuple[Fd, int]:
    """Make a file in *directory* that has no name; where that wants larger pages, it is larger."""
    with contextlib.ExitStack() as undo:
        fd = undo.enter_context(Fd(_open_unnamed(directory)))
        while True:
            try:
                os.ftruncate(fd.fileno(), size)
                break
            except OSError as error:
                if error.errno != errno.EINVAL or size >= HUGE_PAGE_MAX:
                    raise
                size *= 2
        os.posix_fallocate(fd.fileno(), 0, size)
        undo.pop_all()
    return fd, size


def _open_unnamed(directory: str) -> int:
    try:
        return os.open(directory, os.O_TMPFILE | os.O_EXCL | os.O_RDWR | os.O_CLOEXEC, 0o600)
    except OSError as error:
        if error.errno not in (errno.EOPNOTSUPP, errno.EISDIR):  # what kernels and file systems say that know it not
            raise
    fd, path = tempfile.mkstemp(prefix="ivshmem.", dir=directory)
    os.unlink(path)
    return fd


class Server:
    """The region of *spec*, whose memory is at *place*, served by this process."""

    def __init__(self, spec: RegionSpec, place: Place, *, verbose: bool) -> None:
        self._spec = spec
        self._place = place
        self._verbose = verbose

    async def run(self, launch: background.Launch | None = None, pid_file: str = "") -> int:
        """Serve until SIGTERM or SIGINT; gives the exit status. With *launch*, the way is into the background.

        Raises:
            DoorbellError: memory, socket or PID file can't be had; nothing is left behind then.
        """
        loop, over = asyncio.get_running_loop(), asyncio.Event()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, over.set)
        limits.raise_to_hard()
        self._chronicle = Chronicle(loop.call_later)
        with contextlib.ExitStack() as undo:
            spare = Spare()
            undo.callback(spare.close)
            shared, size = prepare(self._place, self._spec.size)
            spec = dataclasses.replace(self._spec, size=size)
            region = Region.open(spec, loop, self._hear, spare, shared)
            undo.callback(region.close, ORDINARY[1])
            if launch is not None:
                undo.callback(background.PidFile(pid_file).remove)
            self._hear(RegionAdded(region))
            readiness = Readiness(loop, notifier(), lambda: f"{spec.name} on {spec.socket}")
            readiness.ready()
            if launch is None or launch.done():
                await over.wait()
            readiness.stopping()
            log.info("stopping")
        self._hear(RegionRemoved(region))
        return os.EX_OK

    def _hear(self, event: RegionEvent) -> None:
        ordinary = isinstance(event, PeerAdded) or (isinstance(event, PeerRemoved) and event.reason in ORDINARY)
        if self._verbose or not ordinary:
            self._chronicle.hear(event)


def _serve(
    verbose: bool,
    foreground: bool,
    pid_file: str,
    socket: str,
    shm_name: str,
    directory: str | None,
    size: int,
    vectors: int,
) -> int:
    if verbose and not foreground:
        raise click.UsageError("-v needs -F: nobody reads along in the background; add -F, or leave -v out")
    place = Place(directory=os.path.abspath(directory)) if directory and _unnamed_wanted() else _object(shm_name)
    given = {
        "socket": os.path.abspath(socket) if socket else socket,
        "size": fit(size),
        "vectors": vectors,
        "host-peer": False,
        "max-peers": ID_MAX + 1,
        "mode": f"{_mode():04o}",
    }
    name = place.shm if NAME.fullmatch(place.shm) else DEFAULT_SHM
    spec = dataclasses.replace(parse(RegionSpec, given, "", name=name), backing=place.backing)
    if spec.size != size:
        flaw = "is less than a page" if size < SIZE_MIN else "is no power of two"
        program.tell(f"-l: {in_units(size)} {flaw}; using {in_units(spec.size)}")
    server = Server(spec, place, verbose=verbose or not foreground)
    if foreground:
        set_up("info", Journal.of_stderr())
        catch_all()
        return asyncio.run(server.run())
    pid_file = os.path.abspath(pid_file)
    launch = background.enter()
    set_up("info", None if background.leads_to_a_file(2) else Journal())
    catch_all()
    return asyncio.run(server.run(launch, pid_file))


def _unnamed_wanted() -> bool:
    return bool(click.get_current_context().meta["unnamed"])


def _object(name: str) -> Place:
    try:
        backing = Backing.parse(f"shm:{name}")
    except ValueError:
        cause = f"-M: {name!r} can't be the name of a shared memory object"
        raise click.UsageError(f"{cause}; use at most 255 characters and no /, or name a directory with -m") from None
    return Place(shm=backing.target)


def _mode() -> int:
    """Give the mode that a socket gets by itself: that is what the example has, and a script's umask means."""
    mask = os.umask(0o077)
    os.umask(mask)
    return 0o777 & ~mask


program = _Server(
    "doorbell-server",
    [
        click.Option(["-v", "--verbose"], is_flag=True, help="Tell who comes and goes. Only with -F."),
        click.Option(["-F", "--foreground"], is_flag=True, help="Stay in the foreground, and log on standard error."),
        click.Option(
            ["-p", "--pid-file"],
            default=DEFAULT_PID_FILE,
            show_default=True,
            metavar="FILE",
            help="Write the process ID there; in the background only.",
        ),
        click.Option(
            ["-S", "--socket"],
            default=DEFAULT_SOCKET,
            show_default=True,
            metavar="PATH",
            help="Make a socket there and listen. Who may connect is up to the umask.",
        ),
        click.Option(
            ["-M", "--shm-name"],
            default=DEFAULT_SHM,
            show_default=True,
            metavar="NAME",
            help="Share the POSIX shared memory object of that name; it is made if it is not there.",
        ),
        click.Option(
            ["-m", "--directory"],
            metavar="DIR",
            help="Share a file without a name in that directory, such as one on hugetlbfs. Of -m and -M, the later "
            "one counts.",
        ),
        click.Option(
            ["-l", "--size"],
            callback=_size,
            default=DEFAULT_SIZE,
            show_default=True,
            metavar="SIZE",
            help="Share so many bytes: 4194304, 4M, 0.5G or 0x400000, say. It is rounded up to a power of two.",
        ),
        click.Option(
            ["-n", "--vectors"],
            callback=_vectors,
            default="1",
            show_default=True,
            metavar="N",
            help=f"Give each client so many vectors, 1 to {VECTORS_MAX}.",
        ),
    ],
    _serve,
    about=_ABOUT,
    statuses=_STATUSES,
    examples=_EXAMPLES,
    flags={"socket": "-S", "size": "-l", "vectors": "-n"},
    words={
        "set the region's size to": "give its size with -l:",
        "use another backing": "name another place with -m or -M",
        "choose another backing": "name another place with -m or -M",
        "the daemon's user": "this user",
        "another socket path": "another path with -S",
        "a socket path that": "a path with -S that",
    },
)


def main() -> None:
    """Be ``doorbell-server``."""
    program.enter()
