# SPDX-FileCopyrightText: 2026 The doorbelld authors
# SPDX-License-Identifier: GPL-2.0-or-later
"""ivshmem: regions of shared memory with doorbells.

`spec` says what a region can be told, `rules` who may do what in it, `memory` makes what is shared, `ids` gives out
peer IDs. `roster` and `outbox` hold who is there and what each peer was told of it; `courier` moves the difference
into sockets; `hostpeer` takes what guests ring on us; `relay`, with `terms`, `table` and `forwarder`, passes on what
they ring on each other; `region` puts them together; `ringing` is what callers do with it. `events` is what a region
tells.

The other end: `membership` is what a server's messages say, `receive` how they are read. `client` is for programs that
wait by themselves, `aioclient` for asyncio, `joined` what both show, `flat` a device's registers over either. `link` is
a connection in an event loop that comes back, `hostclient` the daemon's own client, told by `clientspec` and telling
`client_events`; `clientjournal` keeps it over a restart, and `clientrevival` puts it together again.
"""
