# SPDX-FileCopyrightText: 2026 The doorbelld authors
# SPDX-License-Identifier: GPL-2.0-or-later
"""The tests of native code, with native modules that watch themselves.

They are built with the address and the undefined behaviour sanitizer, and run in an interpreter with their runtimes
(tests/support/sanitized.py). Memory that a module allocated itself and lost is looked for in the end.
"""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest
from support import sanitized

TESTS = [
    "tests/unit/ring",
    "tests/unit/devices",
    "tests/unit/fds/test_native.py",
    "tests/unit/fds/test_bells.py",
    "tests/unit/ivshmem/test_forwarder.py",
    "tests/unit/vhost/test_hostile.py",
    "tests/unit/wire/test_vhost.py",
]
LEFT_OUT = [
    "test_a_killed_sender_leaves_no_doubt",  # it asks for chances that a slower program does not give
    "test_a_killed_reader_of_counters_leaves_no_doubt",
    "test_a_process_that_may_map_no_more_survives_too",  # a sanitizer does not
    "test_front_ends_that_are_killed_under_load_leave_nothing_behind",  # long, and not about native code
]
DEADLINE = 600.0

OVERFLOW = """
import ctypes
libc = ctypes.CDLL(None)
libc.malloc.restype = ctypes.c_void_p
libc.memset.argtypes = (ctypes.c_void_p, ctypes.c_int, ctypes.c_size_t)
libc.memset(libc.malloc(16), 0, 17)
"""
FORBIDDEN = """
import ctypes
from support.rings import RING_AT, guest
poison = ctypes.CDLL(None).__asan_poison_memory_region
poison.argtypes = (ctypes.c_void_p, ctypes.c_size_t)
with guest() as made:
    ring = made.ring(8)
    ring.driver.add([(0x40000, 16)])
    (view,) = made.memory.views(RING_AT, 16)
    poison(ctypes.addressof(ctypes.c_char.from_buffer(view)), 16)
    ring.queue.pop()
"""
LOST = """
import ctypes
from doorbelld.ring.memory import MemoryMap
from doorbelld.ring.queue import VirtQueue
for _ in range({times}):
    queue = VirtQueue(MemoryMap())
    queue.set_num(128)
    lost = ctypes.py_object(queue)  # nobody finds it any more, and it is never freed
    ctypes.pythonapi.PyObject_GC_UnTrack(lost)
    ctypes.pythonapi.Py_IncRef(lost)
    del queue, lost
"""


@pytest.fixture(scope="module")
def library() -> Path:
    return sanitized.build()


def run(library: Path, *arguments: str, leaks: bool = False) -> subprocess.CompletedProcess[str]:
    """Run the interpreter with that."""
    return subprocess.run(
        [sys.executable, *arguments],
        env=sanitized.environment(library, leaks=leaks),
        cwd=sanitized.ROOT,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=DEADLINE,
        check=False,
    )


def test_tests_of_native_code(library: Path) -> None:
    names = " and ".join(f"not {name}" for name in LEFT_OUT)
    done = run(library, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-k", names, *TESTS, leaks=True)
    assert re.search(r"^\d+ passed, \d+ deselected", done.stdout, re.MULTILINE), done.stdout[-8000:]
    assert "ERROR: AddressSanitizer" not in done.stdout and "runtime error: " not in done.stdout, done.stdout[-8000:]
    assert sanitized.native_leaks(done.stdout) == []


def test_it_is_these_modules_that_are_loaded(library: Path) -> None:
    done = run(library, "-c", "import doorbelld.ring.split as split; print(split.__file__)")
    assert Path(done.stdout.strip()).is_relative_to(library)
    for module in library.rglob("*.so"):
        raw = module.read_bytes()
        assert b"__asan_report_load" in raw and b"__ubsan_handle" in raw, module


def test_writing_beyond_the_end_is_noticed(library: Path) -> None:
    done = run(library, "-c", OVERFLOW)
    assert done.returncode == sanitized.FOUND and "heap-buffer-overflow" in done.stdout


def test_modules_watch_what_they_read(library: Path) -> None:
    done = run(library, "-c", FORBIDDEN)
    assert done.returncode == sanitized.FOUND and "use-after-poison" in done.stdout, done.stdout
    assert "doorbelld_4ring_5split" in done.stdout, done.stdout


def test_what_a_module_lost_is_noticed(library: Path) -> None:
    found = [
        sanitized.native_leaks(run(library, "-c", LOST.format(times=times), leaks=True).stdout) for times in range(2)
    ]
    assert not found[0] and found[1] and all("VirtQueue" in leak for leak in found[1]), found
