"""LoGra in CUDA: matrix products of the array library around projections made on the CPU."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import ml_dtypes
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import reference
import specs
from cuda_on_cpu.device import EmulatedDevice
from grass_rs._backends.cuda.logra import LoGraProgram

if TYPE_CHECKING:
    from numpy.typing import NDArray

SPEC = reference.logra(9, 7, 3, 2, 7)


def run(
    spec: dict[str, Any],
    inputs: NDArray[Any],
    grad_outputs: NDArray[Any],
    *,
    bias: bool = False,
    device: EmulatedDevice | None = None,
) -> NDArray[np.float32]:
    device = EmulatedDevice() if device is None else device
    out = device.empty((len(inputs), spec["rank_out"] * spec["rank_in"]))
    factors = device.array(inputs), device.array(grad_outputs)
    LoGraProgram(spec).run(device, *factors, out, bias=bias)
    result: NDArray[np.float32] = out.owner
    return result


@given(spec=specs.logras(), n=st.integers(1, 4), tokens=st.integers(0, 5), bias=st.booleans())
def test_equals_twin(spec: dict[str, Any], n: int, tokens: int, bias: bool) -> None:
    inputs, grads = specs.inputs(spec, n, tokens=tokens)
    given_inputs = inputs
    if bias:
        inputs[..., -1] = 1
        given_inputs = inputs[..., :-1]
    result = run(spec, given_inputs, grads, bias=bias)
    specs.assert_compressed(result, reference.dense(spec), inputs, grads)


@pytest.mark.parametrize("dtype", [np.float64, np.float16, ml_dtypes.bfloat16])
def test_dtypes(dtype: Any) -> None:
    factors = [x.astype(dtype) for x in specs.inputs(SPEC, 4)]
    exact = [x.astype(np.float64) for x in factors]
    specs.assert_compressed(run(SPEC, *factors), reference.dense(SPEC), *exact)


def test_strides() -> None:
    inputs, grads = specs.inputs(SPEC, 8, tokens=6)
    factors = inputs[::2, 1::2], grads[1::2, ::2]
    specs.assert_compressed(run(SPEC, *factors), reference.dense(SPEC), *factors)


def test_projections_are_the_core_s_and_moved_once() -> None:
    device = EmulatedDevice()
    factors = specs.inputs(SPEC, 2)
    first, again = run(SPEC, *factors, device=device), run(SPEC, *factors, device=device)
    np.testing.assert_array_equal(first, again)
    matrices = [constant.owner for constant in device._constants.values()]
    for matrix, (width, rank, label) in zip(matrices, [(9, 3, "in"), (7, 2, "out")], strict=True):
        spec = reference.gaussian(width, rank, reference.derive(7, label))
        np.testing.assert_array_equal(matrix, specs.build(spec).to_dense())
    other = run({**SPEC, "seed": 8}, *factors, device=device)
    assert len(device._constants) == 4
    assert not np.array_equal(other, first)
