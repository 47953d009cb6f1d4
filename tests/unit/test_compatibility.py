# SPDX-FileCopyrightText: 2026 The doorbelld authors
# SPDX-License-Identifier: GPL-2.0-or-later
"""docs/compatibility.md tells of each declaration of the headers that it is about, and what it says of us is so."""

from __future__ import annotations

import importlib
import re
from pathlib import Path
from typing import NamedTuple

import pytest

ROOT = Path(__file__).parents[2]
UNIT = ROOT / "tests" / "unit"
DECLARED = [
    "VHOST_USER_F_PROTOCOL_FEATURES",
    "VHOST_LOG_PAGE",
    "VIRTQUEUE_MAX_SIZE",
    "VHOST_MEMORY_BASELINE_NREGIONS",
    "VHOST_USER_MAX_RAM_SLOTS",
    "VHOST_USER_HDR_SIZE",
    "VhostSetConfigType",
    "VHOST_USER_MAX_CONFIG_SIZE",
    "VhostUserProtocolFeature",
    "VHOST_USER_PROTOCOL_FEATURE_MASK",
    "VhostUserRequest",
    "VhostUserBackendRequest",
    "VhostUserMemoryRegion",
    "VHOST_USER_MEM_REG_SIZE",
    "VhostUserMemory",
    "VhostUserMemRegMsg",
    "VhostUserLog",
    "VhostUserConfig",
    "VHOST_USER_CONFIG_HDR_SIZE",
    "VhostUserVringArea",
    "VhostUserInflight",
    "UUID_LEN",
    "VhostUserShared",
    "VhostUserMsg",
    "VHOST_USER_VERSION_MASK",
    "VHOST_USER_REPLY_MASK",
    "VHOST_USER_NEED_REPLY_MASK",
    "VHOST_USER_VRING_IDX_MASK",
    "VHOST_USER_VRING_NOFD_MASK",
    "VuDevRegion",
    "VuDev",
    "vu_get_features_cb",
    "vu_set_features_cb",
    "vu_process_msg_cb",
    "vu_read_msg_cb",
    "vu_queue_set_started_cb",
    "vu_queue_is_processed_in_order_cb",
    "vu_get_config_cb",
    "vu_set_config_cb",
    "vu_get_shared_object_cb",
    "VuDevIface",
    "vu_queue_handler_cb",
    "VuRing",
    "VuDescStateSplit",
    "VuVirtqInflight",
    "VuVirtqInflightDesc",
    "VuVirtq",
    "VuWatchCondtion",
    "vu_panic_cb",
    "vu_watch_cb",
    "vu_set_watch_cb",
    "vu_remove_watch_cb",
    "VuDevInflightInfo",
    "VuVirtqElement",
    "vu_init",
    "vu_deinit",
    "vu_request_to_string",
    "vu_dispatch",
    "vu_gpa_to_va",
    "vu_get_queue",
    "vu_set_queue_handler",
    "vu_set_queue_host_notifier",
    "vu_lookup_shared_object",
    "vu_add_shared_object",
    "vu_rm_shared_object",
    "vu_queue_set_notification",
    "vu_queue_enabled",
    "vu_queue_started",
    "vu_queue_empty",
    "vu_queue_notify",
    "vu_config_change_msg",
    "vu_queue_notify_sync",
    "vu_queue_pop",
    "vu_queue_unpop",
    "vu_queue_rewind",
    "vu_queue_fill",
    "vu_queue_push",
    "vu_queue_flush",
    "vu_queue_get_avail_bytes",
    "vu_queue_avail_bytes",
    # ivshmem-client.h
    "IVSHMEM_CLIENT_MAX_VECTORS",
    "IvshmemClient",
    "IvshmemClientPeer",
    "IvshmemClientPeerList",
    "IvshmemClientNotifCb",
    "ivshmem_client_init",
    "ivshmem_client_connect",
    "ivshmem_client_close",
    "ivshmem_client_get_fds",
    "ivshmem_client_handle_fds",
    "ivshmem_client_notify",
    "ivshmem_client_notify_all_vects",
    "ivshmem_client_notify_broadcast",
    "ivshmem_client_search_peer",
    "ivshmem_client_dump",
    # ivshmem-flat.h
    "IVSHMEM_MAX_VECTOR_NUM",
    "TYPE_IVSHMEM_FLAT",
    "IvshmemFTState",
    "IVSHMEM_FLAT",
    "ivshmem_registers",
    "INTMASK",
    "INTSTATUS",
    "IVPOSITION",
    "DOORBELL",
    "VectorInfo",
    "IvshmemPeer",
]
LATER = ("in-flight recovery", "migration logging", "shared objects")


class Row(NamedTuple):
    declared: str
    ours: str
    test: str


def rows() -> list[Row]:
    text = (ROOT / "docs" / "compatibility.md").read_text()
    return [Row(*row) for row in re.findall(r"^\| `(\w+)` \| (.*?) \| (.*?) ?\|$", text, re.M)]


def find(path: str) -> object:
    """Resolve ``ring.queue.VirtQueue.pop``, below the package."""
    parts = path.split(".")
    found: object = importlib.import_module(".".join(["doorbelld", *parts[:2]]))
    for name in parts[2:]:
        found = getattr(found, name)
    return found


def test_each_declaration_has_one_row() -> None:
    assert sorted(row.declared for row in rows()) == sorted(DECLARED)


def test_each_test_that_is_named_is_there() -> None:
    text = (ROOT / "docs" / "compatibility.md").read_text()
    named = re.findall(r"`([\w/]+\.py)::(\w+)`", text)
    assert len(named) > len(rows()) // 2
    assert [
        test for file, test in named if not re.search(rf"^(async )?(def )?{test}\b", (UNIT / file).read_text(), re.M)
    ] == []


@pytest.mark.parametrize("row", rows(), ids=lambda row: row.declared)
def test_a_row_is_true(row: Row) -> None:
    if row.ours.startswith("no counterpart: ") or row.ours.removeprefix("waits for ") in LATER:
        assert row.test == ""
        return
    names = [name for name in re.findall(r"`([\w.]+)`", row.ours) if "." in name]
    assert names
    for name in names:
        find(name)
    assert "::" in row.test
    if "; what it does waits for " in row.ours:
        assert row.ours.partition("; what it does waits for ")[2] in LATER
