# SPDX-FileCopyrightText: 2026 The doorbelld authors
# SPDX-License-Identifier: GPL-2.0-or-later
"""The command completion: prints what makes a shell complete our programs' commands, options and names."""

from __future__ import annotations

import click

VARIABLE = "_DOORBELLCTL_COMPLETE"
PROGRAM = "doorbellctl"
PROGRAMS = (
    *(PROGRAM, "doorbelld", "doorbell-client", "doorbell-server"),
    *("doorbelld-vhost-user-blk", "doorbelld-vhost-user-rng"),
)


def _check_program(_: click.Context, __: click.Parameter, value: str) -> str:
    if value not in PROGRAMS:
        raise click.BadParameter(f'"{value}" is no program of doorbelld; there are: {", ".join(PROGRAMS)}')
    return value


def _complete_program(_: click.Context, __: click.Parameter, incomplete: str) -> list[str]:
    return [program for program in PROGRAMS if program.startswith(incomplete)]


@click.command()
@click.argument("shell", type=click.Choice(("bash", "zsh", "fish")))
@click.argument("program", default=PROGRAM, callback=_check_program, shell_complete=_complete_program)
@click.pass_context
def completion(ctx: click.Context, shell: str, program: str) -> None:
    r"""Print the completion script for a shell: of doorbellctl, or of another PROGRAM of doorbelld.

    PROGRAM is doorbelld, doorbell-client, doorbell-server, doorbelld-vhost-user-blk or doorbelld-vhost-user-rng. Those
    of doorbellctl complete names of regions, devices, clients and flat devices, IDs of peers and numbers of queues from
    the running daemon.

    \b
    Install it:
      bash   doorbellctl completion bash > ~/.local/share/bash-completion/completions/doorbellctl
      zsh    doorbellctl completion zsh > "${fpath[1]}/_doorbellctl"
      fish   doorbellctl completion fish > ~/.config/fish/completions/doorbellctl.fish
    """
    from click.shell_completion import get_completion_class

    found = get_completion_class(shell)
    assert found is not None
    variable = (
        VARIABLE if program == PROGRAM else f"_{program.replace('-', '_').upper()}_COMPLETE"
    )  # click's own, of those
    click.echo(found(ctx.find_root().command, {}, program, variable).source())
