# SPDX-FileCopyrightText: 2026 The doorbelld authors
# SPDX-License-Identifier: GPL-2.0-or-later
"""Tells what happens in lines that a person reads. What guests can cause at will is rate-limited."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

from ..fds.peercred import Credentials
from ..host.events import (
    AbsentGivenUp,
    BudgetExceeded,
    ClientAdded,
    ClientChanged,
    ClientEvent,
    ClientPeerAdded,
    ClientPeerRemoved,
    ClientRemoved,
    ClientStateChanged,
    ClientUnkept,
    CodeFailed,
    CodeSlow,
    ConfigChanged,
    DeviceAdded,
    DeviceChanged,
    DeviceEvent,
    DeviceRemoved,
    FrontendAttached,
    FrontendDetached,
    FrontendRefused,
    FrontendSilent,
    HostEvent,
    MemoryCleared,
    Negotiated,
    PeerAdded,
    PeerRefused,
    PeerRemoved,
    QueueChanged,
    RegionAdded,
    RegionChanged,
    RegionEvent,
    RegionRemoved,
    Reloaded,
    RequestRefused,
    StateChanged,
    Unkept,
)
from ..ivshmem.hostclient import HostFlat
from ..ivshmem.link import ClientState
from ..ivshmem.revival import LOST
from ..log import Later, Limiter, get_logger

log = get_logger()


class Chronicle:
    """A listener of the host that logs.

    With *later* (the event loop's ``call_later``) what was kept back is told even if nothing more happens. One user
    causes no more than *lines* lines in ten seconds, in whatever number of regions and devices, by coming and going.
    """

    def __init__(self, later: Later | None = None, lines: Callable[[], int] = lambda: 1000) -> None:
        self._limited = Limiter(later=later)
        self._rare = Limiter(burst=1, period=60.0, later=later)
        self._by_user = Limiter(later=later)
        self._lines = lines

    def hear(self, event: HostEvent) -> None:
        """Log *event*, if it is worth a line."""
        if isinstance(event, Reloaded):
            log.info("configuration reloaded", **_by_action(event))
        elif isinstance(event, BudgetExceeded):
            text = "a budget is used up"
            name, key = event.name, event.key
            self._rare(log.warning, f"budget {name}: {key}", text, budget=name, key=key, reason=event.reason)
        elif isinstance(event, DeviceEvent):
            self._hear_of_device(event)
        elif not isinstance(event, ClientEvent):
            self._hear_of_region(event)
        elif isinstance(event.client, HostFlat):
            self._hear_of_flat(event)
        else:
            self._hear_of_client(event)

    def _told_of(self, user: str, emit: Callable[..., Any], key: str, text: str, /, **values: Any) -> None:
        """Log what *user* caused, unless *key* has had its lines, or the user its own."""
        self._by_user.burst = self._lines()
        self._limited(partial(self._by_user, emit, user), key, text, **values)

    def _hear_of_region(self, event: RegionEvent) -> None:
        region = event.region.name
        match event:
            case RegionAdded(region=there, revived=True):
                log.info("region restored", region=region, peers=len(there.peers))
            case RegionAdded(region=there):
                log.info("region serves", region=region, socket=there.spec.socket, size=there.spec.size)
            case RegionChanged():
                log.info("region changed", region=region)
            case RegionRemoved():
                log.info("region removed", region=region)
            case PeerAdded(peer=peer):
                text = "peer joined"
                who = peer.who
                self._told_of(
                    _user(who), log.info, f"{region}: joins", text, region=region, peer=peer.id, **_known(who)
                )
            case PeerRemoved(peer=peer, reason=reason) if reason == LOST:
                text = "connection ended while the daemon was away"
                self._limited(log.info, f"{region}: leaves", text, region=region, peer=peer.id)
            case PeerRemoved(peer=peer, reason=reason):
                key = f"{region}: leaves"
                self._told_of(_user(peer.who), log.info, key, "peer left", region=region, peer=peer.id, reason=reason)
            case PeerRefused(reason=reason):
                self._limited(log.warning, f"{region}: refusals", "connection refused", region=region, reason=reason)
            case AbsentGivenUp(absent=absent, reason=reason):
                text, owner = "absent peer given up", absent.who
                self._limited(
                    log.info, f"{region}: given up", text, region=region, peer=absent.id, reason=reason, **_known(owner)
                )
            case MemoryCleared(failure=""):
                log.info("memory cleared", region=region)
            case MemoryCleared(failure=failure):
                log.warning("memory not cleared", region=region, reason=failure)
            case Unkept(reason=reason):
                text = "not everything of a region can be kept over a restart"
                self._limited(log.warning, f"{region}: unkept", text, region=region, reason=reason)

    def _hear_of_device(self, event: DeviceEvent) -> None:
        device = event.device.name
        match event:
            case DeviceAdded(device=there):
                log.info("device serves", device=device, type=there.spec.type, socket=there.spec.socket)
            case DeviceChanged():
                log.info("device changed", device=device)
            case DeviceRemoved():
                log.info("device removed", device=device)
            case FrontendAttached(who=who):
                key = f"{device}: attaches"
                self._told_of(_user(who), log.info, key, "front-end attached", device=device, **_known(who))
            case FrontendDetached(who=who, reason=reason, broken=True):
                text = "front-end broke the device"
                key = f"{device}: breaks"
                self._told_of(_user(who), log.warning, key, text, device=device, pid=who.pid, reason=reason)
            case FrontendDetached(who=who, reason=reason):
                text = "front-end detached"
                key = f"{device}: detaches"
                self._told_of(_user(who), log.info, key, text, device=device, pid=who.pid, reason=reason)
            case FrontendRefused(reason=reason):
                self._limited(log.warning, f"{device}: refusals", "front-end refused", device=device, reason=reason)
            case FrontendSilent(who=who, reason=reason):
                text = "front-end says nothing"
                key = f"{device}: silences"
                self._told_of(_user(who), log.warning, key, text, device=device, pid=who.pid, reason=reason)
            case RequestRefused(request=request, reason=reason):
                text = "request of a front-end refused"
                key = f"{device}: requests"
                self._limited(log.warning, key, text, device=device, request=request, reason=reason)
            case CodeFailed(reason=reason, cause=cause):
                text = "code of a device failed"
                self._limited(log.error, f"{device}: failures", text, device=device, reason=reason, exc_info=cause)
            case CodeSlow(hook=hook, seconds=seconds):
                text = "code of a device holds up the daemon"
                took = f"{seconds:.3f} s"
                cure = "have a thread do what takes long; see docs/devices.md"
                self._limited(log.warning, f"{device}: slow", text, device=device, hook=hook, took=took, cure=cure)
            case ConfigChanged():
                text = "device tells its front-end of a change"
                self._limited(log.info, f"{device}: changes", text, device=device)
            case StateChanged(old=old, new=new):
                log.debug("device state", device=device, old=old.value, new=new.value)
            case QueueChanged(index=index):
                log.debug("device queue", device=device, queue=index)
            case Negotiated():
                log.debug("device negotiated", device=device)

    def _hear_of_client(self, event: ClientEvent) -> None:
        client, there = event.client.name, event.client
        match event:
            case ClientAdded(revived=True):
                log.info("client restored", client=client, server=there.spec.socket, state=there.state.value)
                if there.link.failure is not None:  # of the connection that it was to go on with
                    text = "client lost its region"
                    self._limited(log.warning, f"client {client}: leaves", text, client=client, reason=there.reason)
            case ClientAdded():
                log.info("client is there", client=client, server=there.spec.socket)
            case ClientChanged():
                log.info("client changed", client=client)
            case ClientRemoved():
                log.info("client removed", client=client)
            case ClientStateChanged(new=ClientState.CLOSED):
                pass  # which is told as its removal
            case ClientStateChanged(new=ClientState.CONNECTED):
                text = "client joined a region"
                self._limited(log.info, f"client {client}: joins", text, client=client, id=there.id)
            case ClientStateChanged(old=ClientState.CONNECTED):
                text = "client lost its region"
                self._limited(log.warning, f"client {client}: leaves", text, client=client, reason=there.reason)
            case ClientStateChanged() if there.link.failure is not None:
                text = "client can't join its region"
                self._limited(log.warning, f"client {client}: fails", text, client=client, reason=there.reason)
            case ClientUnkept(reason=reason):
                text = "not everything of a client can be kept over a restart"
                self._limited(log.warning, f"client {client}: unkept", text, client=client, reason=reason)
            case ClientPeerAdded(peer_id=peer):
                log.debug("peer joined a client's region", client=client, peer=peer)
            case ClientPeerRemoved(peer_id=peer):
                log.debug("peer left a client's region", client=client, peer=peer)

    def _hear_of_flat(self, event: ClientEvent) -> None:
        flat, there = event.client.name, event.client
        match event:
            case ClientAdded(revived=True):
                log.info("flat device restored", flat=flat, server=there.spec.socket, state=there.state.value)
                if there.link.failure is not None:  # of the connection that it was to go on with
                    text = "flat device lost its region"
                    self._limited(log.warning, f"flat {flat}: leaves", text, flat=flat, reason=there.reason)
            case ClientAdded():
                log.info("flat device serves", flat=flat, server=there.spec.socket)
            case ClientChanged():
                log.info("flat device changed", flat=flat)
            case ClientRemoved():
                log.info("flat device removed", flat=flat)
            case ClientStateChanged(new=ClientState.CLOSED):
                pass  # which is told as its removal
            case ClientStateChanged(new=ClientState.CONNECTED):
                text = "flat device joined a region"
                self._limited(log.info, f"flat {flat}: joins", text, flat=flat, id=there.id)
            case ClientStateChanged(old=ClientState.CONNECTED):
                text = "flat device lost its region"
                self._limited(log.warning, f"flat {flat}: leaves", text, flat=flat, reason=there.reason)
            case ClientStateChanged() if there.link.failure is not None:
                text = "flat device can't join its region"
                self._limited(log.warning, f"flat {flat}: fails", text, flat=flat, reason=there.reason)
            case ClientUnkept(reason=reason):
                text = "not everything of a flat device can be kept over a restart"
                self._limited(log.warning, f"flat {flat}: unkept", text, flat=flat, reason=reason)
            case ClientPeerAdded(peer_id=peer):
                log.debug("peer joined a flat device's region", flat=flat, peer=peer)
            case ClientPeerRemoved(peer_id=peer):
                log.debug("peer left a flat device's region", flat=flat, peer=peer)


def _by_action(event: Reloaded) -> dict[str, str]:
    """Give what was made, removed and changed, as far as there is any."""
    found: dict[str, list[str]] = {}
    for action, kind, name in event.changes:
        found.setdefault(action, []).append(f"{kind} {name}")
    return {action: ", ".join(things) for action, things in found.items()}


def _user(who: Credentials) -> str:
    """Give the key under which lines are counted that a user causes."""
    return f"uid {who.uid}"


def _known(who: Credentials) -> dict[str, Any]:
    """Give what is known of who connected."""
    details = {"vm": who.vm_name or None, "pid": who.pid, "uid": who.uid, "unit": who.unit}
    return {key: value for key, value in details.items() if value not in (None, "")}
