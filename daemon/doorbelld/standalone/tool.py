# SPDX-FileCopyrightText: 2026 The doorbelld authors
# SPDX-License-Identifier: GPL-2.0-or-later
"""What the command lines of ``doorbell-server`` and ``doorbell-client`` have in common.

Both stand in for a program of QEMU's, so they take its flags, and end with 1 where it does: scripts look at that.
What went wrong is one line on standard error for each thing that did, with its cause and its cure.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Mapping, Sequence

import click

from .. import __version__
from ..errors import DoorbellError, InvalidOptions
from ..stdio import shield

FAILED = 1
"""The one exit status for all that goes wrong, as there."""
INTERRUPTED = 130
"""What a shell says of who ended by SIGINT."""
DEFAULT_SOCKET = "/tmp/ivshmem_socket"


class Tool(click.Command):
    """A command line named *name*; *flags* are the options that stand for keys of a table of options.

    *about*, *statuses* and *examples* are what ``--help`` says. *words* are those in which we tell what other modules
    say in those of a daemon.
    """

    def __init__(
        self,
        name: str,
        params: Sequence[click.Option],
        callback: Callable[..., int],
        *,
        about: str,
        statuses: str,
        examples: str,
        flags: Mapping[str, str] | None = None,
        words: Mapping[str, str] | None = None,
    ) -> None:
        self._flags = dict(flags or {})
        self._words = dict(words or {})
        super().__init__(
            name,
            params=list(params),
            callback=callback,
            help=about,
            epilog=f"\b\nExit status:\n{statuses}\n\n\b\nExamples:\n{examples}",
            context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100},
        )
        click.version_option(__version__, message=f"{name} %(version)s")(self)

    def run(self, args: Sequence[str] | None = None) -> int:
        """Do what the command line says; gives the exit status."""
        try:
            return int(self.main(args, self.name, standalone_mode=False) or os.EX_OK)
        except click.Abort:
            return INTERRUPTED
        except click.ClickException as error:
            return self._fail(f"{error.format_message().rstrip('.')}; see {self.name} -h")
        except InvalidOptions as error:
            return self._fail(*(f"{self._flag(each.key)}: {each.cause}; {each.cure}" for each in error.problems))
        except DoorbellError as error:
            return self._fail(str(error))

    def tell(self, line: str) -> None:
        """Say *line* on standard error."""
        for theirs, ours in self._words.items():
            line = line.replace(theirs, ours)
        click.echo(f"{self.name}: {line}", err=True)

    def _flag(self, key: str) -> str:
        last = key.rpartition(".")[2]
        return self._flags.get(last, f"--{last}")

    def _fail(self, *lines: str) -> int:
        for line in lines:
            self.tell(line)
        return FAILED

    def enter(self) -> None:
        """Be this program: what an entry point calls."""
        shield("stderr")
        sys.exit(self.run())
