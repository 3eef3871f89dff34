"""The bias column: a last input of ones that nobody writes."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import torch
from hypothesis import assume, given
from hypothesis import strategies as st

import grass_rs as grass
import reference
import specs
from test_arrays import NUMPY_DTYPES, TORCH_DTYPES

if TYPE_CHECKING:
    from conftest import Backend

factorised = pytest.mark.parametrize(
    "name", [name for name, spec in specs.EXAMPLES.items() if specs.is_factorised(spec)]
)


def with_ones(inputs: Any) -> Any:
    """Return inputs with the column that `bias=True` implies, of the same library and dtype."""
    shape = (*inputs.shape[:-1], 1)
    if isinstance(inputs, torch.Tensor):
        return torch.cat([inputs, inputs.new_ones(shape)], dim=-1)
    return np.concatenate([inputs, np.ones(shape, inputs.dtype)], axis=-1)


def assert_same_as_with_ones(compressor: Any, inputs: Any, grad_outputs: Any) -> None:
    expected = compressor(with_ones(inputs), grad_outputs)
    result = compressor(inputs, grad_outputs, bias=True)
    assert type(result) is type(inputs)
    np.testing.assert_array_equal(np.asarray(result), np.asarray(expected))


@given(
    spec=st.one_of(specs.factgrasses(), specs.logras(), specs.tiles()),
    n=st.integers(0, 3),
    tokens=st.integers(0, 4),
    strided=st.booleans(),
)
def test_implied_ones_are_written_ones(
    backend: Backend, spec: dict[str, Any], n: int, tokens: int, strided: bool
) -> None:
    compressor = specs.build(spec)
    a, g = specs.inputs(spec, n, tokens=tokens)
    held = a[..., :-1] if strided else np.ascontiguousarray(a[..., :-1])
    assert_same_as_with_ones(compressor, backend.array(held), backend.array(g))
    result = backend.numpy(compressor(backend.array(held), backend.array(g), bias=True))
    specs.assert_compressed(result, reference.dense(spec), with_ones(held), g)


@factorised
@pytest.mark.parametrize("dtype", NUMPY_DTYPES, ids=lambda dtype: dtype.__name__)
def test_numpy_dtypes(name: str, dtype: type[np.floating[Any]]) -> None:
    a, g = specs.inputs(specs.EXAMPLES[name], n=5)
    compressor = specs.build(specs.EXAMPLES[name])
    assert_same_as_with_ones(compressor, a[..., 1:].astype(dtype), g)


@factorised
@pytest.mark.parametrize("dtype", TORCH_DTYPES, ids=str)
def test_torch_dtypes(name: str, dtype: torch.dtype) -> None:
    a, g = specs.inputs(specs.EXAMPLES[name], n=5)
    inputs = torch.from_numpy(a[..., 1:]).to(dtype)
    assert_same_as_with_ones(specs.build(specs.EXAMPLES[name]), inputs, torch.from_numpy(g))


@factorised
def test_two_axes(backend: Backend, name: str) -> None:
    a, g = specs.inputs(specs.EXAMPLES[name], n=4, tokens=1)
    compressor = specs.build(specs.EXAMPLES[name])
    assert_same_as_with_ones(compressor, backend.array(a[:, 0, 1:]), backend.array(g[:, 0]))


@given(spec=st.one_of(specs.factgrasses(), specs.logras(), specs.tiles()), tokens=st.integers(0, 3))
def test_a_layer_of_a_bias_alone(spec: dict[str, Any], tokens: int) -> None:
    assume(spec["type"] != "factgrass" or spec["in_features"] == 1)
    spec = spec | {"in_features": 1}
    compressor = specs.build(spec)
    _, g = specs.inputs(spec, n=2, tokens=tokens)
    nothing = np.empty((2, tokens, 0), np.float32)
    assert_same_as_with_ones(compressor, nothing, g)
    assert_same_as_with_ones(compressor, torch.from_numpy(nothing), torch.from_numpy(g))


@factorised
def test_out_is_filled(name: str) -> None:
    a, g = specs.inputs(specs.EXAMPLES[name], n=4)
    compressor = specs.build(specs.EXAMPLES[name])
    out = np.full((4, compressor.output_dim), np.nan, np.float32)
    assert compressor(a[..., 1:], g, bias=True, out=out) is out
    np.testing.assert_array_equal(out, compressor(with_ones(a[..., 1:]), g))


@factorised
@pytest.mark.parametrize(("missing", "bias"), [(0, True), (1, False), (2, True), (-1, False)])
def test_other_widths_are_refused_with_both_that_fit(name: str, missing: int, bias: bool) -> None:
    compressor = specs.build(specs.EXAMPLES[name])
    width = compressor.in_features
    inputs = np.zeros((2, 3, width - missing), np.float32)
    grad_outputs = np.zeros((2, 3, compressor.out_features), np.float32)
    with pytest.raises(grass.ShapeError) as caught:
        compressor(inputs, grad_outputs, bias=bias)
    message = str(caught.value)
    assert f"(n, t, {width}), or (n, t, {width - 1}) with bias=True" in message
    assert f"{inputs.shape}" in message
    assert f"with bias={bias}" in message
    assert "\n" not in message


@factorised
@pytest.mark.parametrize("bias", [None, 1, np.ones(7), torch.ones(7)], ids=str)
def test_a_bias_that_is_no_bool_is_refused(name: str, bias: Any) -> None:
    a, g = specs.inputs(specs.EXAMPLES[name], n=2)
    with pytest.raises(grass.SpecError, match="bias expects True or False"):
        specs.build(specs.EXAMPLES[name])(a[..., 1:], g, bias=bias)
