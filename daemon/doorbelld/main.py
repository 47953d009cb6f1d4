# SPDX-FileCopyrightText: 2026 The doorbelld authors
# SPDX-License-Identifier: GPL-2.0-or-later
"""The daemon's command line: reads the configuration, sets up the log, and has `daemon` do the rest."""

from __future__ import annotations

import asyncio
import dataclasses
import os
import sys
from collections.abc import Callable

import click

from . import __version__
from .config.loader import RUNTIME_DIRECTORY, Config, load, load_layered
from .config.sources import FOLDERS
from .daemon import Daemon
from .errors import InvalidOptions
from .fds.keeper import Kept
from .log import LEVELS, catch_all, get_logger, set_up
from .service import anew, store
from .service.journal import Journal
from .stdio import shield

log = get_logger()

_EPILOG = """\b
Exit status:
  0   stopped by SIGTERM or SIGINT; or, with --check, nothing is wrong
  2   the command line is wrong
  65  a newer version left state that this one can't read
  69  no message bus, or the name is somebody else's
  73  a region can't be made: a socket or memory can't be had
  78  the configuration is wrong
"""


@click.command(context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100}, epilog=_EPILOG)
@click.option(
    "--config",
    "file",
    metavar="FILE",
    help=f"Read this configuration. Default: doorbelld.toml and its drop-ins in {', '.join(FOLDERS)}.",
)
@click.option(
    "--root",
    type=click.Path(exists=True, file_okay=False),
    metavar="DIR",
    help="With --check: look for the configuration below DIR.",
)
@click.option(
    "--bus",
    default="system",
    show_default=True,
    metavar="BUS",
    help="system, session, private (a bus of our own, in the runtime directory, by default below $XDG_RUNTIME_DIR for "
    "users other than root), or a D-Bus address.",
)
@click.option("--log-level", type=click.Choice(LEVELS), help="Default: what the configuration says, else info.")
@click.option("--check", is_flag=True, help="Check the configuration, say what is wrong with it, and exit.")
@click.option("--exec-restart", is_flag=True, help="On SIGUSR2, execute the program anew and keep every peer.")
@click.version_option(__version__, message="doorbelld %(version)s")
def main(file: str | None, root: str | None, bus: str, log_level: str | None, check: bool, exec_restart: bool) -> None:
    """Serve shared memory, doorbells (ivshmem) and virtio devices (vhost-user) to virtual machines and host processes.

    SIGTERM and SIGINT stop it, SIGHUP reads the configuration again. doorbellctl steers it. Closing the terminal in
    whose foreground it runs stops it too, unless nohup or setsid started it.

    Where systemd keeps its descriptors, a restart is not noticed by anybody. Where there is no systemd, --exec-restart
    does the same.
    """
    if root is not None and (file is not None or not check):
        raise click.UsageError("--root is for --check without --config: it looks at the files of another host")

    def read(tolerant: bool = False) -> Config:
        config = load(file, tolerant=tolerant) if file is not None else load_layered(root or "/", tolerant=tolerant)
        return _at_home(config) if bus == "private" and root is None else config

    config, trouble = None, ""
    try:
        config = read(tolerant=not check)
    except InvalidOptions as error:
        count = len(error.problems)
        trouble = f"{error}\n{count} problem{'s' * (count != 1)} in the configuration"
    if check and config is not None:
        counts = {"region": len(config.regions), "device": len(config.devices), "client": len(config.clients)}
        counts["flat device"] = len(config.flats)
        files = ", ".join(config.files) or "no file, all defaults"
        parts = [f"{count} {what}{'s' * (count != 1)}" for what, count in counts.items() if count or what == "region"]
        for problem in config.warnings() if root is None else ():
            click.echo(f"warning: {problem}", err=True)
        click.echo(f"{files}: fine; {', '.join(parts)}")
        return
    kept, sockets = store.take_over()
    if not len(kept):
        kept = anew.take_back()
    if config is None and (check or not len(kept)):
        click.echo(trouble, err=True)
        sys.exit(os.EX_CONFIG)
    shield("stdout", "stderr")
    set_up(log_level or (config.daemon.log_level if config is not None else LEVELS[1]), Journal.of_stderr())
    catch_all()
    if config is None:
        log.error("the configuration is wrong; those who were there before are served on", reason=trouble)
    named = os.path.abspath(file) if file is not None else ""
    sys.exit(asyncio.run(_serve(read, config, bus, kept, sockets, exec_restart, named)))


def _at_home(config: Config) -> Config:
    """Have a user's daemon with a bus of its own be in the user's runtime directory, unless *config* says where."""
    home = os.environ.get("XDG_RUNTIME_DIR", "")
    if os.geteuid() == 0 or not os.path.isabs(home) or config.daemon.runtime_directory != RUNTIME_DIRECTORY:
        return config
    settings = dataclasses.replace(config.daemon, runtime_directory=os.path.join(home, "doorbelld"))
    return dataclasses.replace(config, daemon=settings)


async def _serve(
    read: Callable[[], Config],
    config: Config | None,
    bus: str,
    kept: Kept,
    sockets: store.Sockets,
    exec_restart: bool,
    file: str,
) -> int:
    return await Daemon(read, config, bus, kept, sockets, exec_restart=exec_restart, file=file).run()
