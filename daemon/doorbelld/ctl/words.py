# SPDX-FileCopyrightText: 2026 The doorbelld authors
# SPDX-License-Identifier: GPL-2.0-or-later
"""Words that people try, for what an option or a bare doorbellctl does: list, help, version."""

from __future__ import annotations

from collections.abc import Sequence

import click

from .. import __version__
from .session import Session, json_option, pass_session, table_option


@click.command()
@table_option
@json_option
@pass_session
def list(session: Session) -> None:
    """List the regions, the devices, and who is connected to them: what doorbellctl does without a command."""
    from .looking import overview

    overview(session)


def _complete_command(ctx: click.Context, _: click.Parameter, incomplete: str) -> Sequence[str]:
    root = ctx.find_root()
    assert isinstance(root.command, click.Group)
    return [name for name in root.command.list_commands(root) if name.startswith(incomplete)]


@click.command()
@click.argument("command", required=False, default="", shell_complete=_complete_command)
@click.pass_context
def help(ctx: click.Context, command: str) -> None:
    """Print the help of doorbellctl, or of a COMMAND, as its --help does."""
    root = ctx.find_root()
    assert isinstance(root.command, click.Group)
    if not command:
        click.echo(root.get_help())
        return
    _, found, _ = root.command.resolve_command(root, [command])
    assert found is not None
    click.echo(found.get_help(click.Context(found, info_name=command, parent=root)))


@click.command()
@json_option
@pass_session
def version(session: Session) -> None:
    """Print the version of doorbellctl; that of the daemon is in doorbellctl status."""
    session.done(f"doorbellctl {__version__}", version=__version__)
