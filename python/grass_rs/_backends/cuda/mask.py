"""Masks on a device: the indices that a mask keeps, and the program that gathers them."""

from __future__ import annotations

import json
import math
from typing import TYPE_CHECKING, Any

import numpy as np

from grass_rs._backends.cuda.launch import SCALARS, Kernel, Launch
from grass_rs._native import Compressor

if TYPE_CHECKING:
    from collections.abc import Mapping

    from numpy.typing import NDArray

    from grass_rs._backends.cuda.launch import Device, DeviceArray

_THREADS = 256
_ROWS = 4
"""Rows that a thread reads at a time; ROWS of mask.cu."""
_MAX_GRID_Y = 65535


class MaskIndices:
    """The coordinates that a mask keeps, moved to a device at first use.

    Parameters
    ----------
    spec
        Of a `mask` or `random_mask`.

    """

    def __init__(self, spec: Mapping[str, Any]) -> None:
        self._mask = Compressor.from_spec(json.dumps(spec))
        self.input_dim = self._mask.input_dim
        self.count = self._mask.output_dim
        """Coordinates kept."""
        self.scale = (
            math.sqrt(self.input_dim / self.count) if spec["type"] == "random_mask" else 1.0
        )
        """What makes a random mask unbiased: sqrt(p / k'). Explicit masks do not scale."""
        # A fingerprint takes microseconds, more for an explicit mask: too long for every call.
        self._key = ("mask", self._mask.fingerprint)
        self.scalar = "int" if self.input_dim <= 1 << 31 else "i64"
        """The sources' name of the indices' type."""

    def on(self, device: Device) -> DeviceArray:
        """Return the (k',) sorted indices in the device's memory, int32 or int64."""
        dtype = np.int32 if self.scalar == "int" else np.int64

        def make() -> NDArray[Any]:
            return self._mask.indices().astype(dtype)

        return device.constant(self._key, make)


class MaskProgram:
    """A mask of whole gradients: out[r, c] = scale * x[r, indices[c]].

    Parameters
    ----------
    spec
        Of a `mask` or `random_mask`.

    """

    def __init__(self, spec: Mapping[str, Any]) -> None:
        self._indices = MaskIndices(spec)

    def run(self, device: Device, x: DeviceArray, out: DeviceArray) -> None:
        """Write the kept coordinates of x (n, p) to out (n, k), as `RowProgram.run` says."""
        n = x.shape[0]
        if n == 0:
            return
        indices = self._indices
        args = (
            np.uint64(x.pointer),
            np.int64(x.strides[0]),
            np.int64(n),
            np.uint64(indices.on(device).pointer),
            np.uint32(indices.count),
            np.float32(indices.scale),
            np.uint64(out.pointer),
        )
        device.launch(mask_launch(n, indices.count, x.dtype, indices.scalar), args)


def mask_launch(n: int, kept: int, dtype: str, index: str) -> Launch:
    """Return the launch that gathers `kept` coordinates of n rows."""
    kernel = Kernel("mask.cu", "mask", (f"Scalar={SCALARS[dtype]}", f"Index={index}"))
    grid = (-(-kept // _THREADS), min(-(-n // _ROWS), _MAX_GRID_Y), 1)
    return Launch(kernel, grid, (_THREADS, 1, 1), 0)
