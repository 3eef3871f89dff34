"""How the iid SJLT is cut into launches of iid.cu: arithmetic of sizes, without a device."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from grass_rs._backends.cuda.launch import SCALARS, Kernel, Launch

_WARP = 32
_STEPS = 16
_TILE = _STEPS * _WARP
"""STEPS and TILE of iid.cu."""
_MAX_WARPS = 8
_SLICE = 8192
"""Buckets of a block, at most: several warps have place for sums of so many."""
_MIN_PART = 2 * _TILE
_MAX_PARTS = 4096
_SHARED_BYTES = {75: 64 << 10}
"""Shared memory of a block, by compute capability; all others from 7.0 on have 96 KB or more."""
_MOST_SHARED_BYTES = 96 << 10


@dataclass(frozen=True)
class Cut:
    """How the coordinates are shared out. It follows from p and w alone, and it fixes the order of every sum."""

    p: int
    """Coordinates."""
    width: int
    """Buckets of a draw: w."""
    part_size: int
    """Coordinates of a part: whole tiles."""
    parts: int
    """Parts; each leaves a part of every sum."""


def cut(p: int, width: int) -> Cut:
    """Cut p coordinates into parts, about 4 sqrt(p / w).

    A part is read by one warp, so many parts keep a device busy with one row; but each has w sums to
    write and to add. 4 sqrt(p / w) of them have 8 sqrt(w / p) times the traffic of the coordinates: an
    eighth for p = 4096 w.
    """
    wanted = min(max(1, math.isqrt(16 * p // width)), _MAX_PARTS)
    part_size = max(_MIN_PART, -(-p // wanted))
    part_size = -(-part_size // _TILE) * _TILE
    return Cut(p, width, part_size, -(-p // part_size))


def launch(
    cut: Cut, n: int, draws: int, dtype: str, index: str | None, *, compute_capability: int
) -> tuple[Launch, tuple[np.generic, ...]]:
    """Return the launch that sketches n rows, and the arguments that say how.

    Parameters
    ----------
    cut
        How the coordinates are shared out.
    n
        Rows, at least one.
    draws
        Independent sketches: nnz.
    dtype
        Of the rows.
    index
        The sources' name of the mask's type of indices for GraSS, else None.
    compute_capability
        Of the device. The results do not depend on it.

    """
    slices = -(-cut.width // _SLICE)
    slice_width = -(-cut.width // slices)
    sums_bytes, team_bytes = 4 * (slice_width + _WARP), 4 * (_TILE + _STEPS)
    available = _SHARED_BYTES.get(compute_capability, _MOST_SHARED_BYTES)
    most_warps = min(_MAX_WARPS, available // (sums_bytes + team_bytes))
    row_blocks = -(-n // most_warps)
    block_rows = -(-n // row_blocks)
    teams = min(most_warps // block_rows, cut.parts)
    macros = (
        f"Scalar={SCALARS[dtype]}",
        f"GATHER={int(index is not None)}",
        f"Index={index or 'int'}",
    )
    grid = (row_blocks * draws * slices, -(-cut.parts // teams), 1)
    warps = teams * block_rows
    return (
        Launch(
            Kernel("iid.cu", "iid", macros),
            grid,
            (_WARP, warps, 1),
            teams * team_bytes + warps * sums_bytes,
        ),
        (
            np.uint32(slices),
            np.uint32(slice_width),
            np.uint32(block_rows),
            np.int64(cut.part_size),
            np.uint32(cut.parts),
        ),
    )
