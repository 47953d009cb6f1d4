# SPDX-FileCopyrightText: 2026 The doorbelld authors
# SPDX-License-Identifier: GPL-2.0-or-later
"""Build of the native modules; everything else is in pyproject.toml.

``DOORBELLD_DEBUG=1`` builds with line tracing, no optimisation and all of Cython's checks (``make debug``).
"""

import os

from Cython.Build import cythonize
from setuptools import Extension, setup

DEBUG = os.environ.get("DOORBELLD_DEBUG") == "1"


def extension(name: str) -> Extension:
    """Describe the native module *name*, whose source lies beside its package."""
    return Extension(
        name,
        [f"daemon/{name.replace('.', '/')}.pyx"],
        extra_compile_args=["-Wall", "-Wextra", "-Wno-unused-parameter", *(["-O0", "-g3"] if DEBUG else ["-O2"])],
        define_macros=[("_GNU_SOURCE", "1"), *([("CYTHON_TRACE", "1")] if DEBUG else [])],
    )


setup(
    ext_modules=cythonize(
        [extension("doorbelld.fds.native")],
        build_dir="build/cython",
        compiler_directives={
            "language_level": "3",
            "boundscheck": DEBUG,
            "wraparound": False,
            "linetrace": DEBUG,
        },
    )
)
