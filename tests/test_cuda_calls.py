"""Every compressor on CUDA arrays, from the public call down to the kernels, which run on the CPU."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

import reference
import specs
from cuda_on_cpu.calls import as_numpy, every_library, on_cupy
from grass_rs._backends import cuda

if TYPE_CHECKING:
    from cuda_on_cpu.fake_cupy import FakeCupy

every_compressor = pytest.mark.parametrize("name", specs.EXAMPLES)


def call(spec: dict[str, Any], arrays: list[Any], *, bias: bool = False) -> Any:
    """Call the CUDA backend as the compressor does for an array of a CUDA device."""
    native = specs.build(spec)._native
    if specs.is_factorised(spec):
        return cuda.compress_factors(native, "it", *arrays, bias, None)
    return cuda.compress_rows(native, "it", *arrays, None)


@every_library
@every_compressor
@pytest.mark.parametrize("dtype", ["float32", "float16"])
@pytest.mark.usefixtures("cupy")
def test_every_compressor_gives_its_matrix_times_the_rows(name: str, on: Any, dtype: str) -> None:
    spec = specs.EXAMPLES[name]
    arguments = [array.astype(dtype) for array in specs.inputs(spec, 5)]
    found = as_numpy(call(spec, [on(array) for array in arguments]))
    specs.assert_compressed(found, reference.dense(spec), *arguments)


@every_compressor
def test_cupy_arrays_reach_the_kernels_by_the_public_call(cupy: FakeCupy, name: str) -> None:
    spec = specs.EXAMPLES[name]
    arguments = specs.inputs(spec, 3)
    found = specs.build(spec)(*(on_cupy(array) for array in arguments))
    assert cupy.logged("launch") or cupy.logged("matmul")
    specs.assert_compressed(as_numpy(found), reference.dense(spec), *arguments)


@every_library
@pytest.mark.parametrize(
    "name", [name for name, spec in specs.EXAMPLES.items() if specs.is_factorised(spec)]
)
@pytest.mark.usefixtures("cupy")
def test_an_implied_bias_is_a_column_of_ones(name: str, on: Any) -> None:
    spec = specs.EXAMPLES[name]
    inputs, grad_outputs = specs.inputs(spec, 4)
    inputs[:, :, -1] = 1
    short = np.ascontiguousarray(inputs[:, :, :-1])
    found = as_numpy(call(spec, [on(short), on(grad_outputs)], bias=True))
    specs.assert_compressed(found, reference.dense(spec), inputs, grad_outputs)
