# SPDX-FileCopyrightText: 2026 The doorbelld authors
# SPDX-License-Identifier: GPL-2.0-or-later
"""What `doorbellctl doctor` looks at: small functions from a `view.View` of the system to findings."""
