# SPDX-FileCopyrightText: 2026 The doorbelld authors
# SPDX-License-Identifier: GPL-2.0-or-later
from __future__ import annotations

import os
import resource

import pytest
from doorbelld.fds.spare import Spare
from support.fdcount import no_leaks


def test_lent_makes_room_for_exactly_one() -> None:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    with no_leaks():
        spare = Spare()
        lowest = os.open("/dev/null", os.O_RDONLY)
        os.close(lowest)
        try:
            resource.setrlimit(resource.RLIMIT_NOFILE, (lowest, hard))
            with pytest.raises(OSError):
                os.open("/dev/null", os.O_RDONLY)
            for _ in range(2):
                with spare.lent() as had:
                    assert had
                    os.close(os.open("/dev/null", os.O_RDONLY))
            with spare.lent():
                kept = os.open("/dev/null", os.O_RDONLY)  # somebody else was quicker: the spare is lost
            with spare.lent() as had:
                assert not had
            os.close(kept)
            with spare.lent() as had:
                assert not had
            with spare.lent() as had:  # taken again as soon as there was room
                assert had
        finally:
            resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
        spare.close()
        spare.close()
