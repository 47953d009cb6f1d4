# SPDX-FileCopyrightText: 2026 The doorbelld authors
# SPDX-License-Identifier: GPL-2.0-or-later
"""Keepers: a satchel holds its own copies; what came back is owned by whoever takes it, and else closed."""

from __future__ import annotations

import os
from collections.abc import Iterator

import pytest
from doorbelld.fds import eventfd
from doorbelld.fds.keeper import Kept, Satchel
from doorbelld.fds.owned import Fd, FdSet
from support.fdcount import no_leaks
from support.rawclient import identity


@pytest.fixture
def bells() -> Iterator[FdSet]:
    with no_leaks():
        made = eventfd.make(3)
        yield made
        made.close()


def test_a_satchel_keeps_copies_until_they_are_dropped(bells: FdSet) -> None:
    satchel = Satchel()
    assert satchel.put("a", bells[0])
    assert satchel.put("b", bells[1])
    assert identity(satchel.copies["a"].fileno()) == identity(bells[0])
    assert satchel.copies["a"].fileno() != bells[0]
    assert not os.get_inheritable(satchel.copies["a"].fileno())
    number = satchel.copies["a"].fileno()
    satchel.drop("a")
    satchel.drop("a")
    satchel.drop("never there")
    assert list(satchel.copies) == ["b"]
    with pytest.raises(OSError, match="Bad file descriptor"):
        os.fstat(number)
    assert satchel.ready(lambda: None)
    satchel.close()
    satchel.close()
    assert satchel.copies == {}


def test_what_can_not_be_copied_is_not_kept(bells: FdSet) -> None:
    satchel = Satchel()
    with pytest.raises(OSError, match="Bad file descriptor"):
        satchel.put("a", 1 << 20)
    assert satchel.copies == {}


def kept(bells: FdSet, *names: str) -> Kept:
    return Kept({name: Fd(os.dup(bells[number % 3])) for number, name in enumerate(names)})


def test_what_is_taken_is_the_takers(bells: FdSet) -> None:
    found = kept(bells, "a", "b", "c")
    taken = found.take("b")
    assert taken is not None
    assert identity(taken.fileno()) == identity(bells[1])
    assert found.take("b") is None
    assert (list(found), len(found)) == (["a", "c"], 2)
    found.close()
    found.close()
    assert (list(found), len(found)) == ([], 0)
    assert identity(taken.fileno()) == identity(bells[1])
    taken.close()


def test_a_copy_leaves_the_original(bells: FdSet) -> None:
    found = kept(bells, "a")
    copy = found.copy("a")
    assert copy is not None
    assert found.copy("b") is None
    copy.close()
    original = found.take("a")
    assert original is not None
    assert identity(original.fileno()) == identity(bells[0])
    original.close()


def test_what_is_below_a_prefix_goes_by_the_rest_of_its_name(bells: FdSet) -> None:
    found = kept(bells, "r1.state", "r1.0", "r10.state", "r2.state", "r1.", "other")
    below = found.below("r1.")
    assert sorted(below) == ["", "0", "state"]
    assert sorted(found) == ["other", "r10.state", "r2.state"]
    assert len(found.below("r1.")) == 0
    below.close()
    found.close()


def test_it_may_be_taken_from_while_it_is_walked(bells: FdSet) -> None:
    found = kept(bells, "a", "b", "c")
    for name in found:
        taken = found.take(name)
        assert taken is not None
        taken.close()
    assert len(found) == 0
    assert len(Kept()) == 0
