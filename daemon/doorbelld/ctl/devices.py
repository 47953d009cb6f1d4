# SPDX-FileCopyrightText: 2026 The doorbelld authors
# SPDX-License-Identifier: GPL-2.0-or-later
"""Commands that look at vhost-user devices: devices, queues."""

from __future__ import annotations

from typing import Any

import click

from . import device_tables
from .arguments import complete_device, device_argument
from .session import Daemon, Session, json_option, pass_session, table_option

_NO_DEVICE = """\
It serves no device. Make one, and see what a guest needs to use it:

  doorbellctl create-device entropy rng
  doorbellctl create-device disk0 blk path=/var/lib/doorbelld/disk0.img
  doorbellctl qemu-args disk0 entropy"""


@click.command()
@click.argument("device", required=False, default="", shell_complete=complete_device)
@table_option
@json_option
@pass_session
def devices(session: Session, device: str) -> None:
    r"""List the vhost-user devices, or one: how each stands, who has it, and what it has done.

    A device listens (or looks for a front-end that does), then a front-end is connected, and once a queue was set up
    by a driver it is running. QUEUES are those that run, of those that there are. Requests, bytes and errors are
    counted since the device was made. Why the last front-end left stands below, and so does what it did wrong if the
    device is broken; then it is cleared away, and the next may connect.

    \b
    Examples:
      doorbellctl devices
      doorbellctl devices --json | jq '.[] | select(.state == "running") | .queues[].requests'
    """

    async def ask(daemon: Daemon) -> dict[str, Any]:
        return {device: await daemon.device(device)} if device else dict((await daemon.describe())["devices"])

    known = session.run(ask)
    if session.json:
        session.emit(known)
    elif not known:
        click.echo(_NO_DEVICE)
    else:
        device_tables.overview(known)


@click.command()
@device_argument
@table_option
@json_option
@pass_session
def queues(session: Session, device: str) -> None:
    r"""List the queues of a device.

    A queue is served once the front-end has enabled and started it. AVAILABLE and USED are the ring's two indices,
    which run from 0 to 65535 and begin anew: the requests that the driver has made available so far, and those that it
    got back. A queue where AVAILABLE is ahead and nothing is in flight has lost a kick, or the front-end has disabled
    it. KICKS came from the driver, CALLS interrupted it.

    \b
    Examples:
      doorbellctl queues disk0
      doorbellctl queues disk0 --json | jq '.[] | select(.started) | .index'
    """
    known = session.run(lambda daemon: daemon.device(device))
    if session.json:
        session.emit(known["queues"])
    else:
        device_tables.queues(known["queues"])


async def device_properties(daemon: Daemon, name: str) -> dict[str, Any]:
    """Read what a device's description lacks: features, status, and the configuration space in hexadecimal."""
    from ..bus import paths
    from ..bus.names import DEVICE

    told = await daemon.client.get_all(paths.device(name), DEVICE)
    names = ("OfferedFeatureNames", "AckedFeatureNames", "OfferedProtocolFeatureNames", "AckedProtocolFeatureNames")
    keys = ("offered-feature-names", "acked-feature-names", "offered-protocol-feature-names")
    features = dict(zip((*keys, "acked-protocol-feature-names"), (told[key] for key in names), strict=True))
    return {**features, "status": told["Status"], "config-space": bytes(told["ConfigSpace"]).hex()}
