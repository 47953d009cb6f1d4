# SPDX-FileCopyrightText: 2026 The doorbelld authors
# SPDX-License-Identifier: GPL-2.0-or-later
from __future__ import annotations

import os

from doorbelld.fds import eventfd
from doorbelld.fds.shelf import Shelf
from doorbelld.fds.vault import look_into
from support.busykeeper import Store
from support.fdcount import no_leaks


def test_names_that_begin_alike() -> None:
    with no_leaks():
        keeper = Store()
        shelf = Shelf(keeper, "x1.", ["old"])
        other = Shelf(keeper, "x2.")
        fds = eventfd.make(300)
        assert shelf.keep("one", fds[0])
        assert shelf.stow("many", list(fds))
        assert other.keep("one", fds[1])
        assert set(keeper.copies) == {"x1.one", "x1.many", "x2.one"}
        found = look_into(keeper.copies["x1.many"])
        assert len(found) == 300
        found.close()
        shelf.drop("one")
        shelf.drop("one")
        shelf.drop("never")
        assert set(keeper.copies) == {"x1.many", "x2.one"}
        shelf.drop_others({"many"})
        assert set(keeper.copies) == {"x1.many", "x2.one"}
        shelf.drop_all()
        other.drop_all()
        assert not keeper.copies
        fds.close()


def test_no_room() -> None:
    with no_leaks():
        keeper = Store()
        shelf = Shelf(keeper, "x1.")
        keeper.room = 0
        assert not shelf.keep("one", 0)
        assert not shelf.stow("many", [0])
        assert not shelf.stow("many", [1 << 20])
        keeper.busy = True
        assert not shelf.ready(os.getpid)
        assert keeper.waiting == [os.getpid]
