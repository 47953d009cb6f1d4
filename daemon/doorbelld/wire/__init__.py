# SPDX-FileCopyrightText: 2026 The doorbelld authors
# SPDX-License-Identifier: GPL-2.0-or-later
"""Sans-I/O codecs: bytes and descriptors in, typed messages out, and back. No socket and no event loop here."""
