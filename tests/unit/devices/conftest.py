# SPDX-FileCopyrightText: 2026 The doorbelld authors
# SPDX-License-Identifier: GPL-2.0-or-later
"""A place for devices."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from support.devicesite import DeviceSite, device_site


@pytest.fixture
def site() -> Iterator[DeviceSite]:
    with device_site() as made:
        yield made
