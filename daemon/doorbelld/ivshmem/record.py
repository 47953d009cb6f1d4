# SPDX-FileCopyrightText: 2026 The doorbelld authors
# SPDX-License-Identifier: GPL-2.0-or-later
"""What a region leaves for who comes after it: its descriptors with a keeper, its state in a ledger.

Theory of operation
-------------------
The ledger's first line is the region's state as a whole; each further line is one change, and `replay` makes the state
of the moment from them. The lines are::

    ["+", {...}]                                    a peer joined: its entry of the state
    ["-", seq, [blind...], left, absent]            a member left, when; who may not know of it, by seq; whether its
                                                    doorbells are kept
    ["x", id, seq]                                  an absent peer is given up; who has its doorbells is told the leave,
                                                    and its ID is retired since seq; or null: neither
    ["=", seq, preamble, cursor, offset, leaves]    how far a peer has come (`Outbox.place`)
    ["!", vector, count]                            the host peer was rung
    ["c"]                                           the memory was cleared

In which order things are kept decides what a crash between two of them means:

- A connection is kept before anything is known of it. Found again without a "+", it is a connection that waits to be
  admitted, if its number was not given when the last line was written; else one that was turned away or has left.
- The line of a leave is written before the connection is closed and what was kept of it dropped, and after its
  doorbells, if they are to wait for their owner, were kept under another name.
- When the owner is back, its connection and those doorbells are kept together before its "+" is written, and what they
  were kept as before is dropped after that.
- What was sent is in the ledger's slot before anybody can stop us, and in a line after that.

With the keeper are ``state``, ``memory``, ``listener``, ``host`` (a vault with its doorbells), and for each peer a
vault with its socket and doorbells, by its sequence number, which is never used twice (`vault_of`); for each absent
peer one with its doorbells (`doorbells_of`). In a relayed region there are also ``relay`` (the table), and for each
peer a vault with proxies (`proxies_of`).
"""

from __future__ import annotations

import contextlib
import json
import re
from collections.abc import Callable, Iterable, Sequence
from typing import Any

from ..fds.keeper import Keeper
from ..fds.ledger import Ledger, LedgerFull, check_version, damage_told, line
from ..fds.owned import FdSet
from ..fds.peercred import Credentials
from ..fds.shelf import Shelf
from .outbox import Outbox
from .rules import PeerRule, takes_leaves

STATE_VERSION = 4
"""It is raised with the format of a relay's table, too."""
_LEDGER = "doorbelld:{}:state"
_KEEPS_IDS = 4
"""The first version in which a peer may keep IDs."""
_KEYS = {"name", "spec", "configured", "next_seq", "host", "members", "absent", "retired", "dirty"}
_NO_OUTBOX: dict[str, Any] = {"kept": ()}
_LINES_MAX = 4096
"""After about so many lines there is a new snapshot; one takes a peer some 10 us, reading a line back some 2 us."""


class Record(Shelf):
    """The record of one region; *prefix* goes before all names, *snapshot* gives the region's state.

    *overflow* is called when the state has become larger than any ledger; what is kept is of no use then.
    """

    def __init__(
        self,
        keeper: Keeper,
        prefix: str,
        ledger: Ledger,
        snapshot: Callable[[], dict[str, Any]],
        overflow: Callable[[], None],
        names: Iterable[str] = (),
    ) -> None:
        super().__init__(keeper, prefix, names)
        self._ledger = ledger
        self._snapshot = snapshot
        self._overflow = overflow
        self._weight = 0

    @classmethod
    def begin(
        cls,
        keeper: Keeper,
        prefix: str,
        region: str,
        snapshot: Callable[[], dict[str, Any]],
        overflow: Callable[[], None],
        parts: dict[str, int],
        host: FdSet | None,
    ) -> Record | None:
        """Keep a region: *parts* are its descriptors by name, *host* the host peer's doorbells.

        Returns:
            None if there is no room for all of it; nothing is kept then.

        Raises:
            OSError: no descriptors or memory left; nothing is kept then.
        """
        with contextlib.ExitStack() as undo:
            ledger = Ledger.create(_LEDGER.format(region))
            undo.callback(ledger.close)
            record = cls(keeper, prefix, ledger, snapshot, overflow)
            undo.callback(record.drop_all)
            try:
                record._rewrite()
            except LedgerFull:
                return None
            kept = all(record.keep(name, fd) for name, fd in {**parts, "state": ledger.fd.fileno()}.items())
            if kept and (host is None or record.stow("host", list(host))):
                undo.pop_all()
                return record
        return None

    @classmethod
    def resume(
        cls,
        keeper: Keeper,
        prefix: str,
        ledger: Ledger,
        snapshot: Callable[[], dict[str, Any]],
        overflow: Callable[[], None],
        names: Sequence[str],
    ) -> Record:
        """Go on with what was kept before; *names* are still with the keeper."""
        return cls(keeper, prefix, ledger, snapshot, overflow, names)

    def close(self) -> None:
        """Stop writing; what is kept stays kept."""
        self._ledger.close()

    # In the ledger

    def joined(self, entry: dict[str, Any]) -> None:
        """Write that a peer joined."""
        self._write(["+", entry], 1)

    def left(self, seq: int, blind: list[int], left: int, absent: bool, peers: int) -> None:
        """Write that a member left; *peers* are there to be told, but not those who are *blind* to it.

        *left* is when, in microseconds of CLOCK_REALTIME, and *absent* whether its doorbells are kept for its owner.
        """
        self._write(["-", seq, blind, left, int(absent)], 1 + peers // 4)

    def given_up(self, peer_id: int, seq: int | None, peers: int) -> None:
        """Write that an absent peer is given up, and its ID retired since *seq*, if at all; *peers* may be told."""
        self._write(["x", peer_id, seq], 1 if seq is None else 1 + peers // 4)

    def cleared(self) -> None:
        """Write that the memory was cleared."""
        self._write(["c"], 1)

    def told(self, seq: int, outbox: Outbox) -> None:
        """Write how far a peer has come."""
        self._append(b'["=",%d,%d,%d,%d,%d]\n' % (seq, *outbox.place), 1)

    def rung(self, vector: int, count: int) -> None:
        """Write that the host peer was rung."""
        self._append(b'["!",%d,%d]\n' % (vector, count), 1)

    def begin_sending(self, seq: int) -> memoryview:
        """Prepare to send a batch to a peer; `told` ends it."""
        return self._ledger.begin_sending(seq)

    def begin_draining(self, vector: int) -> memoryview:
        """Prepare to take a counter of the host peer; `rung` ends it."""
        return self._ledger.begin_draining(vector)

    def renew(self) -> None:
        """Write the state as a whole."""
        try:
            self._rewrite()
        except LedgerFull:
            self._overflow()

    def _rewrite(self) -> None:
        self._ledger.rewrite(line(self._snapshot()))
        self._weight = 0

    def _write(self, change: list[Any], weight: int) -> None:
        self._append(line(change), weight)

    def _append(self, written: bytes, weight: int) -> None:
        self._weight += weight
        try:
            if self._weight > _LINES_MAX:
                self.renew()  # the change is in the state already
            else:
                self._ledger.append(written)
        except LedgerFull:
            self.renew()


def vault_of(seq: int, returned: bool = False) -> str:
    """Name the vault with the socket and the doorbells of the peer of that number.

    One that *returned* has another than it had while nobody knew who it was.
    """
    return f"{seq}r" if returned else str(seq)


def doorbells_of(peer_id: int) -> str:
    """Name the vault with the doorbells of the absent peer of that ID."""
    return f"absent{peer_id}"


def proxies_of(number: int) -> str:
    """Name the vault of that number with proxies."""
    return f"{number}p"


def region_of(ledger: Ledger) -> str:
    """Tell of which region *ledger* is, as it was called in `Record.begin`; empty if it was not."""
    match = re.fullmatch(_LEDGER.format("([^:]+)"), ledger.name)
    return match[1] if match else ""


def replay(lines: Sequence[bytes], region: str = "") -> dict[str, Any]:
    """Make the state of the moment from a ledger's lines; *region* is its name, which an old one does not say.

    Raises:
        NewerState: they are of a newer version.
        StateMismatch: they are damaged.
    """
    with damage_told():
        state = json.loads(lines[0])
        version = state["version"]
        state = upgrade(state, region)
        if missing := _KEYS - set(state):
            raise KeyError(*sorted(missing))
        if not isinstance(state["name"], str) or not isinstance(state["spec"], dict | None):
            raise TypeError("its name or spec is none")
        members = {member["seq"]: member for member in state["members"]}
        absent = {one["id"]: one for one in state["absent"]}
        for change in lines[1:]:
            _apply(json.loads(change), state, members, absent)
        if version < _KEEPS_IDS:
            for member in members.values():
                _upgrade_member(member)
    state["members"], state["absent"] = list(members.values()), list(absent.values())
    return state


def _apply(
    change: list[Any], state: dict[str, Any], members: dict[int, dict[str, Any]], absent: dict[int, dict[str, Any]]
) -> None:
    match change:
        case ["=", seq, preamble, cursor, offset, leaves]:
            outbox = members[seq]["outbox"]
            outbox.update(preamble=preamble, cursor=cursor, offset=offset)
            _place_part(outbox, members)
            del outbox["leaves"][: len(outbox["leaves"]) - leaves]
        case ["+", entry]:
            absent.pop(entry["id"], None)
            outbox = {"preamble": 0, "cursor": 0, "offset": 0, "part": None, "leaves": [], "kept": []}
            members[entry["seq"]] = {**entry, "outbox": outbox}
            state["next_seq"] = max(entry["seq"], entry.get("returned", {}).get("vault", 0)) + 1
        case ["-", seq, blind, *rest]:
            left, kept = rest or (0, 0)  # version 3 did not say
            gone = members.pop(seq)
            for member in members.values():
                if "outbox" in member and member["seq"] not in blind:
                    _leave(member, seq, gone["id"])
            absent.pop(gone["id"], None)
            rules = (state["spec"] or {}).get("peer", ())
            fixed = any(rule.get("id") == gone["id"] for rule in rules)
            absent[gone["id"]] = _absent(gone, fixed, left, bool(kept))
            if (state["spec"] or {}).get("clear") == "when-empty":
                state["dirty"] = state["dirty"] or not any("outbox" in member for member in members.values())
        case ["x", peer_id, seq]:
            absent.pop(peer_id, None)
            for member in members.values():
                if peer_id in (outbox := member.get("outbox", _NO_OUTBOX))["kept"]:
                    _cut_off(outbox, peer_id)
                    if seq is not None:
                        outbox["kept"].remove(peer_id)
                        outbox["leaves"].append(peer_id)
            if seq is not None:
                state["retired"] = [one for one in state["retired"] if one[0] != peer_id] + [[peer_id, seq]]
        case ["!", vector, count]:
            state["host"]["totals"][vector] += count
        case ["c"]:
            state["dirty"] = False
        case _:
            raise ValueError(f"{change!r} is no change that this version knows")


def _absent(gone: dict[str, Any], fixed: bool, left: int, kept: bool) -> dict[str, Any]:
    """Do what `AbsentPeer.export` does."""
    doorbells = {"seq": gone["seq"], **gone.get("returned", {"key": gone["seq"], "vault": gone["seq"]})}
    return {
        "id": gone["id"],
        "who": gone["who"],
        "fixed": fixed,
        "left": left,
        "doorbells": doorbells if kept else None,
    }


def _leave(member: dict[str, Any], seq: int, peer_id: int) -> None:
    """Do what `Outbox.leave` does."""
    outbox = member["outbox"]
    half = seq == outbox["cursor"] and outbox["offset"]
    if (seq < outbox["cursor"] or half) and peer_id not in outbox["kept"]:
        if member.get("keeps"):
            outbox["kept"].append(peer_id)
            return
        if half:
            _cut_off(outbox, peer_id)
        outbox["leaves"].append(peer_id)


def _cut_off(outbox: dict[str, Any], peer_id: int) -> None:
    """Do what `Outbox.cut_off` does."""
    if outbox["offset"] and outbox["part"] == peer_id:
        outbox.update(cursor=outbox["cursor"] + 1, offset=0, part=None)


def _place_part(outbox: dict[str, Any], members: dict[int, dict[str, Any]]) -> None:
    """Note which member is half told: the one at the cursor, or, if that one has left since, the same as before."""
    if not outbox["offset"]:
        outbox["part"] = None
    elif outbox["cursor"] in members:
        outbox["part"] = members[outbox["cursor"]]["id"]


def upgrade(state: dict[str, Any], region: str) -> dict[str, Any]:
    """Bring a state of an older version up to ours.

    Raises:
        NewerState: it is of a newer one.
        ValueError: of none that there ever was.
    """
    check_version(state["version"], STATE_VERSION)
    if state["version"] == 1:  # said nothing of how the region was asked for, nor under which rule a peer came
        members = [{**member, "rule": None} if "outbox" in member else member for member in state["members"]]
        state = {**state, "version": 2, "name": region, "spec": None, "configured": True, "members": members}
    if state["version"] == 2:  # knew no relay, which is all
        state = {**state, "version": 3}
    if state["version"] == 3:  # told everybody of leaves, and kept no doorbells for who left
        state = {**state, "version": _KEEPS_IDS, "absent": [], "retired": [], "dirty": False}
        by_seq = {member["seq"]: member for member in state["members"]}
        for member in state["members"]:
            if "outbox" in member:
                member["outbox"].update(kept=[], part=None)
                _place_part(member["outbox"], by_seq)
    return state


def _upgrade_member(member: dict[str, Any]) -> None:
    """Say of a member, whom an old version told of all leaves, whether it is to keep IDs from now on."""
    if "outbox" in member:
        rule = None if member["rule"] is None else PeerRule.from_raw(member["rule"])
        member["keeps"] = not takes_leaves(rule, Credentials(**member["who"]))
