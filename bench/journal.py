# SPDX-FileCopyrightText: 2026 The doorbelld authors
# SPDX-License-Identifier: GPL-2.0-or-later
"""What an event in the journal costs us, in CPU time of the process that logs.

All of it counts: structlog, finding the place in the source, rendering, and the system call. The reader, which stands
in for journald, is a process of its own; after each batch the writer waits for it, so nothing is lost, which would be
cheaper, and everything is counted.
"""

from __future__ import annotations

import contextlib
import logging
import logging.handlers
import os
import signal
import socket
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from statistics import median

import structlog
from doorbelld.log import set_up
from doorbelld.service.journal import Journal
from support import Malfunction, Options, Report, Row, by_turns, directory, main

BATCH = 8
"""Events at a time; a datagram socket may hold as few as eleven."""
TARGET = 20.0
"""Microseconds for an event: 10,000 of them take a fifth of a second."""


@contextlib.contextmanager
def reader(path: Path) -> Iterator[Callable[[], None]]:
    """Run the other end of the socket; yields what waits until it has read a batch more."""
    cpus = sorted(os.sched_getaffinity(0))
    told, tell = os.pipe()
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as inbox:
        inbox.bind(os.fspath(path))
        if (pid := os.fork()) == 0:
            os.sched_setaffinity(0, cpus[-1:])
            while True:
                for _ in range(BATCH):
                    inbox.recv(1 << 16)
                os.write(tell, b".")
    os.sched_setaffinity(0, cpus[:1])
    try:
        yield lambda: _wait(told)
    finally:
        os.sched_setaffinity(0, cpus)
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)
        os.close(told)
        os.close(tell)


def _wait(told: int) -> None:
    if os.read(told, 1) != b".":
        raise Malfunction("the reader has ended")


def cost(batches: int, say: Callable[[int], None], wait: Callable[[], None]) -> float:
    """Log, a batch at a time: CPU microseconds per event."""
    before = time.process_time()
    for _ in range(batches):
        for number in range(BATCH):
            say(number)
        wait()
    return (time.process_time() - before) / (batches * BATCH) * 1e6


def benchmark(options: Options, report: Report) -> None:
    """Log that a peer joined: through our sink; through the syslog handler of Python; and the bare system call."""
    batches = 200 if options.quick else 5000
    log = structlog.get_logger()
    stdlib = logging.getLogger("bench")
    stdlib.propagate = False
    stdlib.setLevel(logging.INFO)

    def ours(number: int) -> None:
        log.info("peer joined", region="demo", peer=number, vm="guest1", pid=4242, uid=64055, unit="g1.scope")

    def syslog(number: int) -> None:
        text = "peer joined region=%s peer=%d vm=%s pid=%d uid=%d unit=%s"
        stdlib.info(text, "demo", number, "guest1", 4242, 64055, "g1.scope")

    with directory() as place, Journal(str(place / "socket")) as journal:
        set_up("info", journal)
        with reader(place / "socket") as wait, socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as bare:
            stdlib.addHandler(logging.handlers.SysLogHandler(str(place / "socket")))
            path, datagram = os.fsencode(place / "socket"), b"x" * 400

            def sendto(_: int) -> None:
                bare.sendto(datagram, path)

            sides = {"ours": ours, "syslog": syslog, "sendto": sendto}
            turns = {name: lambda say=say: cost(batches, say, wait) for name, say in sides.items()}
            results = by_turns(turns, options.rounds)
        if journal.lost:
            raise Malfunction(f"{journal.lost} events did not get through")
        report.add(Row.against("an event, against SysLogHandler", "us", results["ours"], results["syslog"]))
        report.add(Row.against("an event, against a bare sendto", "us", results["ours"], results["sendto"]))
        report.add(Row("an event", median(results["ours"]), "us", target=TARGET))
        lost = cost(batches, ours, lambda: None)  # nobody reads any more
        if journal.lost != batches * BATCH:
            raise Malfunction("events got through to nobody")
        report.add(Row("an event that is lost", lost, "us", target=TARGET))


if __name__ == "__main__":
    main("journal", benchmark, rounds=7)
