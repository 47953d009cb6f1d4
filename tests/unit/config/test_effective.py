# SPDX-FileCopyrightText: 2026 The doorbelld authors
# SPDX-License-Identifier: GPL-2.0-or-later
"""What a configuration comes to: complete, true, and readable by what wrote it."""

from __future__ import annotations

import datetime
import json
import math
import tomllib
from pathlib import Path
from typing import Any

import pytest
from doorbelld.config.effective import as_plain, as_toml, in_toml, tables
from doorbelld.config.layers import Layers
from doorbelld.config.loader import RUNTIME_DIRECTORY, Config, DaemonSpec, default_socket, interpret, keys_of, load
from doorbelld.config.sources import Document, parse
from doorbelld.devices.blk import BlkOptions
from doorbelld.ivshmem.spec import RegionSpec
from doorbelld.vhost.spec import DeviceSpec
from hypothesis import given, settings
from hypothesis import strategies as st

REPOSITORY = Path(__file__).parents[3]


def config(*texts: str) -> Config:
    """Make a configuration of files called a, b, ...; it may be wrong."""
    return interpret(Layers(parse(name, text.encode()) for name, text in zip("abcdef", texts, strict=False)))[0]


def test_every_key_has_a_line_and_a_place() -> None:
    made = config(
        '[region.demo]\nsize = "1M"\nmode = "0600"\n[[region.demo.peer]]\nmatch = { vm = "a" }\n',
        '[region.demo]\nsize = "2M"\n',
        '\n[region]\ndemo.size = "8M"\n[daemon]\nlog-level = "debug"\n',
    )
    said = as_toml(made)
    for line in (
        "[daemon]  # c:4\n",
        'runtime-directory = "/run/doorbelld"  # default\n',
        'log-level = "debug"                   # c:5\n',
        "\n[region.demo]  # a:1, b:1, c:3\n",
        'size = "8M"                            # c:3, overrides "2M" of b:2, overrides "1M" of a:2\n',
        'mode = "0600"                          # a:3\n',
        'socket = "/run/doorbelld/demo/socket"  # default\n',
        "#owner =                               # default: whoever the daemon runs as\n",
        'stall-timeout = "30s"                  # default\n',
        '\n[[region.demo.peer]]  # a:4\nmatch = { vm = "a" }  # a:5\n',
    ):
        assert line in said
    region = said.partition("[region.demo]")[2].partition("[[")[0]
    keys = [line.partition(" =")[0].lstrip("#") for line in region.splitlines()[1:] if line]
    assert keys == [key for key in keys_of(RegionSpec) if key != "peer"]


def test_a_device_has_the_keys_of_its_type_and_their_defaults() -> None:
    said = as_toml(
        config('[device.disk]\ntype = "blk"\npath = "/x"\n[device.e]\ntype = "rng"\n[device.wrong]\ntype = "no"\n')
    )
    for line in (
        'type = "blk"                           # a:2\n',
        'path = "/x"                            # a:3\n',
        'socket = "/run/doorbelld/disk/socket"  # default\n',
        'mode = "0660"                          # default\n',
        "queues = 16                            # default\n",
        "#block-size =                          # default: none\n",
        "#rate =                             # default: none\n",
        '[device.wrong]  # a:6\ntype = "no"  # a:7\n',
    ):
        assert line in said
    disk = said.partition("[device.disk]")[2].partition("[device.e]")[0]
    keys = [line.partition(" =")[0].lstrip("#") for line in disk.splitlines()[1:] if line]
    assert keys == keys_of(DeviceSpec) + keys_of(BlkOptions)


def test_lists_that_were_replaced_are_named_but_not_written_out() -> None:
    first, second = (f'[[region.demo.peer]]\nmatch = {{ vm = "{vm}" }}\n' for vm in ("one", "two"))
    said = as_toml(config(first, second + second))
    assert "[[region.demo.peer]]  # b:1, overrides a:1\n" in said
    assert "[[region.demo.peer]]  # b:3\n" in said
    assert "one" not in said
    assert "peer = []                              # b:2, overrides a:1" in as_toml(
        config(first, "[region.demo]\npeer = []\n")
    )


def test_what_is_wrong_is_shown_as_it_is() -> None:
    made = config('top = 1\n[regions.x]\n[region]\nodd = 3\nlist = [{}]\n[region.bad]\ncolour = "red"\n"a b" = 1e400\n')
    said = as_toml(made)
    assert said.startswith("top = 1  # a:1\n")
    for line in (
        "[regions.x]  # a:2",
        "[region]  # a:3\nodd = 3  # a:4\n",
        "[[region.list]]  # a:5",
        "[region.bad]  # a:6",
    ):
        assert line in said
    assert 'colour = "red" ' in said
    assert '"a b" = inf ' in said
    known = tomllib.loads(said)
    assert (known["top"], known["regions"], known["region"]["odd"]) == (1, {"x": {}}, 3)
    plain = as_plain(made)
    assert plain["regions.x"] == {"value": {}, "file": "a", "line": 2, "overridden": []}
    assert plain['region.bad."a b"']["value"] == "inf"
    assert as_toml(config("daemon = 3\nregion = 4\n")) == "daemon = 3  # a:1\nregion = 4  # a:2\n"


def test_as_plain_values() -> None:
    plain = as_plain(config('[region."a.b"]\nsize = "1M"\n', '[region."a.b"]\nsize = 4096\npeer = [{match = {}}]\n'))
    assert plain['region."a.b".size'] == {
        "value": 4096,
        "file": "b",
        "line": 2,
        "overridden": [{"value": "1M", "file": "a", "line": 2}],
    }
    assert plain['region."a.b".peer'] == {"value": [{"match": {}}], "file": "b", "line": 3, "overridden": []}
    assert plain['region."a.b".owner'] == {"value": None, "file": None, "line": None, "overridden": []}
    assert plain["daemon.log-level"] == {"value": "info", "file": None, "line": None, "overridden": []}
    assert plain.keys() == {f"daemon.{key}" for key in keys_of(DaemonSpec)} | {
        f'region."a.b".{key}' for key in keys_of(RegionSpec)
    }


def test_default_sockets_lie_below_the_runtime_directory_that_counts() -> None:
    made = config("[region.x]\n", '[daemon]\nruntime-directory = "/srv"\n')
    assert tables(made)["region"]["x"]["socket"] == "/srv/x/socket"


@pytest.mark.parametrize("name", ["example.toml", "doorbelld.toml"])
def test_what_it_comes_to_is_the_same_configuration(tmp_path: Path, name: str) -> None:
    before = load(str(REPOSITORY / "config" / name))
    again = tmp_path / "again.toml"
    again.write_text(as_toml(before))
    after = load(str(again))
    assert after.daemon == before.daemon
    assert after.regions == before.regions
    assert (after.clients, after.flats) == (before.clients, before.flats)


def test_defaults_are_what_the_specs_say(tmp_path: Path) -> None:
    again = tmp_path / "again.toml"
    again.write_text(as_toml(config("[region.x]\n")))
    after = load(str(again))
    assert after.daemon == DaemonSpec()
    assert after.regions == {"x": RegionSpec("x", socket=default_socket(RUNTIME_DIRECTORY, "x"))}


def test_clients_and_flat_devices_have_all_keys() -> None:
    made = config('[client.lab]\nsocket = "/s"\n[flat.mcu]\nsocket = "/s"\nmemory-size = "4M"\n[client.wrong]\n')
    known = tables(made)
    assert known["client"]["lab"] == {"vectors-max": 64, "reconnect": True, "socket": "/s"}
    assert known["flat"]["mcu"] == {"vectors-max": 64, "reconnect": True, "socket": "/s", "memory-size": "4M"}
    assert known["client"]["wrong"] == {"vectors-max": 64, "reconnect": True}
    said = as_toml(made)
    assert "[client.lab]  # a:1\n" in said
    assert 'memory-size = "4M"  # a:5\n' in said
    assert as_plain(made)["client.lab.reconnect"] == {"value": True, "file": None, "line": None, "overridden": []}


KEYS = st.text('ab-. "\n\x7f\N{BLACK STAR}')
VALUES: st.SearchStrategy[Any] = st.recursive(
    st.booleans()
    | st.integers()
    | st.floats(allow_nan=False)
    | st.text(st.characters(exclude_categories=["Cs"]), max_size=8)
    | st.dates()
    | st.times()
    | st.datetimes()
    | st.datetimes(timezones=st.just(datetime.UTC)),
    lambda inner: (
        st.lists(inner, max_size=3) | st.dictionaries(st.text('ab-. "\n\x7f\N{BLACK STAR}'), inner, max_size=3)
    ),
    max_leaves=8,
)


@given(VALUES)
@settings(deadline=None)
def test_a_value_in_toml_is_one_line_that_reads_the_same(value: Any) -> None:
    text = in_toml(value)
    assert "\n" not in text
    assert tomllib.loads(f"x = {text}") == {"x": value}


def test_values_with_a_form_of_their_own() -> None:
    assert math.isnan(tomllib.loads(f"x = {in_toml(math.nan)}")["x"])
    huge = int("f" * 5000, 16)
    assert tomllib.loads(f"x = {in_toml(huge)}")["x"] == huge
    day = datetime.datetime(1979, 5, 27, 7, 32)
    made = config(f"[x]\na = [{in_toml(huge)}, nan, {{ b = 1979-05-27T07:32:00 }}]\n")
    assert as_plain(made)["x.a"]["value"] == [hex(huge), "nan", {"b": day.isoformat()}]


NAMES = st.sampled_from(["daemon", "region", "device", "demo", "a.b", "size", "peer", "log-level", "x y"])
TREES: st.SearchStrategy[Any] = st.recursive(
    st.integers() | st.text("ab", max_size=3) | st.dates(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(NAMES, inner, max_size=4),
    max_leaves=12,
)


@given(st.lists(st.dictionaries(NAMES, TREES, max_size=4), max_size=3))
@settings(deadline=None, max_examples=300)
def test_any_tables_can_be_shown(documents: list[dict[str, Any]]) -> None:
    made, _ = interpret(Layers(Document(str(n), document, {}) for n, document in enumerate(documents)))
    written = tomllib.loads(as_toml(made))
    assert _set(written) == _set(tables(made))
    json.dumps(as_plain(made), allow_nan=False)


def _set(value: Any) -> Any:
    """Leave out what can't be written: keys without a default."""
    return {key: _set(item) for key, item in value.items() if item is not None} if isinstance(value, dict) else value
