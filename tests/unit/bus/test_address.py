# SPDX-FileCopyrightText: 2026 The doorbelld authors
# SPDX-License-Identifier: GPL-2.0-or-later
"""What the words of --bus mean."""

from __future__ import annotations

import re
from pathlib import Path
from urllib.parse import unquote

import pytest
from doorbelld.bus.address import of_socket, resolve, socket_of
from doorbelld.errors import BusUnavailable
from hypothesis import given
from hypothesis import strategies as st


@pytest.fixture(autouse=True)
def no_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("DBUS_SYSTEM_BUS_ADDRESS", "DBUS_SESSION_BUS_ADDRESS", "XDG_RUNTIME_DIR"):
        monkeypatch.delenv(name, raising=False)


def test_system(monkeypatch: pytest.MonkeyPatch) -> None:
    assert resolve("system") == "unix:path=/run/dbus/system_bus_socket"
    monkeypatch.setenv("DBUS_SYSTEM_BUS_ADDRESS", "unix:path=/x")
    assert resolve("system") == "unix:path=/x"


def test_session(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    with pytest.raises(BusUnavailable, match="use --bus private"):
        resolve("session")
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(tmp_path))
    with pytest.raises(BusUnavailable):
        resolve("session")
    (tmp_path / "bus").touch()
    assert resolve("session") == of_socket(str(tmp_path / "bus"))
    monkeypatch.setenv("DBUS_SESSION_BUS_ADDRESS", "unix:abstract=x")
    assert resolve("session") == "unix:abstract=x"


def test_an_address_is_itself() -> None:
    assert resolve("unix:path=/run/b") == "unix:path=/run/b"


@pytest.mark.parametrize("word", ["sesion", "/run/bus", ""])
def test_a_word_that_is_none_says_what_there_is(word: str) -> None:
    with pytest.raises(BusUnavailable, match="use system, session, private or an address"):
        resolve(word)


@given(st.text(st.characters(exclude_characters="\0", exclude_categories=["Cs"])))
def test_any_path_makes_an_address_that_leads_back_to_it(path: str) -> None:
    address = of_socket(path)
    assert re.fullmatch(r"unix:path=[-0-9A-Za-z_/.%]*", address)  # both libraries refuse anything else
    assert unquote(address.removeprefix("unix:path=")) == path


def test_address_names_its_socket_or_none() -> None:
    assert socket_of("unix:path=/run/b%20c,guid=1") == "/run/b c"
    assert [socket_of(address) for address in ("unix:abstract=x", "tcp:path=/x", "unix:path=/a;unix:path=/b", "")] == [
        ""
    ] * 4


@given(st.text(st.characters(blacklist_characters="\0")).map(lambda name: f"/{name}"))
def test_socket_of_is_inverse_of_of_socket(path: str) -> None:
    path = path.encode(errors="replace").decode()
    assert socket_of(of_socket(path)) == path
