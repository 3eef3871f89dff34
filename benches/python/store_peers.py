"""The best rows of each query, as one writes it with NumPy: a map of the file, block by block."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from store_rows import HEADER_BYTES

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from numpy.typing import NDArray

BLOCK = 2048
"""Rows multiplied at once: what the loops are fastest with here."""


def _best(
    scores: Iterator[NDArray[np.float32]], top: int
) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
    """Return rows and scores (queries, top), unsorted, of scores (queries, rows of a block) block after block."""
    first = next(scores)
    ids = np.argpartition(first, -top, axis=1)[:, -top:]
    values = np.take_along_axis(first, ids, axis=1)
    start = first.shape[1]
    for block in scores:
        kept = np.argpartition(block, -top, axis=1)[:, -top:]
        ids = np.concatenate([ids, kept + start], axis=1)
        values = np.concatenate([values, np.take_along_axis(block, kept, axis=1)], axis=1)
        kept = np.argpartition(values, -top, axis=1)[:, -top:]
        ids = np.take_along_axis(ids, kept, axis=1)
        values = np.take_along_axis(values, kept, axis=1)
        start += block.shape[1]
    return ids, values


def best_of_f32(
    path: Path, queries: NDArray[np.float32], n: int, top: int
) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
    """Return the best of n f32 rows of a store's file."""
    rows = np.memmap(path, np.float32, "r", HEADER_BYTES, (n, queries.shape[1]))
    return _best((queries @ rows[start : start + BLOCK].T for start in range(0, n, BLOCK)), top)


def best_of_int8(
    path: Path, queries: NDArray[np.float32], n: int, widths: list[int], top: int
) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
    """Return the best of n int8 rows of a store's file, with columns of one width, read back as f32."""
    layout = np.dtype([("scales", "<f4", len(widths)), ("numbers", "i1", (len(widths), widths[0]))])
    rows = np.memmap(path, layout, "r", HEADER_BYTES, (n,))

    def scores() -> Iterator[NDArray[np.float32]]:
        for start in range(0, n, BLOCK):
            part = rows[start : start + BLOCK]
            values = part["numbers"] * part["scales"][:, :, None]
            yield queries @ values.reshape(len(part), -1).T

    return _best(scores(), top)
