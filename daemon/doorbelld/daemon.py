# SPDX-FileCopyrightText: 2026 The doorbelld authors
# SPDX-License-Identifier: GPL-2.0-or-later
"""One run of the daemon, from what its predecessor left to what it leaves its successor.

What happens, in order, and what ends it early (exit status in brackets, as in sysexits.h):

1. The limit on descriptors is raised as far as allowed; what it allows is said in words.
2. What was kept over a restart is put together again: from here on guests are served [65 if a newer version wrote it].
3. The configuration's regions, devices, clients and flat devices are held against those that there are, and the
   difference is made, regions first, since a client may join one [73 if nothing was kept and one can't be made: then
   nobody loses anything by our end]. A device that can't be made is left out: no region is lost because of one.
4. The bus is joined and the name owned [69 if it can't be, and before step 3 if another daemon has its own bus where
   ours is to be].
5. Ready: sd_notify, and a line in the log.

From then on only a signal ends it: SIGTERM or SIGINT stops, SIGHUP reads the configuration again, and, where
that was asked for, SIGUSR2 executes the program again in the same process. A SIGHUP that says that the terminal was
closed in whose foreground the daemon runs stops it too. SIGTERM may be half of a restart, which can't be told: what
systemd keeps is left as it is, and systemd itself lets go of it if this is the end.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
from collections.abc import Callable, Coroutine, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any

from . import __version__
from .bus.address import resolve
from .bus.connection import Connection
from .config.loader import Config
from .errors import BusUnavailable, DoorbellError, InvalidOptions, Problem
from .fds import limits
from .fds.keeper import Kept, Satchel
from .fds.ledger import NewerState
from .host.host import Host
from .host.plan import Plan, make_plan
from .ivshmem.spec import RegionSpec
from .log import get_logger
from .service import anew
from .service.chronicle import Chronicle
from .service.readiness import Readiness, Watchdog, notifier
from .service.store import DescriptorStore, Sockets, room
from .service.terminal import ForegroundTerminal
from .vhost.backend import Backend
from .vhost.errors import DeviceFaulty

if TYPE_CHECKING:
    from .bus.private import PrivateBus

log = get_logger()

_TURNS = 3
"""Turns of the loop after which what a signal that has come has set off has happened."""


def _private_bus(runtime_directory: str) -> PrivateBus:
    from .bus.private import PrivateBus  # late, with ctypes and shutil, which a service does not need

    return PrivateBus(runtime_directory)


class Daemon:
    """One run of the daemon.

    *read* reads the configuration again; *config* is what it gave at the start, or None if something was wrong with it:
    then those who were *kept* are served as they were. *sockets* are those that systemd made. *file* is what the
    configuration is read from, if it is one file and not the usual folders.
    """

    def __init__(
        self,
        read: Callable[[], Config],
        config: Config | None,
        bus: str,
        kept: Kept,
        sockets: Sockets,
        *,
        exec_restart: bool = False,
        file: str = "",
    ) -> None:
        self._read = read
        self._config = config
        settings = (config or Config()).daemon
        self._kept = kept
        self._sockets = sockets
        self._loop = asyncio.get_running_loop()
        notify = notifier()
        self._store = DescriptorStore(self._loop, notify, room()) if notify is not None and room() else None
        self._host = Host(self._loop, settings.runtime_directory, limits.raise_to_hard(), self._store)
        self._host.configuration_file = file
        self._private = _private_bus(settings.runtime_directory) if bus == "private" else None
        self._bus_word = bus
        self._readiness = Readiness(self._loop, notify, self._status)
        self._watchdog = Watchdog(self._loop, self._readiness, lambda: self._host.stuck)
        self._reloading = asyncio.Lock()
        self._keep_bus: Callable[[], asyncio.Task[None]] | None = None
        self._bus_keeper: asyncio.Task[None] | None = None
        self._exec_restart = exec_restart
        self._stop = asyncio.Event()
        self._stop_reason = ""
        self._terminal = ForegroundTerminal.find()
        self._executing = False
        self._tasks: set[asyncio.Task[None]] = set()
        self._host.listen(Chronicle(self._loop.call_later).hear)
        self._host.listen(lambda _: self._readiness.changed())

    async def run(self) -> int:
        """Serve; gives the exit status."""
        # a signal is for the loop's thread: no other takes one that would then be lost in an execve(2)
        self._loop.set_default_executor(ThreadPoolExecutor(initializer=anew.hold))
        for number in (signal.SIGTERM, signal.SIGINT):
            self._loop.add_signal_handler(number, self._stop_because, number.name)
        self._loop.add_signal_handler(signal.SIGHUP, self._hang_up)
        if self._exec_restart:
            self._loop.add_signal_handler(signal.SIGUSR2, self._in_background, self._execute_anew)
        anew.release()
        try:
            try:
                self._revive()
            except NewerState as error:
                log.error("state of a region can't be used", reason=str(error))
                return os.EX_DATAERR
            revived = bool(self._host.regions or self._host.clients or self._host.flats)
            connection = Connection(self._host, self._loop, self._locate, self.reload)
            try:
                if self._private is not None and not revived:
                    self._private.make_way()  # first: where another daemon runs, nothing is served
                async with self._reloading:  # a SIGHUP that comes early waits
                    made = await self._begin()
                if not made and not revived:
                    return os.EX_CANTCREAT
                address = await connection.start()
            except BusUnavailable as error:
                log.error("no message bus", reason=str(error))
                return os.EX_UNAVAILABLE
            self._readiness.ready()
            self._watchdog.start()
            log.info("ready", version=__version__, bus=address, serving=self._status())
            if self._private is not None and not revived:
                from .guide import text as guide  # not on the way of a start that is waited for

                print(guide(self._host, address, restarts=self._exec_restart))
            self._keep_bus = lambda: self._loop.create_task(connection.keep())
            self._bus_keeper = self._keep_bus()
            await self._stop.wait()
            self._readiness.stopping()
            log.info("stopping", reason=self._stop_reason)
            self._bus_keeper.cancel()
            connection.close()
            return os.EX_OK
        finally:
            for task in self._tasks:
                task.cancel()
            await asyncio.gather(*self._tasks, return_exceptions=True)
            self._watchdog.stop()
            await self._host.close()
            if self._store is not None:
                self._store.flush()
            if self._private is not None:
                await self._private.stop()

    async def _locate(self) -> str:
        return await self._private.ensure() if self._private is not None else resolve(self._bus_word)

    def _status(self) -> str:
        regions = self._host.regions.values()
        counts = {"region": len(regions), "peer": sum(len(region.peers) for region in regions)}
        host = self._host
        others = {"device": len(host.devices), "client": len(host.clients), "flat device": len(host.flats)}
        counts |= {what: count for what, count in others.items() if count}
        return ", ".join(f"{count} {what}{'s' * (count != 1)}" for what, count in counts.items())

    def _in_background(self, work: Callable[[], Coroutine[Any, Any, None]]) -> None:
        task = self._loop.create_task(work())
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    def _stop_because(self, reason: str) -> None:
        self._stop_reason = self._stop_reason or reason
        self._stop.set()

    def _hang_up(self) -> None:
        """Handle SIGHUP: reload, or stop if our terminal was closed."""
        if self._terminal is not None and self._terminal.hung_up():
            self._stop_because("its terminal was closed")
        else:
            self._in_background(self._reload_on_signal)

    # At the start

    def _revive(self) -> None:
        """Go on where our predecessor stopped.

        Raises:
            NewerState: it was of a newer version.
        """
        if not len(self._kept):
            return
        if self._store is not None:
            for name in self._kept:
                self._store.came_back(name)
        else:
            self._host.keeper = Satchel()
        configured = self._config.regions if self._config is not None else {}
        for unusable in self._host.revive(self._kept, configured, self._sockets.regions):
            name, reason = unusable.name, unusable.reason
            if unusable.kind == "client":
                log.error("state of a client can't be used", client=name, reason=reason)
            elif unusable.kind == "flat":
                log.error("state of a flat device can't be used", flat=name, reason=reason)
            else:
                log.error("state of a region can't be used", region=name, reason=reason)
        if unknown := list(self._kept):
            log.warning("descriptors that nobody knows came back from the store", count=len(unknown), of=unknown[0])
            self._kept.close()
            if self._store is not None:
                for name in unknown:
                    self._store.drop(name)
        if self._store is None:
            self._host.unkeep()

    async def _begin(self) -> bool:
        """Make what the configuration wants and is not there; tell whether all of it but devices could be made."""
        made = True
        if self._config is not None:
            for name, problem in self._config.faulty.items():
                log.error("can't serve device", device=name, reason=str(problem))
            plan = self._plan(self._config)
            for problem in plan.problems:
                log.warning("configuration can't be applied live", key=problem.key, reason=f"{problem.cause}")
            _, failed = await self._carry_out(plan)
            for kind, name, error in failed:
                match kind:
                    case "region":
                        log.error("can't serve region", region=name, reason=str(error))
                    case "device":
                        # the traceback is of use where the type's own code is to blame
                        trace = {"exc_info": error} if isinstance(error, DeviceFaulty) else {}
                        log.error("can't serve device", device=name, reason=str(error), **trace)
                    case "client":
                        log.error("can't have client", client=name, reason=str(error))
                    case _:
                        log.error("can't have flat device", flat=name, reason=str(error))
            made = all(kind == "device" for kind, _, _ in failed)
        for sockets in (self._sockets.regions, self._sockets.devices):
            for name in sockets:
                log.warning("socket for no region or device", socket=name)
            sockets.close()
        return made

    def _plan(self, config: Config) -> Plan:
        return make_plan(self._host, config.regions, config.devices, config.clients, config.flats)

    async def _carry_out(self, plan: Plan) -> tuple[list[tuple[str, str, str]], list[tuple[str, str, DoorbellError]]]:
        """Do what *plan* says, all of it that can be done.

        Returns what was done (action, kind and name), and what could not be done (kind and name), and why.
        """
        host = self._host
        done: list[tuple[str, str, str]] = []
        failed: list[tuple[str, str, DoorbellError]] = []

        @contextlib.contextmanager
        def trying(action: str, kind: str, name: str) -> Iterator[None]:
            try:
                yield
            except DoorbellError as error:
                failed.append((kind, name, error))
            else:
                done.append((action, kind, name))

        for name in plan.clients.gone:
            with trying("removed", "client", name):
                host.remove_client(name)
        for name in plan.flats.gone:
            with trying("removed", "flat", name):
                host.remove_flat(name)
        for name in plan.regions.gone:
            with trying("removed", "region", name):
                host.remove_region(name)
        for name in plan.devices.gone:
            with trying("removed", "device", name):
                await host.remove_device(name)
        for region in plan.regions.changed:
            with trying("changed", "region", region.name):
                host.change_region(region, configured=True)
        for device in plan.devices.changed:
            with trying("changed", "device", device.name):
                host.change_device(device, configured=True)
        for client in plan.clients.changed:
            with trying("changed", "client", client.name):
                host.change_client(client, configured=True)
        for flat in plan.flats.changed:
            with trying("changed", "flat", flat.name):
                host.change_flat(flat, configured=True)
        for region in plan.regions.new:
            with trying("made", "region", region.name):
                await host.create_region(region, configured=True, socket_given=self._sockets.regions.take(region.name))
                self._report_room(region)
        for device in plan.devices.new:
            with trying("made", "device", device.name):
                await host.create_device(device, configured=True, socket_given=self._sockets.devices.take(device.name))
        for client in plan.clients.new:
            with trying("made", "client", client.name):
                host.create_client(client, configured=True)
        for flat in plan.flats.new:
            with trying("made", "flat", flat.name):
                host.create_flat(flat, configured=True)
        return done, failed

    def _report_room(self, spec: RegionSpec) -> None:
        limit = self._host.descriptor_limit
        words = limits.in_words(spec.vectors, limit, relayed=spec.relay)
        if limits.room(spec.vectors, limit, relayed=spec.relay) < spec.max_peers:
            cure = "raise LimitNOFILE= or lower max-peers"
            text = "max-peers is more than the descriptor limit allows"
            log.warning(text, region=spec.name, room=words, limit=limit, cure=cure)
        else:
            log.info("descriptor limit", region=spec.name, room=words, limit=limit)

    # While it runs

    async def _reload_on_signal(self) -> None:
        try:
            await self.reload()
        except DoorbellError as error:
            log.error("configuration not reloaded", reason=str(error))

    async def reload(self) -> None:
        """Read the configuration again and apply the difference.

        What is new is made, what is gone is removed, what is as it was is left alone, as is what was made over D-Bus.
        Devices look again at what is behind them.

        Raises:
            InvalidOptions: something is wrong with it, or it changes what can't change live; nothing is done then. Or
                something could not be done, such as making a socket; all else is done then.
        """
        async with self._reloading:
            self._readiness.reloading()
            try:
                config = self._read()
                if self._config is None:  # the first one that is right
                    self._host.runtime_directory = config.daemon.runtime_directory
                plan = self._plan(config)
                if config.daemon.runtime_directory != self._host.runtime_directory:
                    cause = "can't change live: the default sockets are below the old one"
                    plan.problems.append(Problem("daemon.runtime-directory", cause, "restart the daemon"))
                if plan.problems:
                    raise InvalidOptions(config.placed(plan.problems))
                self._config = config
                done, failed = await self._carry_out(plan)
                self._host.reloaded(done)
                if failed:
                    cure = "all else was reloaded; remove the cause and reload again"
                    raise InvalidOptions([Problem(f"{kind}.{name}", str(error), cure) for kind, name, error in failed])
                self._refresh()
            finally:
                self._readiness.ready()

    def _refresh(self) -> None:
        for name, device in self._host.devices.items():
            try:
                device.refresh()
            except DoorbellError as error:
                log.warning("device not refreshed", device=name, reason=str(error))

    async def _execute_anew(self) -> None:
        """Execute the program anew, unless that is under way already."""
        if not self._executing:
            self._executing = True
            try:
                await self._try_to_execute_anew()
            finally:
                self._executing = False

    async def _try_to_execute_anew(self) -> None:
        """Check that a new start would work, keep everything, and execute the program anew."""
        if self._store is not None:
            log.error("not executed anew", reason="systemd keeps the descriptors; systemctl restart does the same")
            return
        check = await asyncio.create_subprocess_exec(
            *anew.command(), "--check", stdin=asyncio.subprocess.DEVNULL, stdout=asyncio.subprocess.DEVNULL,
            stderr=asyncio.subprocess.PIPE,
        )  # fmt: skip
        _, said = await check.communicate()
        if check.returncode:
            log.error(
                "not executed anew", reason=said.decode(errors="replace").strip() or f"it exits {check.returncode}"
            )
            return
        async with self._reloading:
            satchel, devices = Satchel(), list[Backend]()
            try:
                if not self._host.keep(satchel):
                    raise OSError("not everything can be kept; raise LimitNOFILE=")
                log.info("executing anew")
                if self._private is not None and self._bus_keeper is not None:
                    self._bus_keeper.cancel()  # else it starts another bus in place of the one that goes
                    await self._private.stop()
                devices = await self._host.close_devices("the daemon is executed anew")  # no request half done
                anew.hold()
                for _ in range(_TURNS):
                    await asyncio.sleep(0)
                if not self._stop.is_set():
                    anew.execute(satchel)
            except OSError as error:
                log.error("not executed anew", reason=str(error))
            finally:  # it stops, or something went wrong
                anew.release()
                if self._bus_keeper is not None and self._bus_keeper.cancelled() and not self._stop.is_set():
                    assert self._keep_bus is not None
                    self._bus_keeper = self._keep_bus()
                self._host.unkeep()
                satchel.close()
                if not self._stop.is_set():
                    await self._bring_back(devices)

    async def _bring_back(self, devices: list[Backend]) -> None:
        for device in devices:
            try:
                await self._host.create_device(device.spec, device.configured)
            except DoorbellError as error:
                log.error("can't serve device", device=device.name, reason=str(error))
