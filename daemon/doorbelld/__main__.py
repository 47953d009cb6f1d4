# SPDX-FileCopyrightText: 2026 The doorbelld authors
# SPDX-License-Identifier: GPL-2.0-or-later
"""``python -m doorbelld`` is ``doorbelld``."""

from .main import main

main()
