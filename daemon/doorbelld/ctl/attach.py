# SPDX-FileCopyrightText: 2026 The doorbelld authors
# SPDX-License-Identifier: GPL-2.0-or-later
"""The command attach: a host process becomes a peer of a region, for a command or for whoever types."""

from __future__ import annotations

import os
import resource
import signal
import sys
from collections.abc import Sequence

import click

from ..fds import limits
from . import child
from .arguments import complete_peer, region_argument
from .joining import Attachment, Command, Duration, join
from .session import Session, pass_session

_HINT = "type help for the words; quit or Ctrl-D ends it (Ctrl-C only drops the line)"
_SHELLS = ("bash", "dash", "fish", "ksh", "sh", "zsh")
_ENDS_OPTIONS = ("--exec", "--")
_COMMAND = "doorbellctl.command"


class _Attach(Command):
    """A command line whose end, from ``--exec`` or ``--`` on, is another one, and none of our business."""

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        """Read our part of it; the rest is in ``ctx.meta``."""
        place = next((place for place, word in enumerate(args) if word in _ENDS_OPTIONS), None)
        if place is not None:
            ctx.meta[_COMMAND] = args[place + 1 :]
            if not ctx.meta[_COMMAND] and not ctx.resilient_parsing:
                ctx.fail(f"{args[place]} needs a command after it")
            args = args[:place]
        return super().parse_args(ctx, args)

    def collect_usage_pieces(self, ctx: click.Context) -> list[str]:
        """Give the words of the usage line."""
        return [*super().collect_usage_pieces(ctx), "[-- CMD [ARG]...]"]


@click.command(cls=_Attach)
@region_argument
@click.option(
    "--exec", metavar="CMD [ARG]...", expose_value=False, help="Run CMD in that place; the end of our options. Or: --."
)
@click.option(
    "--wait-for",
    metavar="PEER",
    multiple=True,
    shell_complete=complete_peer,
    help="Wait until PEER (an ID, or a VM) is there. May be repeated.",
)
@click.option("--peers", type=click.IntRange(0), default=0, metavar="N", help="Wait until N others are there.")
@click.option(
    "--timeout", type=Duration(), metavar="TIME", help="Give up waiting after so long: 30s, 5min. Default: never."
)
@click.option(
    "--name", "own_name", default="", metavar="NAME", help="What others may call us, where they can name a VM."
)
@click.option("--hand-over", is_flag=True, help="CMD gets the connection too, and takes our place.")
@click.option("--kill-on-disconnect", is_flag=True, help="Send SIGTERM to CMD when the region is gone.")
@click.option("-v", "--verbose", is_flag=True, help="Without CMD: tell who comes and goes, as on a terminal.")
@pass_session
@click.pass_context
def attach(
    ctx: click.Context,
    session: Session,
    region: str,
    own_name: str,
    wait_for: tuple[str, ...],
    peers: int,
    timeout: float | None,
    hand_over: bool,
    kill_on_disconnect: bool,
    verbose: bool,
) -> None:
    r"""Join REGION as a peer: for a command, or (without one) to type what doorbell-client knows, such as int 3 0.

    CMD is started once everybody is known who was there before. It finds its place in its environment, and the
    descriptors that are named there open:

    \b
      DOORBELL_REGION, DOORBELL_ID    where, and who we are
      DOORBELL_VECTORS                how many doorbells a peer has
      DOORBELL_MEMORY_FD, _SIZE       the shared memory, to be mapped
      DOORBELL_FDS                    our eventfds by vector: read 8 bytes to wait
      DOORBELL_PEERS                  the others' IDs
      DOORBELL_PEER_ID                the eventfds of peer ID: write 8 bytes to ring
      DOORBELL_GONE_FD                ends when the region is gone
      DOORBELL_SOCKET_FD              instead, with --hand-over: the connection

    doorbellctl stays as CMD's parent. It takes our rings and passes them on, to eventfds that block until somebody
    rings; reads what the region says, so later joins are not told to CMD; sends signals on; and ends as CMD does.
    When the region is removed, or we are disconnected, CMD goes on with the memory unless --kill-on-disconnect says
    otherwise.

    With --name the tables show that name, and notify, disconnect, --wait-for and others take it for us. Nobody vouches
    for it, so rules of a region, which match VMs, do not see it.

    With --hand-over, CMD takes the place of doorbellctl, gets the real eventfds, which do not block, and must read
    the connection, on which later joins and leaves come: for programs that poll. In Python Client.from_environment()
    does all that. docs/attach.md has examples in C, Python and bash.

    \b
    Examples:
      doorbellctl attach demo
      doorbellctl attach demo --exec bash
      doorbellctl attach demo --wait-for guest1 --timeout 1min --exec ./worker --fast
      doorbellctl attach demo --hand-over --exec python3 worker.py

    \b
    Exit status:
      0     done
      1     refused, or the region ended while it was waited or typed
      124   --timeout: they are not there
      126   CMD can't be run
      127   there is no CMD
      130   Ctrl-C
      else, that of CMD (128 + N for signal N)
    """
    command = ctx.meta.get(_COMMAND, [])
    if not command and (hand_over or kill_on_disconnect):
        raise click.UsageError(f"{'--hand-over' if hand_over else '--kill-on-disconnect'} needs --exec CMD")
    if hand_over and kill_on_disconnect:
        raise click.UsageError("with --hand-over nobody is left to send a signal; leave --kill-on-disconnect out")
    if command and verbose:
        raise click.UsageError("--verbose is for typing; leave it out, or --exec")
    soft_limit, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    limits.raise_to_hard()
    try:
        joined = session.run(
            lambda daemon: join(daemon, region, name=own_name, wait_for=wait_for, peers=peers, seconds=timeout or None)
        )
        with joined.client:
            if not command:
                from ..standalone.repl import Repl

                there = sys.stdin.isatty() and sys.stdout.isatty()
                names = {} if joined.host is None else {"host": joined.host}
                repl = Repl(joined.client, verbose=verbose or there, again=False, names=names, hint=_HINT)
                sys.exit(repl.run())
            if sys.stdin.isatty() and _is_prompt(command):
                click.echo(_in_shell(joined), err=True)
            if hand_over:
                child.hand_over(joined, command, soft_limit)
            sys.exit(child.Child(joined, command, kill=kill_on_disconnect, soft_limit=soft_limit).run())
    except KeyboardInterrupt:
        sys.exit(child.SIGNALLED + signal.SIGINT)


def _is_prompt(command: Sequence[str]) -> bool:
    """Tell whether *command* is a shell without a script, at which a person will type."""
    return os.path.basename(command[0]) in _SHELLS and all(word.startswith("-") for word in command[1:])


def _in_shell(joined: Attachment) -> str:
    """Say where a person is who gets a prompt of a shell, which looks as before."""
    return (
        f"in this shell you are peer {joined.client.id} of {joined.region}: env | grep DOORBELL_ shows how to ring and "
        "be rung; exit leaves the region"
    )
