# SPDX-FileCopyrightText: 2026 The doorbelld authors
# SPDX-License-Identifier: GPL-2.0-or-later
"""What a host has in plain values: the parts of the JSON that the method ``Describe`` gives.

Keys are spelled as in the configuration.
"""

from __future__ import annotations

import dataclasses
import math
import os
from collections.abc import Iterable, Mapping
from typing import Any

from ..errors import in_words, printable
from ..ivshmem.flat import Register
from ..ivshmem.hostclient import HostClient, HostFlat
from ..ivshmem.region import Region
from ..vhost.backend import Backend

_TEXT_MAX = 4096
"""Characters of an option of a device that are shown, as many as a path may have."""


def describe_region(region: Region, refusals: Iterable[tuple[int, str]] = ()) -> dict[str, Any]:
    """Say how a region was asked for, who is there, and who was refused last (when and why)."""
    return {
        **region.spec.as_options(),
        "rules": [rule.raw() for rule in region.spec.peer],
        "refusals": [{"time": when, "reason": reason} for when, reason in refusals],
        "host-rings": region.host.totals if region.host else [],
        "pairs": None if region.relay is None else [_dashed(dataclasses.asdict(pair)) for pair in region.relay.pairs()],
        "peers": [
            {
                "id": peer.id,
                "pid": peer.who.pid,
                "uid": peer.who.uid,
                "gid": peer.who.gid,
                "vm": peer.who.vm_name,
                "unit": peer.who.unit,
                "program": peer.who.program,
                "label": peer.who.label,
                "since": peer.since,
                "vectors": peer.vectors,
                "backlog": peer.backlog,
                **_rings(region, peer.id),
            }
            for peer in region.peers.values()
        ],
        "absent": [
            {
                "id": absent.id,
                "uid": absent.who.uid,
                "vm": absent.who.vm_name,
                "unit": absent.who.unit,
                "left": absent.left,
            }
            for absent in region.admission.absent.waiting()
        ],
    }


def describe_device(device: Backend) -> dict[str, Any]:
    """Say how a device was asked for, who drives it, and what its queues do."""
    who = device.who
    return {
        **device.spec.as_options(),
        **_own_options(device.spec.own),
        "virtio-id": device.virtio_id,
        "state": device.state.value,
        "reason": device.reason,
        "fault": device.fault,
        "front-end": who
        and {
            "pid": who.pid,
            "uid": who.uid,
            "gid": who.gid,
            "vm": who.vm_name,
            "unit": who.unit,
            "program": who.program,
            "since": device.since,
            "features": device.feature_names(device.accepted_features),
            "protocol-features": device.protocol_feature_names(device.accepted_protocol_features),
        },
        "counters": device.counters,
        "error": device.error,
        "refreshable": device.refreshable,
        "memory": [_dashed(region._asdict()) for region in device.memory_regions],
        "queues": [_dashed(dataclasses.asdict(queue)) for queue in device.queues()],
    }


def describe_client(client: HostClient) -> dict[str, Any]:
    """Say how a client or a flat device was asked for, how it stands with its server, and who is there."""
    known = {
        **client.spec.as_options(),
        "state": client.state.value,
        "reason": client.reason,
        "id": client.id,
        "vectors": client.vectors,
        "size": client.memory_size,
        "since": client.since,
        "rings": list(client.rings),
        "peers": [
            {"id": peer.id, "vectors": peer.vectors, "since": client.seen(peer.id)} for peer in client.peers.values()
        ],
    }
    if isinstance(client, HostFlat):
        known |= {"iv-position": client.read(Register.IVPOSITION), "interrupts": client.interrupts}
    return known


def name_our_own(known: Mapping[str, Any]) -> None:
    """Say of each peer in *known* which client or flat device of ours it is, if any (``own``)."""
    regions = {region["socket"]: region for region in known["regions"].values()}
    for region in regions.values():
        for peer in region["peers"]:
            peer["own"] = ""
    for kind in ("client", "flat"):
        for name, one in known[f"{kind}s"].items():
            for peer in regions.get(one["socket"], {}).get("peers", ()):
                # not by the process: after a restart, that of the connection is our predecessor
                if (peer["id"], peer["uid"]) == (one["id"], os.getuid()):
                    peer["own"] = f"{kind} {name}"


def _rings(region: Region, peer_id: int) -> dict[str, int]:
    """Say what a relay has counted of a peer."""
    if region.relay is None:
        return {}
    sent, received = region.relay.totals(peer_id)
    return {"rings-sent": sent, "rings-received": received}


def _dashed(values: Mapping[str, Any]) -> dict[str, Any]:
    """Spell keys as the configuration does."""
    return {key.replace("_", "-"): value for key, value in values.items()}


def _own_options(own: Any) -> dict[str, Any]:
    """Put the options of a type of devices, which may be another package's, in plain values."""
    return _dashed({field.name: _plain(own, field.name) for field in dataclasses.fields(own)})


def _plain(own: Any, name: str) -> Any:
    """Give what JSON can say of an option."""
    try:
        value = getattr(own, name)
        if value is None or isinstance(value, bool):
            return value
        if isinstance(value, int) and -(1 << 63) <= value < 1 << 64:
            return int.__int__(value)
        if isinstance(value, float) and math.isfinite(value):
            return float(value)
        return printable(str(value), _TEXT_MAX)
    except BaseException as error:  # of a property, or of a __str__
        return f"({in_words(error)})"
