"""LoGra on a device: dense projections of both factors, through the array library's matrix products."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np

from grass_rs import _native
from grass_rs._backends.cuda.arrays import transposed

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from grass_rs._backends.cuda.launch import Device, DeviceArray


class LoGraProgram:
    """Compresses with `LoGra(...).spec`: out[o, i] = sum_t (P_out g_t)[o] (P_in a_t)[i]."""

    def __init__(self, spec: dict[str, Any]) -> None:
        self._in = _Projection(spec["in_features"], spec["rank_in"], spec["seed"], "in")
        self._out = _Projection(spec["out_features"], spec["rank_out"], spec["seed"], "out")

    def run(
        self,
        device: Device,
        inputs: DeviceArray,
        grad_outputs: DeviceArray,
        out: DeviceArray,
        *,
        bias: bool,
    ) -> None:
        """Write the products of the projected factors (n, t, in), (n, t, out) to out (n, rank_out * rank_in).

        Source: LoGra (arXiv 2405.13954), the baseline. Products are in float32, as precise as the array
        library is told to be (TF32); the kernel that cuBLAS chooses, and with it a row's last bits, may
        depend on n and t.
        """
        n, tokens = inputs.shape[:2]
        rank_in, rank_out = self._in.rank, self._out.rank
        projected_in = device.empty((n, tokens, rank_in))
        projected_out = device.empty((n, tokens, rank_out))
        self._in.apply(device, inputs, projected_in, bias=bias)
        self._out.apply(device, grad_outputs, projected_out, bias=False)
        products = replace(out, shape=(n, rank_out, rank_in), strides=(out.strides[0], rank_in, 1))
        device.matmul(transposed(projected_out), projected_in, products)


class _Projection:
    """The dense Gaussian projection of one factor, R^width -> R^rank."""

    def __init__(self, width: int, rank: int, seed: int, label: str) -> None:
        self._width, self.rank = width, rank
        self._seed = _native.derive(seed, label)

    def apply(self, device: Device, factor: DeviceArray, out: DeviceArray, *, bias: bool) -> None:
        """Write the projected tokens (n, t, rank) of (n, t, width); `bias` as in FactorProgram."""
        key = ("gaussian", str(self._width), str(self.rank), str(self._seed))
        matrix = transposed(device.constant(key, self._matrix))
        if not bias:
            device.matmul(factor, matrix, out)
            return
        # The column of ones adds the last coordinate's entries to every token.
        width = self._width - 1
        last = replace(
            matrix,
            pointer=matrix.pointer + 4 * width * matrix.strides[0],
            shape=matrix.shape[1:],
            strides=matrix.strides[1:],
        )
        device.matmul(factor, replace(matrix, shape=(width, self.rank)), out, last)

    def _matrix(self) -> NDArray[np.float32]:
        spec = {
            "type": "gaussian",
            "input_dim": self._width,
            "output_dim": self.rank,
            "seed": self._seed,
            "kind": "normal",
        }
        matrix = np.empty((self.rank, self._width), dtype=np.float32)
        _native.Compressor.from_spec(json.dumps(spec)).write_dense(matrix)
        return matrix
