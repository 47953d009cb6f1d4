# SPDX-FileCopyrightText: 2026 The doorbelld authors
# SPDX-License-Identifier: GPL-2.0-or-later
"""doorbellctl, the command line: looks at a running doorbelld, and steers it, over D-Bus.

`app` puts the commands together, `session` is what they share (which daemon, how to print, how to fail), `arguments`
what they are told, and `bus_choice` finds the daemon. `tables` and `device_tables` print for people. The commands are
in `looking`, `devices`, `ringing`, `managing`, `memory`, `configuration`, `monitor`, `top` (with `load`), `waiting`,
`guests` (with `paste` and `paste_devices`, which write the arguments), `selftest`, `doctor`
(with `checks`) and `completion`. What takes time to import (asyncio, the D-Bus library, rich) is imported
where it is used.
"""
