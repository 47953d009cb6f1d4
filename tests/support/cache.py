# SPDX-FileCopyrightText: 2026 The doorbelld authors
# SPDX-License-Identifier: GPL-2.0-or-later
"""What takes long to make is kept, in folders that are named after all that went into them.

A folder is filled under another name beside its place and renamed, so that one that is there is complete, and of two
builders at once the later one gives way.
"""

import hashlib
import tempfile
from collections.abc import Callable, Iterable
from pathlib import Path

BUILD = Path(__file__).parents[2] / "build"
"""Where such folders are, below one for each kind."""


def cached(folder: Path, build: Callable[[Path], None]) -> Path:
    """Return `folder`, after `build` has filled it if it was not there."""
    if folder.exists():
        return folder
    folder.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder.parent, prefix=f".{folder.name}.") as temporary:
        result = Path(temporary) / "result"
        result.mkdir()
        build(result)
        try:
            result.rename(folder)
        except OSError:
            if not folder.exists():
                raise
    return folder


def digest(words: Iterable[str], files: Iterable[Path] = ()) -> str:
    """Make a name of the words and of what is in the files."""
    found = hashlib.sha256("\0".join(words).encode())
    for file in files:
        found.update(hashlib.sha256(file.read_bytes()).digest())
    return found.hexdigest()[:16]
