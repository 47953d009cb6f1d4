# SPDX-FileCopyrightText: 2026 The doorbelld authors
# SPDX-License-Identifier: GPL-2.0-or-later
"""nouring.py IMAGE: forbid this process io_uring, as a container does, and use a disk all the same.

Prints who does what has to wait, the status of a flush, and what becomes of a device that insists on io_uring.
"""

from __future__ import annotations

import ctypes
import errno
import struct
import sys
from pathlib import Path

from doorbelld.devices.blk import Blk, BlkOptions
from doorbelld.devices.image import ImageUnavailable

from support.blkdriver import FLUSH, blk_driver

IO_URING_SETUP = 425
PR_SET_SECCOMP, PR_SET_NO_NEW_PRIVS = 22, 38
SECCOMP_MODE_FILTER = 2
LOAD_NUMBER, IF_EQUAL, RETURN = 0x20, 0x15, 0x06
RET_ERRNO, RET_ALLOW = 0x0005_0000, 0x7FFF_0000


class Program(ctypes.Structure):
    """struct sock_fprog."""

    _fields_ = (("length", ctypes.c_ushort), ("filter", ctypes.c_char_p))


def forbid(number: int) -> None:
    """Have the system call *number* fail with EPERM from now on."""
    steps = [
        (LOAD_NUMBER, 0, 0, 0),
        (IF_EQUAL, 0, 1, number),
        (RETURN, 0, 0, RET_ERRNO | errno.EPERM),
        (RETURN, 0, 0, RET_ALLOW),
    ]
    program = Program(len(steps), b"".join(struct.pack("HBBI", *step) for step in steps))
    libc = ctypes.CDLL(None, use_errno=True)
    for arguments in ((PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0), (PR_SET_SECCOMP, SECCOMP_MODE_FILTER, ctypes.byref(program))):
        if libc.prctl(*arguments):
            raise OSError(ctypes.get_errno(), "prctl")


def main() -> None:
    """See above."""
    image = Path(sys.argv[1])
    forbid(IO_URING_SETUP)
    with blk_driver(image) as driver:
        status = driver.request(FLUSH).status
        print(driver.device.aio, status)
    try:
        Blk(BlkOptions(str(image), aio="io_uring"))
    except ImageUnavailable as error:
        assert 'aio = "auto"' in str(error)
        print("refused")


if __name__ == "__main__":
    main()
