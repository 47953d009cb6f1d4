# SPDX-FileCopyrightText: 2026 The doorbelld authors
# SPDX-License-Identifier: GPL-2.0-or-later
"""The bytes of D-Bus: what a message's header says, and how large its body may be."""
