"""CUDA arrays: what is accepted, what is read in place, what comes back."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import torch

import grass_rs as grass
import specs
from cuda_on_cpu.calls import (
    LOGRA,
    K,
    P,
    as_numpy,
    assert_projected,
    every_library,
    on_cupy,
    on_torch,
    project,
    project_factors,
    rows,
    said_on_cuda,
)
from grass_rs._backends import cuda
from grass_rs._backends.cuda import programs

if TYPE_CHECKING:
    from collections.abc import Callable

    from numpy.typing import NDArray

    from cuda_on_cpu.fake_cupy import FakeCupy


# Arrays


@every_library
def test_rows(cupy: FakeCupy, on: Callable[..., Any]) -> None:
    x = rows()
    array = on(x)
    result = project(array)
    assert type(result) is type(array)
    assert_projected(result, x)
    assert len(cupy.logged("launch")) == 2


@every_library
def test_one_row(cupy: FakeCupy, on: Callable[..., Any]) -> None:
    x = rows(1)[0]
    result = project(on(x))
    assert result.shape == (K,)
    assert_projected(result, x)
    assert cupy.logged("launch")


@every_library
@pytest.mark.parametrize("dtype", ["float64", "float16"])
def test_dtypes(cupy: FakeCupy, on: Callable[..., Any], dtype: str) -> None:
    x = rows().astype(dtype)
    assert_projected(project(on(x)), x)
    assert cupy.logged("compile")[0][1].macros[0] in {"Scalar=double", "Scalar=Half"}


def test_bfloat16(cupy: FakeCupy) -> None:
    ml_dtypes = pytest.importorskip("ml_dtypes")
    narrow = rows().astype(ml_dtypes.bfloat16)
    assert_projected(project(on_cupy(narrow)), narrow)
    tensor = said_on_cuda(torch.from_numpy(rows()).bfloat16())
    assert_projected(project(tensor), tensor.float().numpy())
    assert len(cupy.logged("compile")) == 2  # the projection and its sum


@every_library
def test_rows_are_read_in_place(cupy: FakeCupy, on: Callable[..., Any]) -> None:
    wide = rows(7, P + 5)
    for x in (wide[:, 2:-3], wide[::2, 5:], wide[0, 5:]):
        cupy.log.clear()
        assert_projected(project(on(x)), x)
        assert cupy.logged("launch")[0][-1][0] == x.ctypes.data
        assert not cupy.logged("copy")


def test_rows_may_go_backwards(cupy: FakeCupy) -> None:
    x = rows()[::-1]
    assert_projected(project(on_cupy(x)), x)
    assert not cupy.logged("copy")


@every_library
def test_other_strides_of_the_last_axis_are_copied(cupy: FakeCupy, on: Callable[..., Any]) -> None:
    for x in (rows(3, 2 * P)[:, ::2], np.asfortranarray(rows())):
        assert_projected(project(on(x)), x)
        assert cupy.logged("launch")[0][-1][0] != x.ctypes.data


def test_one_column_needs_no_copy(cupy: FakeCupy) -> None:
    x = rows(3, 2)[:, ::2]
    narrow = grass.Gaussian(1, K, seed=3)
    assert_projected(project(on_cupy(x), compressor=narrow), x, compressor=narrow)
    assert not cupy.logged("copy")


def test_cupy_strides_between_elements_are_copied(cupy: FakeCupy) -> None:
    record = np.zeros((3, P), dtype=[("pad", np.uint8), ("value", np.float32)])
    record["value"] = rows()
    assert_projected(project(on_cupy(record["value"])), rows())
    assert cupy.logged("launch")[0][-1][0] % 4 == 0


def test_torch_views_and_graphs(cupy: FakeCupy) -> None:
    x = torch.from_numpy(rows())
    negative = torch._neg_view(x)
    assert negative.is_neg()
    assert_projected(project(said_on_cuda(negative)), -x.numpy())
    leaf = said_on_cuda(x.clone().requires_grad_())
    result = project(leaf)
    assert not result.requires_grad
    assert_projected(result, x.numpy())
    inputs, grads = (torch.from_numpy(a).requires_grad_() for a in specs.inputs(LOGRA.spec, 4))
    result = project_factors(said_on_cuda(inputs), said_on_cuda(grads))
    assert not result.requires_grad
    assert cupy.logged("launch")


@every_library
def test_no_rows(cupy: FakeCupy, on: Callable[..., Any]) -> None:
    assert project(on(rows(0))).shape == (0, K)
    inputs, grads = specs.inputs(LOGRA.spec, 0)
    assert project_factors(on(inputs), on(grads)).shape == (0, 6)
    assert not cupy.logged("launch")


@pytest.mark.usefixtures("cupy")
@every_library
def test_no_tokens(on: Callable[..., Any]) -> None:
    arguments = specs.inputs(LOGRA.spec, 2, tokens=0)
    result = project_factors(*map(on, arguments))
    np.testing.assert_array_equal(as_numpy(result), np.zeros((2, 6), dtype=np.float32))


@every_library
def test_factors(cupy: FakeCupy, on: Callable[..., Any]) -> None:
    inputs, grads = specs.inputs(LOGRA.spec, 4)
    result = project_factors(on(inputs), on(grads))
    assert type(result) is type(on(inputs))
    assert_projected(result, inputs, grads, compressor=LOGRA)
    one = inputs[:, 0], grads[:, 0]
    assert_projected(project_factors(*map(on, one)), *one, compressor=LOGRA)
    assert len(cupy.logged("upload")) in {0, 2}  # torch moves by its own means


@pytest.mark.usefixtures("cupy")
@every_library
def test_bias_is_a_column_of_ones(on: Callable[..., Any]) -> None:
    inputs, grads = specs.inputs(LOGRA.spec, 4)
    inputs[..., -1] = 1
    result = project_factors(on(inputs[..., :-1]), on(grads), bias=True)
    assert_projected(result, inputs, grads, compressor=LOGRA)
    only = grass.LoGra(1, 7, 3, 2, seed=7)
    ones = np.ones((4, 3, 1), dtype=np.float32)
    result = project_factors(on(ones[..., :0].copy()), on(grads), bias=True, compressor=only)
    assert_projected(result, ones, grads, compressor=only)


@pytest.mark.usefixtures("cupy")
@every_library
@pytest.mark.parametrize("kinds", [("float16", "float64"), ("float64", "float32")])
def test_factors_may_differ_in_dtype(on: Callable[..., Any], kinds: tuple[str, str]) -> None:
    seen: list[str] = []
    program = cuda.structure_of(LOGRA._native).program
    run = program.run

    def watched(device: Any, *factors: Any, bias: bool) -> None:
        seen.extend(factor.dtype for factor in factors[:2])
        run(device, *factors, bias=bias)

    program.run = watched
    arguments = [x.astype(kind) for x, kind in zip(specs.inputs(LOGRA.spec, 4), kinds, strict=True)]
    assert_projected(project_factors(*map(on, arguments)), *arguments, compressor=LOGRA)
    assert seen == ["float32", "float32"]


@pytest.mark.usefixtures("cupy")
def test_autocast_does_not_reach_the_products() -> None:
    arguments = specs.inputs(LOGRA.spec, 4)
    expected = project_factors(*map(on_torch, arguments)).numpy()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        result = project_factors(*map(on_torch, arguments))
    np.testing.assert_array_equal(result.numpy(), expected)


# Output


@every_library
def test_out_is_written_and_returned(cupy: FakeCupy, on: Callable[..., Any]) -> None:
    memory = np.full((5, K), np.nan, dtype=np.float32)
    out = on(memory[1:4])
    assert project(on(rows()), out) is out
    assert_projected(memory[1:4], rows())
    assert np.all(np.isnan(memory[[0, 4]]))
    assert project(on(rows(1)[0]), on(memory[0])).shape == (K,)
    assert_projected(memory[0], rows(1)[0])
    assert cupy.logged("launch")


def float32(*shape: int) -> NDArray[np.float32]:
    return np.zeros(shape, dtype=np.float32)


@every_library
@pytest.mark.parametrize(
    ("out", "error", "message"),
    [
        (
            float32(3, K).astype(np.float64),
            grass.UnsupportedArrayError,
            "expects a float32 .* on cuda:0, got one of float64: allocate it as float32",
        ),
        (float32(4, K), grass.ShapeError, r"shape \(3, 16\), got shape \(4, 16\)"),
        (float32(3 * K), grass.ShapeError, r"got shape \(48,\)"),
        (float32(3, 2 * K)[:, ::2], grass.ShapeError, r"strides \(32, 2\)"),
        (float32(3, 2 * K)[:, :K], grass.ShapeError, r"strides \(32, 1\)"),
        (np.asfortranarray(float32(3, K)), grass.ShapeError, r"strides \(1, 3\)"),
    ],
    ids=["dtype", "rows", "axes", "columns", "stride", "order"],
)
def test_wrong_outputs(
    cupy: FakeCupy,
    on: Callable[..., Any],
    out: NDArray[Any],
    error: type[Exception],
    message: str,
) -> None:
    with pytest.raises(error, match=message):
        project(on(rows()), on(out))
    assert not cupy.logged("launch")


@every_library
def test_outputs_elsewhere(cupy: FakeCupy, on: Callable[..., Any]) -> None:
    name = "torch" if on is on_torch else "cupy"
    for out, got in (
        (float32(3, K), "numpy.ndarray on cpu"),
        (torch.zeros(3, K), "torch.Tensor on cpu"),
        (on(float32(3, K), 1), f"{name} on cuda:1"),
        ((on_cupy if on is on_torch else on_torch)(float32(3, K)), " on cuda:0"),
        ([0.0], "builtins.list on cpu"),
    ):
        with pytest.raises(
            grass.UnsupportedArrayError,
            match=f"Gaussian: out expects a float32 {name} array on cuda:0.*{got}",
        ):
            project(on(rows()), out)
    assert not cupy.logged("launch")


def test_tensors_that_must_not_be_written(cupy: FakeCupy) -> None:
    leaf = said_on_cuda(torch.zeros(3, K, requires_grad=True))
    negative = said_on_cuda(torch.zeros(3, K, dtype=torch.complex64).conj().imag)
    for out, message in ((leaf, "autograd graph"), (negative, "negative view")):
        with pytest.raises(grass.UnsupportedArrayError, match=message):
            project(on_torch(rows()), out)
    assert not cupy.logged("launch")


@every_library
def test_out_shares_no_memory_with_inputs(cupy: FakeCupy, on: Callable[..., Any]) -> None:
    square = grass.Gaussian(K, K, seed=0)
    memory = float32(7, K)
    for x, out in ((memory[:3], memory[2:5]), (memory[6:3:-1], memory[3:6])):
        if on is on_torch and x.strides[0] < 0:
            continue
        with pytest.raises(grass.ShapeError, match="memory of its own"):
            project(on(x), on(out), square)
    project(on(memory[:3]), on(memory[3:6]), square)
    factors = specs.inputs(LOGRA.spec, 1)
    for factor in factors:
        with pytest.raises(grass.ShapeError, match="memory of its own"):
            project_factors(*map(on, factors), out=on(factor.reshape(-1)[None, :6]))
    assert cupy.logged("launch")


# Refused inputs


def test_is_device_array(cupy: FakeCupy) -> None:
    x = rows()
    assert cuda.is_device_array(on_torch(x))
    assert cuda.is_device_array(on_cupy(x))
    for other in (x, torch.from_numpy(x), None, 1.0, [on_torch(x)], "cuda", np.float32(1)):
        assert not cuda.is_device_array(other)
    assert not cupy.log


@every_library
@pytest.mark.parametrize("dtype", ["int32", "uint8", "bool", "complex64"])
def test_other_dtypes(cupy: FakeCupy, on: Callable[..., Any], dtype: str) -> None:
    with pytest.raises(grass.UnsupportedArrayError, match=rf"Gaussian.*bfloat16, got.*{dtype}"):
        project(on(rows().astype(dtype)))
    assert not cupy.logged("launch")


def test_sparse_tensor(cupy: FakeCupy) -> None:
    sparse = said_on_cuda(torch.from_numpy(rows()).to_sparse())
    with pytest.raises(grass.UnsupportedArrayError, match="to_dense"):
        project(sparse)
    assert not cupy.logged("launch")


@every_library
def test_shapes_are_checked(cupy: FakeCupy, on: Callable[..., Any]) -> None:
    with pytest.raises(
        grass.ShapeError, match=r"Gaussian expects \(n, 50\) or \(50,\), got \(3, 49\)"
    ):
        project(on(rows(3, 49)))
    inputs, grads = specs.inputs(LOGRA.spec, 4)
    with pytest.raises(grass.ShapeError, match="LoGra expects inputs"):
        project_factors(on(inputs[:3]), on(grads))
    assert not cupy.logged("launch")


def test_mixed_devices(cupy: FakeCupy) -> None:
    inputs, grads = specs.inputs(LOGRA.spec, 4)
    for left, right, got in (
        (on_torch(inputs), torch.from_numpy(grads), "torch.Tensor on cpu"),
        (torch.from_numpy(inputs), on_torch(grads), "inputs of torch.Tensor on cpu"),
        (on_cupy(inputs), grads, "grad_outputs of numpy.ndarray on cpu"),
        (on_torch(inputs), on_torch(grads, 1), "grad_outputs of torch on cuda:1"),
        (on_cupy(inputs, 1), on_cupy(grads), "inputs of cupy on cuda:1"),
        (on_cupy(inputs), on_torch(grads), "grad_outputs of torch on cuda:0"),
    ):
        with pytest.raises(grass.UnsupportedArrayError, match=got):
            project_factors(left, right)
    assert not cupy.log


def test_too_many_outputs(cupy: FakeCupy) -> None:
    wide = grass.Gaussian(1, 2**31, seed=0)
    with pytest.raises(grass.SpecError, match="2147483647, got 2147483648"):
        programs.Structure(wide._native)
    assert not cupy.log
