# SPDX-FileCopyrightText: 2026 The doorbelld authors
# SPDX-License-Identifier: GPL-2.0-or-later
"""Makes all pages into the directory that the one argument names."""

import sys
from pathlib import Path

from .pages import Unwritten, build

try:
    build(Path(sys.argv[1]))
except Unwritten as error:
    sys.exit(f"manual pages: {error}")
