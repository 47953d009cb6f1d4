# SPDX-FileCopyrightText: 2026 The doorbelld authors
# SPDX-License-Identifier: GPL-2.0-or-later
"""The model: `Host` holds the regions and passes on what happens; everything above only listens."""
