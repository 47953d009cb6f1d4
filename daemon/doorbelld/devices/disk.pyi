# SPDX-FileCopyrightText: 2026 The doorbelld authors
# SPDX-License-Identifier: GPL-2.0-or-later
from ..fds.owned import Fd

class Disk:
    def __init__(
        self,
        file: Fd,
        *,
        read_only: bool = False,
        direct: bool = False,
        discard: bool = True,
        serial: bytes = b"",
        memory_align: int = 1,
        block: int = 512,
    ) -> None: ...
    @property
    def file(self) -> Fd: ...
    capacity: int
    writethrough: bool
    inline: bool

def direct_alignment(fd: int) -> tuple[int, int] | None: ...
