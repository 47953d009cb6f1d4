# SPDX-FileCopyrightText: 2026 The doorbelld authors
# SPDX-License-Identifier: GPL-2.0-or-later
"""vhost-user: devices on sockets.

`device.Device` is what an author of a device writes. `backend.Backend` puts one on a socket and serves front-ends, one
after the other, each with a `session.Session` that speaks the protocol. `frontend.Frontend` is the other side.
"""
