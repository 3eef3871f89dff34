"""LoGra: a dense projection of each factor of a linear layer's gradient."""

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
    from conftest import Backend


@given(spec=specs.logras(), n=st.integers(0, 4), tokens=st.integers(0, 5))
def test_logra_equals_twin(backend: Backend, spec: dict[str, Any], n: int, tokens: int) -> None:
    compressor = specs.build(spec)
    matrix = reference.dense(spec)
    a, g = specs.inputs(spec, n, tokens=tokens)
    np.testing.assert_allclose(compressor.to_dense(), matrix, rtol=1e-5, atol=2e-6)
    specs.assert_compressed(
        backend.numpy(compressor(backend.array(a), backend.array(g))), matrix, a, g
    )


def test_output_is_the_product_of_projected_factors() -> None:
    compressor = grass.LoGra(30, 20, 5, 3, seed=11)
    inner = grass.Gaussian(30, 5, seed=reference.derive(11, "in"))
    outer = grass.Gaussian(20, 3, seed=reference.derive(11, "out"))
    a, g = specs.inputs(compressor.spec, n=2)
    products = np.einsum(
        "nto,nti->noi",
        outer(g.reshape(-1, 20)).reshape(2, 3, 3),
        inner(a.reshape(-1, 30)).reshape(2, 3, 5),
    )
    np.testing.assert_allclose(compressor(a, g), products.reshape(2, -1), rtol=1e-4, atol=1e-5)
    assert (compressor.input_dim, compressor.output_dim) == (600, 15)


@pytest.mark.parametrize("tokens", [200, 1000])
def test_many_tokens_equal_twin(tokens: int) -> None:
    spec = reference.logra(40, 24, 8, 4, 3)
    a, g = specs.inputs(spec, n=3, tokens=tokens)
    specs.assert_compressed(specs.build(spec)(a, g), reference.dense(spec), a, g)


@pytest.mark.parametrize(
    ("shape", "features", "ranks"),
    [
        ((7, 1), (129, 130), (31, 7)),
        ((2, 128), (20, 11), (32, 8)),
        ((3, 129), (17, 23), (33, 9)),
        ((9, 0), (5, 4), (3, 2)),
        ((2, 257), (1025, 3), (6, 2)),
        # Both ranks in parts.
        ((1, 70), (3, 2), (2050, 2049)),
        # More values than are held at a time: blocks of examples, then blocks of the tokens of each.
        ((40, 300), (8, 9), (64, 32)),
        ((2, 5000), (3, 2), (300, 20)),
    ],
)
def test_blocks_equal_the_product_of_projected_factors(
    shape: tuple[int, int], features: tuple[int, int], ranks: tuple[int, int]
) -> None:
    compressor = grass.LoGra(*features, *ranks, seed=3)
    a, g = specs.inputs(compressor.spec, n=shape[0], tokens=shape[1])
    inner = grass.Gaussian(features[0], ranks[0], seed=reference.derive(3, "in")).to_dense()
    outer = grass.Gaussian(features[1], ranks[1], seed=reference.derive(3, "out")).to_dense()
    exact = np.einsum(
        "nto,nti->noi", g @ outer.T.astype(np.float64), a @ inner.T.astype(np.float64)
    )
    sizes = np.einsum("nto,nti->noi", np.abs(g) @ np.abs(outer.T), np.abs(a) @ np.abs(inner.T))
    error = np.abs(compressor(a, g).reshape(exact.shape) - exact)
    assert np.all(error <= 2e-6 * sizes)


def test_an_example_has_the_same_bits_in_any_batch() -> None:
    compressor = grass.LoGra(300, 200, 40, 24, seed=5)
    a, g = specs.inputs(compressor.spec, n=70, tokens=300)
    together = compressor(a, g)
    for row in (0, 13, 69):
        alone = compressor(a[row : row + 1], g[row : row + 1])
        np.testing.assert_array_equal(alone[0], together[row])


@given(first=st.integers(0, 2**64 - 3000))
@example(first=0)
def test_logra_is_unbiased(first: int) -> None:
    moments.assert_unbiased(
        lambda seed: grass.LoGra(4, 5, 3, 2, seed=seed),
        np.kron(moments.normal(5, 2), moments.normal(4, 3)),
        range(first, first + 3000),
    )


@pytest.mark.parametrize("name", ["in_features", "out_features", "rank_in", "rank_out"])
def test_logra_refuses_zero(name: str) -> None:
    good = {"in_features": 4, "out_features": 5, "rank_in": 2, "rank_out": 3, "seed": 0}
    with pytest.raises(grass.SpecError, match=name):
        grass.LoGra(**(good | {name: 0}))
