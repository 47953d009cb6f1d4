# SPDX-FileCopyrightText: 2026 The doorbelld authors
# SPDX-License-Identifier: GPL-2.0-or-later
"""Back-end programs: one device, one process, no daemon and no bus.

``doorbelld-vhost-user-blk`` (`blk`) and ``doorbelld-vhost-user-rng`` (`rng`) follow QEMU's conventions for vhost-user
back-end programs, so that whoever starts such programs can start ours. The devices are those of the daemon. `program`
is what the command lines have in common, `serving` what happens then.
"""
