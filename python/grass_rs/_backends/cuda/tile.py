"""The tile sketch on CUDA: the gradient's tiles are sketched as they are computed, and never written.

Two kernels. tile_tensor.cu multiplies half-precision factors on tensor cores, and folds finished products
into the sketch. tile.cu multiplies turned and signed factors in float: any dtype, any shape of a tile.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import numpy as np

from grass_rs._backends.cuda.launch import ITEM_BYTES, Launch
from grass_rs._backends.cuda.sums import add_parts
from grass_rs._backends.cuda.tile_plans import MOST_BLOCKS, Problem, tile_plan
from grass_rs.errors import SpecError

if TYPE_CHECKING:
    from grass_rs._backends.cuda.launch import Device, DeviceArray
    from grass_rs._backends.cuda.tile_plans import TilePlan

WORKSPACE_BYTES = 2**28
"""Partial sums of a launch at most, unless those of one example take more."""


class TileProgram:
    """Runs a tile sketch; a `FactorProgram`.

    Parameters
    ----------
    spec
        The compressor's spec, of type "tile".

    Raises
    ------
    SpecError
        If a dimension is 2^31 or more.

    """

    def __init__(self, spec: dict[str, Any]) -> None:
        for name in ("in_features", "out_features", "output_dim"):
            if spec[name] >= 2**31:
                msg = f"tile on CUDA: {name} expects less than 2^31, got {spec[name]}: compress on the CPU"
                raise SpecError(msg)
        self._features: tuple[int, int] = (spec["in_features"], spec["out_features"])
        self._sides = tile_sides(spec["output_dim"])
        self._seed = np.uint64(spec["seed"])
        self._plans: dict[tuple[Any, ...], TilePlan] = {}

    def run(
        self,
        device: Device,
        inputs: DeviceArray,
        grad_outputs: DeviceArray,
        out: DeviceArray,
        *,
        bias: bool,
    ) -> None:
        """Write the sketches of n gradients to out (n, output_dim); see `FactorProgram.run`.

        The same bits whether the ones of a bias are implied or in `inputs`.

        Raises
        ------
        ShapeError
            If an example has too many tokens.

        """
        n, tokens, _ = inputs.shape
        if n == 0:
            return
        aligned = is_aligned(inputs) and is_aligned(grad_outputs)
        key = (inputs.dtype, tokens, aligned, bias, device.compute_capability)
        plan = self._plans.get(key)
        if plan is None:
            problem = Problem(*self._sides, *self._features, inputs.dtype, tokens, aligned, bias)
            plan = self._plans[key] = tile_plan(problem, device.compute_capability)
        most = examples_a_launch(plan, out.shape[1])
        if n <= most:
            self._launch(device, plan, inputs, grad_outputs, out)
            return
        for first in range(0, n, most):
            some = (array.rows(first, most) for array in (inputs, grad_outputs, out))
            self._launch(device, plan, *some)

    def _launch(
        self,
        device: Device,
        plan: TilePlan,
        inputs: DeviceArray,
        grad_outputs: DeviceArray,
        out: DeviceArray,
    ) -> None:
        n, k = out.shape
        parts = out if plan.parts == 1 else device.empty((plan.parts, n, k))
        device.launch(
            Launch(plan.kernel, (n * plan.blocks, 1, 1), (plan.threads, 1, 1), plan.shared_bytes),
            (
                np.uint64(inputs.pointer),
                np.int64(inputs.strides[0]),
                np.int64(inputs.strides[1]),
                np.uint64(grad_outputs.pointer),
                np.int64(grad_outputs.strides[0]),
                np.int64(grad_outputs.strides[1]),
                np.uint64(parts.pointer),
                self._seed,
                np.uint32(n),
                *plan.arguments,
            ),
        )
        if plan.parts > 1:
            add_parts(device, parts, out, 1.0)


def examples_a_launch(plan: TilePlan, output_dim: int) -> int:
    """Return how many examples a launch takes at most."""
    most = MOST_BLOCKS // plan.blocks
    if plan.parts > 1:
        most = min(most, WORKSPACE_BYTES // (4 * plan.parts * output_dim))
    return max(1, most)


def is_aligned(x: DeviceArray) -> bool:
    """Return whether the features of every token of x (n, t, features) begin at a multiple of 16 bytes."""
    size = ITEM_BYTES[x.dtype]
    (n, tokens, _), (example, token, _) = x.shape, x.strides
    strides = (example if n > 1 else 0) | (token if tokens > 1 else 0)
    return (x.pointer | strides * size) % 16 == 0


def tile_sides(output_dim: int) -> tuple[int, int]:
    """Return the most square h * w = output_dim with h <= w."""
    height = next(h for h in range(math.isqrt(output_dim), 0, -1) if output_dim % h == 0)
    return height, output_dim // height
