# SPDX-FileCopyrightText: 2026 The doorbelld authors
# SPDX-License-Identifier: GPL-2.0-or-later
"""What goes wrong with guest memory and queues."""

from ..errors import DoorbellError


class GuestMemoryError(DoorbellError):
    """A memory table that can't be, or an address outside of guest memory."""


class QueueError(DoorbellError):
    """A queue set up in a way that can't be, or used in a state that does not allow it."""


class QueueBroken(QueueError):
    """The driver broke the rules of the ring; the queue does nothing more until it is set up anew."""


class StaleChain(QueueError):
    """The chain was pushed, taken back, or made before the memory or the ring changed."""


BROKEN = (
    "",
    "the available index went to {0}, further ahead than the ring has entries",
    "descriptor {0} was made available, which the ring does not have",
    "descriptor {0} was made available again while it was in flight",
    "a chain goes on at descriptor {0}, which its table does not have",
    "the chain at descriptor {0} loops",
    "an indirect table holds another (at descriptor {0} in it)",
    "descriptor {0} refers to an indirect table and goes on besides",
    "an indirect table has {0} bytes, not a multiple of 16 above 0",
    "descriptor {0} refers to an indirect table, but VIRTIO_F_INDIRECT_DESC was not negotiated",
    "a buffer for the device to read (descriptor {0}) follows one for it to write",
    "the buffer of descriptor {0} has no bytes",
    "the chain at descriptor {0} has more than 2^32 bytes",
    "a chain has more than {0} buffers",
    "there was no memory for a chain of {0} buffers",
)
"""Why a ring is broken, by ``broken_t`` (split.pxd), with the number that it is about."""
