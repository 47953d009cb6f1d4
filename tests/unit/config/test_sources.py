# SPDX-FileCopyrightText: 2026 The doorbelld authors
# SPDX-License-Identifier: GPL-2.0-or-later
"""Which files count: the first folder's of each name, the main one first, and what masks the others."""

from __future__ import annotations

import os
import socket
from pathlib import Path

import pytest
from doorbelld.config.sources import FOLDERS, Entry, find, folders, parse, read, shown
from doorbelld.errors import InvalidOptions
from hypothesis import given
from hypothesis import strategies as st

MAIN = "doorbelld.toml"


class Host:
    """The folders of a host below *root*."""

    def __init__(self, root: Path) -> None:
        self.root = root

    def path(self, name: str) -> Path:
        """Name a file: ``etc/x`` is ``x`` in the folder below /etc; its folder is made."""
        top, _, rest = name.rpartition("/doorbelld.d/") if "/doorbelld.d/" in name else name.rpartition("/")
        middle = "doorbelld.d/" if "/doorbelld.d/" in name else ""
        path = self.root / top / "doorbelld" / f"{middle}{rest}"
        path.parent.mkdir(parents=True, exist_ok=True)
        return path

    def write(self, *names: str, text: str = "# text\n") -> None:
        for name in names:
            self.path(name).write_text(text)

    def mask(self, *names: str) -> None:
        for name in names:
            self.path(name).symlink_to("/dev/null")

    def found(self) -> list[tuple[str, bool, list[str]]]:
        entries, problems = find(str(self.root))
        assert problems == []
        return [(self.short(e.path), e.masks, [self.short(other) for other in e.hidden]) for e in entries]

    def short(self, path: str) -> str:
        return path.removeprefix(f"{self.root}/").replace("/doorbelld/", "/", 1)


@pytest.fixture
def host(tmp_path: Path) -> Host:
    return Host(tmp_path)


def test_nothing_there(host: Host) -> None:
    assert host.found() == []


def test_the_usual_folders() -> None:
    assert folders() == list(FOLDERS) == ["/etc/doorbelld", "/run/doorbelld", "/usr/lib/doorbelld"]


def test_the_first_main_file_counts(host: Host) -> None:
    host.write(f"usr/lib/{MAIN}")
    assert host.found() == [(f"usr/lib/{MAIN}", False, [])]
    host.write(f"run/{MAIN}")
    assert host.found() == [(f"run/{MAIN}", False, [f"usr/lib/{MAIN}"])]
    host.write(f"etc/{MAIN}")
    assert host.found() == [(f"etc/{MAIN}", False, [f"run/{MAIN}", f"usr/lib/{MAIN}"])]


def test_drop_ins_come_after_it_in_the_order_of_their_names_over_all_folders(host: Host) -> None:
    host.write("usr/lib/doorbelld.d/30.toml", "etc/doorbelld.d/20.toml", "run/doorbelld.d/10.toml", f"run/{MAIN}")
    host.write("usr/lib/doorbelld.d/20.toml", "etc/doorbelld.d/9.toml")
    assert host.found() == [
        (f"run/{MAIN}", False, []),
        ("run/doorbelld.d/10.toml", False, []),
        ("etc/doorbelld.d/20.toml", False, ["usr/lib/doorbelld.d/20.toml"]),
        ("usr/lib/doorbelld.d/30.toml", False, []),
        ("etc/doorbelld.d/9.toml", False, []),
    ]


def test_a_link_to_null_or_an_empty_file_masks(host: Host) -> None:
    host.write(f"usr/lib/{MAIN}", "usr/lib/doorbelld.d/a.toml", "usr/lib/doorbelld.d/b.toml", "etc/doorbelld.d/c.toml")
    host.mask(f"etc/{MAIN}", "run/doorbelld.d/a.toml", "usr/lib/doorbelld.d/c.toml")
    host.write("etc/doorbelld.d/b.toml", text="")
    assert host.found() == [
        (f"etc/{MAIN}", True, [f"usr/lib/{MAIN}"]),
        ("run/doorbelld.d/a.toml", True, ["usr/lib/doorbelld.d/a.toml"]),
        ("etc/doorbelld.d/b.toml", True, ["usr/lib/doorbelld.d/b.toml"]),
        ("etc/doorbelld.d/c.toml", False, ["usr/lib/doorbelld.d/c.toml"]),
    ]


def test_what_is_no_file_or_not_ours_is_passed_over(host: Host) -> None:
    host.path(f"run/{MAIN}").mkdir()  # the runtime directory of a region with a strange name
    host.path("run/doorbelld.d/socket").touch()
    os.mkfifo(host.path("etc/doorbelld.d/fifo.toml"))
    with socket.socket(socket.AF_UNIX) as listening:
        directory = os.open(host.path("etc/doorbelld.d/x").parent, os.O_PATH)
        listening.bind(f"/proc/self/fd/{directory}/socket.toml")
        os.close(directory)
    host.path("etc/doorbelld.d/zero.toml").symlink_to("/dev/zero")
    host.path("etc/doorbelld.d/folder.toml").mkdir()
    host.write("etc/doorbelld.d/.#lock.toml", "etc/doorbelld.d/backup.toml~", "etc/doorbelld.d/README")
    host.write("usr/lib/__init__.py", "usr/lib/other.toml")
    assert host.found() == []
    host.write(f"usr/lib/{MAIN}")
    assert host.found() == [(f"usr/lib/{MAIN}", False, [])]


def test_a_link_is_as_good_as_a_file_and_one_that_leads_nowhere_is_not_passed_over(host: Host, tmp_path: Path) -> None:
    (tmp_path / "real").write_text("# text")
    host.path(f"etc/{MAIN}").symlink_to(tmp_path / "real")
    host.path("etc/doorbelld.d/nowhere.toml").symlink_to("nowhere")
    host.path("etc/doorbelld.d/ring.toml").symlink_to("ring.toml")
    assert host.found() == [
        (f"etc/{MAIN}", False, []),
        ("etc/doorbelld.d/nowhere.toml", False, []),
        ("etc/doorbelld.d/ring.toml", False, []),
    ]


def test_folders_that_are_none(host: Host, tmp_path: Path) -> None:
    host.write("etc/doorbelld.d")
    (tmp_path / "run").mkdir()
    (tmp_path / "run/doorbelld").touch()
    entries, problems = find(str(tmp_path))
    assert entries == []
    assert [(p.key, p.cause) for p in problems] == [
        (f"{tmp_path}/etc/doorbelld/doorbelld.d", "Not a directory"),
        (f"{tmp_path}/run/doorbelld/doorbelld.d", "Not a directory"),
    ]


NAMES = st.sampled_from(["a.toml", "b.toml", "B.toml", "10.toml", "9.toml"])
PLACES = st.sampled_from(["etc", "run", "usr/lib"])
KINDS = st.sampled_from(["text", "empty", "null"])


@given(st.dictionaries(st.tuples(PLACES, NAMES), KINDS))
def test_find_does_what_it_says(tmp_path_factory: pytest.TempPathFactory, files: dict[tuple[str, str], str]) -> None:
    host = Host(tmp_path_factory.mktemp("host"))
    for (folder, name), kind in files.items():
        if kind == "null":
            host.mask(f"{folder}/doorbelld.d/{name}")
        else:
            host.write(f"{folder}/doorbelld.d/{name}", text="" if kind == "empty" else "# text")
    model = []
    for name in sorted({name for _, name in files}):
        there = [folder for folder in ("etc", "run", "usr/lib") if (folder, name) in files]
        paths = [f"{folder}/doorbelld.d/{name}" for folder in there]
        model.append((paths[0], files[there[0], name] != "text", paths[1:]))
    assert host.found() == model


def test_names_of_any_bytes(tmp_path: Path) -> None:
    directory = tmp_path / "etc/doorbelld/doorbelld.d"
    directory.mkdir(parents=True)
    path = os.fsencode(directory) + b"/\xff\n.toml"
    with open(path, "wb") as file:
        file.write(b"[x\n")
    ((entry,), _) = find(str(tmp_path))
    assert entry == Entry(os.fsdecode(path))
    assert shown(entry.path) == f"{directory}/\\udcff\\n.toml"
    with pytest.raises(InvalidOptions) as caught:
        parse(entry.path, read(entry.path, "cure"))
    assert caught.value.problems[0].where == f"{directory}/\\udcff\\n.toml:1:3"
    str(caught.value).encode()


def test_a_file_that_goes_meanwhile(tmp_path: Path) -> None:
    with pytest.raises(InvalidOptions) as caught:
        read(str(tmp_path / "gone"), "bring it back")
    assert str(caught.value) == f"{tmp_path}/gone: No such file or directory; bring it back"
