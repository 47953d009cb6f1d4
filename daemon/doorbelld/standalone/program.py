# SPDX-FileCopyrightText: 2026 The doorbelld authors
# SPDX-License-Identifier: GPL-2.0-or-later
"""What the command lines of back-end programs have in common.

Their options are the keys of ``[device.NAME]`` by another spelling, and are read by the same tables (`options`), so
they mean the same and are refused in the same words. Where QEMU's conventions have a name of their own for a key, a
program says so in *renamed*.

``--print-capabilities`` comes before everything else, as the conventions want it: whatever else is on the command line,
right or wrong, is ignored.

Exit statuses are those of sysexits.h; what went wrong is one line on standard error for each thing that did.
"""

from __future__ import annotations

import json
import os
import re
import sys
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import click

from .. import __version__
from ..errors import DoorbellError, InvalidOptions, LimitExceeded, SocketInUse, SocketUnavailable
from ..log import LEVELS, catch_all, set_up
from ..service.journal import Journal
from ..stdio import shield
from ..vhost.device import Device
from ..vhost.spec import DeviceSpec
from .serving import Inherited, Unusable, serve

PRINT_CAPABILITIES = "--print-capabilities"
EPILOG = """\b
Exit status:
  0   stopped by SIGTERM or SIGINT, or its one front-end is gone
  64  the command line is wrong
  66  what is behind the device can't be used
  71  there are no descriptors or threads left
  73  the socket can't be made
  76  its one front-end broke the protocol
"""
_PATHS = ("socket", "path")
"""Keys that may be relative here; a daemon has no directory that they could be relative to."""
_OF_OUR_SOCKET = ("owner", "group", "mode")
_SETTING = re.compile(r'\b([a-z][a-z-]*[a-z]) = (?:true|"([^"]*)")')


class Program(click.Command):
    """The command line of a back-end program: a device of the class *kind*.

    *capabilities* is what it says of itself, *renamed* are the keys that have another name here; *own* are the options
    of this kind of device, *about* is what it does, in the words of ``--help``.
    """

    def __init__(
        self,
        kind: type[Device],
        capabilities: Mapping[str, Any],
        own: Iterable[click.Option],
        *,
        about: str,
        examples: str,
        renamed: Mapping[str, str] | None = None,
    ) -> None:
        self.kind = kind
        self.capabilities = capabilities
        self._renamed = {"socket": "socket-path", **(renamed or {})}
        super().__init__(
            f"doorbelld-vhost-user-{kind.name}",
            params=[*_socket_options(), *own, *_common_options(kind)],
            callback=self._serve,
            help=about,
            epilog=f"{EPILOG}\n\b\nExamples:\n{examples}",
            context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100},
        )
        click.version_option(__version__, message=f"{self.name} %(version)s")(self)

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        """Read the command line, unless capabilities are asked for."""
        if PRINT_CAPABILITIES in args:
            click.echo(json.dumps(self.capabilities))
            ctx.exit()
        return super().parse_args(ctx, args)

    def run(self, args: Sequence[str] | None = None) -> int:
        """Do what the command line says; gives the exit status."""
        try:
            return int(self.main(args, self.name, standalone_mode=False) or os.EX_OK)
        except click.ClickException as error:
            return self._fail(os.EX_USAGE, f"{error.format_message().rstrip('.')}; see --help")
        except InvalidOptions as error:
            told = (f"{self._flag(each.key.rpartition('.')[2])}: {each.cause}; {each.cure}" for each in error.problems)
            return self._fail(os.EX_USAGE, *told)
        except Unusable as error:
            return self._fail(os.EX_USAGE, f"--fd: {error}")
        except (SocketInUse, SocketUnavailable) as error:
            return self._fail(os.EX_CANTCREAT, str(error))
        except LimitExceeded as error:
            return self._fail(os.EX_OSERR, str(error))
        except DoorbellError as error:
            return self._fail(os.EX_NOINPUT, str(error))

    def _serve(self, socket_path: str | None, fd: int | None, once: bool, log_level: str, **given: Any) -> int:
        if socket_path is None and fd is None:
            raise click.UsageError("there is no socket; make one with --socket-path=PATH, or pass one with --fd=FDNUM")
        if socket_path is not None and fd is not None:
            raise click.UsageError("--socket-path and --fd both name a socket; leave one out")
        if fd is not None and (idle := [f"--{key}" for key in _OF_OUR_SOCKET if given[key] is not None]):
            raise click.UsageError(f"{idle[0]} is about the socket of --socket-path; leave it out with --fd")
        keys = {flag: key for key, flag in self._renamed.items()}
        flags = {name.replace("_", "-"): value for name, value in given.items() if value is not None}
        table = {keys.get(flag, flag): value for flag, value in flags.items()} | {"type": self.kind.name}
        if socket_path is not None:
            table["socket"] = socket_path
        table |= {key: os.path.abspath(table[key]) for key in _PATHS if table.get(key)}
        spec = DeviceSpec.parse(self.kind.name, table, "", lambda _: self.kind)
        inherited = Inherited(fd) if fd is not None else None
        shield("stdout")  # a device may print
        set_up(log_level, Journal.of_stderr())
        catch_all()
        return serve(spec, inherited, once=once)

    def _flag(self, key: str) -> str:
        """Name the option that stands for *key*."""
        return f"--{self._renamed.get(key, key)}"

    def _fail(self, status: int, *lines: str) -> int:
        for line in lines:
            told = _SETTING.sub(lambda found: f"{self._flag(found[1])}{f'={found[2]}' if found[2] else ''}", line)
            click.echo(f"{self.name}: {told.replace('the daemon', 'this program')}", err=True)
        return status


def _socket_options() -> list[click.Option]:
    return [
        click.Option(
            ["--socket-path"], metavar="PATH", help="Make a socket there and listen. It is removed at the end."
        ),
        click.Option(
            ["--fd"],
            type=int,
            metavar="FDNUM",
            help="Use the socket that was inherited as this descriptor: one that listens, or one that a front-end is "
            "connected to already; then the program ends when that front-end goes.",
        ),
        click.Option(
            [PRINT_CAPABILITIES],
            is_flag=True,
            expose_value=False,
            help="Print what the program can do, in JSON, and exit. Everything else is ignored.",
        ),
    ]


def _common_options(kind: type[Device]) -> list[click.Option]:
    return [
        click.Option(
            ["--queue-size"],
            type=int,
            metavar="N",
            help=f"Entries that a queue may have at most, a power of two. Default: {kind.queue_size}.",
        ),
        click.Option(
            ["--poll-us"],
            type=int,
            metavar="N",
            help="Look at an idle queue for so many microseconds before sleeping: faster answers, for the price of a "
            "busy CPU. Default: 0.",
        ),
        click.Option(
            ["--silence-timeout"],
            metavar="TIME",
            help="Let another front-end have the device once the one that is connected has said nothing for so long; "
            "or never. Default: 30s.",
        ),
        click.Option(["--owner"], metavar="USER", help="Give the socket to this user."),
        click.Option(["--group"], metavar="GROUP", help="Give the socket to this group."),
        click.Option(["--mode"], metavar="MODE", help="Who may connect to the socket, in octal. Default: 0660."),
        click.Option(["--once"], is_flag=True, help="End when the first front-end goes, rather than wait for another."),
        click.Option(
            ["--log-level"],
            type=click.Choice(LEVELS),
            default="info",
            show_default=True,
            help="Log on standard error, from this level up.",
        ),
    ]


def enter(program: Program) -> None:
    """Be *program*: what an entry point calls."""
    shield("stderr")
    sys.exit(program.run())
