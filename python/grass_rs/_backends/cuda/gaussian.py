"""Gaussian and Rademacher on a device: the projection's entries are generated as they are used."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import numpy as np

from grass_rs._backends.cuda.launch import SCALARS, Kernel, Launch
from grass_rs._backends.cuda.sums import add_parts

if TYPE_CHECKING:
    from grass_rs._backends.cuda.launch import Device, DeviceArray

THREADS = 256
COLUMNS = 64
"""Outputs of a block."""
DEPTH = 32
"""Coordinates whose entries are in shared memory at a time."""
ROW_TILES = (16, 32, 64, 128)
"""Rows of a block: few where there are few, for the entries' sake as many as there are registers for."""
BLOCKS = 512
"""Blocks a row tile, some for every multiprocessor; a constant, since the sums' order follows from it."""
LEAST_GROUP = 256
"""Coordinates for every group more: work that pays for adding its sums."""
WORKSPACE = 1 << 26
"""Partial sums at a time, 256 MiB, or those of one row."""


class GaussianProgram:
    """Projects rows with the entries of `Gaussian(...).spec`."""

    def __init__(self, spec: dict[str, Any]) -> None:
        self._p: int = spec["input_dim"]
        self._k: int = spec["output_dim"]
        self._seed: int = spec["seed"]
        self._normal = spec["kind"] == "normal"

    def run(self, device: Device, x: DeviceArray, out: DeviceArray) -> None:
        """Write x M / sqrt(k) for x (n, p) to out (n, k); entry (i, j) of M is random number i k + j.

        M's entries are those of grass-core, bit for bit; a row's sums do not depend on the other rows.
        """
        n, p, k = x.shape[0], self._p, self._k
        groups, group_length = groups_of(p, k)
        step = max(1, WORKSPACE // (groups * k))
        for first in range(0, n, step):
            rows, target = x.rows(first, step), out.rows(first, step)
            count = rows.shape[0]
            parts = device.empty((groups, count, k))
            device.launch(
                projection_launch(count, k, groups, x.dtype, normal=self._normal),
                (
                    np.uint64(rows.pointer),
                    np.int64(rows.strides[0]),
                    np.int64(count),
                    np.int64(p),
                    np.uint32(k),
                    np.uint64(self._seed),
                    np.int64(group_length),
                    np.uint64(parts.pointer),
                ),
            )
            add_parts(device, parts, target, 1.0 / math.sqrt(k))


def groups_of(p: int, k: int) -> tuple[int, int]:
    """Return into how many groups p coordinates are cut for k outputs, and the length of all but the last."""
    groups = min(-(-BLOCKS // -(-k // COLUMNS)), -(-p // LEAST_GROUP))
    length = -(-p // (groups * DEPTH)) * DEPTH
    return -(-p // length), length


def projection_launch(n: int, k: int, groups: int, dtype: str, *, normal: bool) -> Launch:
    """Return the launch that projects n rows of a dtype to k outputs."""
    rows = next((rows for rows in ROW_TILES if rows >= n), ROW_TILES[-1])
    macros = (f"Scalar={SCALARS[dtype]}", f"NORMAL={int(normal)}", f"ROWS={rows}")
    blocks = -(-n // rows) * -(-k // COLUMNS)
    shared_bytes = 4 * DEPTH * (COLUMNS + rows + 4)
    return Launch(
        Kernel("gaussian.cu", "project", macros), (blocks, groups, 1), (THREADS, 1, 1), shared_bytes
    )
