# SPDX-FileCopyrightText: 2026 The doorbelld authors
# SPDX-License-Identifier: GPL-2.0-or-later
from __future__ import annotations

import shlex
from pathlib import Path

import click
import pytest
from doorbelld.ctl import remote

CONTEXT = click.Context(click.Command("x"))
PARAMETER = click.Option(["--host"])


def test_words_survive_the_shell_over_there(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(remote.VARIABLE, raising=False)
    words = ["write", "demo", "0", "it's $HOME; `x`\n*", ""]
    *ssh, host, line = remote.ssh("me@there", words, ("-t",))
    assert (ssh, host) == (["ssh", "-t", "--"], "me@there")
    assert shlex.split(line) == ["doorbellctl", *words]


def test_another_program(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(remote.VARIABLE, "ssh -p 2222 -i 'my key'")
    assert remote.ssh("there", [])[:5] == ["ssh", "-p", "2222", "-i", "my key"]


@pytest.mark.parametrize("word", ["-oProxyCommand=x", "two words", "new\nline"])
def test_what_is_no_host(word: str) -> None:
    with pytest.raises(click.BadParameter, match="is no host"):
        remote.validate_host(CONTEXT, PARAMETER, word)


def test_hosts_are_completed_from_sshs_configuration(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    assert remote.complete_host(CONTEXT, PARAMETER, "") == []
    (tmp_path / ".ssh").mkdir()
    (tmp_path / ".ssh/config").write_text("Host alpha beta *.lab !no\n\n  HostName alpha.example\nhost=alps\nUser me\n")
    assert remote.complete_host(CONTEXT, PARAMETER, "al") == ["alpha", "alps"]
    assert remote.complete_host(CONTEXT, PARAMETER, "root@b") == ["root@beta"]
