# SPDX-FileCopyrightText: 2026 The doorbelld authors
# SPDX-License-Identifier: GPL-2.0-or-later
"""The MESSAGE_ID of each kind of event, by the sentence that is given to the log.

An ID never changes once it is released: people look for it, and ``packaging/doorbelld.catalog``, from which
``journalctl -x`` explains events, has an entry for each. A new one is made with ``systemd-id128 new``.
"""

from __future__ import annotations

from collections.abc import Mapping

from ..log import KEPT_BACK, LOST, UNPRINTABLE

MESSAGE_IDS: Mapping[str, str] = {
    # The daemon
    "ready": "d9254217e3614a71ae7326f6c48cfe99",
    "stopping": "c0a6ecaca43a44c88415e289d1ad2eb0",
    "executing anew": "ecf8037a22684b228e63f8ad9565a0f8",
    "not executed anew": "61b75de5225a46c6b74025df37eabbf8",
    "watchdog is on": "08e92e68f25f4a8ea9d3670b5abfb306",
    "the data plane makes no progress": "0e066ed3ed184973b6766727f4e641cc",
    # Configuration and limits
    "configuration reloaded": "0aa28fc28a8f41a98b95edcbe9ae0fac",
    "configuration not reloaded": "ac7b9896b7614e09ac7374ac62466611",
    "the configuration is wrong; those who were there before are served on": "667a33d7298546c79210ed4d5cb6bcc5",
    "configuration can't be applied live": "333a8085e8594dff8c3d2d11d617eeb5",
    "descriptor limit": "6342f842fdfa47cba7af37fd5f1fbe47",
    "max-peers is more than the descriptor limit allows": "83b43729b5ea4583993212bf962777db",
    # Regions
    "region serves": "20d0655573f246ae8994cba8c371faf5",
    "region changed": "9b8070ccde75417fb1c8a3d0435c562e",
    "region removed": "91c1f872e46844cda5c78688987126a0",
    "can't serve region": "04228c2a976b4070897d41e78a3f84b0",
    "region restored": "d3dbf8f814454d6b8e56c756886bd828",
    "state of a region can't be used": "6741bdc771cb41ed83de18862e4dd47e",
    "not everything of a region can be kept over a restart": "7152dc9e081b4f19ae5042cd80af789f",
    "socket for no region or device": "04eb09e04fea4dc78728f40ef05d66d8",
    "descriptors that nobody knows came back from the store": "133ca739385747b59afa3e8d9c830f99",
    # Peers
    "peer joined": "d90175567b05430994496d13851ea737",
    "peer left": "66c21747e6384672a328a41ac293e6e3",
    "connection refused": "4621e630d0ff48d994e027142a37cb43",
    "connection ended while the daemon was away": "586e4d8c3def437c90d43e4ba4d84a15",
    "absent peer given up": "a105ef006ac34224943ac55f7a9cb12a",
    "memory cleared": "b3530a43c8084d748c7c914846b3a6dc",
    "memory not cleared": "1e74ae49e94b407f9eea50c559f4266b",
    # Devices
    "device serves": "32cef5d154a241de98662ecd6fb666ac",
    "device changed": "dfdeabbb38a3487ba060bfdf3d01594b",
    "device removed": "f9a4bf4907d240fc8beaa44c5e6cbbb9",
    "can't serve device": "457638c7e9fd4469bda88b93761b4883",
    "device not refreshed": "825070db06304326af295921a9ad9e82",
    "code of a device failed": "3a10ce6ed57743c1a3fb3693de09033e",
    "front-end attached": "d2fa5accd2c840f894d467e0ce15f92a",
    "front-end detached": "2e9d68e5465341e881ca0651bed84328",
    "front-end broke the device": "c23d47f34b68421cb833d61cb3e64aa2",
    "front-end refused": "5500e7decd0b4cafa8a4b754129ebc3d",
    "front-end says nothing": "3562061cde6b49199790c60aa38c2504",
    "request of a front-end refused": "342aba6fce44493abd52226bccafb237",
    "device tells its front-end of a change": "73792abfbfdb4ccba456ee18fc3deb10",
    # Clients
    "client is there": "145054cb52004326ac178c33771081c1",
    "client changed": "d7c698839afa4d9ab92dbd621fd3dbe9",
    "client removed": "501c68224d4f45b7b59c4eca322604e9",
    "can't have client": "33e811dda11e44ce8035b70c9f6bb4b4",
    "client restored": "934743b28b6e42edbc2b889efacee045",
    "state of a client can't be used": "f0c401dccbe94459abb18c83955cbcdb",
    "not everything of a client can be kept over a restart": "32513e8c4a7f4674a6b87e383d6d3a85",
    "client joined a region": "e20d5561d3324ddb99d4723833965c57",
    "client lost its region": "f89e81f0a44e4e078a7b45a9d1586cf0",
    "client can't join its region": "d451a30a4a2946d38ac60c913eb2c0f0",
    # Flat devices
    "flat device serves": "967581d260934224b15aa23bb552f4c2",
    "flat device changed": "973ae4fa23af4161ad63f48351084fb5",
    "flat device removed": "ddd3f26a92464493b11848dc5dae1678",
    "can't have flat device": "fc859c55ab904078b33df66a299d3622",
    "flat device restored": "ee23953f97ed4b878e32305b2c625dea",
    "state of a flat device can't be used": "a87ef563d75d4fcc8a11398ecac36eb2",
    "not everything of a flat device can be kept over a restart": "9431afb9e9134b4ab31531927f1c0fa6",
    "flat device joined a region": "223791410ffc47c9a6619b6b411375bf",
    "flat device lost its region": "b8a61e9d7da846598c5a7f2a5a80a75e",
    "flat device can't join its region": "f0a65f37557c480ea860f4feecb3361e",
    # The message bus
    "no message bus": "5983f0c8170248e79eeb194c7c23fc6e",
    "the message bus is gone; guests are served on, trying to reconnect": "f2e5455ba1f549f28485bf850c619318",
    "on the message bus again": "b001a95a26004adba4c68d7721481e95",
    "a D-Bus call failed for a reason that is ours": "1a041486e5a544459f5f7a5f6a5aa975",
    # polkit
    "polkit is not there; only root and the daemon's own user may change anything": "c23e5c1b6fde42ef841d93c51ebc9534",
    "polkit can't tell; only root and the daemon's own user may change anything": "7ae94579a03844edbabf701deb78aa5e",
    "polkit is there again": "b5a3d6d7167c41fc81216ece479b0fb2",
    # The log itself
    KEPT_BACK: "2319bbf252f045b1bc8705d616de3176",
    LOST: "118c6225d971426e86dc8a6a80f5dadf",
    UNPRINTABLE: "b1fedbd9b36947999a2afa57661a0afc",
    "uncaught exception": "d3292aa434304a51a4ed0a2b2519691a",
    "exception ignored": "4fd3919755184447af8cb6bd16a72518",
}
