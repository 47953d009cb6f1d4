# SPDX-FileCopyrightText: 2026 The doorbelld authors
# SPDX-License-Identifier: GPL-2.0-or-later
"""Who may attach to a device."""

from __future__ import annotations

from typing import Any

import pytest
from doorbelld.errors import AccessDenied, InvalidOptions
from doorbelld.fds.peercred import Credentials
from doorbelld.vhost.access import admit, parse_rules, raw_rules

WHO = Credentials(7, 1000, 1000, "guest1", "machine-guest1.scope", "qemu-system-x86_64")


def test_without_rules_all_are_admitted() -> None:
    admit("d", (), WHO)


@pytest.mark.parametrize("match", [{"vm": "guest*"}, {"uid": 1000}, {"unit": "machine-*"}, {}])
def test_who_matches_is_admitted(match: dict[str, Any]) -> None:
    rules = parse_rules([{"match": {"vm": "other"}}, {"match": match}])
    admit("d", rules, WHO)
    assert parse_rules(raw_rules(rules)) == rules


@pytest.mark.parametrize("match", [{"vm": "guest2"}, {"uid": 0}, {"vm": "guest1", "gid": 0}, {"pid-file": "/none"}])
def test_who_does_not_is_refused(match: dict[str, Any]) -> None:
    with pytest.raises(AccessDenied, match=r'VM "guest1", unit machine-guest1.scope; add a \[\[device.d.peer\]\]'):
        admit("d", parse_rules([{"match": match}]), WHO)


def test_what_is_wrong_is_told_at_once() -> None:
    with pytest.raises(InvalidOptions) as caught:
        parse_rules([{"match": {"vm": 1}}, 7, {"match": {}, "may-ring": ["*"]}, {}])
    assert len(caught.value.problems) == 4
    with pytest.raises(ValueError, match="array of tables"):
        parse_rules({})
