# SPDX-FileCopyrightText: 2026 The doorbelld authors
# SPDX-License-Identifier: GPL-2.0-or-later
"""The manual pages: what people wrote, around what is generated from the code itself, so that it can't go stale.

Theory of operation
-------------------
A page is a template beside this package (``doorbelld.8.in``), written by hand in man(7), in which a line such as
``@OPTIONS@`` stands for a part that `pages` has generated:

- commands and options from the click commands (`commands`);
- configuration keys, with types and defaults, from the tables of options, with their prose from ``keys.toml`` (`keys`);
- the D-Bus interfaces from ``dbus/*.xml`` and its comments, and the errors from their classes (`interfaces`).

All of it is written through `roff`, the one place that knows what roff takes for markup.
"""
