"""Programs of factorised compressors on whole numbers, run by the emulator."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from cuda_on_cpu.device import EmulatedDevice
from cuda_on_cpu.emulator import guarded

if TYPE_CHECKING:
    from collections.abc import Callable

    from numpy.typing import NDArray


def integers(spec: dict[str, Any], n: int, tokens: int, dtype: Any = np.float32) -> Any:
    """Return factors of small whole numbers: every sum of their products is exact in float32."""
    rng = np.random.default_rng(n + tokens)
    return tuple(
        rng.integers(-4, 5, (n, tokens, spec[width])).astype(dtype)
        for width in ("in_features", "out_features")
    )


def run_program(
    program: Callable[[dict[str, Any]], Any],
    spec: dict[str, Any],
    inputs: Any,
    grad_outputs: Any,
    *,
    bias: bool = False,
    device: EmulatedDevice | None = None,
) -> NDArray[np.float32]:
    """Return what a program writes."""
    device = device or EmulatedDevice()
    factors = [
        device.array(guarded(factor) if factor.flags.c_contiguous else factor)
        for factor in (inputs, grad_outputs)
    ]
    out = device.empty((len(inputs), spec["output_dim"]))
    program(spec).run(device, *factors, out, bias=bias)
    result: NDArray[np.float32] = out.owner
    return result


def assert_same_bits(result: NDArray[np.float32], expected: NDArray[np.float32]) -> None:
    np.testing.assert_array_equal(result.view(np.uint32), expected.view(np.uint32))
