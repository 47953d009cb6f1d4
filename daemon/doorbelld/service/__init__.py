# SPDX-FileCopyrightText: 2026 The doorbelld authors
# SPDX-License-Identifier: GPL-2.0-or-later
"""systemd and the log: readiness, and what happens in regions told in lines that a person reads."""
