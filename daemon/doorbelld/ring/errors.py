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
