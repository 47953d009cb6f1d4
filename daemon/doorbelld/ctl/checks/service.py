# SPDX-FileCopyrightText: 2026 The doorbelld authors
# SPDX-License-Identifier: GPL-2.0-or-later
"""Whether the daemon itself is well: reached, run by its unit, with enough descriptors, known to bus and polkit."""

from __future__ import annotations

import configparser
import re
import xml.etree.ElementTree as ET
from collections.abc import Iterator

from ...bus.names import BUS_NAME
from ...fds import limits
from .access import listening
from .view import Finding, View, fine, hidden, hint, skipped, wrong

ACTIONS = ("inspect", "notify", "open-memory", "manage")
_POLICY_FILES = tuple(f"/{place}/dbus-1/system.d/{BUS_NAME}.conf" for place in ("etc", "usr/share"))
_ACTIVATION_FILES = tuple(
    f"/{place}/dbus-1/system-services/{BUS_NAME}.service" for place in ("etc", "run", "usr/local/share", "usr/share")
)
_ACTION_FILES = tuple(
    f"/{place}/polkit-1/actions/{BUS_NAME}.policy" for place in ("etc", "usr/local/share", "usr/share")
)
_POLKIT = "/usr/share/dbus-1/system-services/org.freedesktop.PolicyKit1.service"
_SANDBOX = {"NoNewPrivileges": "yes", "ProtectSystem": "strict", "ProtectHome": "yes", "MemoryDenyWriteExecute": "yes"}
_NEARLY_ALL = 0.9
_QLEN_MIN = 64
_DEVICE_COST, _QUEUE_COST = 16, 4
"""Descriptors of a device (socket, connection, workers, image) and of each queue (kick, call, error, io_uring)."""
_POLICY_ORDER = ("default", "group", "user", "mandatory")
_REINSTALL = "install doorbelld anew (make install, or the package)"


def reached(view: View) -> Iterator[Finding]:
    """The daemon answers, on a bus that we found, and is of our version."""
    if view.known is None:
        yield wrong(view.trouble, view.cure)
        return
    version = view.known["version"]
    yield fine(f"doorbelld {version} (pid {view.pid}) answers on {view.address}")
    if version != view.own_version:
        cure = "systemctl restart doorbelld: guests do not notice it"
        yield hint(f"it is version {version}, doorbellctl is {view.own_version}", cure)


def libraries(view: View) -> Iterator[Finding]:
    """The native module is built and loads; the D-Bus library is the fast one."""
    try:
        from ...fds import native
    except ImportError as error:
        yield wrong(f"the native module does not load: {error}", f"{_REINSTALL}; in a checkout: make setup")
        return
    yield fine(f"native module {native.__file__}")
    used = view.library or view.own_library
    if used.startswith("dbus-next"):
        yield hint(f"D-Bus library {used}", "install dbus-fast (pip install 'doorbelld[fast]'): calls cost a third")
    elif used:
        yield fine(f"D-Bus library {used}")


def unit(view: View) -> Iterator[Finding]:
    """The unit is loaded, runs, comes back at boot, and is the daemon that answers."""
    known = view.unit
    if not known:
        yield skipped("systemd has no doorbelld.service here")
        return
    state = f"{known.get('ActiveState')} ({known.get('SubState')})"
    if known.get("LoadState") != "loaded":
        cure = f"systemctl status doorbelld says why; {_REINSTALL}"
        yield wrong(f"doorbelld.service is {known.get('LoadState')}", cure)
    elif known.get("ActiveState") == "failed":
        cure = "journalctl -u doorbelld -b says why; then systemctl restart doorbelld"
        yield wrong(f"doorbelld.service failed ({known.get('Result')})", cure)
    elif known.get("ActiveState") not in ("active", "reloading"):
        yield wrong(f"doorbelld.service is {state}", "systemctl start doorbelld")
    else:
        yield fine(f"doorbelld.service is {state}: {known.get('StatusText') or 'no status yet'}")
        if view.pid and not view.of_unit:
            yield hint(
                f"the daemon that answers (pid {view.pid}) is not the unit's (pid {known.get('MainPID')})",
                "doorbellctl --bus system speaks to the unit's; unset DOORBELLD_BUS, or stop the other one",
            )
    if (restarts := known.get("NRestarts", "0")) not in ("", "0"):
        cure = "journalctl -u doorbelld -p warning says why"
        yield hint(f"systemd had to start it again by itself, {restarts} times so far", cure)
    if known.get("UnitFileState") == "disabled":
        cure = "systemctl enable doorbelld, if it is to be there from boot on"
        yield hint("doorbelld.service is disabled: it starts when something asks for it only", cure)
    if known.get("NeedDaemonReload") == "yes":
        yield hint("unit files have changed since systemd read them", "systemctl daemon-reload")


def sandbox(view: View) -> Iterator[Finding]:
    """Drop-ins have not opened the sandbox, and the sandbox does not hide sockets and memory from guests."""
    if not view.unit:
        yield skipped("there is no unit")
        return
    drop_ins = view.unit.get("DropInPaths", "")
    weak = [f"{key}={view.unit[key]}" for key, value in _SANDBOX.items() if view.unit.get(key, value) != value]
    if weak:
        cure = f"set it back in {drop_ins}" if drop_ins else _REINSTALL
        yield hint(f"it is more open than it need be: {', '.join(weak)}", f"if that is not on purpose, {cure}")
    else:
        yield fine(f"closed as delivered{f', with drop-ins {drop_ins}' if drop_ins else ''}")
    if not view.of_unit:
        return
    places = listening(view)
    for name, region in view.regions.items():
        kind, _, target = region["backing"].partition(":")
        places += [(f'region "{name}"', target)] * (kind == "file")
    for title, path in places:
        if path.startswith(hidden(view.unit)):
            cure = "choose a path below /run/doorbelld or /srv for it"
            yield wrong(f"{title}: {path} is in a directory of the daemon's own, guests do not see it", cure)


def descriptors(view: View) -> Iterator[Finding]:
    """The limit on descriptors lets every region have its max-peers, and each device all queues; some are left."""
    if view.known is None:
        yield skipped("the daemon was not reached")
        return
    limit, used = view.known["descriptors"]["limit"], view.known["descriptors"]["in-use"]
    cure = "raise LimitNOFILE= (systemctl edit doorbelld), or lower max-peers of regions that do not need it"
    if used > _NEARLY_ALL * limit:
        yield wrong(f"{used} of {limit} are in use: soon nobody can connect", cure)
        return
    need = limits.RESERVE + sum(_cost(region) for region in view.regions.values())
    need += sum(_DEVICE_COST + _QUEUE_COST * len(device["queues"]) for device in view.devices.values())
    if need > limit:
        yield hint(f"all regions full, and all devices, would need {need:,}, the limit is {limit:,}", cure)
    else:
        yield fine(f"{used} of {limit:,} in use, {need:,} if all regions were full and all devices used")
    match = re.search(r"^Max open files\s+(\d+)\s+(\d+)", view.read(f"/proc/{view.pid}/limits"), re.M)
    if match and int(match[1]) < limit:
        yield hint(
            f"the limit of process {view.pid} was lowered to {match[1]} while it runs", "prlimit --nofile raises it"
        )


def _cost(region: dict[str, object]) -> int:
    peers, vectors = region["max-peers"], region["vectors"]
    assert isinstance(peers, int)
    assert isinstance(vectors, int)
    return peers * (1 + vectors)


def store(view: View) -> Iterator[Finding]:
    """The descriptor store of systemd has room for all that a restart is to keep."""
    if not view.unit:
        yield skipped("there is no unit: doorbelld keeps its guests over a restart only with --exec-restart")
        return
    limit, used = (int(view.unit.get(key) or 0) for key in ("FileDescriptorStoreMax", "NFileDescriptorStore"))
    cure = "raise FileDescriptorStoreMax= (systemctl edit doorbelld); what the unit says beside it holds for you too"
    if not limit:
        yield wrong("the unit has none: a restart disconnects all guests", cure)
        return
    if used >= limit:
        yield wrong(f"it is full ({used} of {limit}): a restart disconnects guests", cure)
        return
    now = sum(len(r["peers"]) * (1 + r["vectors"]) for r in view.regions.values())
    full = sum(_cost(region) for region in view.regions.values())
    if full > limit:
        yield hint(f"{used} of {limit} in use, {now} for the peers of now; all regions full would need {full:,}", cure)
    else:
        yield fine(f"{used} of {limit} in use")


def datagrams(view: View) -> Iterator[Finding]:
    """The kernel queues enough datagrams that a burst of log lines and notifications gets through."""
    text = view.read("/proc/sys/net/unix/max_dgram_qlen").strip()
    if not view.unit or not text.isdecimal():
        yield skipped("no systemd to send datagrams to")
    elif int(text) < _QLEN_MIN:
        cure = "sysctl -w net.unix.max_dgram_qlen=512, and in /etc/sysctl.d to keep it"
        yield hint(f"net.unix.max_dgram_qlen is {text}: of a burst of log lines some are dropped (and counted)", cure)
    else:
        yield fine(f"net.unix.max_dgram_qlen is {text}")


def bus_policy(view: View) -> Iterator[Finding]:
    """The system bus lets the daemon's user own the name."""
    if not view.on_system_bus:
        yield skipped("the daemon is not on the system bus")
        return
    path = view.first_of(*_POLICY_FILES)
    if not path:
        cure = f"{_REINSTALL}; it puts {_POLICY_FILES[-1]} there"
        yield wrong("there is none for us: the system bus lets nobody be the daemon", cure)
        return
    user = view.daemon_user.name
    try:
        policy = ET.fromstring(view.read(path))
    except ET.ParseError as error:
        yield wrong(f"{path} can't be read: {error}", f"mend it, then systemctl reload dbus; or {_REINSTALL}")
        return
    if may_own(policy, user):
        yield fine(f"{path} lets {user} own {BUS_NAME}")
    else:
        cure = f'add <policy user="{user}"><allow own="{BUS_NAME}"/></policy>, then systemctl reload dbus'
        yield wrong(f"{path} does not let {user}, whom the daemon runs as, own {BUS_NAME}", cure)


def may_own(policy: ET.Element, user: str) -> bool:
    """Tell whether a bus *policy* lets *user* own our name; the last rule that matches counts (dbus-daemon(1))."""
    verdict = False
    for kind in _POLICY_ORDER:
        for part in policy.iter("policy"):
            who = part.get("context") or next((key for key in ("group", "user") if part.get(key)), "")
            if who != kind or (kind == "user" and part.get("user") != user) or kind == "group":
                continue
            for rule in part:
                prefix = rule.get("own_prefix")
                if rule.get("own") in (BUS_NAME, "*") or (prefix and f"{BUS_NAME}.".startswith(f"{prefix}.")):
                    verdict = rule.tag == "allow"
    return verdict


def activation(view: View) -> Iterator[Finding]:
    """A call to the name starts the daemon."""
    if not view.on_system_bus:
        yield skipped("the daemon is not on the system bus")
        return
    path = view.first_of(*_ACTIVATION_FILES)
    if not path:
        cure = f"{_REINSTALL}; it puts {_ACTIVATION_FILES[-1]} there"
        yield hint("a call does not start the daemon: the bus knows no service file of ours", cure)
        return
    parser = configparser.ConfigParser(interpolation=None, strict=False)
    try:
        parser.read_string(view.read(path))
        section = parser["D-BUS Service"]
    except (configparser.Error, KeyError) as error:
        yield wrong(f"{path} can't be read: {error}", _REINSTALL)
        return
    by_systemd, program = section.get("SystemdService", ""), (section.get("Exec", "").split() or [""])[0]
    if section.get("Name") != BUS_NAME:
        yield wrong(f"{path} is for the name {section.get('Name')}, not {BUS_NAME}", _REINSTALL)
    elif by_systemd and view.unit:
        yield fine(f"{path} has {by_systemd} started")
    elif program and view.place(program).exists():
        yield fine(f"{path} has {program} started")
    else:
        cure = f"{_REINSTALL}, with the PREFIX that it is to run from"
        yield wrong(f"{path} would start {program or 'nothing'}, which is not there", cure)


def polkit(view: View) -> Iterator[Finding]:
    """Our actions are known to polkit; without them only root and the daemon's user may do anything."""
    if not view.on_system_bus:
        yield skipped("the daemon is not on the system bus")
        return
    path = view.first_of(*_ACTION_FILES)
    if not view.first_of(_POLKIT):
        yield hint("it is not installed: calls of others than root are refused", "install polkitd (or polkit)")
        return
    if not path:
        cure = f"{_REINSTALL}; it puts {_ACTION_FILES[-1]} there"
        yield hint("it does not know our actions: calls of others than root are refused", cure)
        return
    try:
        there = {action.get("id", "").rpartition(".")[2] for action in ET.fromstring(view.read(path)).iter("action")}
    except ET.ParseError as error:
        yield wrong(f"{path} can't be read: {error}", _REINSTALL)
        return
    if missing := [action for action in ACTIONS if action not in there]:
        yield wrong(f"{path} lacks the actions {', '.join(missing)}", _REINSTALL)
    else:
        yield fine(f"{path} has the actions {', '.join(ACTIONS)}")
