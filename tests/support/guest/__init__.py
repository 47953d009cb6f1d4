# SPDX-FileCopyrightText: 2026 The doorbelld authors
# SPDX-License-Identifier: GPL-2.0-or-later
"""QEMU guests for tests: `image` builds what they boot, `vm` runs them."""
