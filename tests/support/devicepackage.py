# SPDX-FileCopyrightText: 2026 The doorbelld authors
# SPDX-License-Identifier: GPL-2.0-or-later
"""A package with types of devices, as somebody installs it: a module, and the metadata that names its entry points."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path


def device_package(folder: Path, types: Mapping[str, str], package: str = "their_devices") -> dict[str, str]:
    """Put a package into *folder* that offers *types* (source by name); gives the environment that has Python find it.

    Each source is a module of its own, and defines a class ``Its``.
    """
    metadata = folder / f"{package}-1.0.dist-info"
    for place in (folder / package, metadata):
        place.mkdir(parents=True)
    (folder / package / "__init__.py").write_text("")
    entries = ["[doorbelld.devices]"]
    for name, source in types.items():
        module = name.replace("-", "_")
        (folder / package / f"{module}.py").write_text(source)
        entries.append(f"{name} = {package}.{module}:Its")
    (metadata / "entry_points.txt").write_text("\n".join(entries))
    (metadata / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {package}\nVersion: 1.0\n")
    return {"PYTHONPATH": os.pathsep.join(filter(None, (str(folder), os.environ.get("PYTHONPATH"))))}
