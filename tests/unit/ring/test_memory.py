# SPDX-FileCopyrightText: 2026 The doorbelld authors
# SPDX-License-Identifier: GPL-2.0-or-later
from __future__ import annotations

import mmap
import os
from collections.abc import Iterator

import pytest
from doorbelld.ring.errors import GuestMemoryError
from doorbelld.ring.memory import SLOTS_MAX, MemoryMap
from hypothesis import given, settings
from hypothesis import strategies as st
from support.apart import run_python as run
from support.fdcount import no_leaks
from support.rings import guest

PAGE = mmap.PAGESIZE
SIGBUS = 7


@pytest.fixture
def fd() -> Iterator[int]:
    with no_leaks():
        made = os.memfd_create("guest")
        os.ftruncate(made, 64 * PAGE)
        yield made
        os.close(made)


def mapped_bytes(fd: int) -> int:
    """How much of the file behind *fd* is mapped in this process."""
    inode = os.fstat(fd).st_ino
    total = 0
    with open("/proc/self/maps") as maps:
        for line in maps:
            span, _, _, _, found, *_ = line.split()
            if int(found) == inode and "memfd" in line:
                low, high = span.split("-")
                total += int(high, 16) - int(low, 16)
    return total


def test_addresses_of_the_guest_are_translated_across_regions(fd: int) -> None:
    memory = MemoryMap()
    memory.set_table([(0x2000, 0x1000, 0, 0x5000, fd), (0x1000, 0x1000, 0, 0, fd)])
    memory.write(0x1FFC, b"lowhigh!")
    assert os.pread(fd, 4, 0xFFC) == b"lowh"
    assert os.pread(fd, 4, 0x5000) == b"igh!"
    assert memory.read(0x1FFC, 8) == b"lowhigh!"
    assert [len(view) for view in memory.views(0x1FFC, 8)] == [4, 4]
    assert memory.views(0x1000, 0) == []


@pytest.mark.parametrize(("addr", "length"), [(0, 1), (0xFFF, 2), (0x2FFF, 2), (0x3000, 1), (2**64 - 1, 2), (0, 2**63)])
def test_what_is_not_all_in_memory_is_refused(fd: int, addr: int, length: int) -> None:
    memory = MemoryMap()
    memory.set_table([(0x1000, 0x2000, 0, 0, fd)])
    with pytest.raises(GuestMemoryError, match="not, or not all, in guest memory"):
        memory.views(addr, length)


@pytest.mark.parametrize("addr", [-1, 1 << 64])
def test_what_is_no_address_is_refused(addr: int) -> None:
    with pytest.raises(GuestMemoryError):
        MemoryMap().views(addr, 1)


def test_a_region_that_does_not_begin_at_a_page_of_its_file(fd: int) -> None:
    memory = MemoryMap()
    memory.set_table([(0x1234, 0x1000, 0, 0x234, fd)])
    os.pwrite(fd, b"here", 0x234)
    os.pwrite(fd, b"end!", 0x1230)
    assert memory.read(0x1234, 4) == b"here"
    assert memory.read(0x2230, 4) == b"end!"
    with pytest.raises(GuestMemoryError):
        memory.read(0x1233, 1)
    with pytest.raises(GuestMemoryError):
        memory.read(0x2234, 1)


def test_huge_pages_are_mapped_at_their_boundaries() -> None:
    huge = 2 << 20
    fd = os.memfd_create("huge", os.MFD_HUGETLB | os.MFD_HUGE_2MB)
    os.ftruncate(fd, 2 * huge)
    memory = MemoryMap()
    memory.set_table([(0, huge, 0, PAGE, fd)])  # neither the offset nor the end is at a boundary
    assert memory.regions[0].error == ""
    # where the machine has no huge pages to give, the guard steps in, with pages as huge as those
    memory.write(huge - 4, b"last")
    assert memory.read(huge - 4, 4) == b"last"
    memory.close()
    os.close(fd)


@pytest.mark.parametrize(
    ("region", "said"),
    [
        ((0, 0, 0, 0), "is empty"),
        ((2**64 - 0x1000, 0x1001, 0, 0), "guest address 0xfffffffffffff000 .* wraps around"),
        ((0, 0x1000, 2**64 - 0xFFF, 0), "user address .* wraps around"),
        ((-1, 0x1000, 0, 0), "wraps around"),
        ((0, 0x1000, 0, 2**63 - 1), "beyond the end of any file"),
        ((0, 0x1000, 0, -4096), "beyond the end of any file"),
    ],
)
def test_a_region_that_can_not_be_is_refused(fd: int, region: tuple[int, int, int, int], said: str) -> None:
    memory = MemoryMap()
    memory.set_table([(0x10000, 0x1000, 0, 0, fd)])
    before = memory.generation
    for change in (lambda: memory.set_table([(*region, fd)]), lambda: memory.add(*region, fd)):
        with pytest.raises(GuestMemoryError, match=said):
            change()
    assert memory.generation == before
    assert memory.read(0x10000, 1) == b"\0"


@pytest.mark.parametrize("addr", [0x1000, 0x1FFF, 0x800, 0])
def test_overlapping_regions_are_refused(fd: int, addr: int) -> None:
    memory = MemoryMap()
    memory.set_table([(0x1000, 0x1000, 0, 0, fd)])
    with pytest.raises(GuestMemoryError, match="overlap"):
        memory.add(addr, 0x2000, 0x100000, 0, fd)
    with pytest.raises(GuestMemoryError, match="overlap"):
        memory.set_table([(addr, 0x2000, 0x100000, 0, fd), (0x1000, 0x1000, 0, 0, fd)])
    assert len(memory.regions) == 1


def test_509_regions_and_not_one_more(fd: int) -> None:
    memory = MemoryMap()
    assert SLOTS_MAX == 509
    for i in range(SLOTS_MAX):
        memory.add(i * PAGE, PAGE, 0, 0, fd)
    memory.write(SLOTS_MAX * PAGE - 1, b"x")
    with pytest.raises(GuestMemoryError, match="509"):
        memory.add(SLOTS_MAX * PAGE, PAGE, 0, 0, fd)
    with pytest.raises(GuestMemoryError, match="510"):
        memory.set_table([(i * PAGE, PAGE, 0, 0, fd) for i in range(SLOTS_MAX + 1)])
    memory.close()
    assert mapped_bytes(fd) == 0


def test_remove_matches_guest_address_user_address_and_size(fd: int) -> None:
    memory = MemoryMap()
    memory.add(0x1000, 0x1000, 0xA000, 0, fd)
    for wrong in ((0x2000, 0x1000, 0xA000), (0x1000, 0x2000, 0xA000), (0x1000, 0x1000, 0xB000)):
        with pytest.raises(GuestMemoryError, match="to remove"):
            memory.remove(*wrong)
    memory.remove(0x1000, 0x1000, 0xA000)
    assert memory.regions == []
    assert mapped_bytes(fd) == 0


def test_every_change_is_a_generation(fd: int) -> None:
    memory = MemoryMap()
    seen = {memory.generation}
    memory.set_table([(0, PAGE, 0, 0, fd)])
    seen.add(memory.generation)
    memory.add(PAGE, PAGE, 0, 0, fd)
    seen.add(memory.generation)
    memory.remove(PAGE, PAGE, 0)
    seen.add(memory.generation)
    memory.close()
    seen.add(memory.generation)
    assert len(seen) == 5


def test_a_view_keeps_the_memory_over_a_change(fd: int) -> None:
    memory = MemoryMap()
    memory.set_table([(0, PAGE, 0, 0, fd)])
    (view,) = memory.views(0, 4)
    memory.close()
    view[:] = b"kept"
    assert os.pread(fd, 4, 0) == b"kept"
    assert mapped_bytes(fd) == PAGE
    view.release()
    assert mapped_bytes(fd) == 0


def test_a_view_to_read_is_no_view_to_write(fd: int) -> None:
    memory = MemoryMap()
    memory.set_table([(0, PAGE, 0, 0, fd)])
    (view,) = memory.views(0, 4, readonly=True)
    with pytest.raises(TypeError):
        view[0] = 1


def test_a_region_that_can_not_be_mapped_is_tolerated_and_named_when_touched(fd: int) -> None:
    read, write = os.pipe()
    memory = MemoryMap()
    memory.set_table([(0, PAGE, 0, 0, fd), (PAGE, PAGE, 0, 0, read), (2 * PAGE, PAGE, 0, 0, -1)])
    os.close(read)
    os.close(write)
    memory.write(0, b"fine")
    assert [bool(region.error) for region in memory.regions] == [False, True, True]
    for addr in (PAGE - 1, PAGE, 2 * PAGE):
        with pytest.raises(GuestMemoryError, match=r"could not be mapped: .*share=on missing"):
            memory.views(addr, 2)
    with pytest.raises(GuestMemoryError, match=f"region {PAGE:#x}"):
        memory.views(PAGE, 1)


def test_a_file_that_is_too_short_is_named(fd: int) -> None:
    memory = MemoryMap()
    memory.set_table([(0, 65 * PAGE, 0, 0, fd)])
    with pytest.raises(GuestMemoryError, match="its file ends at"):
        memory.views(0, 1)


@given(st.lists(st.tuples(st.integers(0, 40), st.integers(1, 6)), max_size=12), st.integers(0, 50), st.integers(0, 60))
@settings(max_examples=60, deadline=None)
def test_translation_agrees_with_a_model(spans: list[tuple[int, int]], start: int, length: int) -> None:
    """Addresses in units of a page; the model is a dictionary of pages."""
    model: dict[int, int] = {}
    table = []
    fd = os.memfd_create("guest")
    os.ftruncate(fd, 128 * PAGE)
    for first, count in spans:
        if any(first + i in model for i in range(count)):
            continue
        offset = len(model)
        table.append((first * PAGE, count * PAGE, 0, offset * PAGE, fd))
        model.update({first + i: offset + i for i in range(count)})
    memory = MemoryMap()
    memory.set_table(table)
    for page, where in model.items():
        os.pwrite(fd, b"%4d" % page, where * PAGE)
    pages = range(start, start + length)
    if all(page in model for page in pages):
        found = memory.read(start * PAGE, length * PAGE)
        assert [int(found[i * PAGE : i * PAGE + 4]) for i in range(length)] == list(pages)
    else:
        with pytest.raises(GuestMemoryError):
            memory.read(start * PAGE, length * PAGE)
    memory.close()
    os.close(fd)


def test_a_truncated_file_breaks_the_map_and_nothing_else() -> None:
    with guest(((0, 16 * PAGE), (16 * PAGE, 16 * PAGE))) as broken, guest() as other:
        os.ftruncate(broken.fds[1], 4 * PAGE)
        assert broken.memory.read(16 * PAGE, 4 * PAGE) == bytes(4 * PAGE)
        assert broken.memory.broken == ""
        assert broken.memory.read(21 * PAGE, 4) == bytes(4)
        assert broken.memory.broken.startswith(f"guest memory at {21 * PAGE:#x} and above is gone")
        broken.memory.write(31 * PAGE, b"zero")
        assert broken.memory.read(31 * PAGE, 4) == b"zero"
        other.memory.write(0, b"fine")
        assert other.memory.broken == ""
        broken.memory.set_table(broken.table[:1])
        assert broken.memory.broken == ""


SETUP = """
    import ctypes, mmap, os, signal
    from doorbelld.ring.memory import MemoryMap
    fd = os.memfd_create("guest")
    os.ftruncate(fd, 1 << 16)
    foreign = mmap.mmap(fd, 1 << 16)
"""
GUARDED = """
    memory = MemoryMap()
    memory.set_table([(0, 1 << 16, 0, 0, fd)])
    os.ftruncate(fd, 0)
    memory.read(0, 4)
    assert memory.broken
"""


def test_a_fault_elsewhere_kills_as_before() -> None:
    done = run(SETUP + GUARDED + "    foreign[0]\n")
    assert done.returncode == -SIGBUS, done.stderr


def test_a_fault_elsewhere_goes_to_the_handler_that_was_there() -> None:
    done = run(SETUP + "    import faulthandler; faulthandler.enable()\n" + GUARDED + "    foreign[0]\n")
    assert done.returncode == -SIGBUS
    assert "Fatal Python error: Bus error" in done.stderr


def test_a_signal_that_is_sent_kills_as_before() -> None:
    done = run(SETUP + GUARDED + "    os.kill(os.getpid(), signal.SIGBUS)\n")
    assert done.returncode == -SIGBUS


def test_a_signal_that_was_ignored_still_is() -> None:
    done = run(
        SETUP
        + "    signal.signal(signal.SIGBUS, signal.SIG_IGN)\n"
        + GUARDED
        + "    os.kill(os.getpid(), signal.SIGBUS)\n    print('alive')\n"
    )
    assert (done.returncode, done.stdout) == (0, "alive\n"), done.stderr


@pytest.mark.parametrize("left", [0, 1, 2])
def test_a_process_that_may_map_no_more_survives_too(left: int) -> None:
    """The guard replaces a mapping as a whole where it can't cut it in two."""
    done = run(
        SETUP
        + """
    memory = MemoryMap()
    memory.set_table([(0, 1 << 16, 0, 0, fd)])
    memory.read(1 << 15, 4)
    libc = ctypes.CDLL(None, use_errno=True)
    libc.mmap.restype = ctypes.c_void_p
    libc.mmap.argtypes = [ctypes.c_void_p, ctypes.c_size_t, *[ctypes.c_int] * 3, ctypes.c_long]
    libc.munmap.argtypes = [ctypes.c_void_p, ctypes.c_size_t]
    other = os.memfd_create("other")
    os.ftruncate(other, 4096)
    os.ftruncate(fd, 1 << 12)
    failed = ctypes.c_void_p(-1).value
    while (at := libc.mmap(None, 4096, mmap.PROT_READ, mmap.MAP_SHARED, other, 0)) != failed:
        last = at
    for page in range(LEFT):
        libc.munmap(last + page * 4096, 4096)
    memory.read(1 << 15, 4)
    print(memory.broken)
""".replace("LEFT", str(left))
    )
    assert (done.returncode, "is gone" in done.stdout) == (0, True), done.stderr
