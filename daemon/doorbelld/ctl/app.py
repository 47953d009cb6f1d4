# SPDX-FileCopyrightText: 2026 The doorbelld authors
# SPDX-License-Identifier: GPL-2.0-or-later
"""The program doorbellctl: its global options, and its commands in the order of a reader's questions."""

from __future__ import annotations

import importlib
from collections.abc import Sequence

import click
from click.core import ParameterSource

from .. import __version__
from .completion import PROGRAM, VARIABLE
from .remote import complete_host, validate_host
from .session import Session, validate_bus

SECTIONS = {
    "Look": {
        "list": ("words", "List what there is, as without a command."),
        "status": ("looking", "Show the daemon, or one of all things, in detail."),
        "peers": ("looking", "List who is in a region."),
        "pairs": ("relay", "List who rings whom in a relayed region."),
        "rules": ("rules", "Show who may come to a region, and who may ring whom."),
        "devices": ("devices", "List the devices, and what they do."),
        "clients": ("clients", "List the clients, our places in other regions."),
        "flats": ("flats", "List the flat devices."),
        "queues": ("devices", "List the queues of a device."),
        "top": ("top", "Show the load of regions, peers and devices, live."),
        "monitor": ("monitor", "Print what happens, as it happens."),
        "wait": ("waiting", "Wait until a guest rings, and run a command."),
        "describe": ("looking", "Print everything there is, as JSON."),
    },
    "Ring": {
        "flat": ("flats", "Play the guest of a flat device."),
        "notify": ("ringing", "Ring a peer, or interrupt a device's driver."),
        "broadcast": ("ringing", "Ring everybody in a region."),
        "kick": ("ringing", "Have a device look at its queues now."),
        "disconnect": ("ringing", "Drop a peer's connection, or a front-end's."),
        "limit": ("relay", "Limit how often one peer rings another."),
        "attach": ("attach", "Join a region as a peer, for a command or to type."),
        "echo": ("ping", "Join a region and ring back whoever rings."),
        "ping": ("ping", "Measure the way to a peer that rings back."),
    },
    "Regions and devices": {
        "create": ("managing", "Make a region."),
        "create-device": ("managing", "Make a vhost-user device."),
        "create-client": ("clients", "Join the region of another server."),
        "create-flat": ("flats", "Make a flat device in any region."),
        "remove": ("managing", "Remove a region, a device or another thing."),
        "remove-device": ("managing", "Remove a device."),
        "remove-client": ("managing", "Remove a client."),
        "remove-flat": ("managing", "Remove a flat device."),
        "refresh": ("managing", "Have a device look at its image again."),
        "reset": ("managing", "Give a device its first state again."),
        "reload": ("managing", "Have the configuration read again."),
        "cat-config": ("configuration", "Print the configuration and where it comes from."),
        "read": ("memory", "Read a region's memory."),
        "write": ("memory", "Write to a region's memory."),
        "clear": ("memory", "Set a region's memory to zero."),
    },
    "Guests": {
        "qemu-args": ("guests", "Print the QEMU arguments for a guest."),
        "libvirt-xml": ("guests", "Print the libvirt XML for a guest."),
        "selftest": ("selftest", "Find out whether everything works."),
        "doctor": ("doctor", "Find out what is wrong, and the cure."),
        "bench": ("bench", "Measure how fast rings and memory are here."),
    },
    "Shell": {
        "completion": ("completion", "Print a shell's completion script."),
        "help": ("words", "Print the help of a command."),
        "version": ("words", "Print the version."),
    },
}
"""From a command to its module and what it does, in short."""
_COMMANDS = {name: entry for section in SECTIONS.values() for name, entry in section.items()}

EPILOG = """\b
Examples:
  doorbellctl                            what is there
  doorbellctl create demo --size 4M      make a region
  doorbellctl create-device d0 blk path=/srv/d0.img
                                         make a disk
  doorbellctl qemu-args demo d0          what a guest needs to connect
  doorbellctl notify demo 0 2            ring vector 2 of peer 0
  doorbellctl flat mcu write doorbell 0x10000
                                         be a guest that rings peer 1
  doorbellctl monitor                    what happens, live
  doorbellctl wait demo 1 --exec CMD     run a command when a guest rings
  doorbellctl selftest                   does everything work?
  doorbellctl doctor                     and if not, why?
  doorbellctl -H root@host top           the same, on another host

\b
Which daemon: the one on the bus that --bus or $DOORBELLD_BUS names; else
  the one on the system bus; else that of "doorbelld --bus private", whose bus
  is $XDG_RUNTIME_DIR/doorbelld/bus, ./run/bus of a checkout, or
  /run/doorbelld/bus. With --host: the one that is found so on that host, by
  the doorbellctl there, which ssh starts, or what $DOORBELLD_SSH names.

\b
Exit status:
  0   done
  1   refused; standard error says why
  2   the command line is wrong
  69  there is no daemon, or it does not answer; or, with --host, no such host or
      no doorbellctl there
  124 wait, attach: the time is over
"""


class Program(click.Group):
    """The commands, each imported when it is needed, and listed in sections."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        """Name all commands."""
        return list(_COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        """Import a command."""
        if cmd_name not in _COMMANDS:
            return None
        module, short_help = _COMMANDS[cmd_name]
        found = getattr(importlib.import_module(f".{module}", __package__), cmd_name.replace("-", "_"))
        assert isinstance(found, click.Command)
        found.short_help = short_help
        if found.help:  # click's mark for "do not wrap", which a docstring can't hold as the character that it is
            found.help = found.help.replace("\\b\n", "\b\n")
        return found

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        """Find the command that *args* name; suggest one where there is none."""
        if ctx.params.get("host") and not ctx.resilient_parsing:
            ctx.exit(_elsewhere(ctx, args))
        if args[0] not in _COMMANDS and not ctx.resilient_parsing:
            ctx.fail(_no_command(ctx, args[0]))
        return super().resolve_command(ctx, args)

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """List the commands by section."""
        longest = max(map(len, _COMMANDS))
        for title, commands in SECTIONS.items():
            rows = [(name.ljust(longest), short_help) for name, (_, short_help) in commands.items()]
            with formatter.section(title):
                formatter.write_dl(rows)


@click.command(
    cls=Program,
    invoke_without_command=True,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 110},
    epilog=EPILOG,
)
@click.option(
    "--bus",
    default="auto",
    envvar="DOORBELLD_BUS",
    metavar="BUS",
    callback=validate_bus,
    help="The daemon's bus: system, session, private, or a D-Bus address. Default: where it is found, see below.",
)
@click.option(
    "-H",
    "--host",
    default="",
    metavar="[USER@]HOST",
    callback=validate_host,
    shell_complete=complete_host,
    help="Run all of it on another host, over ssh.",
)
@click.option("--json", is_flag=True, help="Print JSON, for programs; refusals too.")
@click.option("--no-trunc", is_flag=True, help="Print tables whole, even if they do not fit on the terminal.")
@click.option("--no-ask-password", is_flag=True, help="Fail rather than ask for a password on the terminal.")
@click.version_option(__version__, message="doorbellctl %(version)s")
@click.pass_context
def program(ctx: click.Context, bus: str, host: str, json: bool, no_trunc: bool, no_ask_password: bool) -> None:
    """Look at doorbelld and steer it: ivshmem regions, their peers and doorbells; vhost-user devices and their queues.

    Without a command it lists the regions, the devices, and who is connected to them; and the clients and flat devices,
    with which the daemon is in the regions of other servers.

    On a terminal that is too narrow for a table, paths get a line of their own, and the columns of least worth are left
    out. SINCE is how long ago it was. Into a pipe, and with --no-trunc, tables are whole, and SINCE is a date.
    """
    session = ctx.obj = Session(bus, json, not no_ask_password, no_trunc)
    if ctx.invoked_subcommand is None:
        if host:
            ctx.exit(_elsewhere(ctx, []))
        from .looking import overview

        overview(session)


def _no_command(ctx: click.Context, word: str) -> str:
    """Say that *word* is no command, and what to type instead."""
    from . import suggestion
    from .arguments import ask

    if not word.startswith("-") and (words := suggestion.named(word, ask(ctx))):
        return f'no command "{word}"; {words}'
    meant = suggestion.meant(word, _COMMANDS)
    hint = f'did you mean "{meant}"?' if meant else f"there are: {', '.join(_COMMANDS)}"
    return f'no command "{word}"; {hint}'


def _elsewhere(ctx: click.Context, args: Sequence[str]) -> int:
    """Run the command *args* on the host that ``--host`` names; gives its exit status."""
    from . import remote

    flags = ("json", "no_trunc", "no_ask_password")
    words = [f"--{flag.replace('_', '-')}" for flag in flags if ctx.params[flag]]
    if ctx.get_parameter_source("bus") is ParameterSource.COMMANDLINE:  # what the environment says is about this host
        words += ["--bus", ctx.params["bus"]]
    return remote.run(ctx.params["host"], [*words, *args])


def main() -> None:
    """Run it; the entry point."""
    program(prog_name=PROGRAM, complete_var=VARIABLE)
