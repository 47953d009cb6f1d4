# SPDX-FileCopyrightText: 2026 The doorbelld authors
# SPDX-License-Identifier: GPL-2.0-or-later
"""drive_device.py SOCKET READABLE WRITABLE DEPTH SECONDS: a front-end that keeps a device busy, by our own driver side.

Each request has so many bytes for the device to read and to write (0 for no buffer), in buffers of its own. The loop
that makes requests and takes them back is native (`doorbelld.ring.driver`), and sleeps when nothing comes back. Prints
one line of JSON: requests a second, and microseconds a request.
"""

from __future__ import annotations

import json
import sys

from doorbelld.vhost.frontend import Frontend

WARM_UP = 2000
"""Requests from which it is known how many fill the time."""
TABLE = 1024
"""Bytes that the driver side wants for each indirect table."""
RING = 128


def main(path: str, readable: int, writable: int, depth: int, seconds: float) -> None:
    """Drive the first queue."""
    with Frontend.connect(path, memory_size=4 << 20) as frontend:
        [queue] = frontend.start(1, RING)
        table = frontend.take(TABLE * depth)

        def buffer(size: int) -> list[tuple[int, int]]:
            return [(frontend.take(size, 64), size)] if size else []

        templates = [(buffer(readable), buffer(writable)) for _ in range(depth)]
        run = queue.drive(templates, WARM_UP, depth, table=table)
        count = max(int(WARM_UP / run.seconds * seconds), depth)
        run = queue.drive(templates, count, depth, table=table)
        if run.written != count * writable:
            sys.exit(f"{count} requests with room for {writable} bytes each came back with {run.written} in all")
    print(json.dumps({"per_second": count / run.seconds, "mean": run.seconds / count * depth * 1e6}))


if __name__ == "__main__":
    main(sys.argv[1], *map(int, sys.argv[2:5]), float(sys.argv[5]))
