# SPDX-FileCopyrightText: 2026 The doorbelld authors
# SPDX-License-Identifier: GPL-2.0-or-later
"""The names that callers rely on."""

BUS_NAME = "org.doorbelld.Doorbell1"
ROOT = "/org/doorbelld/Doorbell1"
ERROR_PREFIX = "org.doorbelld.Doorbell1.Error"

MANAGER = f"{BUS_NAME}.Manager"
REGION = f"{BUS_NAME}.Region"
PEER = f"{BUS_NAME}.Peer"
VECTOR = f"{BUS_NAME}.Vector"
DEVICE = f"{BUS_NAME}.Device"
QUEUE = f"{BUS_NAME}.Queue"
CLIENT = f"{BUS_NAME}.Client"
FLAT = f"{BUS_NAME}.FlatDevice"

PROPERTIES = "org.freedesktop.DBus.Properties"
INTROSPECTABLE = "org.freedesktop.DBus.Introspectable"
DBUS_PEER = "org.freedesktop.DBus.Peer"
OBJECT_MANAGER = "org.freedesktop.DBus.ObjectManager"

DBUS = "org.freedesktop.DBus"
DBUS_PATH = "/org/freedesktop/DBus"
