# SPDX-FileCopyrightText: 2026 The doorbelld authors
# SPDX-License-Identifier: GPL-2.0-or-later
"""Names of feature bits."""

from doorbelld.vhost.features import feature_names, protocol_feature_names


def test_names() -> None:
    assert feature_names(1 << 32 | 1 << 5 | 1 << 41, {5: "X_F_Y"}) == ["X_F_Y", "VIRTIO_F_VERSION_1", "bit 41"]
    assert protocol_feature_names(1 << 3 | 1 << 40) == ["REPLY_ACK", "bit 40"]
    assert feature_names(0, {}) == protocol_feature_names(0) == []
