# SPDX-FileCopyrightText: 2026 The doorbelld authors
# SPDX-License-Identifier: GPL-2.0-or-later
"""The daemon's entry point: reads the configuration, makes the regions, joins the bus, and serves until told to stop.

What happens, in order, and what ends it early (exit status in brackets, as in sysexits.h):

1. The configuration is read and checked whole [78 if anything is wrong with it].
2. The limit on descriptors is raised as far as allowed; what it allows is said in words.
3. Every region gets its socket and its memory [73 if one can't].
4. The bus is joined and the name owned [69 if it can't be].
5. Ready: sd_notify, and a line in the log.

From then on nothing but a signal ends it: SIGTERM or SIGINT stops, SIGHUP reads the configuration again.
"""

from __future__ import annotations

import asyncio
import os
import signal
import sys
from pathlib import Path

import click
import structlog

from . import __version__
from .bus.address import resolve
from .bus.connection import Connection
from .bus.private import PrivateBus
from .config.loader import Config, load
from .errors import BusUnavailable, DoorbellError, InvalidOptions, Problem
from .fds import limits
from .guide import text as guide
from .host.host import Host
from .ivshmem.spec import RegionSpec
from .log import LEVELS, set_up
from .service.chronicle import Chronicle
from .service.readiness import Readiness

DEFAULT_CONFIG = "/etc/doorbelld/doorbelld.toml"

log = structlog.get_logger()


class Daemon:
    """One run of the daemon."""

    def __init__(self, file: str | None, config: Config, bus: str) -> None:
        self._file = file
        self._config = config
        self._loop = asyncio.get_running_loop()
        self._host = Host(self._loop, config.daemon.runtime_directory, limits.raise_to_hard())
        self._private = PrivateBus(config.daemon.runtime_directory) if bus == "private" else None
        self._bus_word = bus
        self._readiness = Readiness()
        self._reloading = asyncio.Lock()
        self._host.listen(Chronicle().hear)

    async def run(self) -> int:
        """Serve; gives the exit status."""
        stop = asyncio.Event()
        for number in (signal.SIGTERM, signal.SIGINT):
            self._loop.add_signal_handler(number, stop.set)
        self._loop.add_signal_handler(signal.SIGHUP, self._reload_on_signal)
        try:
            async with self._reloading:  # a SIGHUP that comes early waits
                made = await self._make_regions()
            if not made:
                return os.EX_CANTCREAT
            connection = Connection(self._host, self._loop, self._locate, self.reload)
            try:
                address = await connection.start()
            except BusUnavailable as error:
                log.error("no message bus", reason=str(error))
                return os.EX_UNAVAILABLE
            self._readiness.ready(self._status())
            log.info("ready", version=__version__, bus=address, serving=self._status())
            if self._private is not None:
                click.echo(guide(self._host, address))
            keeper = self._loop.create_task(connection.keep())
            await stop.wait()
            self._readiness.stopping()
            log.info("stopping")
            keeper.cancel()
            connection.close()
            return os.EX_OK
        finally:
            self._host.close()
            if self._private is not None:
                await self._private.stop()

    async def _locate(self) -> str:
        return await self._private.ensure() if self._private is not None else resolve(self._bus_word)

    async def _make_regions(self) -> bool:
        made = True
        for spec in self._config.regions.values():
            try:
                await self._host.create_region(spec)
            except DoorbellError as error:
                log.error("can't serve region", region=spec.name, reason=str(error))
                made = False
                continue
            self._report_room(spec)
        return made

    def _report_room(self, spec: RegionSpec) -> None:
        limit = self._host.descriptor_limit
        words = limits.in_words(spec.vectors, limit)
        if limits.room(spec.vectors, limit) < spec.max_peers:
            cure = "raise LimitNOFILE= or lower max-peers"
            text = "max-peers is more than the descriptor limit allows"
            log.warning(text, region=spec.name, room=words, limit=limit, cure=cure)
        else:
            log.info("descriptor limit", region=spec.name, room=words, limit=limit)

    def _status(self) -> str:
        regions = self._host.regions.values()
        peers = sum(len(region.peers) for region in regions)
        return f"{len(regions)} region{'s' * (len(regions) != 1)}, {peers} peer{'s' * (peers != 1)}"

    def _reload_on_signal(self) -> None:
        async def attempt() -> None:
            try:
                await self.reload()
            except DoorbellError as error:
                log.error("configuration not reloaded", reason=str(error))

        self._reload_task = self._loop.create_task(attempt())

    async def reload(self) -> None:
        """Read the configuration again and apply the difference.

        Regions that are new are made, those that are gone are removed, those that are as they were are left alone,
        as are those that were made over D-Bus.

        Raises:
            InvalidOptions: something is wrong with it, or it changes what can't change live; nothing is done then.
        """
        async with self._reloading:
            if self._file is None:
                raise InvalidOptions(
                    [Problem("configuration", "there is no file to read again", "start with --config")]
                )
            old, new = self._config, load(self._file)
            problems = [
                Problem(f"region.{name}", "can't change while it serves", f"doorbellctl remove {name}, then reload")
                for name, spec in new.regions.items()
                if name in self._host.regions and self._host.with_defaults(spec) != self._host.regions[name].spec
            ]
            if old.daemon.runtime_directory != new.daemon.runtime_directory:
                problems.append(Problem("daemon.runtime-directory", "can't change while serving", "restart the daemon"))
            if problems:
                raise InvalidOptions(problems)
            self._config = new  # now: should one below fail, what was made before it is still the file's to remove
            for name in old.regions.keys() - new.regions.keys():
                if name in self._host.regions:
                    self._host.remove_region(name)
            for name, spec in new.regions.items():
                if name not in self._host.regions:
                    await self._host.create_region(spec)
                    self._report_room(spec)
            log.info("configuration reloaded", serving=self._status())


_EPILOG = """\b
Exit status:
  0   stopped by SIGTERM or SIGINT; or, with --check, nothing is wrong
  2   the command line is wrong
  69  no message bus, or the name is somebody else's
  73  a socket or memory can't be made
  78  the configuration is wrong
"""


@click.command(context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100}, epilog=_EPILOG)
@click.option("--config", "file", metavar="FILE", help=f"Configuration; default {DEFAULT_CONFIG}, if it is there.")
@click.option(
    "--bus",
    default="system",
    show_default=True,
    metavar="BUS",
    help="system, session, private (a bus of our own, in the runtime directory), or a D-Bus address.",
)
@click.option("--log-level", type=click.Choice(LEVELS), help="Default: what the configuration says, else info.")
@click.option("--check", is_flag=True, help="Check the configuration, say what is wrong with it, and exit.")
@click.version_option(__version__, message="doorbelld %(version)s")
def main(file: str | None, bus: str, log_level: str | None, check: bool) -> None:
    """Serve shared memory and doorbells (ivshmem) to virtual machines and host processes.

    SIGTERM and SIGINT stop it, SIGHUP reads the configuration again. doorbellctl steers it.
    """
    if file is None and Path(DEFAULT_CONFIG).exists():
        file = DEFAULT_CONFIG
    try:
        config = load(file) if file else Config()
    except InvalidOptions as error:
        count = len(error.problems)
        click.echo(f"{error}\n{count} problem{'s' * (count != 1)} in the configuration", err=True)
        sys.exit(os.EX_CONFIG)
    if check:
        regions = len(config.regions)
        click.echo(f"{file or 'defaults'}: fine; {regions} region{'s' * (regions != 1)}")
        return
    set_up(log_level or config.daemon.log_level)
    sys.exit(asyncio.run(_serve(file, config, bus)))


async def _serve(file: str | None, config: Config, bus: str) -> int:
    return await Daemon(file, config, bus).run()
