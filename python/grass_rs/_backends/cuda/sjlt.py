"""The SJLT on a device, of whole gradients or of the coordinates that a mask keeps (GraSS)."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import numpy as np

from grass_rs._backends.cuda import cyclic, iid
from grass_rs._backends.cuda.mask import MaskIndices
from grass_rs._backends.cuda.sums import add_parts
from grass_rs._native import derive

if TYPE_CHECKING:
    from collections.abc import Mapping

    from grass_rs._backends.cuda.launch import Device, DeviceArray

_WORKSPACE = 1 << 26
"""Parts of sums in a workspace, at most, where one row has no more: 256 MB."""
_MAX_GRID_X = (1 << 31) - 1


class SJLTProgram:
    """An SJLT of whole gradients.

    Parameters
    ----------
    spec
        Of an `sjlt`.

    """

    def __init__(self, spec: Mapping[str, Any]) -> None:
        self._sketch = _Sketch(
            spec["kind"], spec["input_dim"], spec["output_dim"], spec["nnz"], spec["seed"]
        )

    def run(self, device: Device, x: DeviceArray, out: DeviceArray) -> None:
        """Write the sketches of x (n, p) to out (n, k), as `RowProgram.run` says."""
        self._sketch.run(device, x, None, out)


class GraSSProgram:
    """A mask, then an SJLT of what it keeps: one pass over the kept coordinates (arXiv 2505.18976).

    Parameters
    ----------
    spec
        Of a `grass`.

    """

    def __init__(self, spec: Mapping[str, Any]) -> None:
        self._indices = MaskIndices(spec["mask"])
        self._sketch = _Sketch(
            spec["kind"], self._indices.count, spec["output_dim"], 1, derive(spec["seed"], "sjlt")
        )

    def run(self, device: Device, x: DeviceArray, out: DeviceArray) -> None:
        """Write the sketches of x (n, p) to out (n, k), as `RowProgram.run` says."""
        self._sketch.run(device, x, self._indices, out)


class _Sketch:
    """The SJLT of p coordinates to k = nnz * w."""

    def __init__(self, kind: str, p: int, k: int, nnz: int, seed: int) -> None:
        self._k, self._draws, self._seed = k, nnz, seed
        self._cut: cyclic.Cut | iid.Cut = (
            cyclic.cut(p, k // nnz) if kind == "cyclic" else iid.cut(p, k // nnz)
        )

    def run(
        self, device: Device, x: DeviceArray, indices: MaskIndices | None, out: DeviceArray
    ) -> None:
        """Write the sketches of x's rows, or of what a mask keeps of them, and scale them for both."""
        parts = self._cut.parts
        scale = 1 / math.sqrt(self._draws) * (1.0 if indices is None else indices.scale)
        step = rows_at_once(parts, self._k)
        for first in range(0, x.shape[0], step):
            rows, result = x.rows(first, step), out.rows(first, step)
            if parts == 1:
                self._launch(device, rows, indices, scale, result)
                continue
            sums = device.empty((parts, *result.shape))
            self._launch(device, rows, indices, 1.0, sums)
            add_parts(device, sums, result, scale)

    def _launch(
        self,
        device: Device,
        x: DeviceArray,
        indices: MaskIndices | None,
        scale: float,
        out: DeviceArray,
    ) -> None:
        n, draws, cut = x.shape[0], self._draws, self._cut
        index = None if indices is None else indices.scalar
        if isinstance(cut, cyclic.Cut):
            launch, how = cyclic.launch(cut, n, draws, x.dtype, index)
        else:
            capability = device.compute_capability
            launch, how = iid.launch(cut, n, draws, x.dtype, index, compute_capability=capability)
        args = (
            np.uint64(x.pointer),
            np.int64(x.strides[0]),
            np.uint32(n),
            np.uint64(0 if indices is None else indices.on(device).pointer),
            np.int64(cut.p),
            np.uint32(cut.width),
            np.uint64(self._seed),
            np.uint32(draws),
            np.float32(scale),
            np.uint64(out.pointer),
        )
        device.launch(launch, (*args, *how))


def rows_at_once(parts: int, k: int) -> int:
    """Return how many rows a launch takes, so that its grid and the workspace of its parts have bounds."""
    most = _MAX_GRID_X // k if parts == 1 else min(_MAX_GRID_X // k, _WORKSPACE // (parts * k))
    return max(1, most)
