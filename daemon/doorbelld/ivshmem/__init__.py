# SPDX-FileCopyrightText: 2026 The doorbelld authors
# SPDX-License-Identifier: GPL-2.0-or-later
"""ivshmem: regions of shared memory with doorbells.

`spec` says what a region can be told, `rules` who may do what in it, `memory` makes what is shared, `ids` gives out
peer IDs. `roster` and `outbox` hold who is there and what each peer was told of it; `courier` moves the difference
into sockets; `hostpeer` takes what guests ring on us; `region` puts them together. `events` is what a region tells.
"""
