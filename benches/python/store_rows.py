"""Rows that stores are measured on, and the folders that the stores are in."""

from __future__ import annotations

import contextlib
import shutil
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

import grass_rs as grass
from cargo import ROOT

if TYPE_CHECKING:
    from collections.abc import Iterator

    from numpy.typing import NDArray

HEADER_BYTES = 4096
"""Of a store's file of rows, before the rows."""
_APPENDED = 4096
"""Rows of one append."""


@contextlib.contextmanager
def in_memory(size: int) -> Iterator[Path]:
    """Give a folder in memory where there is one with room for `size` bytes, otherwise in the page cache of a disk."""
    shared = Path("/dev/shm")  # noqa: S108 - a file system in memory, as its name says
    room = shared.is_dir() and shutil.disk_usage(shared).free > size
    with tempfile.TemporaryDirectory(dir=shared if room else None) as folder:
        yield Path(folder)


@contextlib.contextmanager
def on_disk() -> Iterator[Path]:
    """Give a folder on the disk of this repository: a temporary one may be in memory."""
    built = ROOT / "target"
    built.mkdir(exist_ok=True)
    with tempfile.TemporaryDirectory(dir=built) as folder:
        yield Path(folder)


def columns(widths: list[int]) -> list[grass.Column]:
    """Return columns of these widths, side by side."""
    offsets = np.cumsum([0, *widths])
    return [
        grass.Column(name=f"layer {index}", offset=int(offset), width=width, spec={})
        for index, (offset, width) in enumerate(zip(offsets, widths, strict=False))
    ]


def rows_of(n: int, width: int) -> NDArray[np.float32]:
    """Return (n, width) normal values."""
    return np.random.default_rng(0).standard_normal((n, width), dtype=np.float32)


def write(path: Path, rows: NDArray[np.float32], widths: list[int], dtype: str) -> grass.Store:
    """Write a finished store, and open it."""
    writer = grass.create_store(path, columns(widths), dtype)
    for start in range(0, len(rows), _APPENDED):
        part = rows[start : start + _APPENDED]
        writer.append(part, np.arange(start, start + len(part)))
    return writer.finish()


def rows_file(store: grass.Store) -> Path:
    """Return the file that holds the rows of a store of one shard."""
    (path,) = store.path.glob("shard-*.rows")
    return path
