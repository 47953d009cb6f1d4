# SPDX-FileCopyrightText: 2026 The doorbelld authors
# SPDX-License-Identifier: GPL-2.0-or-later
"""Configuration in layers, as the programs see it: doorbellctl cat-config, doorbelld --check, start and reload."""

from __future__ import annotations

import json
import os
import select
import subprocess
import sys
import tomllib
from collections.abc import Mapping
from pathlib import Path

import pytest
from support.daemon import BIN, DEADLINE
from support.needs import require

MAIN = "etc/doorbelld/doorbelld.toml"
VENDOR = "usr/lib/doorbelld/doorbelld.toml"
DROP_INS = "etc/doorbelld/doorbelld.d"
VENDOR_DROP_INS = "usr/lib/doorbelld/doorbelld.d"


def run(*words: object, **environment: str) -> subprocess.CompletedProcess[str]:
    """Run one of our programs where no daemon is."""
    program, *arguments = words
    return subprocess.run(
        [BIN / str(program), *map(str, arguments)],
        env={**os.environ, "DOORBELLD_BUS": "unix:path=/nowhere", **environment},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        errors="surrogateescape",
        timeout=DEADLINE,
        check=False,
    )


def write(root: Path, files: Mapping[str, str | None]) -> Path:
    """Write *files* below *root*; None makes a link to /dev/null."""
    for name, text in files.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        if text is None:
            path.symlink_to("/dev/null")
        else:
            path.write_text(text)
    return root


def cat(*words: object) -> str:
    """Run cat-config, which must be content."""
    done = run("doorbellctl", "cat-config", *words)
    assert (done.returncode, done.stderr) == (0, "")
    return done.stdout


def test_the_files_that_count_in_order_and_as_they_are(tmp_path: Path) -> None:
    root = write(
        tmp_path,
        {
            VENDOR: "# vendor's\n",
            MAIN: "# administrator's\n[region.demo]\n",
            f"{DROP_INS}/20.toml": '[region.demo]   # no line break at the end\nsize = "1M"',
            f"{VENDOR_DROP_INS}/20.toml": "x",
            "run/doorbelld/doorbelld.d/10.toml": "[region.more]\n",
            f"{VENDOR_DROP_INS}/30.toml": "y",
            f"{DROP_INS}/30.toml": None,
            f"{DROP_INS}/40.toml": "",
        },
    )
    assert cat("--root", root) == (
        f"# {root}/{MAIN}\n"
        f"# {root}/{VENDOR}: does not count, {root}/{MAIN} replaces it\n"
        "# administrator's\n[region.demo]\n"
        "\n"
        f"# {root}/run/doorbelld/doorbelld.d/10.toml\n[region.more]\n"
        "\n"
        f"# {root}/{DROP_INS}/20.toml\n"
        f"# {root}/{VENDOR_DROP_INS}/20.toml: does not count, {root}/{DROP_INS}/20.toml replaces it\n"
        '[region.demo]   # no line break at the end\nsize = "1M"\n'
        "\n"
        f"# {root}/{DROP_INS}/30.toml: empty, nothing is read\n"
        f"# {root}/{VENDOR_DROP_INS}/30.toml: does not count, {root}/{DROP_INS}/30.toml masks it\n"
        "\n"
        f"# {root}/{DROP_INS}/40.toml: empty, nothing is read\n"
    )


def test_no_file_at_all(tmp_path: Path) -> None:
    said = cat("--root", tmp_path)
    assert said.startswith(f"# no configuration in {tmp_path}/etc/doorbelld, {tmp_path}/run/doorbelld, ")
    assert tomllib.loads(cat("--root", tmp_path, "--effective"))["daemon"]["log-level"] == "info"


def test_one_file_and_nothing_else(tmp_path: Path) -> None:
    root = write(tmp_path, {"x.toml": "[region.x]\n", "doorbelld.d/y.toml": "[region.y]\n"})
    assert cat("--config", root / "x.toml") == f"# {root}/x.toml\n[region.x]\n"
    assert tomllib.loads(cat("--config", root / "x.toml", "--effective"))["region"].keys() == {"x"}


def test_effective_says_where_each_key_comes_from(tmp_path: Path) -> None:
    root = write(
        tmp_path,
        {VENDOR: '[region.demo]\nsize = "1M"\n', f"{DROP_INS}/10.toml": '# first\n[region.demo]\nsize = "2M"\n'},
    )
    said = cat("--root", root, "--effective")
    (line,) = [line for line in said.splitlines() if line.startswith("size")]
    assert line.split("  # ")[1] == f'{root}/{DROP_INS}/10.toml:3, overrides "1M" of {root}/{VENDOR}:2'
    assert 'mode = "0660"                          # default\n' in said
    assert tomllib.loads(said)["region"]["demo"]["size"] == "2M"


def test_json_wherever_the_flag_stands(tmp_path: Path) -> None:
    root = write(tmp_path, {MAIN: "[region.demo]\nvectors = 1\n", f"{DROP_INS}/a.toml": "region.demo.vectors = 2\n"})
    known = json.loads(cat("--root", root, "--json"))
    assert known == json.loads(run("doorbellctl", "--json", "cat-config", "--root", root, "--effective").stdout)
    assert known["region.demo.vectors"] == {
        "value": 2,
        "file": f"{root}/{DROP_INS}/a.toml",
        "line": 1,
        "overridden": [{"value": 1, "file": f"{root}/{MAIN}", "line": 2}],
    }
    assert known["region.demo.size"] == {"value": "4M", "file": None, "line": None, "overridden": []}


def test_problems_are_78_and_what_can_be_shown_is_shown(tmp_path: Path) -> None:
    root = write(
        tmp_path,
        {
            MAIN: "[region.demo]\nsize = 3\nvectors = 3\n",
            f"{DROP_INS}/10.toml": "[region.demo\n",
            f"{DROP_INS}/20.toml": "[region.demo]\nvectors = 0\n",
        },
    )
    (root / DROP_INS / "30.toml").symlink_to("nowhere")
    (root / DROP_INS / "40.toml").write_bytes(b"# caf\xe9\n")
    for program, *words in (
        ("doorbellctl", "cat-config"),
        ("doorbellctl", "cat-config", "--effective"),
        ("doorbellctl", "cat-config", "--json"),
        ("doorbelld", "--check"),
    ):
        done = run(program, *words, "--root", root)
        assert done.returncode == 78
        assert [line.removeprefix(f"{root}/").partition("; ")[0] for line in done.stderr.splitlines()] == [
            f'{DROP_INS}/10.toml:1:13: syntax: Expected "]" at the end of a table declaration'.replace('"', "'"),
            f"{DROP_INS}/30.toml: No such file or directory",
            f"{DROP_INS}/40.toml:1: encoding: byte 5 is not UTF-8",
            f"{MAIN}:2: region.demo.size: 3 is not a power of two (QEMU needs one)",
            f"{DROP_INS}/20.toml:2: region.demo.vectors: 0 is out of range",
            "5 problems in the configuration",
        ]
    said = run("doorbellctl", "cat-config", "--root", root).stdout
    assert f"# {root}/{DROP_INS}/10.toml\n[region.demo\n" in said
    assert f"# {root}/{DROP_INS}/30.toml: can not be read\n" in said
    assert "# caf\udce9\n" in said
    assert "vectors = 0 " in run("doorbellctl", "cat-config", "--effective", "--root", root).stdout
    assert (
        json.loads(run("doorbellctl", "cat-config", "--json", "--root", root).stdout)["region.demo.size"]["value"] == 3
    )


def test_a_file_that_is_not_there_is_78(tmp_path: Path) -> None:
    for file, cause in ((tmp_path / "none", "No such file"), (tmp_path, "Is a directory")):
        done = run("doorbellctl", "cat-config", "--config", file)
        assert (done.returncode, done.stdout) == (78, f"# {file}: can not be read\n")
        assert cause in done.stderr
        assert "1 problem in the configuration" in done.stderr


@pytest.mark.parametrize(
    "words",
    [
        ("doorbellctl", "cat-config", "--root", "/nowhere/at/all"),
        ("doorbellctl", "cat-config", "--root", "/", "--config", "/x"),
        ("doorbellctl", "cat-config", "extra"),
        ("doorbelld", "--root", "/"),
        ("doorbelld", "--check", "--root", "/", "--config", "/x"),
    ],
)
def test_a_wrong_command_line_is_2(words: tuple[str, ...]) -> None:
    done = run(*words)
    assert (done.returncode, done.stdout) == (2, "")
    assert "Error: " in done.stderr


def complete(*words: str) -> list[str]:
    asked = {"_DOORBELLCTL_COMPLETE": "bash_complete", "COMP_WORDS": " ".join(["doorbellctl", *words])}
    return run("doorbellctl", **asked, COMP_CWORD=str(len(words))).stdout.split()


def test_completion() -> None:
    assert complete("cat") == ["plain,cat-config"]
    assert complete("cat-config", "--e") == ["plain,--effective"]
    assert complete("cat-config", "--config", "/et") == ["file,/et"]
    assert complete("cat-config", "--root", "/et") == ["dir,/et"]


def test_check_says_which_files_it_has_read(tmp_path: Path) -> None:
    assert run("doorbelld", "--check", "--root", tmp_path).stdout == "no file, all defaults: fine; 0 regions\n"
    write(
        tmp_path,
        {MAIN: "[region.a]\n", f"{DROP_INS}/b.toml": "[region.b]\n", f"{DROP_INS}/c.toml": None, VENDOR: "[broken"},
    )
    done = run("doorbelld", "--check", "--root", tmp_path)
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout == f"{tmp_path}/{MAIN}, {tmp_path}/{DROP_INS}/b.toml: fine; 2 regions\n"


def test_the_daemon_starts_from_layers_and_reads_them_again(short_path: Path) -> None:
    require("dbus-daemon", "dbus-daemon")
    write(short_path, {MAIN: f'[daemon]\nruntime-directory = "{short_path}/r"\n', f"{DROP_INS}/a.toml": "[region.a]\n"})
    folders = tuple(f"{short_path}/{top}/doorbelld" for top in ("etc", "run", "usr/lib"))
    program = short_path / "program.py"  # the real one, but for the folders: this host's are not ours to write to
    imports = "from doorbelld import main\nfrom doorbelld.config import sources\n"
    program.write_text(f"{imports}sources.FOLDERS = {folders}\nmain.main()\n")
    bus = f"unix:path={short_path}/r/bus"

    def reload() -> subprocess.CompletedProcess[str]:
        return run("doorbellctl", "--bus", bus, "reload")

    with (short_path / "log").open("wb") as log:
        command = [sys.executable, program, "--bus", "private"]
        process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=log)
        try:
            assert process.stdout is not None
            assert select.select([process.stdout], [], [], DEADLINE)[0], "it says nothing"
            assert process.stdout.read1(), (short_path / "log").read_text()
            assert json.loads(run("doorbellctl", "--bus", bus, "--json").stdout)["regions"].keys() == {"a"}
            masked = "run/doorbelld/doorbelld.d/a.toml"
            write(short_path, {f"{DROP_INS}/b.toml": "[region.b]\n", masked: "[region.x]\n"})
            assert reload().stdout == "configuration reloaded: made region b\n"
            (short_path / DROP_INS / "a.toml").unlink()
            assert reload().stdout == "configuration reloaded: made region x; removed region a\n"
            wrong = "run/doorbelld/doorbelld.d/c.toml"
            write(short_path, {wrong: "[region.b]\nsize = 5\n"})
            assert f"{short_path}/{wrong}:2: region.b.size: 5 is not a power of two" in reload().stderr
        finally:
            process.terminate()
            process.communicate(timeout=DEADLINE)
    assert process.returncode == 0, (short_path / "log").read_text()
