# SPDX-FileCopyrightText: 2026 The doorbelld authors
# SPDX-License-Identifier: GPL-2.0-or-later
"""Prints vhost-user devices and their queues for people."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import click

from . import peernames, tables
from .layout import NONE, Shape, when
from .process import in_words

_DEVICES = Shape(
    ("DEVICE", "TYPE", "STATE", "FRONT-END", ">QUEUES", ">REQUESTS", ">BYTES", ">ERRORS", "SOCKET"),
    (">BYTES", ">QUEUES", "TYPE", ">REQUESTS", ">ERRORS"),
    path=True,
)
_QUEUES = Shape(
    (
        *(">QUEUE", ">SIZE", "ENABLED", "STARTED", ">AVAILABLE", ">USED", ">IN FLIGHT", ">KICKS", ">CALLS"),
        *(">REQUESTS", ">BYTES", ">ERRORS"),
    ),
    (">BYTES", ">SIZE", ">ERRORS", ">CALLS", ">KICKS", ">REQUESTS"),
)
_STATUS = {
    1: "ACKNOWLEDGE",
    2: "DRIVER",
    4: "DRIVER_OK",
    8: "FEATURES_OK",
    64: "DEVICE_NEEDS_RESET",
    128: "FAILED",
}
"""Bits of the device status (VIRTIO 1.2, 2.1)."""
_SECTOR = 512
_BLK = 2


def totals(device: Mapping[str, Any]) -> dict[str, int]:
    """Sum up what the queues of a device count."""
    return {key: sum(queue[key] for queue in device["queues"]) for key in ("requests", "bytes", "errors", "in-flight")}


def running(device: Mapping[str, Any]) -> int:
    """Count the queues that run."""
    return sum(queue["started"] for queue in device["queues"])


def front_end(device: Mapping[str, Any]) -> str:
    """Name the front-end: its VM, its process; nothing where there is none."""
    if (who := device["front-end"]) is None:
        return NONE
    return f"{who['vm']} ({who['pid']})" if who["vm"] else peernames.sentence(who)


def overview(devices: Mapping[str, Mapping[str, Any]]) -> None:
    """Print a line for each device, and beneath why front-ends left and what is wrong with its code."""
    tables.table(
        _DEVICES,
        (_row(name, device, totals(device)) for name, device in devices.items()),
    )
    notes = [
        f"{name}: {words}" for name, device in devices.items() for words in (reason(device), error(device)) if words
    ]
    if notes:
        click.echo()
        click.echo("\n".join(notes))


def _row(name: str, device: Mapping[str, Any], sums: Mapping[str, int]) -> list[object]:
    return [
        *(name, device["type"], device["state"], front_end(device)),
        *(f"{running(device)}/{len(device['queues'])}", sums["requests"], in_words(sums["bytes"]), sums["errors"]),
        device["socket"],
    ]


def reason(device: Mapping[str, Any]) -> str:
    """Say why a device is as it is; empty if there is nothing to say."""
    if (fault := device.get("fault")) and device["state"] != "broken":
        return str(fault)
    if not device["reason"]:
        return ""
    if device["state"] == "broken":
        return f"broken: {device['reason']}"
    return f"its last front-end is gone: {device['reason']}"


def error(device: Mapping[str, Any]) -> str:
    """Say what is wrong with a device's code; empty if nothing is known to be. An older daemon does not tell."""
    words = device.get("error", "")
    return f"its code fails: {words}; the log has the traceback" if words else ""


def queues(known: Sequence[Mapping[str, Any]]) -> None:
    """Print all there is to know of queues."""
    tables.table(
        _QUEUES,
        (
            [
                *(queue["index"], queue["size"] or NONE, _yes(queue["enabled"]), _yes(queue["started"])),
                *(queue["available-index"], queue["used-index"], queue["in-flight"], queue["kicks"], queue["calls"]),
                *(queue["requests"], in_words(queue["bytes"]), queue["errors"]),
            ]
            for queue in known
        ),
    )
    for queue in known:
        if queue["broken"]:
            click.echo(f"queue {queue['index']} is broken: {queue['broken']}")


def _yes(value: bool) -> str:
    return "yes" if value else "no"


def status(name: str, device: Mapping[str, Any]) -> None:
    """Print one device in detail: what it is, its front-end, what they agreed on, and its queues."""
    tables.facts(dict(_facts(name, device)))
    click.echo()
    if device["front-end"] is None:
        click.echo(f"No front-end is connected. What a guest needs: doorbellctl qemu-args {name}")
        return
    shown = [queue for queue in device["queues"] if queue["size"] or queue["enabled"] or queue["requests"]]
    if not shown:
        click.echo("No queue is set up by the guest yet.")
        return
    queues(shown)
    if silent := len(device["queues"]) - len(shown):
        click.echo(f"{silent} of {len(device['queues'])} queues are not set up by the guest.")


def _facts(name: str, device: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    sums = totals(device)
    yield "Device", name
    yield "Type", f"{device['type']} (virtio ID {device['virtio-id']})"
    yield "Socket", f"{device['socket']}{' (the front-end listens)' if device['connect'] else ''}"
    if not device["connect"]:
        yield "Access", tables.access(device)
    yield "State", device["state"]
    if words := reason(device):
        yield "Reason", words
    if words := error(device):
        yield "Error", words
    if (who := device["front-end"]) is not None:
        vm, unit = (f", {word} {who[key]}" if who[key] else "" for word, key in (("VM", "vm"), ("unit", "unit")))
        since = when(who["since"])
        yield "Front-end", f"pid {who['pid']}, uid {who['uid']}, gid {who['gid']}{vm}{unit}, since {since}"
        yield "Features", _accepted(device["acked-feature-names"], device["offered-feature-names"])
        names = device["acked-protocol-feature-names"], device["offered-protocol-feature-names"]
        yield "Protocol", _accepted(*names)
        yield "Status", _status(device["status"])
        yield "Memory", memory(device["memory"])
    else:
        yield "Offers", " ".join(map(_short, device["offered-feature-names"]))
    if device["config-space"]:
        yield "Configuration", _config(device["virtio-id"], bytes.fromhex(device["config-space"]))
    yield "Queues", f"{running(device)} of {len(device['queues'])} run, polled for {device['poll-us']} us"
    counts = f"{sums['requests']:,} requests, {in_words(sums['bytes'])}, {sums['errors']:,} errors"
    yield "Done", f"{counts}; {sums['in-flight']} in flight"
    if counted := device.get("counters"):
        yield "Counters", ", ".join(f"{name} {count:,}" for name, count in counted.items())


def _accepted(accepted: Sequence[str], offered: Sequence[str]) -> str:
    refused = " ".join(_short(name) for name in offered if name not in accepted)
    taken = " ".join(map(_short, accepted)) or "none accepted yet"
    return f"{taken} (not: {refused})" if refused else taken


def _short(name: str) -> str:
    """Leave the prefix of a feature's name away, as far as it says whose feature it is: VIRTIO_BLK_F_RO is RO."""
    return name.rpartition("_F_")[2]


def _status(bits: int) -> str:
    """Write the device status; 0 where the front-end does not tell it."""
    words = [_STATUS.get(1 << place, f"bit {place}") for place in range(8) if bits >> place & 1]
    return " ".join(words) or "not told by the front-end"


def memory(regions: Sequence[Mapping[str, Any]]) -> str:
    """Say how much guest memory there is, and what is wrong with it."""
    if not regions:
        return "none shared yet"
    size = in_words(sum(region["size"] for region in regions))
    wrong = [f"{region['guest-addr']:#x}: {region['error']}" for region in regions if region["error"]]
    count = f"{len(regions)} region{'s' * (len(regions) != 1)}"
    return f"{size} in {count}{''.join(f'; {words}' for words in wrong)}"


def _config(virtio_id: int, space: bytes) -> str:
    """Write the configuration space: how large a disk is, else the bytes less the zeros at its end."""
    if virtio_id == _BLK:
        sectors = int.from_bytes(space[:8], "little")
        return f"a disk of {in_words(sectors * _SECTOR)} ({sectors:,} sectors)"
    used = space.rstrip(b"\0").hex(" ")
    return f"{len(space)} bytes: {f'{used} and zeros' if used else 'all zeros'}"
