"""What every compressor promises, whatever its type."""

from __future__ import annotations

import copy
import pickle
import re
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import torch
from hypothesis import assume, given
from hypothesis import strategies as st

import grass_rs as grass
import reference
import specs

if TYPE_CHECKING:
    from collections.abc import Callable

    from conftest import Backend

every_compressor = pytest.mark.parametrize("spec", specs.EXAMPLES.values(), ids=specs.EXAMPLES)


@given(spec=specs.any_spec)
def test_call_equals_its_own_dense_matrix(spec: dict[str, Any]) -> None:
    compressor = specs.build(spec)
    arguments = specs.inputs(spec, n=3)
    matrix = compressor.to_dense()
    assert matrix.dtype == np.float32
    assert matrix.shape == (compressor.output_dim, compressor.input_dim)
    assert compressor.input_dim == specs.width(spec)
    specs.assert_compressed(compressor(*arguments), matrix, *arguments)


@given(spec=specs.any_spec)
def test_spec_and_fingerprint_equal_twin(spec: dict[str, Any]) -> None:
    compressor = specs.build(spec)
    assert compressor.spec == spec
    assert compressor.fingerprint == reference.fingerprint(spec)
    assert reference.canonical_json(compressor.spec) == reference.canonical_json(spec)


@given(spec=specs.any_spec, scale=st.sampled_from([2.0, -0.5, 1024.0]))
def test_linear(spec: dict[str, Any], scale: float) -> None:
    compressor = specs.build(spec)
    first, *rest = specs.inputs(spec, n=2, seed=1)
    second, *_ = specs.inputs(spec, n=2, seed=2)
    one, two = compressor(first, *rest), compressor(second, *rest)
    # A power of two scales every step exactly.
    np.testing.assert_array_equal(compressor(first * np.float32(scale), *rest), one * scale)
    np.testing.assert_array_equal(compressor(np.zeros_like(first), *rest), np.zeros_like(one))
    unit = (specs.magnitudes(first, *rest) + specs.magnitudes(second, *rest)) @ np.abs(
        reference.dense(spec).T
    )
    error = np.abs(compressor(first + second, *rest).astype(np.float64) - one - two)
    assert np.all(error <= 3e-6 * unit + 1e-37)


@every_compressor
def test_one_row_gives_one_row(backend: Backend, spec: dict[str, Any]) -> None:
    compressor = specs.build(spec)
    arguments = specs.inputs(spec, n=1, tokens=1)
    rows = backend.numpy(compressor(*map(backend.array, arguments)))
    flat = [backend.array(argument.reshape(-1)) for argument in arguments]
    if specs.is_factorised(spec):
        # One axis could be an example or a token.
        with pytest.raises(grass.ShapeError):
            compressor(*flat)
        return
    single = backend.numpy(compressor(*flat))
    assert single.shape == (compressor.output_dim,)
    np.testing.assert_array_equal(single, rows[0])


@every_compressor
def test_no_rows_give_no_rows(backend: Backend, spec: dict[str, Any]) -> None:
    compressor = specs.build(spec)
    result = backend.numpy(compressor(*map(backend.array, specs.inputs(spec, n=0))))
    assert result.shape == (0, compressor.output_dim)
    assert result.dtype == np.float32


@pytest.mark.parametrize("name", ["logra", "factgrass", "tile"])
def test_no_tokens_give_zeros(backend: Backend, name: str) -> None:
    compressor = specs.build(specs.EXAMPLES[name])
    arguments = specs.inputs(compressor.spec, n=2, tokens=0)
    result = backend.numpy(compressor(*map(backend.array, arguments)))
    np.testing.assert_array_equal(result, np.zeros((2, compressor.output_dim), np.float32))


@pytest.mark.parametrize("name", ["logra", "factgrass", "tile"])
def test_two_axes_mean_one_token(backend: Backend, name: str) -> None:
    compressor = specs.build(specs.EXAMPLES[name])
    a, g = specs.inputs(compressor.spec, n=4, tokens=1)
    folded = compressor(backend.array(a[:, 0]), backend.array(g[:, 0]))
    np.testing.assert_array_equal(backend.numpy(folded), compressor(a, g))


@every_compressor
def test_non_finite_values_pass_through(spec: dict[str, Any]) -> None:
    compressor = specs.build(spec)
    first, *rest = specs.inputs(spec, n=3)
    first[1] = np.nan
    result = compressor(first, *rest)
    assert np.all(np.isfinite(result[[0, 2]]))
    assert np.any(np.isnan(result[1]))


# Out


@every_compressor
def test_out_is_filled_and_returned(backend: Backend, spec: dict[str, Any]) -> None:
    compressor = specs.build(spec)
    arguments = specs.inputs(spec, n=3)
    out = np.full((3, compressor.output_dim), 7, dtype=np.float32)
    given_out = backend.array(out)
    returned = compressor(*map(backend.array, arguments), out=given_out)
    assert returned is given_out
    np.testing.assert_array_equal(out, compressor(*arguments))


@pytest.mark.parametrize(
    ("make", "error"),
    [
        (lambda k: np.empty((3, k + 1), np.float32), grass.ShapeError),
        (lambda k: np.empty((2, k), np.float32), grass.ShapeError),
        (lambda k: np.empty(k, np.float32), grass.ShapeError),
        (lambda k: np.empty((3, k), np.float64), grass.UnsupportedArrayError),
        (lambda k: np.empty((3, k), np.float16), grass.UnsupportedArrayError),
        (lambda k: np.empty((3, k), ">f4"), grass.UnsupportedArrayError),
        (
            lambda k: np.empty(12 * k + 1, "u1")[1:].view("f4").reshape(3, k),
            grass.UnsupportedArrayError,
        ),
        (lambda k: np.empty((k, 3), np.float32).T, grass.ShapeError),
        (lambda k: np.empty((6, k), np.float32)[::2], grass.ShapeError),
        (lambda k: np.broadcast_to(np.zeros(k, np.float32), (3, k)), grass.ShapeError),
    ],
)
def test_out_that_cannot_be_filled_is_refused(
    make: Callable[[int], np.ndarray], error: type[Exception]
) -> None:
    compressor = specs.build(specs.EXAMPLES["sjlt"])
    (x,) = specs.inputs(compressor.spec, n=3)
    with pytest.raises(error, match="out"):
        compressor(x, out=make(compressor.output_dim))


@pytest.mark.parametrize(
    "out",
    [
        torch.empty(3, 16, device="meta"),
        torch.empty(3, 16, dtype=torch.int32),
        torch.empty(3, 16, requires_grad=True),
        torch._neg_view(torch.empty(3, 16)),
        torch.empty(3, 16).to_sparse(),
        np.ma.masked_array(np.empty((3, 16), np.float32)),
        [0.0] * 48,
    ],
    ids=["meta", "integers", "graph", "negative", "sparse", "masked", "list"],
)
def test_out_of_another_kind_is_refused_by_its_name(backend: Backend, out: Any) -> None:
    x = backend.array(np.ones((3, 100), np.float32))
    with pytest.raises(
        grass.UnsupportedArrayError, match=r"^SJLT: out expects .* got .*: allocate"
    ):
        grass.SJLT(100, 16, seed=0)(x, out=out)


def test_read_only_out_is_refused() -> None:
    compressor = specs.build(specs.EXAMPLES["sjlt"])
    (x,) = specs.inputs(compressor.spec, n=3)
    out = np.zeros((3, compressor.output_dim), dtype=np.float32)
    out.flags.writeable = False
    with pytest.raises(grass.ShapeError, match="out expects a writable"):
        compressor(x, out=out)
    np.testing.assert_array_equal(out, 0)


@pytest.mark.parametrize("shift", [0, 1, 3])
def test_out_that_overlaps_an_input_is_refused(backend: Backend, shift: int) -> None:
    memory = np.random.default_rng(0).standard_normal((7, 12), dtype=np.float32)
    kept = memory.copy()
    x, out = backend.array(memory[:4]), backend.array(memory[shift : shift + 4])
    with pytest.raises(grass.ShapeError, match="out expects memory of its own"):
        grass.SJLT(12, 12, seed=1)(x, out=out)
    other = backend.array(np.ones((4, 3), np.float32))
    factorised = grass.LoGra(12, 3, 12, 1, seed=1)
    with pytest.raises(grass.ShapeError, match="out expects memory of its own"):
        factorised(x, other, out=out)
    np.testing.assert_array_equal(memory, kept)


# Dense


@every_compressor
def test_dense_refuses_beyond_max_bytes(spec: dict[str, Any]) -> None:
    compressor = specs.build(spec)
    size = compressor.input_dim * compressor.output_dim * 4
    assert compressor.to_dense(max_bytes=size).nbytes == size
    with pytest.raises(grass.SpecError, match="max_bytes"):
        compressor.to_dense(max_bytes=size - 1)


def test_dense_refuses_more_than_a_gibibyte_by_default() -> None:
    with pytest.raises(grass.SpecError, match="max_bytes"):
        grass.SJLT(2**18 + 1, 2**10, seed=0).to_dense()


# Equality, copies


@given(first=specs.any_spec, second=specs.any_spec)
def test_equal_exactly_when_specs_are(first: dict[str, Any], second: dict[str, Any]) -> None:
    assume(first != second)
    one, same, other = specs.build(first), specs.build(first), specs.build(second)
    assert one == same
    assert hash(one) == hash(same)
    assert one != other
    assert one.fingerprint != other.fingerprint
    assert len({one, same, other}) == 2


@every_compressor
def test_not_equal_to_anything_else(spec: dict[str, Any]) -> None:
    compressor = specs.build(spec)
    for other in (None, 1, "sjlt", spec, compressor.fingerprint, object()):
        assert compressor != other
        assert (compressor == other) is False


@pytest.mark.parametrize(
    "duplicate",
    [
        copy.copy,
        copy.deepcopy,
        *(
            lambda c, protocol=protocol: pickle.loads(pickle.dumps(c, protocol))  # noqa: S301
            for protocol in range(pickle.HIGHEST_PROTOCOL + 1)
        ),
    ],
    ids=["copy", "deepcopy", *(f"pickle {n}" for n in range(pickle.HIGHEST_PROTOCOL + 1))],
)
@given(spec=specs.any_spec, used=st.booleans())
def test_copies_are_equal_and_compute_the_same(
    duplicate: Callable[[Any], Any], spec: dict[str, Any], *, used: bool
) -> None:
    compressor = specs.build(spec)
    arguments = specs.inputs(spec, n=2)
    if used:  # what the first call draws must not matter
        compressor(*arguments)
    twin = duplicate(compressor)
    assert type(twin) is type(compressor)
    assert twin == compressor
    assert twin.spec == spec
    assert twin.to_bytes() == reference.to_bytes(spec)
    np.testing.assert_array_equal(twin(*arguments), compressor(*arguments))


@every_compressor
def test_changing_the_spec_dict_does_not_change_the_compressor(spec: dict[str, Any]) -> None:
    compressor = specs.build(spec)
    compressor.spec.clear()
    assert compressor.spec == spec


@every_compressor
def test_attributes_cannot_be_set(spec: dict[str, Any]) -> None:
    compressor = specs.build(spec)
    for name in ("input_dim", "output_dim", "spec", "fingerprint"):
        with pytest.raises(AttributeError):
            setattr(compressor, name, 1)


@every_compressor
def test_repr_names_type_and_arguments(spec: dict[str, Any]) -> None:
    compressor = specs.build(spec)
    text = repr(compressor)
    assert text.startswith(type(compressor).__name__)
    assert "\n" not in text
    assert len(text) < 500


@pytest.mark.parametrize("number", [3.0, "3", None, np.float32(3), [3], -3, 2**64, True])
@pytest.mark.parametrize("name", ["input_dim", "output_dim", "nnz", "seed"])
def test_dimensions_and_seeds_are_whole_numbers(name: str, number: Any) -> None:
    good = {"input_dim": 3, "output_dim": 3, "seed": 0}
    with pytest.raises(grass.SpecError, match=rf"{name} .*got {re.escape(repr(number))}"):
        grass.SJLT(**(good | {name: number}))


@pytest.mark.parametrize("number", [np.int64(3), np.uint8(3), np.array(3)])
def test_numpy_integers_are_dimensions(number: Any) -> None:
    assert grass.SJLT(number, number, seed=number) == grass.SJLT(3, 3, seed=3)


# Specs


@given(spec=specs.any_spec)
def test_spec_gives_the_compressor_back(spec: dict[str, Any]) -> None:
    compressor = specs.build(spec)
    again = grass.compressor_from_spec(compressor.spec)
    assert type(again) is type(compressor)
    assert again == compressor


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        (specs.EXAMPLES["sjlt"] | {"type": "sjtl"}, "sjlt"),
        (specs.EXAMPLES["sjlt"] | {"type": "randommask"}, "random_mask"),
        (specs.EXAMPLES["sjlt"] | {"type": ["sjlt"]}, "type"),
        (specs.EXAMPLES["sjlt"] | {"type": None}, "type"),
        (specs.EXAMPLES["sjlt"] | {"colour": 3}, "colour"),
        (specs.EXAMPLES["sjlt"] | {"input_dim": 0}, "input_dim"),
        ({"type": "sjlt"}, "input_dim"),
        ({}, "type"),
    ],
)
def test_wrong_spec_is_refused(spec: dict[str, Any], message: str) -> None:
    with pytest.raises(grass.SpecError, match=message):
        grass.compressor_from_spec(spec)


# Shapes


@pytest.mark.parametrize(
    "shape", [(), (3, 99), (3, 101), (99,), (100, 3), (2, 3, 100), (0,), (3, 0)]
)
def test_wrong_shape_is_refused_with_both_shapes(backend: Backend, shape: tuple[int, ...]) -> None:
    compressor = specs.build(specs.EXAMPLES["sjlt"])
    with pytest.raises(grass.ShapeError) as caught:
        compressor(backend.array(np.zeros(shape, dtype=np.float32)))
    message = str(caught.value)
    assert "100" in message
    assert str(shape) in message or (shape == () and "()" in message)
    assert "\n" not in message


@pytest.mark.parametrize("name", ["logra", "factgrass", "tile"])
@pytest.mark.parametrize("change", ["in", "out", "tokens", "rows", "axes", "four"])
def test_factors_that_do_not_fit_are_refused(backend: Backend, name: str, change: str) -> None:
    compressor = specs.build(specs.EXAMPLES[name])
    a, g = specs.inputs(compressor.spec, n=3, tokens=2)
    wrong = {
        "in": (a[..., 1:], g),
        "out": (a, g[..., 1:]),
        "tokens": (a[:, 1:], g),
        "rows": (a[1:], g),
        "axes": (a[:, 0], g),
        "four": (a[None], g[None]),
    }[change]
    with pytest.raises(grass.ShapeError):
        compressor(*(backend.array(np.ascontiguousarray(x)) for x in wrong))


@pytest.mark.parametrize("name", ["logra", "factgrass", "tile"])
def test_factorised_compressor_needs_both_factors(name: str) -> None:
    compressor = specs.build(specs.EXAMPLES[name])
    a, _ = specs.inputs(compressor.spec, n=3)
    with pytest.raises(TypeError):
        compressor(a)
