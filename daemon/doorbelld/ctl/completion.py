# SPDX-FileCopyrightText: 2026 The doorbelld authors
# SPDX-License-Identifier: GPL-2.0-or-later
"""The command completion: prints what makes a shell complete doorbellctl's commands, options and names."""

from __future__ import annotations

import click

VARIABLE = "_DOORBELLCTL_COMPLETE"
PROGRAM = "doorbellctl"


@click.command()
@click.argument("shell", type=click.Choice(("bash", "zsh", "fish")))
@click.pass_context
def completion(ctx: click.Context, shell: str) -> None:
    r"""Print the completion script for a shell.

    Names of regions, devices, clients and flat devices, IDs of peers and numbers of queues are completed from the
    running daemon.

    \b
    Install it:
      bash   doorbellctl completion bash > ~/.local/share/bash-completion/completions/doorbellctl
      zsh    doorbellctl completion zsh > "${fpath[1]}/_doorbellctl"
      fish   doorbellctl completion fish > ~/.config/fish/completions/doorbellctl.fish
    """
    from click.shell_completion import get_completion_class

    found = get_completion_class(shell)
    assert found is not None
    click.echo(found(ctx.find_root().command, {}, PROGRAM, VARIABLE).source())
