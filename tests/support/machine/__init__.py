# SPDX-FileCopyrightText: 2026 The doorbelld authors
# SPDX-License-Identifier: GPL-2.0-or-later
"""A small Debian under a real systemd, in a container: `root` builds it, `container` boots it and talks with it."""
