# SPDX-FileCopyrightText: 2026 The doorbelld authors
# SPDX-License-Identifier: GPL-2.0-or-later
"""What a test needs of the machine: there, or the test is skipped, or (in CI) failed."""

import os
import shutil
from pathlib import Path

import pytest


def require(program_or_file: str, package: str) -> Path:
    """Return the path of a program (searched in PATH) or of a file (given with its folder).

    When it is missing the running test is skipped with the name of the Debian package that has it; with
    DOORBELLD_TEST_REQUIRE=all in the environment it fails instead.
    """
    if "/" in program_or_file:
        found = program_or_file if Path(program_or_file).exists() else None
    else:
        found = shutil.which(program_or_file)
    if found is not None:
        return Path(found)
    message = f"{program_or_file} is missing: install the Debian package {package}"
    if os.environ.get("DOORBELLD_TEST_REQUIRE") == "all":
        pytest.fail(message)
    pytest.skip(message)
