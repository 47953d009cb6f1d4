# SPDX-FileCopyrightText: 2026 The doorbelld authors
# SPDX-License-Identifier: GPL-2.0-or-later
"""A device on a socket: front-ends come and go, the device stays.

Theory of operation
-------------------
A backend listens (or looks for a front-end that does, with `connect`), and serves one front-end at a time, in a task,
in which the two converse (conversation.py).
When the front-end goes, or breaks a rule, or a queue breaks, the device is brought to rest and cleared, and only then
the socket is closed: a front-end that comes back takes that as the sign that nothing touches its memory any more. Then
the next one is served.

Who connects while a front-end is there is turned away; unless that one is gone already, and only its clearing away
takes time: then it waits, and is served next. A front-end that has said nothing at all for some seconds is told of, and
after ``silence-timeout`` it is disconnected as soon as another one connects.

What happens is told by events, through *emit*. Nothing here logs, and nothing here knows D-Bus.

Invariants
----------
1. ``session`` is set exactly while a front-end has the device.
2. No error that a front-end can cause leaves this module as an exception.
3. Each reason is told once, by `FrontendDetached`, and stays in ``reason`` until the next front-end comes.
4. What kept a front-end from using the device stays in ``fault`` until a queue runs: a front-end that fails, connects
   again and fails again leaves the device at no moment without an explanation.
"""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import select
import socket
import time
from collections.abc import Callable

from ..errors import AccessDenied, LimitExceeded, in_words
from ..fds.listener import Listener
from ..fds.owned import Fd
from ..fds.peercred import Credentials, identify
from ..fds.spare import Spare
from ..ivshmem.door import Door
from ..ring.memory import Region
from ..wire.vhost_messages import ProtocolFeature
from .access import admit
from .conversation import Conversation, Job
from .device import Device
from .engine import Engine
from .errors import DeviceFaulty, NoSuchQueue, NotConnected, NotRunning
from .events import (
    CodeFailed,
    ConfigChanged,
    DeviceChanged,
    DeviceEvent,
    ErrorChanged,
    FaultChanged,
    FrontendAttached,
    FrontendDetached,
    FrontendRefused,
    FrontendSilent,
    Negotiated,
    QueueChanged,
    RequestRefused,
    State,
    StateChanged,
)
from .features import feature_names, offered_features, offered_protocol_features, protocol_feature_names
from .hooks import Failure, Hooks
from .queuestate import QueueState, look
from .session import Session
from .silence import Silence
from .spec import DeviceSpec

GRACE = 0.5
"""Seconds that a front-end has to stop a queue that broke."""
_CONFIG_PERIOD = 0.01
"""Seconds between two reports of a changed configuration space, at least: a device may make them in a loop."""
_RETRY_MIN = 0.1
_RETRY_MAX = 10.0


class Backend:
    """One device, serving from `serve` until `close`."""

    def __init__(
        self,
        spec: DeviceSpec,
        device: Device,
        loop: asyncio.AbstractEventLoop,
        emit: Callable[[DeviceEvent], None],
        spare: Spare,
        *,
        listener: Listener | None,
        configured: bool = False,
    ) -> None:
        """Take over *device* and *listener* (None: connect); `open` makes both.

        Raises:
            OSError: there are no descriptors or threads left; the caller still has both then.
            DeviceFaulty: the device can't be served; so then.
        """
        self.spec = spec
        self.configured = configured
        """Whether the configuration asked for it, rather than a call."""
        self.device = device
        self.session: Session | None = None
        self.state = State.CONNECTING if listener is None else State.LISTENING
        self.reason = ""
        """Why the last front-end went, until the next one comes."""
        self.who: Credentials | None = None
        """The front-end, as far as it is known."""
        self.since = 0
        """When it connected, in microseconds since 1970; 0 without one."""
        self._loop = loop
        self._emit = emit
        self._listener = listener
        self._spare = spare
        self._sock: socket.socket | None = None
        self._next: socket.socket | None = None
        self._task: asyncio.Task[None] | None = None
        self._talk: Conversation | None = None
        self._ending = False
        self._closing = False
        self._closer: asyncio.Task[None] | None = None
        self._woken = asyncio.Event()
        self._grace: asyncio.TimerHandle | None = None
        self._silence = Silence(loop, self._heard_silence)
        self._fault = ""
        self._retry = _RETRY_MIN
        self._said = ""
        self._config_due = False
        self._config_next = 0.0
        self._hooks = Hooks(device, self._code_failed, lambda: emit(ErrorChanged(self)))
        self._hooks.install(tell_config_changed=self._look_at_config, tell_host_notifier=self._host_notifier)
        self._engine = Engine(self._hooks, loop, spec.name, spec.poll_us, self._broke)
        self._door: Door | None = None
        if listener is not None:
            self._door = Door(
                loop,
                listener.sock,
                spare,
                arrived=self._arrive,
                refuse=self._turn_away,
                prepared=lambda again: True,
                rested=lambda: None,
            )

    @classmethod
    def open(
        cls,
        spec: DeviceSpec,
        loop: asyncio.AbstractEventLoop,
        emit: Callable[[DeviceEvent], None],
        spare: Spare,
        *,
        socket_given: Fd | None = None,
        connection: socket.socket | None = None,
        configured: bool = False,
    ) -> Backend:
        """Make the device and the socket that *spec* asks for, and serve.

        *socket_given* is a listening socket that somebody else owns, to be used instead of one of our own;
        *connection* leads to a front-end, after which nobody else is served. Both are taken over.

        Raises:
            SocketInUse, SocketUnavailable, LimitExceeded, and what the type of device raises: nothing is left behind.
        """
        with contextlib.ExitStack() as undo:
            if socket_given is not None:
                undo.enter_context(socket_given)
            if connection is not None:
                undo.enter_context(connection)
            device = spec.make()
            undo.callback(Hooks(device).close)
            listener: Listener | None = None
            if socket_given is not None:
                listener = Listener.adopt(socket_given, spec.socket, ours=False)
            elif connection is None and not spec.connect:
                listener = Listener.open(spec.socket, owner=spec.owner, group=spec.group, mode=spec.mode)
            if listener is not None:
                undo.callback(listener.close)
            try:
                backend = cls(spec, device, loop, emit, spare, listener=listener, configured=configured)
            except (OSError, RuntimeError) as error:
                cure = "raise LimitNOFILE= or TasksMax="
                raise LimitExceeded(f'no room for device "{spec.name}": {error}; {cure}') from error
            undo.pop_all()
        backend.serve(connection)
        return backend

    def serve(self, connection: socket.socket | None = None) -> None:
        """Let in who knocks, begin to look for a front-end, or serve the one behind *connection*."""
        if connection is not None:
            self._begin(connection)
        elif self._door is not None:
            self._door.open()
        else:
            self._task = self._loop.create_task(self._seek())

    async def close(self, reason: str = "the device is removed") -> None:
        """Bring the device to rest, disconnect the front-end, remove the socket, end the workers.

        Once begun it goes on to its end, even if who waits for it is cancelled; a second call waits for that end too.
        """
        if self._closer is None:
            self._closing = True
            if self._door is not None:
                self._door.shut()
            if self._listener is not None:
                self._listener.close()
            if self._next is not None:
                self._next.close()
                self._next = None
            self._fail(reason, broken=False)
            self._woken.set()
            self._closer = self._loop.create_task(self._close(reason))
        await asyncio.shield(self._closer)

    async def _close(self, reason: str) -> None:
        try:
            if self._task is not None:
                await self._task
        finally:
            await self._engine.close()
            self._note_handlers()
            self._hooks.close()
            self._enter(State.STOPPED, reason)

    def change(self, spec: DeviceSpec, configured: bool) -> None:
        """Go over to *spec*, which differs in nothing that is frozen, be it of all devices or of its type.

        Raises:
            SocketUnavailable: the socket can't be given to the new owner; nothing is changed then.
            DeviceFaulty: the device does not take its options; they are as before then.
        """
        before = self.spec
        if self._listener is not None and (spec.owner, spec.group, spec.mode) != (
            before.owner,
            before.group,
            before.mode,
        ):
            self._listener.give_to(spec.owner, spec.group, spec.mode)
        self.spec, self.configured = dataclasses.replace(spec, own=before.own), configured
        self._hooks.install(options=spec.own)
        self.spec = spec
        self._engine.set_poll(spec.poll_us)
        self._emit(DeviceChanged(self))

    # What can be asked of it

    @property
    def fault(self) -> str:
        """What keeps front-ends from using the device, a sentence for people; empty once a queue runs."""
        if self._silence.lasts and self.who is not None:
            return f"front-end pid {self.who.pid}: {self._silence_in_words()}"
        return self._fault

    @property
    def name(self) -> str:
        """The device's name."""
        return self.spec.name

    @property
    def virtio_id(self) -> int:
        """The virtio device ID."""
        return self._hooks.id

    @property
    def offered_features(self) -> int:
        """Feature bits that a front-end is offered."""
        return offered_features(self._hooks)

    @property
    def accepted_features(self) -> int:
        """Feature bits that the front-end accepted; 0 without one."""
        return (self.session and self.session.features) or 0

    @property
    def offered_protocol_features(self) -> ProtocolFeature:
        """vhost-user's own feature bits that a front-end is offered; 0 if the device can't say."""
        try:
            return offered_protocol_features(self._hooks)
        except DeviceFaulty:
            return ProtocolFeature(0)

    @property
    def accepted_protocol_features(self) -> ProtocolFeature:
        """vhost-user's own feature bits that the front-end accepted."""
        return self.session.protocol_features if self.session is not None else ProtocolFeature(0)

    def feature_names(self, bits: int) -> list[str]:
        """Name feature bits."""
        return feature_names(bits, self._hooks.feature_names)

    def protocol_feature_names(self, bits: int) -> list[str]:
        """Name vhost-user's own feature bits."""
        return protocol_feature_names(bits)

    @property
    def status(self) -> int:
        """The virtio device status that the front-end set, if it does that."""
        return self.session.status if self.session is not None else 0

    @property
    def memory_regions(self) -> list[Region]:
        """Guest memory: ``(guest_addr, size, user_addr, mmap_offset, error)`` each."""
        return self._engine.memory.regions

    @property
    def config(self) -> bytes:
        """The device's configuration space; empty if the device can't say."""
        try:
            return self._hooks.get_config()
        except DeviceFaulty:
            return b""

    @property
    def counters(self) -> dict[str, int]:
        """What the type of device counts; nothing if it can't say."""
        return self._hooks.counters()

    @property
    def refreshable(self) -> bool:
        """Whether there is something behind the device that `refresh` looks at."""
        return type(self.device).refresh is not Device.refresh

    @property
    def error(self) -> str:
        """What is wrong with the device's code, by its last calls; empty if nothing is known to be."""
        return self._hooks.error

    @property
    def queue_count(self) -> int:
        """How many queues it has."""
        return len(self._engine.queues)

    def queue(self, index: int) -> QueueState:
        """Look at queue *index*.

        Raises:
            NoSuchQueue: naming those that there are.
        """
        queue = self._engine.queues[self._check(index)]
        return look(queue, self.session is not None and self.session.rings[index].enabled)

    def queues(self) -> list[QueueState]:
        """Look at all queues."""
        return [self.queue(index) for index in range(self.queue_count)]

    def _check(self, index: int) -> int:
        if not 0 <= index < self.queue_count:
            raise NoSuchQueue(f'device "{self.name}" has queues 0 to {self.queue_count - 1}, not {index}')
        return index

    # What can be done to it

    def notify(self, index: int) -> None:
        """Interrupt the guest for queue *index* (the seed's vu_queue_notify).

        Raises:
            NoSuchQueue: naming those that there are.
            NotRunning: it does not run, or the front-end wants no interrupts.
        """
        queue = self._engine.queues[self._check(index)]
        if not queue.running or not queue.call():
            what = "does not run" if not queue.running else "has no call descriptor"
            raise NotRunning(f'queue {index} of device "{self.name}" {what}; the guest\'s driver has to set it up')

    def kick(self, index: int) -> None:
        """Have queue *index* looked at now, as if the guest had kicked it.

        Raises:
            NoSuchQueue: naming those that there are.
            NotRunning: it is not started, or not enabled.
        """
        if not self._engine.rouse(self._check(index)):
            raise NotRunning(f'queue {index} of device "{self.name}" is not started and enabled by a driver')

    def disconnect(self, reason: str) -> None:
        """Drop the front-end; the device is at rest and listens again a moment later.

        Raises:
            NotConnected: there is none.
        """
        if self.session is None:
            raise NotConnected(f'device "{self.name}" has no front-end; one attaches at {self.spec.socket}')
        self._fail(reason, broken=False)

    def reset(self) -> None:
        """Give the device the state after its birth; rings stop, and a driver has to set them up again.

        A driver learns of it where STATUS was negotiated (DEVICE_NEEDS_RESET) and it looks; else it hangs until it
        is loaded anew.

        Raises:
            NotConnected: there is no front-end, so the device has that state.
        """
        if self.session is None:
            raise NotConnected(f'device "{self.name}" has no front-end, so there is nothing to reset')
        self._job(lambda session: session.reset_unasked())

    def refresh(self) -> None:
        """Have the device look again at what is behind it: a disk at the size of its image, say.

        Raises:
            DoorbellError: that can't be had any more.
            DeviceFaulty: its code failed.
        """
        self._hooks.refresh()

    # Front-ends come

    def _arrive(self, sock: socket.socket) -> None:
        if self._sock is None:
            self._begin(sock)
            return
        silent, timeout = self._silence.seconds, self.spec.silence_timeout
        overdue = timeout and silent is not None and silent >= timeout
        if (self._ending or overdue or _hung_up(self._sock)) and (self._next is None or _hung_up(self._next)):
            if self._next is not None:
                self._next.close()
            self._next = sock
            if overdue:
                self._fail(f"it said nothing for {timeout:g} s, and another one came (silence-timeout)", broken=False)
            return
        holder = f"pid {self.who.pid}" if self.who is not None else "another"
        why = f"front-end {holder} has the device, and it serves one at a time"
        if silent is not None:
            why += "; it has said nothing yet, and silence-timeout of the device is how long it may"
        self._turn_away(why, sock)

    def _turn_away(self, reason: str, sock: socket.socket | None, in_words: bool = False) -> None:
        """Refuse a front-end that connected."""
        if sock is not None:
            sock.close()
        self._blame(f"a front-end was refused: {reason}")
        self._emit(FrontendRefused(self, reason))

    def _blame(self, fault: str) -> None:
        """Remember *fault* unless the device works."""
        if self.state is not State.RUNNING and fault != self._fault:
            self._fault = fault
            self._emit(FaultChanged(self))

    def _heard_silence(self) -> None:
        if self._silence.lasts and self.who is not None:
            self._emit(FrontendSilent(self, self.who, self._silence_in_words()))
        self._emit(FaultChanged(self))

    def _silence_in_words(self) -> str:
        there = f"a front-end that listens at {self.spec.socket}"
        what = there if self.spec.connect else "an ivshmem device, or a chardev that no device uses"
        return f"it has said nothing since it connected; is it {what}?"

    def _begin(self, sock: socket.socket) -> None:
        sock.setblocking(False)
        self._sock = sock
        self._task = self._loop.create_task(self._serve_one(sock))

    async def _seek(self) -> None:
        """Find a front-end that listens, serve it, look for the next."""
        while not self._closing:
            try:
                sock = _connect(self.spec.socket)
            except OSError as error:
                if str(error) != self._said:
                    self._said = str(error)
                    where = f"{self.spec.socket}: {error.strerror}"
                    self._emit(FrontendRefused(self, f"no front-end there yet, trying again: {where}"))
            else:
                self._said = ""
                self._sock = sock
                await self._serve_one(sock)
            if not self._closing:
                with contextlib.suppress(TimeoutError):
                    await asyncio.wait_for(self._woken.wait(), self._retry)
            self._retry = min(self._retry * 2, _RETRY_MAX)

    async def _serve_one(self, sock: socket.socket) -> None:
        """Serve the front-end behind *sock* until it goes, and clear away what it leaves."""
        try:
            self.who = identify(sock)
            admit(self.name, self.spec.peer, self.who)
        except (OSError, AccessDenied) as error:  # it is gone already, or may not be here
            self._sock, self.who = None, None
            if isinstance(error, AccessDenied):
                self._turn_away(str(error), sock)
            else:
                sock.close()
                self._emit(FrontendRefused(self, f"it went away while being greeted: {error.strerror}"))
            self._serve_next("")
            return
        self.session = session = Session(self._engine, self._loop, self)
        self._talk = talk = Conversation(self._loop, sock, session, self._silence.end)
        self._silence.begin()
        self.since, self.reason = time.time_ns() // 1000, ""
        self._hooks.forget_handler()
        if self._closing:
            talk.fail("the device is removed", broken=False)
        self._emit(FrontendAttached(self, self.who))
        self._enter(State.CONNECTED, "")
        reason, broken = await talk.run()
        await self._end(session, talk, reason, broken)

    async def _end(self, session: Session, talk: Conversation, reason: str, broken: bool) -> None:
        self._ending = True
        self._silence.end()
        if self._grace is not None:
            self._grace.cancel()
            self._grace = None
        self.reason = reason
        if broken:
            session.tell_broken()
            self._enter(State.BROKEN, reason)
        try:
            await session.close()
        except Exception as error:
            words = str(error) if isinstance(error, DeviceFaulty) else in_words(error)
            self.reason = f"{reason}; and then {words}" if words != reason else reason
        self._note_handlers()
        self.session = self._talk = None
        assert self.who is not None
        if broken:
            self._blame(f"front-end pid {self.who.pid} was disconnected: {self.reason}")
        if talk.fruitful:
            self._retry = _RETRY_MIN
        talk.close()  # last: the front-end's sign that its memory is its own again
        who, self.who, self.since = self.who, None, 0
        self._sock, self._ending = None, False
        self._emit(FrontendDetached(self, who, self.reason, broken))
        self._serve_next(self.reason)

    def _serve_next(self, reason: str) -> None:
        """Serve who waits, or wait for somebody, if there is a way for one to come."""
        if not self._closing:
            doorless = State.CONNECTING if self.spec.connect else State.STOPPED
            self._enter(State.LISTENING if self._door is not None else doorless, reason)
        if self._next is not None:
            sock, self._next = self._next, None
            self._begin(sock)

    def _job(self, job: Job) -> None:
        if self._talk is not None:
            self._talk.job(job)

    def _fail(self, reason: str, broken: bool) -> None:
        if self._talk is not None:
            self._talk.fail(reason, broken)

    def _enter(self, state: State, reason: str) -> None:
        old, self.state = self.state, state
        if state is State.RUNNING:
            self._fault = ""
        if old is not state:
            self._emit(StateChanged(self, old, state, reason))

    def _broke(self) -> None:
        """Give the front-end a moment when a queue broke, and say so if its handler failed.

        Linux takes requests back that it is done with (its index goes backwards) before it disables a queue, where it
        unbinds a driver in User-Mode Linux. So a queue that is not served any more after that moment is forgiven.
        """
        self._note_handlers()
        if self._engine.memory.broken:
            self._condemn()
        elif self._grace is None:
            self._grace = self._loop.call_later(GRACE, self._condemn)

    def _note_handlers(self) -> None:
        for error in self._engine.handler_failures():
            self._hooks.handler_failed(error)

    def _code_failed(self, failure: Failure) -> None:
        self._emit(CodeFailed(self, failure.reason, failure.cause))

    def _condemn(self) -> None:
        self._grace = None
        if self.session is None or self._ending:
            return
        if damage := self._engine.memory.broken or self._engine.damage:
            self._fail(damage, broken=True)

    def _look_at_config(self) -> None:
        """Have `_config_changed` called on the loop; comes from any thread, however often."""
        if not self._config_due:
            self._config_due = True
            self._loop.call_soon_threadsafe(self._config_changed)

    def _config_changed(self) -> None:
        now = self._loop.time()
        if now < self._config_next and not self._closing:
            self._loop.call_at(self._config_next, self._config_changed)
            return
        self._config_due, self._config_next = False, now + _CONFIG_PERIOD
        if not self._closing:
            self._emit(ConfigChanged(self))
            if self.session is not None:
                self.session.config_changed()

    def _host_notifier(self, index: int, area: tuple[Fd, int, int] | None) -> bool:
        if self.session is not None:
            return self.session.host_notifier(index, area)
        if area is not None:
            area[0].close()
        return False

    # What the session tells

    def failed(self, reason: str) -> None:
        """End the connection."""
        self._fail(reason, broken=True)

    def refused(self, request: str, reason: str) -> None:
        """Tell that a request was refused."""
        self._blame(f"a request of its front-end was refused: {request}: {reason}")
        self._emit(RequestRefused(self, request, reason))

    def queue_changed(self, index: int) -> None:
        """Tell of it, and see whether the device runs now."""
        self._emit(QueueChanged(self, index))
        if self.state in (State.CONNECTED, State.RUNNING) and not self._ending:
            running = any(queue.running for queue in self._engine.queues)
            self._enter(State.RUNNING if running else State.CONNECTED, "")

    def negotiated(self) -> None:
        """Tell of it."""
        self._emit(Negotiated(self))


def _connect(path: str) -> socket.socket:
    sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_CLOEXEC | socket.SOCK_NONBLOCK)
    try:
        sock.connect(path)
    except BaseException:
        sock.close()
        raise
    return sock


def _hung_up(sock: socket.socket) -> bool:
    poll = select.poll()
    poll.register(sock, select.POLLRDHUP)
    return bool(poll.poll(0))
