# SPDX-FileCopyrightText: 2026 The doorbelld authors
# SPDX-License-Identifier: GPL-2.0-or-later
"""The load of regions, peers and devices: what `top` shows, without how.

A `Sample` is what was seen at one moment, `frame` puts two of them together into rates, and the functions after it
make tables of that.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from . import device_tables, peernames, tables
from .layout import NONE, Shape, Since
from .process import Usage, in_words

_REGIONS = Shape(
    ("REGION", ">PEERS", ">BACKLOG", ">RINGS/S", "BY VECTOR", ">RINGS", ">JOINS/S", ">LEAVES/S"),
    ("BY VECTOR", ">LEAVES/S", ">JOINS/S", ">RINGS", ">BACKLOG"),
)
_PEERS = Shape(
    ("REGION", ">PEER", "VM (PROGRAM)", ">PID", ">VECTORS", "SINCE", ">BACKLOG", ">SENT/S", ">RECEIVED/S"),
    (">RECEIVED/S", ">SENT/S", ">VECTORS", ">PID", "SINCE", ">BACKLOG"),
)
_DEVICES = Shape(
    (
        *("DEVICE", "TYPE", "STATE", "FRONT-END", ">QUEUES", ">REQUESTS/S", ">BYTES/S", ">IN FLIGHT", ">KICKS/S"),
        *(">CALLS/S", ">ERRORS"),
    ),
    (">CALLS/S", ">KICKS/S", ">QUEUES", "TYPE", ">ERRORS", ">IN FLIGHT", ">BYTES/S", "FRONT-END", ">REQUESTS/S"),
)
_COUNTED = ("requests", "bytes", "kicks", "calls", "errors")
"""What the queues of a device count."""

Rows = Iterator[list[object]] | list[list[object]]


@dataclass(frozen=True, slots=True)
class Sample:
    """What was seen at a moment: when (monotonic), of which daemon, and its joins and leaves heard of so far."""

    at: float
    owner: str
    pid: int
    known: dict[str, Any]
    usage: Usage | None
    joins: Counter[str]
    leaves: Counter[str]


def frame(before: Sample | None, now: Sample) -> dict[str, Any]:
    """Put two samples together: what there is *now*, and rates since *before*; rates are None without that."""
    seconds = None if before is None else now.at - before.at
    same = before is not None and before.owner == now.owner
    cpu = None
    if same and before is not None and before.usage and now.usage and seconds:
        cpu = round(100 * (now.usage.cpu - before.usage.cpu) / seconds, 1)
    regions = {}
    for name, region in now.known["regions"].items():
        totals = region["host-rings"]
        earlier = before.known["regions"].get(name, {}).get("host-rings", []) if before is not None else []
        rates: dict[str, Any] = {"rings-per-second": None, "joins-per-second": None, "leaves-per-second": None}
        if before is not None and seconds:
            rates = {
                "rings-per-second": [round(count / seconds, 1) for count in _since(earlier, totals)],
                "joins-per-second": round((now.joins[name] - before.joins[name]) / seconds, 1),
                "leaves-per-second": round((now.leaves[name] - before.leaves[name]) / seconds, 1),
            }
        regions[name] = {
            "vectors": region["vectors"],
            "max-peers": region["max-peers"],
            "backlog": sum(peer["backlog"] for peer in region["peers"]),
            "rings": totals,
            **rates,
            "peers": _relayed(before.known["regions"].get(name) if before is not None else None, region, seconds),
        }
    earlier_devices = before.known["devices"] if same and before is not None else {}
    devices = {
        name: _device(earlier_devices.get(name), device, seconds) for name, device in now.known["devices"].items()
    }
    return {
        "version": now.known["version"],
        "interval": None if seconds is None else round(seconds, 3),
        "pid": now.pid,
        "cpu-percent": cpu,
        "memory": now.usage.memory if now.usage else None,
        "descriptors": now.known["descriptors"],
        "regions": regions,
        "devices": devices,
    }


def _relayed(before: Mapping[str, Any] | None, now: Mapping[str, Any], seconds: float | None) -> list[dict[str, Any]]:
    """Give the peers of a region with the rings a second that a relay saw; a peer that is new counts from nothing."""
    if now.get("pairs") is None:
        return list(now["peers"])
    earlier = {(p["id"], p["since"]): p for p in before["peers"]} if before else {}
    peers = []
    for peer in now["peers"]:
        old = earlier.get((peer["id"], peer["since"]), {})
        totals = [peer["rings-sent"], peer["rings-received"]]
        gains = _since([old.get("rings-sent", 0), old.get("rings-received", 0)], totals)
        sent, received = (round(gain / seconds, 1) if seconds else None for gain in gains)
        peers.append({**peer, "sent-per-second": sent, "received-per-second": received})
    return peers


def _device(before: Mapping[str, Any] | None, now: Mapping[str, Any], seconds: float | None) -> dict[str, Any]:
    """Put two looks at a device together; one that is new counts from nothing."""
    totals = {key: sum(queue[key] for queue in now["queues"]) for key in _COUNTED}
    earlier = {key: sum(queue[key] for queue in before["queues"]) if before else 0 for key in _COUNTED}
    gains = _since(list(earlier.values()), list(totals.values()))
    rates = {
        f"{key}-per-second": round(gain / seconds, 1) if seconds else None
        for key, gain in zip(_COUNTED, gains, strict=True)
    }
    kept = ("type", "state", "reason", "front-end")
    return {
        **{key: now[key] for key in kept},
        "queues": len(now["queues"]),
        "running": device_tables.running(now),
        "in-flight": sum(queue["in-flight"] for queue in now["queues"]),
        **totals,
        **rates,
    }


def _since(before: Sequence[int], now: Sequence[int]) -> list[int]:
    """Give what was added to each total; one that went down, or is new, counts from nothing."""
    earlier = [*before, *[0] * len(now)][: len(now)]
    return [total - first if total >= first else total for first, total in zip(earlier, now, strict=True)]


def headline(made: dict[str, Any]) -> str:
    """Say how the daemon is."""
    cpu = NONE if made["cpu-percent"] is None else f"{made['cpu-percent']} %"
    memory = NONE if made["memory"] is None else in_words(made["memory"])
    used = made["descriptors"]
    return (
        f"doorbelld {made['version']}, pid {made['pid']}: CPU {cpu}, memory {memory}, "
        f"{used['in-use']:,} of {used['limit']:,} descriptors; {tables.counts(made)}"
    )


def region_rows(made: dict[str, Any]) -> Iterator[list[object]]:
    """Give the rows of the table of regions, the busiest first."""

    def busy(item: tuple[str, Any]) -> tuple[float, str]:
        return -sum(item[1]["rings-per-second"] or ()), item[0]

    for name, region in sorted(made["regions"].items(), key=busy):
        rates = region["rings-per-second"]
        by_vector = ", ".join(f"{vector}: {rate:g}" for vector, rate in enumerate(rates or ()) if rate)
        yield [
            *(name, len(region["peers"]), region["backlog"]),
            *(NONE if rates is None else f"{sum(rates):.1f}", by_vector or NONE, sum(region["rings"])),
            *(_rate(region["joins-per-second"]), _rate(region["leaves-per-second"])),
        ]


def _rate(value: float | None) -> object:
    return NONE if value is None else value


def peer_rows(made: dict[str, Any]) -> list[list[object]]:
    """Give the rows of the table of peers, those that most waits for first, then those that ring most."""
    peers = [(name, peer) for name, region in made["regions"].items() for peer in region["peers"]]
    peers.sort(key=lambda item: (-item[1]["backlog"], -(item[1].get("sent-per-second") or 0), item[0], item[1]["id"]))
    return [
        [
            *(name, p["id"], peernames.cell(p), p["pid"], p["vectors"], Since(p["since"]), p["backlog"]),
            *(_rate(p.get("sent-per-second")), _rate(p.get("received-per-second"))),
        ]
        for name, p in peers
    ]


def device_rows(made: dict[str, Any]) -> Iterator[list[object]]:
    """Give the rows of the table of devices, the busiest first."""

    def busy(item: tuple[str, Any]) -> tuple[float, str]:
        return -(item[1]["requests-per-second"] or 0), item[0]

    for name, device in sorted(made["devices"].items(), key=busy):
        moved = device["bytes-per-second"]
        yield [
            *(name, device["type"], device["state"], device_tables.front_end(device)),
            *(f"{device['running']}/{device['queues']}", _rate(device["requests-per-second"])),
            *(NONE if moved is None else in_words(moved), device["in-flight"]),
            *(_rate(device["kicks-per-second"]), _rate(device["calls-per-second"]), device["errors"]),
        ]


_TABLES: tuple[tuple[Shape, Callable[[dict[str, Any]], Rows]], ...] = (
    (_REGIONS, region_rows),
    (_PEERS, peer_rows),
    (_DEVICES, device_rows),
)


def all_tables(made: dict[str, Any]) -> Iterator[tuple[Shape, list[list[object]]]]:
    """Give the tables of a frame that have something in them: shape and rows."""
    for shape, rows in _TABLES:
        if found := list(rows(made)):
            yield shape, found
