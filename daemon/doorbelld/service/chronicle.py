# SPDX-FileCopyrightText: 2026 The doorbelld authors
# SPDX-License-Identifier: GPL-2.0-or-later
"""Tells what happens in lines that a person reads. What guests can cause at will is rate-limited."""

from __future__ import annotations

from typing import Any

from ..fds.peercred import Credentials
from ..host.events import (
    AbsentGivenUp,
    ClientAdded,
    ClientChanged,
    ClientEvent,
    ClientPeerAdded,
    ClientPeerRemoved,
    ClientRemoved,
    ClientStateChanged,
    ClientUnkept,
    CodeFailed,
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

    With *later* (the event loop's ``call_later``) what was kept back is told even if nothing more happens.
    """

    def __init__(self, later: Later | None = None) -> None:
        self._limited = Limiter(later=later)

    def hear(self, event: HostEvent) -> None:
        """Log *event*, if it is worth a line."""
        if isinstance(event, Reloaded):
            log.info("configuration reloaded", **_by_action(event))
        elif isinstance(event, DeviceEvent):
            self._hear_of_device(event)
        elif not isinstance(event, ClientEvent):
            self._hear_of_region(event)
        elif isinstance(event.client, HostFlat):
            self._hear_of_flat(event)
        else:
            self._hear_of_client(event)

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
                self._limited(log.info, f"{region}: joins", text, region=region, peer=peer.id, **_known(peer.who))
            case PeerRemoved(peer=peer, reason=reason) if reason == LOST:
                text = "connection ended while the daemon was away"
                self._limited(log.info, f"{region}: leaves", text, region=region, peer=peer.id)
            case PeerRemoved(peer=peer, reason=reason):
                self._limited(log.info, f"{region}: leaves", "peer left", region=region, peer=peer.id, reason=reason)
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
                self._limited(log.info, f"{device}: attaches", "front-end attached", device=device, **_known(who))
            case FrontendDetached(who=who, reason=reason, broken=True):
                text = "front-end broke the device"
                self._limited(log.warning, f"{device}: breaks", text, device=device, pid=who.pid, reason=reason)
            case FrontendDetached(who=who, reason=reason):
                text = "front-end detached"
                self._limited(log.info, f"{device}: detaches", text, device=device, pid=who.pid, reason=reason)
            case FrontendRefused(reason=reason):
                self._limited(log.warning, f"{device}: refusals", "front-end refused", device=device, reason=reason)
            case FrontendSilent(who=who, reason=reason):
                text = "front-end says nothing"
                self._limited(log.warning, f"{device}: silences", text, device=device, pid=who.pid, reason=reason)
            case RequestRefused(request=request, reason=reason):
                text = "request of a front-end refused"
                key = f"{device}: requests"
                self._limited(log.warning, key, text, device=device, request=request, reason=reason)
            case CodeFailed(reason=reason, cause=cause):
                text = "code of a device failed"
                self._limited(log.error, f"{device}: failures", text, device=device, reason=reason, exc_info=cause)
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


def _known(who: Credentials) -> dict[str, Any]:
    """Give what is known of who connected."""
    details = {"vm": who.vm_name or None, "pid": who.pid, "uid": who.uid, "unit": who.unit}
    return {key: value for key, value in details.items() if value not in (None, "")}
