# SPDX-FileCopyrightText: 2026 The doorbelld authors
# SPDX-License-Identifier: GPL-2.0-or-later
"""What a caller can get wrong about a device."""

from ..errors import DoorbellError


class NoSuchQueue(DoorbellError):
    """The device has no queue of that number."""


class NotConnected(DoorbellError):
    """No front-end is there."""


class NotRunning(DoorbellError):
    """The queue does not run."""


class DeviceFaulty(DoorbellError):
    """The code of a device raised an error or gave a wrong value; ``__cause__`` is the error, the text names both."""
