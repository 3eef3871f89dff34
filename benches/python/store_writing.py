"""Writing and committing rows beside plain writes of the same bytes that are made durable as often, on a disk."""

from __future__ import annotations

import os
import shutil
import statistics
import time
from contextlib import ExitStack
from typing import TYPE_CHECKING

import numpy as np

import grass_rs as grass
from rows import Row
from store_rows import HEADER_BYTES, columns, on_disk, rows_file, rows_of

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from numpy.typing import NDArray

N = 24576
WIDTHS = [1024] * 4
APPENDED = 1024
"""Rows of one append."""
COMMIT_BYTES = 64 * 2**20
"""As `create_store` has it."""
RECORD_BYTES = 20
"""Of a commit log, at least one a commit."""
ROUNDS = 5
DTYPES = {"float32": "f32", "bfloat16": "bf16", "int8": "int8"}
PLAIN = "plain writes, 3 fdatasync a commit"


def measure() -> Iterator[Row]:
    """Measure rows of three types."""
    rows = rows_of(N, sum(WIDTHS))
    with on_disk() as folder:
        for dtype, short in DTYPES.items():
            ours: list[float] = []
            theirs: list[float] = []
            for turn in range(ROUNDS + 1):
                seconds, size = _store(folder / f"{short} {turn}", rows, dtype)
                ours.append(seconds)
                theirs.append(_plain(folder, rows, size))
            # The first finds the disk in another state than the others.
            taken, plain = (statistics.median(times[1:]) for times in (ours, theirs))
            yield Row(f"writing and committing {short} rows", taken, PLAIN, plain, bytes=size)


def _store(path: Path, rows: NDArray[np.float32], dtype: str) -> tuple[float, int]:
    """Return the seconds from the first append to the last commit, and the bytes of the rows."""
    writer = grass.create_store(
        path, columns(WIDTHS), dtype, commit_bytes=COMMIT_BYTES, commit_seconds=1e9
    )
    ids = np.arange(len(rows))
    start = time.perf_counter()
    for first in range(0, len(rows), APPENDED):
        part = slice(first, first + APPENDED)
        writer.append(rows[part], ids[part])
    writer.commit()
    seconds = time.perf_counter() - start
    file = rows_file(writer.finish())
    size = file.stat().st_size - HEADER_BYTES
    shutil.rmtree(path)
    return seconds, size


def _plain(folder: Path, rows: NDArray[np.float32], size: int) -> float:
    """Return the seconds of writing so many bytes, and as many files and syncs beside them as a commit needs.

    A commit must not be recorded before its rows and ids are there: three files, each synced once.
    """
    content = rows.data.cast("B")[:size]
    ids = memoryview(bytes(8 * len(rows) * COMMIT_BYTES // size))
    record = memoryview(bytes(RECORD_BYTES))
    paths = [folder / name for name in ("rows", "ids", "log")]
    with ExitStack() as stack:
        files = [stack.enter_context(path.open("wb", buffering=0)) for path in paths]
        start = time.perf_counter()
        for first in range(0, size, COMMIT_BYTES):
            parts = (content[first : first + COMMIT_BYTES], ids, record)
            for file, part in zip(files, parts, strict=True):
                assert file.write(part) == len(part), "expected all of a write, got a part"
                os.fdatasync(file.fileno())
        seconds = time.perf_counter() - start
    for path in paths:
        path.unlink()
    return seconds
