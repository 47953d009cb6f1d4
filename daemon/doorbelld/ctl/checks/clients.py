# SPDX-FileCopyrightText: 2026 The doorbelld authors
# SPDX-License-Identifier: GPL-2.0-or-later
"""Whether clients and flat devices are in the regions that they are to join, and if not, why."""

from __future__ import annotations

import stat
from collections.abc import Iterator, Mapping
from typing import Any

from .access import WRITE, barrier
from .view import Finding, View, fine, hidden, skipped, wrong


def joined(view: View) -> Iterator[Finding]:
    """Each client and flat device is connected to its server."""
    things = [("client", name, one) for name, one in view.clients.items()]
    things += [("flat device", name, one) for name, one in view.flats.items()]
    if not things:
        yield skipped("there is no client and no flat device")
    for word, name, one in things:
        if one["state"] == "connected":
            yield fine(f'{word} "{name}" is connected to {one["socket"]}, as peer {one["id"]}')
        else:
            cause = one["reason"].partition("; ")[0]
            yield wrong(f'{word} "{name}" is {one["state"]}: {cause}', _cure(view, one))


def _cure(view: View, one: Mapping[str, Any]) -> str:
    """Say what helps: what can be seen from here says more than the error that the daemon got."""
    path, user = one["socket"], view.daemon_user
    if view.of_unit and path.startswith(hidden(view.unit)):
        where = f"BindPaths={path.rpartition('/')[0]}, below [Service]"
        return f"the sandbox of the unit hides it: systemctl edit doorbelld: {where}; or have the server elsewhere"
    try:
        mode = view.place(path).stat().st_mode
    except FileNotFoundError:
        return f"start the server that listens at {path}; or is it another path?"
    except OSError as error:
        return f"{path}: {error.strerror}; ask as root"
    if not stat.S_ISSOCK(mode):
        return f"{path} is no socket; name that of an ivshmem server"
    if (found := barrier(view, path, user, WRITE)) is not None:
        return f"{user.name}, whom the daemon runs as, may not pass {found[1]}: have the server let its group in"
    if view.served(path) is False:
        return f"nobody listens at {path}; start the server"
    if one["state"] == "broken":
        again = "it tries again" if one["reconnect"] else "set reconnect, or make it anew"
        return f"is it an ivshmem server that listens at {path}, and does it admit us? Its log may say more; {again}"
    return f"a server is there, but does not greet: is the one at {path} stopped, or no ivshmem server?"
