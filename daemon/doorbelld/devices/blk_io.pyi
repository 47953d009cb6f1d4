# SPDX-FileCopyrightText: 2026 The doorbelld authors
# SPDX-License-Identifier: GPL-2.0-or-later
from typing import NamedTuple

from ..ring.queue import VirtQueue
from ..ring.worker import Worker
from .disk import Disk

SECTOR: int
ID_BYTES: int
SEGMENTS_MAX: int
RANGE_SECTORS_MAX: int

class Served(NamedTuple):
    inline: int
    deferred: int

class DiskQueue:
    def __init__(self, disk: Disk, queue: VirtQueue, *, threads: bool = False) -> None: ...
    @property
    def disk(self) -> Disk: ...
    @property
    def queue(self) -> VirtQueue: ...
    @property
    def served(self) -> Served: ...
    def attach(self, worker: Worker) -> None: ...
    def detach(self, worker: Worker) -> None: ...

def uring_permitted() -> bool: ...
