# SPDX-FileCopyrightText: 2026 The doorbelld authors
# SPDX-License-Identifier: GPL-2.0-or-later
from __future__ import annotations

from typing import Any

import pytest
from doorbelld.ctl.checks import clients

from .conftest import Stage, levels, only

PATH = "/run/lab/socket"


def have(stage: Stage, state: str = "connecting", reason: str = "no luck; try again", **more: Any) -> None:
    stage.serve()
    assert stage.view.known is not None
    one = {"socket": PATH, "state": state, "reason": reason, "id": None, "reconnect": True, **more}
    stage.view.known |= {"clients": {"lab": one}, "flats": {}}


def test_none(stage: Stage) -> None:
    assert levels(clients.joined, stage) == ["skipped"]
    stage.serve()  # a daemon that does not know of them yet
    assert levels(clients.joined, stage) == ["skipped"]


def test_both_kinds_that_are_connected(stage: Stage) -> None:
    have(stage, "connected", "", id=3)
    assert only(clients.joined, stage) == ("ok", f'client "lab" is connected to {PATH}, as peer 3 | ')
    assert stage.view.known is not None
    stage.view.known["flats"] = stage.view.known["clients"]
    first, second = clients.joined(stage.view)
    assert (first.found.split('"')[0], second.found.split('"')[0]) == ("client ", "flat device ")


def test_nobody_is_there(stage: Stage) -> None:
    have(stage)
    said = f'client "lab" is connecting: no luck | start the server that listens at {PATH}; or is it another path?'
    assert only(clients.joined, stage) == ("wrong", said)


def test_a_socket_that_nobody_listens_on(stage: Stage) -> None:
    have(stage)
    stage.listen(PATH)
    stage.close()
    assert f"nobody listens at {PATH}; start the server" in only(clients.joined, stage)[1]


def test_something_else_is_there(stage: Stage) -> None:
    have(stage)
    stage.file(PATH, "")
    assert f"{PATH} is no socket" in only(clients.joined, stage)[1]


def test_the_daemon_may_not_connect(stage: Stage) -> None:
    have(stage)
    stage.listen(PATH, mode=0o600)
    stage.view.unit = {"User": "doorbelld", "MainPID": "7"}
    assert "doorbelld, whom the daemon runs as, may not pass" in only(clients.joined, stage)[1]


def test_the_sandbox_hides_it(stage: Stage) -> None:
    have(stage, socket="/tmp/ivshmem_socket")
    stage.view.unit = {"User": "doorbelld", "MainPID": "7", "PrivateTmp": "yes"}
    assert "BindPaths=/tmp, below [Service]" in only(clients.joined, stage)[1]


@pytest.mark.parametrize(
    ("state", "reconnect", "words"),
    [
        ("broken", True, "is it an ivshmem server that listens"),
        ("broken", False, "set reconnect, or make it anew"),
        ("connecting", True, "does not greet"),
    ],
)
def test_a_server_that_is_none(stage: Stage, state: str, reconnect: bool, words: str) -> None:
    have(stage, state, reconnect=reconnect)
    stage.listen(PATH)
    assert words in only(clients.joined, stage)[1]
