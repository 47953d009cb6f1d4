# SPDX-FileCopyrightText: 2026 The doorbelld authors
# SPDX-License-Identifier: GPL-2.0-or-later
"""doorbelld: ivshmem regions and vhost-user devices, served from user space and steered over D-Bus.

Layers, each importing only from those before it (``tests/unit/test_layers.py`` holds this)::

    errors, options, log   words that every layer uses
    fds                    who owns a file descriptor; sockets; what the kernel says of a peer
    wire                   sans-I/O codecs
    ring                   guest memory and virtqueues, native
    ivshmem                Region: the server side of the ivshmem protocol
    vhost                  Backend: a virtio device on a vhost-user socket
    devices                blk, rng, loopback, and those that other packages bring
    host                   the model: all regions and devices, and the events that the rest listens to
    bus                    D-Bus objects as thin views of the model
    service                systemd
    standalone             back-end programs: one device, one process, no bus
    config, main, ctl      configuration, the daemon's and the command line's entry points
"""

__version__ = "0.1.0"
