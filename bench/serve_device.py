# SPDX-FileCopyrightText: 2026 The doorbelld authors
# SPDX-License-Identifier: GPL-2.0-or-later
"""serve_device.py TYPE SOCKET KEY=VALUE...: one device on a socket, by the daemon's own classes, without the daemon.

The values are TOML. It serves until it is terminated, and says on standard error why it dropped a front-end.
"""

from __future__ import annotations

import asyncio
import sys
import tomllib

from doorbelld.devices import find
from doorbelld.fds.spare import Spare
from doorbelld.vhost.backend import Backend
from doorbelld.vhost.events import DeviceEvent, FrontendDetached
from doorbelld.vhost.spec import DeviceSpec


def _told(event: DeviceEvent) -> None:
    if isinstance(event, FrontendDetached) and event.broken:
        print(event.reason, file=sys.stderr, flush=True)


async def _serve(kind: str, socket: str, keys: list[str]) -> None:
    table = {"type": kind, "socket": socket, **tomllib.loads("\n".join(keys))}
    backend = Backend.open(
        DeviceSpec.parse("bench", table, "device.bench", find), asyncio.get_running_loop(), _told, Spare()
    )
    try:
        await asyncio.Event().wait()
    finally:
        await backend.close()


if __name__ == "__main__":
    asyncio.run(_serve(sys.argv[1], sys.argv[2], sys.argv[3:]))
