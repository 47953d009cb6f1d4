# SPDX-FileCopyrightText: 2026 The doorbelld authors
# SPDX-License-Identifier: GPL-2.0-or-later
"""``doorbell-client``: a host process in an ivshmem region, steered by hand or by a script.

It has the flags and words of QEMU's example ``ivshmem-client``; `repl` has the words.
"""

from __future__ import annotations

import contextlib
import signal
import sys

import click

from ..ivshmem.client import Client
from .repl import Repl
from .tool import DEFAULT_SOCKET, Tool

_ABOUT = """\
Join a region of shared memory and doorbells as a peer, ring others, and tell who rings us.

It works with every ivshmem server: QEMU's, doorbell-server, and the regions of doorbelld.

Commands are read from standard input; Tab completes them at a terminal. Answers go to standard output, and so does each
ring of ours, as "receive notification from peer_id=ID vector=N"; the ID is our own, since who rang can't be known.
If there is no server, or it goes away, the client waits for one.

\b
Commands, several on a line separated by ;
  int PEER VECTOR  ring one doorbell of a peer
  int PEER all     ring all doorbells of a peer
  int all          ring all doorbells of all others
  dump             show who is there, ourselves first
  help             show the commands
  quit             end; so does the end of the input
"""
_STATUSES = """\
  0  it ended by quit or with its input
  1  the command line is wrong, or a command that was read from a pipe or a file failed
"""
_EXAMPLES = """\
  doorbell-client -S /tmp/ivshmem_socket
  printf 'int 0 1; int 3 all\\nquit\\n' | doorbell-client -S /tmp/ivshmem_socket
  sleep infinity | doorbell-client -S /tmp/ivshmem_socket | grep --line-buffered vector=1
"""


def _run(verbose: bool, socket: str) -> int:
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))  # so that the terminal is left in order
    try:
        with contextlib.closing(Client(socket)) as client:
            return Repl(client, verbose=verbose).run()
    except BrokenPipeError:  # nobody reads the answers: end as a filter does, without a word
        signal.signal(signal.SIGPIPE, signal.SIG_DFL)
        signal.raise_signal(signal.SIGPIPE)
        raise


program = Tool(
    "doorbell-client",
    [
        click.Option(["-v", "--verbose"], is_flag=True, help="Tell who joins and leaves."),
        click.Option(
            ["-S", "--socket"],
            default=DEFAULT_SOCKET,
            show_default=True,
            metavar="PATH",
            help="The socket of the server.",
        ),
    ],
    _run,
    about=_ABOUT,
    statuses=_STATUSES,
    examples=_EXAMPLES,
)


def main() -> None:
    """Be ``doorbell-client``."""
    program.enter()
