# SPDX-FileCopyrightText: 2026 The doorbelld authors
# SPDX-License-Identifier: GPL-2.0-or-later
"""Programs for one thing in one process, without the daemon and without a bus.

``doorbelld-vhost-user-blk`` (`blk`) and ``doorbelld-vhost-user-rng`` (`rng`) follow QEMU's conventions for vhost-user
back-end programs, so that whoever starts such programs can start ours. The devices are those of the daemon. `program`
is what the command lines have in common, `serving` what happens then.

``doorbell-server`` (`server`, `background`) and ``doorbell-client`` (`client`) stand in for QEMU's examples
``ivshmem-server`` and ``ivshmem-client``; `tool` is what their command lines have in common. The client's commands
(`repl`, `terminal`) are of use with any connected client.
"""
