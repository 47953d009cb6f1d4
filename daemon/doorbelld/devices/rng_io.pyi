# SPDX-FileCopyrightText: 2026 The doorbelld authors
# SPDX-License-Identifier: GPL-2.0-or-later
from ..ring.queue import VirtQueue
from ..ring.worker import Worker

PIECE_MAX: int

class Source:
    def __init__(self, queue: VirtQueue, rate: int = 0) -> None: ...
    def attach(self, worker: Worker) -> None: ...
    def detach(self, worker: Worker) -> None: ...
