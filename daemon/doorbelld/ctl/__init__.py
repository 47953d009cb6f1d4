# SPDX-FileCopyrightText: 2026 The doorbelld authors
# SPDX-License-Identifier: GPL-2.0-or-later
"""doorbellctl, the command line: looks at a running doorbelld, and steers it, over D-Bus.

`app` puts the commands together, `session` is what they share (which daemon, how to print, how to fail), `bus_choice`
finds the daemon, `tables` prints for people. The commands are in `looking`, `ringing`, `managing`, `memory`,
`monitor`, `guests` (with `paste`, which writes the arguments), `selftest` (with `simulated`, its peers) and
`completion`. What takes time to import (asyncio, the D-Bus library, rich) is imported where it is used.
"""
