# SPDX-FileCopyrightText: 2026 The doorbelld authors
# SPDX-License-Identifier: GPL-2.0-or-later
"""What peers and front-ends are called: VMs by their names, and what is no VM by what else is known of it.

A peer has up to four names. A label, which nobody vouches for, is always followed by the program or the process ID, so
that it is not taken for the name of a VM. Commands take any name but the last, and a label only if no VM is called so.

1. ``vm``: the name of a virtual machine.
2. ``own``: a client or a flat device of the daemon itself.
3. ``label``: what ``attach --name`` said.
4. ``program``: what runs there.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from .layout import NONE


def cell(peer: Mapping[str, Any]) -> str:
    """Write who a peer is, for a table: ``guest1``, ``flat mcu``, ``worker (python3)``, ``(python3)``."""
    if known := peer["vm"] or peer.get("own"):
        return str(known)
    program = f"({peer['program']})" if peer.get("program") else ""
    return " ".join(filter(None, (peer.get("label"), program))) or NONE


def sentence(peer: Mapping[str, Any]) -> str:
    """Write who a peer is, for a sentence: ``guest1``, ``flat mcu``, ``worker (pid 7)``, ``python3 (pid 7)``."""
    if known := peer["vm"] or peer.get("own"):
        return str(known)
    called = peer.get("label") or peer.get("program")
    return f"{called} (pid {peer['pid']})" if called else f"pid {peer['pid']}"


def named(peers: Sequence[Mapping[str, Any]], word: str) -> list[int]:
    """Give the IDs of the peers that *word* names: VMs; if there is none, ours; if there is none, labels."""

    def of_ours(peer: Mapping[str, Any]) -> bool:
        own = str(peer.get("own", ""))
        return bool(own) and word in (own, own.partition(" ")[2])

    for fits in (lambda peer: peer["vm"] == word, of_ours, lambda peer: peer.get("label") == word):
        if word and (ids := [int(peer["id"]) for peer in peers if fits(peer)]):
            return ids
    return []
