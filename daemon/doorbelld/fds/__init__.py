# SPDX-FileCopyrightText: 2026 The doorbelld authors
# SPDX-License-Identifier: GPL-2.0-or-later
"""File descriptors: who owns them, where they come from, and what the kernel says of the other end.

`owned` has the owning types, `native` the system calls that are made in bulk or under guard, `listener` makes
listening sockets, `peercred` tells who is at the other end of one, `eventfd` and `limits` speak of eventfds and of
how many descriptors there may be.
"""
