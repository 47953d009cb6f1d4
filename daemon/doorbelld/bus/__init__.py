# SPDX-FileCopyrightText: 2026 The doorbelld authors
# SPDX-License-Identifier: GPL-2.0-or-later
"""D-Bus: the model as objects.

`library` picks the D-Bus library, `interfaces` reads ``dbus/*.xml``, `paths` names objects, `objects` are thin views
of the model, `router` answers every call from tables, `authority` says who may, `connection` keeps the bus, `writer`
writes to it, `private` runs a bus of our own, and `client` is the caller's side, for doorbellctl and tests.
"""
