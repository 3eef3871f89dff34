"""The sum of partial results that the blocks of a kernel leave in a workspace."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from grass_rs._backends.cuda.launch import Kernel, Launch

if TYPE_CHECKING:
    from grass_rs._backends.cuda.launch import Device, DeviceArray

_KERNEL = Kernel("sum.cu", "add_parts", ())
_WARP = 32
_MAX_WARPS = 32
_PARTS_A_WARP = 4
"""Parts that a warp adds before another warp pays."""


def add_parts(device: Device, parts: DeviceArray, out: DeviceArray, scale: float) -> None:
    """Enqueue out = scale * (parts[0] + parts[1] + ...), the same bits on every run.

    The order of the additions depends on the number of parts alone, so a row's sum does not depend on
    the other rows.

    Parameters
    ----------
    device
        Where the arrays are.
    parts
        (parts, n, k) float32, C-contiguous, at least one part.
    out
        (n, k) float32, stride 1 on the last axis, any stride on the first; no part of `parts`.
    scale
        Factor of the sum, applied once, in float32.

    """
    count, n, k = parts.shape
    if n * k == 0:
        return
    device.launch(
        sum_launch(count, n, k),
        (
            np.uint64(parts.pointer),
            np.uint32(count),
            np.int64(n * k),
            np.uint32(k),
            np.float32(scale),
            np.uint64(out.pointer),
            np.int64(out.strides[0]),
        ),
    )


def sum_launch(count: int, n: int, k: int) -> Launch:
    """Return the launch that adds `count` parts of (n, k)."""
    warps = min(_MAX_WARPS, max(1, count // _PARTS_A_WARP))
    blocks = -(-n * k // _WARP)
    return Launch(_KERNEL, (blocks, 1, 1), (_WARP, warps, 1), warps * _WARP * 4)
