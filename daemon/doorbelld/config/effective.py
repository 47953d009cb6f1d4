# SPDX-FileCopyrightText: 2026 The doorbelld authors
# SPDX-License-Identifier: GPL-2.0-or-later
"""What a configuration comes to: every key there is with its value, defaults included, and who says so.

As TOML it can be read again and gives the same configuration; the comment behind each key tells its place. As plain
values it is for programs.
"""

from __future__ import annotations

import dataclasses
import datetime
import json
import math
import re
from collections.abc import Iterator, Mapping
from typing import Any

from ..ivshmem.clientspec import ClientSpec, FlatSpec
from ..ivshmem.spec import RegionSpec, in_units
from ..vhost.spec import DeviceSpec
from .layers import Layers, Written
from .loader import Config, DaemonSpec, default_socket, keys_of
from .places import Path

_BARE = re.compile(r"[A-Za-z0-9_-]+")
_COLUMN_MAX = 44
_INTEGER_BITS_MAX = 8192
"""Python writes no longer integers in decimal; TOML has them in hexadecimal."""
_JOINED = {"client": ClientSpec, "flat": FlatSpec}
_NOT_SET = {"owner": "whoever the daemon runs as", "group": "whoever the daemon runs as"}


def tables(config: Config) -> dict[str, Any]:
    """Give the merged tables with all defaults in them; None stands where a default can't be written down."""
    merged = config.layers.tables
    known: dict[str, Any] = {"daemon": _filled(merged.get("daemon", {}), _daemon_defaults())}
    for key, table in merged.items():
        if key == "region" and isinstance(table, dict):
            runtime = config.daemon.runtime_directory
            known[key] = {name: _filled(region, _region_defaults(name, runtime)) for name, region in table.items()}
        elif key == "device" and isinstance(table, dict):
            known[key] = {name: _filled(device, _device_defaults(name, config)) for name, device in table.items()}
        elif key in _JOINED and isinstance(table, dict):
            known[key] = {name: _filled(one, _joined_defaults(_JOINED[key])) for name, one in table.items()}
        elif key != "daemon":
            known[key] = table
    return known


def _filled(table: Any, defaults: Mapping[str, Any]) -> Any:
    return {**defaults, **table} if isinstance(table, dict) else table


def _daemon_defaults() -> dict[str, Any]:
    spec = DaemonSpec()
    return {key: getattr(spec, key.replace("-", "_")) for key in keys_of(DaemonSpec)}


def _region_defaults(name: str, runtime_directory: str) -> dict[str, Any]:
    spec = RegionSpec(name)
    plain = {
        **spec.as_options(),
        "size": in_units(spec.size),
        "stall-timeout": f"{spec.stall_timeout:g}s",
        "socket": default_socket(runtime_directory, name),
        "peer": [],
    }
    return {key: plain[key] if plain[key] != "" else None for key in keys_of(RegionSpec)}


def _joined_defaults(table: type[ClientSpec]) -> dict[str, Any]:
    """Give the defaults of a client or a flat device; the socket, which has none, is of the table itself."""
    plain = table("none", "/").as_options()
    return {key: plain[key] for key in keys_of(table) if key != "socket"}


def _device_defaults(name: str, config: Config) -> dict[str, Any]:
    """Give the defaults of a device's type too; none, if something is wrong with it."""
    if (spec := config.devices.get(name)) is None:
        return {}
    common = {field.name: field.default for field in dataclasses.fields(spec)}
    plain: dict[str, Any] = {
        **{key: common[key.replace("-", "_")] for key in keys_of(DeviceSpec)},
        "socket": default_socket(config.daemon.runtime_directory, name),
        "mode": f"{common['mode']:04o}",
        "silence-timeout": f"{common['silence_timeout']:g}s",
        "queues": spec.kind.queues,
        "queue-size": spec.kind.queue_size,
        "peer": [],
    }
    own = {field.name.replace("_", "-"): field.default for field in dataclasses.fields(spec.kind.Options)}
    known = {**plain, **{key: own[key] for key in keys_of(spec.kind.Options)}}
    return {key: None if value in ("", dataclasses.MISSING) else value for key, value in known.items()}


def as_plain(config: Config) -> dict[str, Any]:
    """Give ``{key: {value, file, line, overridden: [{value, file, line}]}}``; no file means a default."""
    return {
        _key(path): {**_entry(written[-1] if written else None, value), "overridden": [_entry(w) for w in written[:-1]]}
        for path, value in _leaves(tables(config), ())
        for written in [config.layers.history(path)]
    }


def _entry(written: Written | None, value: Any = None) -> dict[str, Any]:
    if written is None:
        return {"value": _plain(value), "file": None, "line": None}
    return {"value": _plain(written.value), "file": written.place.file, "line": written.place.line}


def _leaves(table: Mapping[str, Any], above: Path) -> Iterator[tuple[Path, Any]]:
    for key, value in table.items():
        if isinstance(value, dict) and value:
            yield from _leaves(value, (*above, key))
        else:
            yield (*above, key), value


def _plain(value: Any) -> Any:
    """Put what TOML can say and JSON can't as a string."""
    if isinstance(value, dict):
        return {key: _plain(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_plain(item) for item in value]
    if isinstance(value, datetime.date | datetime.time) or (isinstance(value, float) and not math.isfinite(value)):
        return in_toml(value)
    return value if not isinstance(value, int) or value.bit_length() <= _INTEGER_BITS_MAX else hex(value)


def as_toml(config: Config) -> str:
    """Give a TOML text, each key with a comment that says where it comes from."""
    return "\n".join(_table(tables(config), (), config.layers)).lstrip("\n") + "\n"


def _table(table: Mapping[str, Any], path: Path, layers: Layers) -> Iterator[str]:
    below = {key: value for key, value in table.items() if isinstance(value, dict) or _is_array_of_tables(value)}
    yield from _in_columns(
        [_row(key, value, layers.history((*path, key))) for key, value in table.items() if key not in below]
    )
    for key, value in below.items():
        inside = (*path, key)
        if isinstance(value, list):
            for number, item in enumerate(value):
                # a table in an entry is written inline: a header of its own would belong to the last entry only
                entry = (*inside, number)
                yield from _header(f"[[{_key(inside)}]]", layers.history(entry if number else inside))
                yield from _in_columns([_row(name, one, layers.history((*entry, name))) for name, one in item.items()])
        else:
            if not value or any(not isinstance(item, dict) for item in value.values()):
                yield from _header(f"[{_key(inside)}]", layers.history(inside))
            yield from _table(value, inside, layers)


def _header(header: str, written: tuple[Written, ...]) -> Iterator[str]:
    yield ""
    yield f"{header}  # {_source(written)}" if written else header


def _in_columns(rows: list[tuple[str, str]]) -> Iterator[str]:
    width = min(max((len(left) for left, _ in rows), default=0), _COLUMN_MAX)
    for left, comment in rows:
        yield f"{left.ljust(width)}  # {comment}"


def _row(key: str, value: Any, written: tuple[Written, ...]) -> tuple[str, str]:
    """Give an assignment, and the comment for it."""
    if value is None:
        return f"#{_name(key)} =", f"default: {_NOT_SET.get(key, 'none')}"
    return f"{_name(key)} = {in_toml(value)}", _source(written) or "default"


def _source(written: tuple[Written, ...]) -> str:
    """Say where a value comes from, and what it is there instead of; a table is there for all who wrote to it."""
    if not written or isinstance(written[-1].value, dict):
        return ", ".join(str(one.place) for one in written)
    *others, last = written
    return ", overrides ".join([str(last.place), *(_instead(other) for other in reversed(others))])


def _instead(other: Written) -> str:
    return str(other.place) if isinstance(other.value, list) else f"{in_toml(other.value)} of {other.place}"


def _is_array_of_tables(value: Any) -> bool:
    return isinstance(value, list) and bool(value) and all(isinstance(item, dict) for item in value)


def _key(path: Path) -> str:
    return ".".join(_name(str(part)) for part in path)


def _name(part: str) -> str:
    return part if _BARE.fullmatch(part) else in_toml(part)


def in_toml(value: Any) -> str:
    """Write a value in TOML, on one line."""
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, str):  # JSON's strings are TOML's, but that TOML wants this one escaped too
        return json.dumps(value, ensure_ascii=False).replace("\x7f", "\\u007f")
    if isinstance(value, int):
        return str(value) if value.bit_length() <= _INTEGER_BITS_MAX else hex(value)
    if isinstance(value, dict):
        return f"{{ {', '.join(f'{_name(key)} = {in_toml(item)}' for key, item in value.items())} }}" if value else "{}"
    if isinstance(value, list):
        return f"[{', '.join(map(in_toml, value))}]"
    return value.isoformat() if isinstance(value, datetime.date | datetime.time) else repr(value)
