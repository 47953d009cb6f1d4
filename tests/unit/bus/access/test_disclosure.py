# SPDX-FileCopyrightText: 2026 The doorbelld authors
# SPDX-License-Identifier: GPL-2.0-or-later
"""What everybody on the bus may know of an object, and what only some are shown."""

from __future__ import annotations

import re

import pytest
from doorbelld.bus.access.disclosure import IDENTIFYING, SHOWN, changes_for_all, of_all, shown
from doorbelld.bus.interfaces import load
from doorbelld.bus.names import CLIENT, DEVICE, FLAT, PEER, QUEUE, REGION


@pytest.mark.parametrize("name", [PEER, DEVICE, REGION, CLIENT, FLAT, QUEUE])
def test_every_property_that_says_who_somebody_is_is_known(name: str) -> None:
    properties = load(name).properties
    said = {one for one in properties if re.fullmatch(r"(Frontend)?(Pid|Uid|Gid|VmName.*|Unit|Program|Label)", one)}
    assert said <= IDENTIFYING.get(name, frozenset())
    assert set(IDENTIFYING.get(name, ())) <= set(properties)


def test_what_everybody_may_know() -> None:
    assert of_all({PEER: {"Id": 1, "Pid": 2}, CLIENT: {"Id": 3}}) == {PEER: {"Id": 1}, CLIENT: {"Id": 3}}
    changed = {"State": "running", "FrontendPid": 7}
    assert changes_for_all(DEVICE, changed, ["Other"]) == [{"State": "running"}, ["Other", "FrontendPid"]]


def test_what_is_shown_is_as_before_afterwards() -> None:
    with shown(addresses=True), shown(addresses=False):
        assert not SHOWN.addresses
    with pytest.raises(OSError), shown(addresses=True):
        assert SHOWN.addresses
        raise OSError
    assert not SHOWN.addresses
