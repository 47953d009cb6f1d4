# SPDX-FileCopyrightText: 2026 The doorbelld authors
# SPDX-License-Identifier: GPL-2.0-or-later
"""The configuration: every error at once, each with file, line, key, cause and cure; and nothing crashes it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from doorbelld.config.layers import Layers
from doorbelld.config.loader import Config, DaemonSpec, interpret, load, load_layered
from doorbelld.config.sources import Document
from doorbelld.devices.blk import BlkOptions
from doorbelld.devices.rng import Options as RngOptions
from doorbelld.errors import InvalidOptions, Problem
from doorbelld.ivshmem.clientspec import ClientSpec, FlatSpec
from doorbelld.ivshmem.spec import RegionSpec
from doorbelld.vhost.spec import DeviceSpec
from hypothesis import given, settings
from hypothesis import strategies as st


def problems_of(path: Path, text: str | bytes) -> list[Problem]:
    file = path / "doorbelld.toml"
    file.write_bytes(text if isinstance(text, bytes) else text.encode())
    with pytest.raises(InvalidOptions) as caught:
        load(str(file))
    return list(caught.value.problems)


def place(problem: Problem) -> str:
    """Where, without the folder."""
    return problem.where.rpartition("/")[2]


def test_a_good_one(tmp_path: Path) -> None:
    file = tmp_path / "doorbelld.toml"
    file.write_text(
        """
        [daemon]
        runtime-directory = "/run/elsewhere"
        log-level = "debug"
        [region.demo]
        size = "16M"
        vectors = 8
        socket = "/tmp/demo"
        owner = "root"
        group = "0"
        mode = "0600"
        backing = "shm:demo"
        first-id = 3
        host-peer = true
        host-peer-id = 99
        max-peers = 10
        stall-timeout = "1.5min"
        [[region.demo.peer]]
        match = { vm = "guest*", uid = 0, gid = "root", unit = "a.service", pid-file = "/run/pid" }
        id = 7
        may-ring = ["8", "host"]
        [[region.demo.peer]]
        match = {}
        [region.plain]
        """
    )
    config = load(str(file))
    assert config.daemon == DaemonSpec("/run/elsewhere", "debug")
    assert list(config.regions) == ["demo", "plain"]
    demo = config.regions["demo"]
    assert (demo.size, demo.vectors, demo.mode, str(demo.backing)) == (16 << 20, 8, 0o600, "shm:demo")
    assert (demo.first_id, demo.host_peer_id, demo.max_peers, demo.stall_timeout) == (3, 99, 10, 90.0)
    first, second = demo.peer
    assert (first.match.vm, first.match.uid, first.match.gid, first.id) == ("guest*", 0, 0, 7)
    assert first.may_ring == ("8", "host")
    assert (second.id, second.may_ring) == (None, ("*",))
    assert config.regions["plain"] == RegionSpec("plain")


def test_an_empty_one_is_the_default(tmp_path: Path) -> None:
    file = tmp_path / "doorbelld.toml"
    file.write_text("")
    config = load(str(file))
    assert config == Config()
    assert config.files == (str(file),)


CASES = [
    # option and value, line in the region's table, key, words of the cause, words of the cure
    ("size = 3145728", "size", "3M is not a power of two", "use 4M"),
    ('size = "1M"\ncolour = 3', "colour", "unknown key", "known here: backing, "),
    ("host_peer = true", "host_peer", "unknown key", 'did you mean "host-peer"'),
    ("size = 0", "size", "out of range", "positive size"),
    ('size = "4Q"', "size", "'4Q' is not a size", "such as"),
    ('size = "4\N{KELVIN SIGN}"', "size", "not a size", "such as"),
    ("size = 2048", "size", "less than a page", "use 4K or more"),
    ("vectors = 0", "vectors", "0 is out of range", "from 1 to 2048"),
    ("vectors = true", "vectors", "not a whole number", "write one from"),
    ("vectors = 65", "vectors", "more than the 64", "many-vectors"),
    ('socket = "run/x"', "socket", "not an absolute path", "begin it with /"),
    (f'socket = "/{"x" * 107}"', "socket", "longer than a UNIX socket's path", "use 107 bytes"),
    ('socket = ""', "socket", "not a name", "in quotes"),
    ('owner = "nobody-of-that-name"', "owner", "no owner", "write a name that is there"),
    ('group = "nobody-of-that-name"', "group", "no group", "write a name that is there"),
    ("mode = 432", "mode", "not a file mode", "in octal and in quotes"),
    ('mode = "0999"', "mode", "not a file mode", "in octal and in quotes"),
    ('backing = "tape"', "backing", "is no backing", 'write "memfd"'),
    ('backing = "file:x"', "backing", "is no backing", "file:/PATH"),
    ("first-id = 65536", "first-id", "out of range", "0 to 65535"),
    ("first-id = 65535", "host-peer-id", "the first client gets", "use another"),
    ('host-peer = "yes"', "host-peer", "not a boolean", "without quotes"),
    ("max-peers = 0", "max-peers", "out of range", "1 to 65536"),
    ('stall-timeout = "soon"', "stall-timeout", "not a duration", "such as"),
    ("stall-timeout = -1", "stall-timeout", "out of range", "such as"),
    ("stall-timeout = nan", "stall-timeout", "out of range", "such as"),
    (f"stall-timeout = 1{'0' * 400}", "stall-timeout", "out of range", "such as"),
    ("relay-rate = 5", "relay-rate", "limits nothing", "set relay = true"),
    ("peer = 3", "peer", "no array of tables", "write [["),
    ("peer = [3]", "peer[0]", "is no table", "write [["),
    ("peer = [{ id = 3 }]", "peer[0].match", "missing", "write it"),
    ("peer = [{ match = 3 }]", "peer[0].match", "is no table", "write one such as"),
    ("peer = [{ match = { vn = 'x' } }]", "peer[0].match.vn", "unknown key", "known here: gid, pid-file"),
    ("peer = [{ match = { uid = 'nobody-there' } }]", "peer[0].match.uid", "not known on this host", "or a number"),
    ("peer = [{ match = {}, may-ring = 'x' }]", "peer[0].may-ring", "not a list of strings", "such as"),
    ("peer = [{ match = {}, id = 1 }, { match = {}, id = 1 }]", "peer", "ID 1 is given to two rules", "its own"),
    ("peer = [{ match = {}, id = 65535 }]", "host-peer-id", "65535 is given to a peer rule too", "its own"),
]


@pytest.mark.parametrize(("text", "key", "cause", "cure"), CASES, ids=[f"{n}-{c[1]}" for n, c in enumerate(CASES)])
def test_each_error_has_its_place_cause_and_cure(tmp_path: Path, text: str, key: str, cause: str, cure: str) -> None:
    (problem,) = problems_of(tmp_path, f"\n\n[region.demo]\n# words\n{text}\n")
    assert problem.key == f"region.demo.{key}"
    assert cause in problem.cause
    assert cure in problem.cure
    last = 5 + text.count("\n")
    named = key if not key.startswith("host-peer-id") else ""  # not in the file: the table's line then
    assert place(problem) == f"doorbelld.toml:{last if named else 3}"
    assert str(problem) == f"{problem.where}: {problem.key}: {problem.cause}; {problem.cure}"


def test_all_problems_come_at_once_in_order_of_the_file(tmp_path: Path) -> None:
    found = problems_of(
        tmp_path,
        """[daemon]
runtime-directory = "run"
log-level = "loud"
[regions.demo]
[region.one]
size = 5
vectors = "4"
[region.two]
size = "4M"
mode = 660

[[region.two.peer]]
match = { uid = -1 }
[[region.two.peer]]
id = 5
[region."not a name"]
[device.disk]
type = "blk"
""",
    )
    assert [(place(p).removeprefix("doorbelld.toml:"), p.key) for p in found] == [
        ("2", "daemon.runtime-directory"),
        ("3", "daemon.log-level"),
        ("4", "regions"),
        ("6", "region.one.size"),
        ("7", "region.one.vectors"),
        ("10", "region.two.mode"),
        ("13", "region.two.peer[0].match.uid"),
        ("14", "region.two.peer[1].match"),
        ("16", "region.not a name"),
        ("17", "device.disk.path"),
    ]
    assert all(p.cause and p.cure for p in found)


def test_regions_that_share_what_they_must_not(tmp_path: Path) -> None:
    found = problems_of(
        tmp_path,
        """[daemon]
runtime-directory = "/run/d"
[region.one]
backing = "shm:same"
[region.two]
socket = "/run/d/one/socket"
backing = "file:/dev/shm/same"
[region.three]
""",
    )
    assert [(place(p), p.key) for p in found] == [
        ("doorbelld.toml:6", "region.two.socket"),
        ("doorbelld.toml:7", "region.two.backing"),
    ]
    assert found[0].cause == "/run/d/one/socket is used by region one too"
    assert found[1].cause == f"/dev/shm/same is used by region one too ({tmp_path}/doorbelld.toml:4)"


def test_the_one_who_says_it_clashes_with_the_one_who_has_it_by_default(tmp_path: Path) -> None:
    (problem,) = problems_of(tmp_path, '[region.a]\nsocket = "/run/doorbelld/b/socket"\n[region.b]\n')
    assert (problem.key, place(problem)) == ("region.a.socket", "doorbelld.toml:2")


@pytest.mark.parametrize(
    ("text", "where", "cause"),
    [
        ("[daemon\n", ":1:8", "Expected"),
        ("x = \n", ":1:5", "Invalid value"),
        ('x = """\n\n', "", "Unterminated"),
        ("a = 1\na = 2\n", ":2:6", "Cannot overwrite"),
        (f"a = {'9' * 5000}", "", "digits"),
        (f"a = {'[' * 9999}", "", "recursion"),
        (f"\n[region.demo]\nsize{'.a' * 5000} = 1", ":3", "levels deep"),
        (f"a = {'[' * 50}{']' * 50}", ":1", "levels deep"),
        (b'[region.demo]\nsocket = "/\xff"', ":2", "byte 25 is not UTF-8"),
    ],
)
def test_what_is_no_toml(tmp_path: Path, text: str | bytes, where: str, cause: str) -> None:
    (problem,) = problems_of(tmp_path, text)
    assert place(problem) == f"doorbelld.toml{where}"
    assert cause in problem.cause
    assert problem.cure


def test_a_file_that_can_not_be_read(tmp_path: Path) -> None:
    for file, cause in ((tmp_path / "missing", "No such file"), (tmp_path, "Is a directory")):
        with pytest.raises(InvalidOptions) as caught:
            load(str(file))
        (problem,) = caught.value.problems
        assert (problem.key, cause in problem.cause) == (str(file), True)
        assert "--config" in problem.cure


def test_devices_are_read_with_the_options_of_their_type(tmp_path: Path) -> None:
    file = tmp_path / "doorbelld.toml"
    file.write_text('[device.d]\ntype = "blk"\npath = "/x"\nqueues = 4\n[device.e]\ntype = "rng"\nrate = "1M"\n')
    config = load(str(file))
    assert {name: (spec.type, spec.queues, spec.own) for name, spec in config.devices.items()} == {
        "d": ("blk", 4, BlkOptions("/x")),
        "e": ("rng", None, RngOptions(1 << 20)),
    }


def test_all_problems_of_a_device_come_at_once_each_at_its_line(tmp_path: Path) -> None:
    found = problems_of(
        tmp_path,
        """[device.disk]
type = "blk"
queues = 5000
pat = "/x"
cache = "none"
[device.other]
type = "floppy"
[device.three]
mode = 660
[region.one]
[device.one]
type = "rng"
[[device.one.peer]]
match = { uid = -1 }
""",
    )
    assert [(place(p).removeprefix("doorbelld.toml:"), p.key) for p in found] == [
        ("1", "device.disk.path"),
        ("3", "device.disk.queues"),
        ("4", "device.disk.pat"),
        ("5", "device.disk.cache"),
        ("7", "device.other.type"),
        ("8", "device.three.type"),
        ("9", "device.three.mode"),
        ("14", "device.one.peer[0].match.uid"),
    ]
    assert found[2].cure == 'did you mean "path"?'
    assert "blk, loopback, rng" in found[4].cure


def test_a_device_and_a_region_share_no_socket(tmp_path: Path) -> None:
    (problem,) = problems_of(tmp_path, '[region.one]\n[device.one]\ntype = "rng"\n')
    assert (problem.key, problem.cause) == (
        "device.one.socket",
        "/run/doorbelld/one/socket is used by region one too",
    )


def test_an_option_that_its_type_does_not_have_is_wrong_in_every_file(tmp_path: Path) -> None:
    wrong = '[device.e]\ntype = "rng"\npath = "/x"\n'
    files = {"etc/doorbelld/doorbelld.toml": wrong, "etc/doorbelld/doorbelld.d/a.toml": wrong}
    assert layered_problems(tmp_path, files) == [(f"{file}:3", "device.e.path") for file in files]


@pytest.mark.parametrize("value", ["3", "true", '"x"', "[]", "[{}]", "1979-05-27"])
def test_tables_that_are_none(tmp_path: Path, value: str) -> None:
    for key, expected in (("daemon", "daemon"), ("region", "region"), ("device", "device")):
        (problem,) = problems_of(tmp_path, f"# first\n{key} = {value}\n")
        assert (problem.key, problem.cause, place(problem)) == (expected, "is no table", "doorbelld.toml:2")
        assert f"[{key}" in problem.cure
    (problem,) = problems_of(tmp_path, f"[region]\ndemo = {value}\n")
    assert (problem.key, problem.cause, place(problem)) == ("region.demo", "is no table", "doorbelld.toml:2")


def test_a_bracket_in_a_key_is_found(tmp_path: Path) -> None:
    (problem,) = problems_of(tmp_path, '[region]\ndemo = { "a[" = 1 }\n')
    assert (problem.key, place(problem)) == ("region.demo.a[", "doorbelld.toml:2")


def test_what_looks_like_a_key_in_a_string_is_none(tmp_path: Path) -> None:
    text = """[region.demo]
socket = '''
[region.demo]
size = 5
'''
# a line separator \u2028 is no end of a line
size = 5
"""
    assert [(p.key, place(p)) for p in problems_of(tmp_path, text)] == [
        ("region.demo.socket", "doorbelld.toml:2"),
        ("region.demo.size", "doorbelld.toml:7"),
    ]


# Several files


def layered(path: Path, files: dict[str, str]) -> Path:
    for name, text in files.items():
        file = path / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(text)
    return path


def layered_problems(path: Path, files: dict[str, str]) -> list[tuple[str, str]]:
    with pytest.raises(InvalidOptions) as caught:
        load_layered(str(layered(path, files)))
    return [(p.where.removeprefix(f"{path}/"), p.key.removeprefix(f"{path}/")) for p in caught.value.problems]


def test_no_file_at_all_is_the_default(tmp_path: Path) -> None:
    config = load_layered(str(tmp_path))
    assert config == Config()
    assert config.files == ()


def test_layers_are_merged_key_by_key(tmp_path: Path) -> None:
    root = layered(
        tmp_path,
        {
            "usr/lib/doorbelld/doorbelld.toml": "[region.vendor]\n",
            "etc/doorbelld/doorbelld.toml": """
                [region.demo]
                size = "1M"
                vectors = 2
                [[region.demo.peer]]
                match = { vm = "a" }
                [[region.demo.peer]]
                match = { vm = "b" }
            """,
            "usr/lib/doorbelld/doorbelld.d/20.toml": '[region.demo]\nsize = "2M"\nmax-peers = 5\n',
            "run/doorbelld/doorbelld.d/10.toml": '[daemon]\nlog-level = "debug"\n[region.demo]\nsize = "8M"\n',
            "run/doorbelld/doorbelld.d/25.toml": "",
            "run/doorbelld/doorbelld.d/30.toml": '[[region.demo.peer]]\nmatch = { vm = "c" }\n[region.more]\n',
        },
    )
    config = load_layered(str(root))
    assert list(config.regions) == ["demo", "more"]
    demo = config.regions["demo"]
    assert (demo.size, demo.vectors, demo.max_peers) == (2 << 20, 2, 5)
    assert [rule.match.vm for rule in demo.peer] == ["c"]
    assert config.daemon.log_level == "debug"
    assert [file.removeprefix(f"{root}/") for file in config.files] == [
        "etc/doorbelld/doorbelld.toml",
        "run/doorbelld/doorbelld.d/10.toml",
        "usr/lib/doorbelld/doorbelld.d/20.toml",
        "run/doorbelld/doorbelld.d/30.toml",
    ]


def test_the_problems_of_all_files_come_at_once_each_with_its_place(tmp_path: Path) -> None:
    assert layered_problems(
        tmp_path,
        {
            "etc/doorbelld/doorbelld.toml": "[daemon]\nlog-level = 'loud'\n[region.a]\nsize = 5\nvectors = 'x'\n",
            "etc/doorbelld/doorbelld.d/10.toml": "[region.a]\nsize = 6\n",
            "run/doorbelld/doorbelld.d/20.toml": "[region.a]\nvectors = 4\n[[region.a.peer]]\nid = 3\n",
            "usr/lib/doorbelld/doorbelld.d/30.toml": "[broken\n",
            "usr/lib/doorbelld/doorbelld.d/40.toml": "\n[device.x]\n",
        },
    ) == [
        ("usr/lib/doorbelld/doorbelld.d/30.toml:1:8", "syntax"),
        ("etc/doorbelld/doorbelld.toml:2", "daemon.log-level"),
        ("etc/doorbelld/doorbelld.d/10.toml:2", "region.a.size"),
        ("run/doorbelld/doorbelld.d/20.toml:3", "region.a.peer[0].match"),
        ("usr/lib/doorbelld/doorbelld.d/40.toml:2", "device.x.type"),
    ]


def test_a_wrong_name_is_wrong_in_every_file(tmp_path: Path) -> None:
    wrong = "[regions]\n[region.a]\ncolour = 1\n[daemon]\nloud = 1\n"
    found = layered_problems(
        tmp_path, {"etc/doorbelld/doorbelld.toml": wrong, "etc/doorbelld/doorbelld.d/a.toml": wrong}
    )
    assert found == [
        (f"etc/doorbelld/{file}:{line}", key)
        for file in ("doorbelld.toml", "doorbelld.d/a.toml")
        for line, key in ((1, "regions"), (3, "region.a.colour"), (5, "daemon.loud"))
    ]


def test_what_clashes_over_files_is_told_where_it_was_written_last(tmp_path: Path) -> None:
    files = {
        "etc/doorbelld/doorbelld.toml": '[region.a]\nsocket = "/a"\n[region.b]\nsocket = "/b"\n',
        "etc/doorbelld/doorbelld.d/10.toml": '[region.a]\nbacking = "shm:x"\nsocket = "/b"\n',
        "etc/doorbelld/doorbelld.d/20.toml": '[region.b]\nbacking = "shm:x"\n',
    }
    with pytest.raises(InvalidOptions) as caught:
        load_layered(str(layered(tmp_path, files)))
    etc = f"{tmp_path}/etc/doorbelld"
    assert [(p.where, p.key, p.cause) for p in caught.value.problems] == [
        (f"{etc}/doorbelld.d/10.toml:3", "region.a.socket", f"/b is used by region b too ({etc}/doorbelld.toml:4)"),
        (
            f"{etc}/doorbelld.d/20.toml:2",
            "region.b.backing",
            f"/dev/shm/x is used by region a too ({etc}/doorbelld.d/10.toml:2)",
        ),
    ]


def test_a_default_that_clashes_is_told_at_the_file_that_made_it_so(tmp_path: Path) -> None:
    files = {
        "etc/doorbelld/doorbelld.toml": "[region.a]\n",
        "etc/doorbelld/doorbelld.d/10.toml": "\n[region.a]\nfirst-id = 65535\n",
    }
    assert layered_problems(tmp_path, files) == [("etc/doorbelld/doorbelld.d/10.toml:2", "region.a.host-peer-id")]


def test_a_value_that_was_wrong_and_is_overridden_is_no_problem(tmp_path: Path) -> None:
    files = {
        "usr/lib/doorbelld/doorbelld.toml": "region = 3\n[daemon.log-level]\nx = 1\n",
        "etc/doorbelld/doorbelld.d/10.toml": "[daemon]\nlog-level = 'error'\n[region.demo]\n",
    }
    config = load_layered(str(layered(tmp_path, files)))
    assert (config.daemon.log_level, list(config.regions)) == ("error", ["demo"])


def test_files_that_can_not_be_read_are_told_with_the_rest(tmp_path: Path) -> None:
    root = layered(tmp_path, {"etc/doorbelld/doorbelld.d/20.toml": "[region.a]\nsize = 5\n"})
    etc = root / "etc/doorbelld"
    (etc / "doorbelld.d/10.toml").symlink_to("nowhere.toml")
    (etc / "doorbelld.toml").symlink_to("doorbelld.toml")
    layered(root, {"run/doorbelld/doorbelld.d": "a file where a folder should be"})
    (etc / "doorbelld.d/30.toml").write_bytes(b"# \xff")
    with pytest.raises(InvalidOptions) as caught:
        load_layered(str(root))
    assert [(p.where or p.key, p.cause.partition(";")[0]) for p in caught.value.problems] == [
        (f"{root}/run/doorbelld/doorbelld.d", "Not a directory"),
        (f"{etc}/doorbelld.toml", "Too many levels of symbolic links"),
        (f"{etc}/doorbelld.d/10.toml", "No such file or directory"),
        (f"{etc}/doorbelld.d/30.toml:1", "byte 2 is not UTF-8"),
        (f"{etc}/doorbelld.d/20.toml:2", "5 is not a power of two (QEMU needs one)"),
    ]
    assert all("--config" not in p.cure for p in caught.value.problems)


WORDS = (
    "size vectors many-vectors socket owner group mode backing first-id host-peer host-peer-id max-peers stall-timeout "
    "relay peer match id may-ring vm uid gid unit pid-file runtime-directory log-level type connect queues queue-size "
    "poll-us path read-only cache rate blk rng vectors-max reconnect memory-size"
)
KEYS = st.sampled_from([*WORDS.split(" ")]) | st.text(max_size=8)
SCALARS = (
    st.booleans()
    | st.integers()
    | st.integers(min_value=10**300, max_value=10**309)
    | st.floats()
    | st.text(max_size=8)
    | st.sampled_from(["4M", "4\N{KELVIN SIGN}", "30s", "never", "0660", "memfd", "hugetlb", "shm:x", "file:/x", "/x"])
    | st.dates()
    | st.datetimes()
    | st.times()
)
VALUES: st.SearchStrategy[Any] = st.recursive(
    SCALARS,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(KEYS, inner, max_size=4),
    max_leaves=12,
)
NAMES = st.sampled_from(["demo", "a.b"]) | st.text(max_size=5)
TABLES = st.fixed_dictionaries(
    {},
    optional={
        "daemon": VALUES | st.dictionaries(KEYS, VALUES, max_size=3),
        "region": VALUES | st.dictionaries(NAMES, VALUES | st.dictionaries(KEYS, VALUES, max_size=6), max_size=3),
        "device": VALUES | st.dictionaries(NAMES, VALUES | st.dictionaries(KEYS, VALUES, max_size=6), max_size=3),
        "other": VALUES,
    },
)


@given(TABLES)
@settings(deadline=None, max_examples=400)
def test_interpret_never_crashes_and_every_problem_has_words(tables: dict[str, Any]) -> None:
    config, problems = interpret(Layers([Document("any.toml", tables, {})]))
    assert all(p.key and p.cause and p.cure and p.where == "any.toml:1" for p in problems)
    assert all(isinstance(spec, RegionSpec) for spec in config.regions.values())
    assert all(isinstance(spec, DeviceSpec) for spec in config.devices.values())
    text_of_all = str(InvalidOptions(problems))
    assert text_of_all.count("; ") >= len(problems)


@given(st.text() | st.binary())
@settings(deadline=None)
def test_no_file_raises_anything_but_invalid_options(
    tmp_path_factory: pytest.TempPathFactory, text: str | bytes
) -> None:
    file = tmp_path_factory.getbasetemp() / "any.toml"
    file.write_bytes(text if isinstance(text, bytes) else text.encode())
    try:
        load(str(file))
    except InvalidOptions as error:
        assert error.problems


# Clients and flat devices

CLIENTS = """
[client.lab]
socket = "/tmp/ivshmem_socket"
reconnect = false
vectors-max = 8
[flat.mcu]
socket = "/run/doorbelld/demo/socket"
memory-size = "4M"
[flat.any]
socket = "/run/doorbelld/demo/socket"
memory-size = 0
"""


def test_clients_and_flat_devices(tmp_path: Path) -> None:
    """One may join a region of ours, and several the same one: they make no sockets that could clash."""
    file = tmp_path / "doorbelld.toml"
    file.write_text(f"[region.demo]\n[region.lab]\n[region.mcu]\n{CLIENTS}")
    found = load(str(file))
    assert found.clients == {"lab": ClientSpec("lab", "/tmp/ivshmem_socket", vectors_max=8, reconnect=False)}
    socket = "/run/doorbelld/demo/socket"
    assert found.flats == {"mcu": FlatSpec("mcu", socket, memory_size=4 << 20), "any": FlatSpec("any", socket)}


@pytest.mark.parametrize(
    ("text", "key", "line", "words"),
    [
        ("[client.a]\n", "client.a.socket", 1, "missing; it has no default"),
        ("[flat.a]\nsocket = 'x'\n", "flat.a.socket", 2, "not an absolute path"),
        ("[client.a]\nsocket = '/x'\nmemory-size = 3\n", "client.a.memory-size", 3, "unknown key"),
        ("[flat.a]\nsocket = '/x'\nmemory-sice = 3\n", "flat.a.memory-sice", 3, 'did you mean "memory-size"?'),
        ("[flat.a]\nsocket = '/x'\nmemory-size = false\n", "flat.a.memory-size", 3, "is not a size"),
        ("[client.a]\nsocket = '/x'\nvectors-max = 0\n", "client.a.vectors-max", 3, "from 1 to 2048"),
        ("[client.a]\nsocket = '/x'\nreconnect = 'no'\n", "client.a.reconnect", 3, "is not a boolean"),
        ("[client.'a/b']\nsocket = '/x'\n", 'client."a/b"', 1, "can't be the name"),
        ("client = 3\n", "client", 1, "write [client.NAME]"),
        ("[flat]\na = 3\n", "flat.a", 2, "write [flat.a]"),
        ("[clients.a]\n", "clients", 1, "known are [daemon], [region.NAME], [device.NAME], [client.NAME] and [flat"),
    ],
)
def test_what_is_wrong_with_a_client_or_a_flat_device(
    tmp_path: Path, text: str, key: str, line: int, words: str
) -> None:
    (problem,) = problems_of(tmp_path, text)
    assert (problem.key.replace("client.a/b", 'client."a/b"'), place(problem)) == (key, f"doorbelld.toml:{line}")
    assert words in str(problem)


@pytest.mark.parametrize(
    ("line", "cure"),
    [
        ("size = 4M", 'write size = "4M", in quotes'),
        ("size=4M # four", 'write size = "4M", in quotes'),
        ("backing = memfd", 'write backing = "memfd", in quotes'),
        ("stall-timeout = 30s", 'write stall-timeout = "30s", in quotes'),
        ("socket = /run/x", 'write socket = "/run/x", in quotes'),
    ],
)
@pytest.mark.parametrize("after", ["\n[region.b]\n", "\n", ""])
def test_text_without_quotes_is_told_with_the_quotes(tmp_path: Path, line: str, cure: str, after: str) -> None:
    file = tmp_path / "doorbelld.toml"
    file.write_text(f"[region.demo]\n{line}{after}")
    with pytest.raises(InvalidOptions) as caught:
        load(str(file))
    (problem,) = caught.value.problems
    assert problem.cure == cure and problem.where == f"{file}:2"


@pytest.mark.parametrize("line", ["size = ", "size = [1, 2", 'size = "4M', "= 4"])
def test_other_syntax_errors_are_told_as_the_parser_does(tmp_path: Path, line: str) -> None:
    file = tmp_path / "doorbelld.toml"
    file.write_text(f"[region.demo]\n{line}\n")
    with pytest.raises(InvalidOptions, match=r"https://toml\.io"):
        load(str(file))
