# SPDX-FileCopyrightText: 2026 The doorbelld authors
# SPDX-License-Identifier: GPL-2.0-or-later
"""Build of the native modules; everything else is in pyproject.toml.

``DOORBELLD_DEBUG=1`` builds with line tracing, no optimisation and all of Cython's checks (``make debug``).
``DOORBELLD_SANITIZE=1`` builds with the address and undefined behaviour sanitizers, and with the coverage that fuzzers
go by. A program that loads the result needs the sanitizers in LD_PRELOAD: tests/support/sanitized.py makes both.
"""

import os
from glob import glob

from Cython.Build import cythonize
from setuptools import Extension, setup

DEBUG = os.environ.get("DOORBELLD_DEBUG") == "1"
SANITIZE = os.environ.get("DOORBELLD_SANITIZE") == "1"
SANITIZERS = (
    [
        "-fsanitize=address,undefined",
        "-fno-sanitize-recover=undefined",
        "-fsanitize-coverage=trace-pc,trace-cmp",
        "-include",
        "tests/support/coverage.h",
    ]
    if SANITIZE
    else []
)
OPTIMISATION = ["-O0", "-g3"] if DEBUG else ["-O1", "-g", "-fno-omit-frame-pointer"] if SANITIZE else ["-O2"]

RING = "daemon/doorbelld/ring"
"""Where the headers behind the ring layer's C faces are, for devices that use those."""
FDS = "daemon/doorbelld/fds"
"""Where the guard of calls that may block is."""


def extension(name: str) -> Extension:
    """Describe the native module *name*, whose source lies beside its package."""
    source = f"daemon/{name.replace('.', '/')}.pyx"
    headers = os.path.dirname(source)
    return Extension(
        name,
        [source],
        include_dirs=[headers, RING, FDS],
        depends=[*glob(f"{headers}/*.h"), *glob(f"{RING}/*.h"), *glob(f"{FDS}/*.h")],
        extra_compile_args=["-Wall", "-Wextra", "-Wno-unused-parameter", *OPTIMISATION, *SANITIZERS],
        define_macros=[("_GNU_SOURCE", "1"), *([("CYTHON_TRACE", "1")] if DEBUG else [])],
    )


setup(
    ext_modules=cythonize(
        [
            extension("doorbelld.fds.bells"),
            extension("doorbelld.fds.native"),
            extension("doorbelld.ivshmem.forwarder"),
            extension("doorbelld.ivshmem.table"),
            extension("doorbelld.ring.memory"),
            extension("doorbelld.ring.split"),
            extension("doorbelld.ring.chain"),
            extension("doorbelld.ring.queue"),
            extension("doorbelld.ring.loop"),
            extension("doorbelld.ring.worker"),
            extension("doorbelld.ring.driver"),
            extension("doorbelld.ring.echo"),
            extension("doorbelld.devices.blk_io"),
            extension("doorbelld.devices.disk"),
            extension("doorbelld.devices.rng_io"),
        ],
        include_path=["daemon"],
        build_dir="build/cython",
        compiler_directives={
            "language_level": "3",
            "boundscheck": DEBUG,
            "wraparound": False,
            "linetrace": DEBUG,
        },
    )
)
