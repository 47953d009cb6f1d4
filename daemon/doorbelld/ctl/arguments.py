# SPDX-FileCopyrightText: 2026 The doorbelld authors
# SPDX-License-Identifier: GPL-2.0-or-later
"""The arguments that commands share: how they are read, and how a shell completes them from the running daemon."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import click

from . import peernames
from .session import KINDS, WORDS, Daemon, F

if TYPE_CHECKING:
    from click.shell_completion import CompletionItem

    _IntType = click.ParamType[int]
else:
    _IntType = click.ParamType

COMPLETION_SECONDS = 0.7


class Number(_IntType):
    """A number, of bytes for instance: decimal, 0x hexadecimal, or with K, M or G."""

    name = "number"

    def __init__(self, low: int = 0, high: int = (1 << 63) - 1) -> None:
        self._low, self._high = low, high

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> int:
        """Read it, or fail with words."""
        if isinstance(value, int):
            return value
        text, factor = str(value).strip(), 1
        if text[-1:].upper() in ("K", "M", "G") and not text.lower().startswith("0x"):
            factor = 1 << {"K": 10, "M": 20, "G": 30}[text[-1].upper()]
            text = text[:-1]
        try:
            number = int(text, 16 if text.lower().startswith("0x") else 10) * factor
        except ValueError:
            self.fail(f"{value!r} is no number; write one such as 4096, 0x1000 or 4K", param, ctx)
        if not self._low <= number <= self._high:
            self.fail(f"{value!r} is out of range", param, ctx)
        return number


def ask(ctx: click.Context) -> dict[str, Any]:
    """Describe the daemon while a command line is being read: quickly, or not at all. It is not started for that."""
    import asyncio

    from . import remote

    async def describe() -> dict[str, Any]:
        from .bus_choice import open_bus

        async with asyncio.timeout(COMPLETION_SECONDS):
            async with await open_bus(ctx.find_root().params.get("bus") or "auto", start=False) as client:
                return await Daemon(client).describe()

    try:
        if host := ctx.find_root().params.get("host"):
            return remote.describe(host)
        return asyncio.run(describe())
    except Exception:  # completion never disturbs whoever types
        return {}


def _named(ctx: click.Context) -> dict[str, dict[str, Any]]:
    """Give what the argument before names, by kind; empty where there is none."""
    names = [ctx.params.get(key) for key in ("name", "region", "device")]
    name = next((name for name in names if isinstance(name, str)), "")
    known, kind = ask(ctx), ctx.params.get("kind")
    return {each: known.get(f"{each}s", {}).get(name, {}) if kind in (None, "", each) else {} for each in KINDS}


def complete_region(ctx: click.Context, _: click.Parameter, incomplete: str) -> list[str]:
    """Complete the name of a region."""
    return [name for name in ask(ctx).get("regions", ()) if name.startswith(incomplete)]


def complete_device(ctx: click.Context, _: click.Parameter, incomplete: str) -> list[CompletionItem]:
    """Complete the name of a device, with its type beside."""
    from click.shell_completion import CompletionItem

    devices = ask(ctx).get("devices", {})
    return [CompletionItem(name, help=devices[name]["type"]) for name in devices if name.startswith(incomplete)]


def complete_one_of(*kinds: str) -> Callable[[click.Context, click.Parameter, str], list[CompletionItem]]:
    """Make what completes the name of a thing of one of the *kinds*."""

    def complete(ctx: click.Context, _: click.Parameter, incomplete: str) -> list[CompletionItem]:
        from click.shell_completion import CompletionItem

        known, wanted = ask(ctx), ctx.params.get("kind")
        return [
            CompletionItem(name, help=WORDS[kind])
            for kind in kinds
            if wanted in (None, "", kind)
            for name in known.get(f"{kind}s", ())
            if name.startswith(incomplete)
        ]

    return complete


complete_name = complete_one_of(*KINDS)
"""Completes the name of anything."""


def complete_peer(ctx: click.Context, _: click.Parameter, incomplete: str) -> list[CompletionItem]:
    """Complete a peer of the region or client before it (with the VM's name beside), or a queue of the device."""
    from click.shell_completion import CompletionItem

    named = _named(ctx)
    peers = [
        *((peer["id"], peernames.sentence(peer)) for peer in named["region"].get("peers", [])),
        *((peer["id"], f"{peer['vectors']} vectors") for peer in named["client"].get("peers", [])),
    ]
    return [
        CompletionItem(str(peer_id), help=words) for peer_id, words in peers if str(peer_id).startswith(incomplete)
    ] + _queues(named["device"], incomplete)


def complete_queue(ctx: click.Context, _: click.Parameter, incomplete: str) -> list[CompletionItem]:
    """Complete a queue of the device before it, with how it is."""
    return _queues(_named(ctx)["device"], incomplete)


def _queues(device: dict[str, Any], incomplete: str) -> list[CompletionItem]:
    from click.shell_completion import CompletionItem

    return [
        CompletionItem(str(queue["index"]), help="runs" if queue["started"] else "does not run")
        for queue in device.get("queues", [])
        if str(queue["index"]).startswith(incomplete)
    ]


def complete_vector(ctx: click.Context, _: click.Parameter, incomplete: str) -> list[str]:
    """Complete a vector of the region or the client before it."""
    named = _named(ctx)
    count = max(named[kind].get("vectors", 0) for kind in ("region", "client"))
    return [number for number in map(str, range(count)) if number.startswith(incomplete)]


def complete_type(_: click.Context, __: click.Parameter, incomplete: str) -> list[str]:
    """Complete a type of device: one that is installed here."""
    from ..devices import names

    return [name for name in names() if name.startswith(incomplete)]


def region_argument(function: F) -> F:
    """Add the argument REGION."""
    return click.argument("region", shell_complete=complete_region)(function)


def device_argument(function: F) -> F:
    """Add the argument DEVICE."""
    return click.argument("device", shell_complete=complete_device)(function)


def kind_option_of(*kinds: str) -> Callable[[F], F]:
    """Make what adds ``--kind``, for a name that things of several *kinds* have."""
    words = "What NAME is, if several things have that name."
    return click.option("--kind", type=click.Choice(kinds), default=None, help=words)


kind_option = kind_option_of(*KINDS)
"""Adds it for all kinds."""

yes_option = click.option("--yes", is_flag=True, help="Do not ask first.")
"""Adds ``--yes`` to a command that disconnects somebody."""
