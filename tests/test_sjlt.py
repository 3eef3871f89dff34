"""SJLT, iid and cyclic: structure, variance, and the promises of the cyclic kind."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

import grass_rs as grass
import moments
import reference
import specs

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from conftest import Backend

KINDS = ["cyclic", "iid"]


@given(spec=specs.sjlts(), n=st.integers(0, 5))
def test_sjlt_equals_twin(backend: Backend, spec: dict[str, Any], n: int) -> None:
    sketch = specs.build(spec)
    matrix = reference.dense(spec)
    (x,) = specs.inputs(spec, n)
    np.testing.assert_allclose(sketch.to_dense(), matrix, rtol=1e-6, atol=0)
    specs.assert_compressed(backend.numpy(sketch(backend.array(x))), matrix, x)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(
    ("p", "k", "nnz"),
    [
        (5003, 1024, 1),
        (5003, 1024, 4),
        (5000, 1000, 1),
        (1024, 1024, 1),
        (1025, 1024, 2),
        (5000, 3, 3),
        (9, 5000, 5),
    ],
)
def test_wide_rows_equal_twin(kind: str, p: int, k: int, nnz: int) -> None:
    spec = reference.sjlt(p, k, 5, nnz, kind)
    (x,) = specs.inputs(spec, n=2)
    specs.assert_compressed(specs.build(spec)(x), reference.dense(spec), x)


@given(spec=specs.sjlts())
def test_columns_have_nnz_entries_one_a_sketch(spec: dict[str, Any]) -> None:
    matrix = specs.build(spec).to_dense()
    parts = matrix.reshape(spec["nnz"], -1, spec["input_dim"])
    assert np.all(np.count_nonzero(parts, axis=1) == 1)


@given(p=st.integers(1, 60), more=st.integers(0, 60), seed=specs.seeds)
def test_cyclic_of_no_more_coordinates_than_buckets_is_lossless(
    p: int, more: int, seed: int
) -> None:
    matrix = grass.SJLT(p, p + more, seed=seed).to_dense()
    np.testing.assert_array_equal(matrix.T @ matrix, np.eye(p))


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(("p", "k", "nnz"), [(30, 8, 1), (30, 12, 3), (5, 12, 2)])
@given(first=st.integers(0, 2**64 - 1500))
@example(first=0)
def test_sjlt_is_unbiased(kind: str, p: int, k: int, nnz: int, first: int) -> None:
    moments.assert_unbiased(
        lambda seed: grass.SJLT(p, k, seed=seed, nnz=nnz, kind=kind),
        moments.sketch(p, k),
        range(first, first + 1500),
    )


def squared_norm_variance(x: NDArray[np.float64], k: int, nnz: int, kind: str) -> float:
    """Var |Sx|^2 = (2 / k) sum of x_i^2 x_j^2 over the ordered pairs that may collide."""
    squares = x**2
    if kind == "iid":
        never = np.sum(squares**2)
    else:
        page = k // nnz
        never = sum(squares[b : b + page].sum() ** 2 for b in range(0, len(x), page))
    return 2 / k * (squares.sum() ** 2 - never)


@pytest.mark.parametrize(("p", "k", "nnz"), [(60, 8, 1), (61, 12, 3), (20, 16, 1)])
def test_variance_of_cyclic_is_its_formula_and_at_most_that_of_iid(
    p: int, k: int, nnz: int
) -> None:
    x = np.random.default_rng(2).standard_normal(p).astype(np.float32)
    exact = x.astype(np.float64)
    formula = {kind: squared_norm_variance(exact, k, nnz, kind) for kind in KINDS}
    assert formula["cyclic"] < formula["iid"]
    trials = 3000
    for kind, variance in formula.items():
        norms = np.array(
            [
                np.sum(grass.SJLT(p, k, seed=seed, nnz=nnz, kind=kind)(x).astype(np.float64) ** 2)
                for seed in range(trials)
            ]
        )
        squares = (norms - np.sum(exact**2)) ** 2
        assert abs(squares.mean() - variance) < 4.5 * squares.std() / np.sqrt(trials)


def test_independent_sketches_follow_one_another() -> None:
    p, width, nnz = 100, 16, 3
    x = np.random.default_rng(0).standard_normal(p, dtype=np.float32)
    parts = grass.SJLT(p, width * nnz, seed=4, nnz=nnz)(x).reshape(nnz, width)
    first = grass.SJLT(p, width, seed=4)(x)
    np.testing.assert_allclose(parts[0] * np.sqrt(np.float32(nnz)), first, rtol=1e-5, atol=1e-6)
    assert not np.allclose(parts[0], parts[1])
    assert not np.allclose(parts[1], parts[2])


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"input_dim": 0}, "input_dim"),
        ({"output_dim": 0}, "output_dim"),
        ({"nnz": 0}, "nnz"),
        ({"output_dim": 10, "nnz": 3}, "nnz"),
        ({"output_dim": 4, "nnz": 8}, "nnz"),
        ({"kind": "cylcic"}, "cyclic"),
        ({"kind": "IID"}, "iid"),
        ({"kind": ""}, "kind"),
        ({"seed": -1}, "seed"),
        ({"seed": 2**64}, "seed"),
    ],
)
def test_sjlt_refuses_bad_arguments(arguments: dict[str, Any], message: str) -> None:
    good = {"input_dim": 20, "output_dim": 4, "seed": 0}
    with pytest.raises(grass.SpecError, match=message):
        grass.SJLT(**(good | arguments))
