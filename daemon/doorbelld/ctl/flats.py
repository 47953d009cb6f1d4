# SPDX-FileCopyrightText: 2026 The doorbelld authors
# SPDX-License-Identifier: GPL-2.0-or-later
"""Commands for flat devices: flats, create-flat, and the group flat, with which a person plays the guest."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import click

from ..ivshmem.flat import Register
from . import client_tables
from .arguments import Number, complete_one_of
from .clients import make
from .session import Daemon, Refused, Session, json_option, pass_session, table_option

if TYPE_CHECKING:
    _RegisterType = click.ParamType[int]
else:
    _RegisterType = click.ParamType

_NO_FLAT = """\
It has no flat device. Make one, and be a guest without PCI in the region of any ivshmem server:

  doorbellctl create-flat mcu /run/doorbelld/demo/socket
  doorbellctl flat mcu read ivposition"""
_UINT32_MAX = 0xFFFFFFFF


@click.command()
@click.argument("flat", required=False, default="", shell_complete=complete_one_of("flat"))
@table_option
@json_option
@pass_session
def flats(session: Session, flat: str) -> None:
    r"""List the flat devices, or one: what QEMU's ivshmem-flat is to a guest, for a person or a test to be the guest.

    One is connecting until its server lets it in; then it is connected, and IVPOSITION is its ID there. Why it is not
    connected stands below.

    \b
    Example:
      doorbellctl flats
      doorbellctl flats --json | jq '.[].interrupts'
    """

    async def ask(daemon: Daemon) -> dict[str, Any]:
        return {flat: await daemon.one("flat", flat)} if flat else dict((await daemon.describe())["flats"])

    known = session.run(ask)
    if session.json:
        session.emit(known)
    elif not known:
        click.echo(_NO_FLAT)
    else:
        client_tables.flats(known)


@click.command("create-flat")
@click.argument("name")
@click.argument("socket", type=click.Path())
@click.option("--memory-size", metavar="SIZE", help="What the memory must have, such as 4M. Default: any.")
@click.option("--vectors-max", type=click.IntRange(1), metavar="N", help="Doorbells taken of a peer. Default: 64.")
@click.option("--reconnect/--no-reconnect", default=None, help="Whether it comes back by itself. Default: it does.")
@json_option
@pass_session
def create_flat(session: Session, /, name: str, socket: str, **given: Any) -> None:
    r"""Have the daemon run a flat device in the region of the ivshmem server at SOCKET, until it is removed.

    SOCKET may be the name of a region of this daemon, or the socket of any ivshmem server. That need not be there yet.
    The options are the keys of a [flat.NAME] in doorbelld.toml.

    \b
    Examples:
      doorbellctl create-flat mcu demo --memory-size 4M
      doorbellctl create-flat mcu /tmp/ivshmem_socket
    """
    make(session, "flat", name, socket, given)


class RegisterOffset(_RegisterType):
    """A register, by its name, or an offset as `Number` has them."""

    name = "register"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> int:
        """Read it, or fail with words."""
        if isinstance(value, str) and value.upper() in Register.__members__:
            return int(Register[value.upper()])
        try:
            return Number().convert(value, param, ctx)
        except click.BadParameter:
            names = ", ".join(register.name.lower() for register in Register)
            self.fail(f"{value!r} is no register; write {names}, or an offset such as 0xc", param, ctx)

    def shell_complete(self, ctx: click.Context, param: click.Parameter, incomplete: str) -> list[Any]:
        """Complete the name of a register, with its offset beside."""
        from click.shell_completion import CompletionItem

        return [
            CompletionItem(register.name.lower(), help=f"offset {register:#x}")
            for register in Register
            if register.name.lower().startswith(incomplete.lower())
        ]


class _Group(click.Group):
    """The commands after a name; the help of the group itself lists them, with their arguments."""

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        """Take ``NAME --json`` as what it looks like: what follows a group's argument is a command to click."""
        return super().parse_args(ctx, ["--json", args[0]] if args[1:] == ["--json"] else args)

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        """Find the command that *args* name, or say which there are."""
        if args[0] not in self.commands and not ctx.resilient_parsing:
            ctx.fail(f'no command "{args[0]}"; after the name of a flat device comes one of {", ".join(self.commands)}')
        return super().resolve_command(ctx, args)

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """List nothing twice."""


@click.group(cls=_Group, invoke_without_command=True, subcommand_metavar="[COMMAND [ARGS]...]")
@click.argument("name", shell_complete=complete_one_of("flat"))
@json_option
@pass_session
@click.pass_context
def flat(ctx: click.Context, session: Session, name: str) -> None:
    r"""Be the guest behind a flat device: read its registers, write them, see its interrupt line.

    REGISTER is intmask, intstatus, ivposition, doorbell, or an offset; they have 32 bits. Only two do anything:
    ivposition reads the device's own ID in the region (0 while it is not connected), and what is written to doorbell,
    PEER * 65536 + VECTOR, rings that vector of that peer: 0x10000 is vector 0 of peer 1. Without a COMMAND the device
    is shown, as status does.

    \b
    Commands:
      read REGISTER          print what a register reads
      write REGISTER VALUE   write a register; what a guest would not notice is an error here
      watch [--count N]      print each interrupt, until Ctrl-C

    \b
    Examples:
      doorbellctl flat mcu read ivposition
      doorbellctl flat mcu write doorbell 0x10000
      doorbellctl flat mcu watch
    """
    if ctx.invoked_subcommand is None:
        known = session.run(lambda daemon: daemon.one("flat", name))
        if session.json:
            session.emit({"name": name, **known})
        else:
            client_tables.status(name, known)


def _name(ctx: click.Context) -> str:
    """Give the name that stands before the subcommand."""
    assert ctx.parent is not None
    return str(ctx.parent.params["name"])


def _check_offset(offset: int) -> None:
    if offset > _UINT32_MAX:
        raise Refused(f"no register at {offset:#x}; the last one, DOORBELL, is at {Register.DOORBELL:#x}")


@flat.command("read")
@click.argument("register", type=RegisterOffset())
@json_option
@pass_session
@click.pass_context
def read_register(ctx: click.Context, session: Session, register: int) -> None:
    """Print what REGISTER reads: intmask, intstatus, ivposition, doorbell, or an offset."""
    name = _name(ctx)
    _check_offset(register)
    value = session.run(lambda daemon: daemon.call_one("flat", name, "Read", "u", register))
    session.done(str(value), flat=name, offset=register, value=value)


@flat.command("write")
@click.argument("register", type=RegisterOffset())
@click.argument("value", type=Number())
@json_option
@pass_session
@click.pass_context
def write_register(ctx: click.Context, session: Session, register: int, value: int) -> None:
    """Write VALUE, decimal or 0x..., to REGISTER. PEER * 65536 + VECTOR to doorbell rings that vector of that peer."""
    name = _name(ctx)
    _check_offset(register)
    if value > _UINT32_MAX:
        raise click.BadParameter(f"{value:#x} does not fit into the 32 bits of a register", param_hint="VALUE")
    session.run(lambda daemon: daemon.call_one("flat", name, "Write", "uu", register, value))
    what = f"wrote {value:#x} at {register:#x} of {name}"
    if register == Register.DOORBELL:
        what = f"rang vector {value & 0xFFFF} of peer {value >> 16}"
    session.done(what, flat=name, offset=register, value=value)


@flat.command()
@click.option("--count", type=click.IntRange(1), metavar="N", help="End after N rings. Default: go on.")
@json_option
@pass_session
@click.pass_context
def watch(ctx: click.Context, session: Session, count: int | None) -> None:
    """Print each pulse of the interrupt line, until Ctrl-C: when, the vector that was rung, and how often.

    None is lost: what comes while the daemon is restarted is told when it is back. With --json each is one object on a
    line of its own.
    """
    import contextlib

    from .lasting import Stopped, run_until_stopped
    from .waiting import Wait

    name = _name(ctx)
    watching = Wait(session, name, "flat", limit=count, begin=f"watching {name}; Ctrl-C ends it", clock=True)
    with contextlib.suppress(Stopped):
        run_until_stopped(lambda: watching.run(None))
