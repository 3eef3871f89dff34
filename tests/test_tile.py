"""Tile sketch: the whole gradient of a linear layer, a tile at a time."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import torch
from hypothesis import example, given
from hypothesis import strategies as st

import grass_rs as grass
import moments
import reference
import specs

if TYPE_CHECKING:
    from collections.abc import Callable

    from numpy.typing import NDArray

    from conftest import Backend

SHAPES = {
    "whole tiles": (24, 16, 16),
    "ragged tiles": (23, 17, 12),
    "one row a tile": (50, 9, 13),
    "one coordinate a tile": (7, 5, 1),
    "fewer coordinates than buckets": (5, 7, 60),
    "smaller than a tile": (5, 4, 42),
    "taller than a tile, narrower": (2, 40, 64),
    "past one block": (140, 70, 96),
}


@given(spec=specs.tiles(), n=st.integers(0, 4), tokens=st.integers(0, 5))
def test_tile_equals_twin(backend: Backend, spec: dict[str, Any], n: int, tokens: int) -> None:
    compressor = specs.build(spec)
    matrix = reference.dense(spec)
    a, g = specs.inputs(spec, n, tokens=tokens)
    np.testing.assert_array_equal(compressor.to_dense(), matrix)
    specs.assert_compressed(
        backend.numpy(compressor(backend.array(a), backend.array(g))), matrix, a, g
    )


@pytest.mark.parametrize(("d_in", "d_out", "k"), SHAPES.values(), ids=SHAPES)
def test_any_number_of_tokens_and_examples_equals_twin(d_in: int, d_out: int, k: int) -> None:
    spec = reference.tile(d_in, d_out, k, 3)
    compressor, matrix = specs.build(spec), reference.dense(spec)
    for tokens in (0, 1, 2, 130, 300):
        for n in (0, 1, 5):
            a, g = specs.inputs(spec, n, tokens=tokens)
            specs.assert_compressed(compressor(a, g), matrix, a, g)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.float16, torch.bfloat16])
@pytest.mark.parametrize("tokens", [1, 131])
def test_strided_factors_of_any_dtype_equal_twin(dtype: torch.dtype, tokens: int) -> None:
    spec = reference.tile(140, 70, 96, 4)
    a, g = specs.inputs(spec, n=6, tokens=2 * tokens)
    wide = torch.from_numpy(a).to(dtype)[::3, ::2], torch.from_numpy(g).to(dtype)[::3, 1::2]
    turned = wide[0].flip(2).transpose(0, 1).contiguous().transpose(0, 1), wide[1]
    for factors in (wide, turned):
        exact = [x.double().numpy() for x in factors]
        result = specs.build(spec)(*factors).numpy()
        specs.assert_compressed(result, reference.dense(spec), *exact)


def sketch_tile_by_tile(spec: dict[str, Any], gradient: NDArray[np.float64]) -> Any:
    """Sketch one gradient (d_out, d_in): roll every signed tile, and add it."""
    h, w = reference.tile_sides(spec["output_dim"])
    d_out, d_in = gradient.shape
    down, across = math.ceil(d_out / h), math.ceil(d_in / w)
    padded = np.pad(gradient, ((0, down * h - d_out), (0, across * w - d_in)))
    total = np.zeros((h, w))
    seed = spec["seed"]
    for number in range(down * across):
        top, left = number // across * h, number % across * w
        alpha = [reference.sign(seed, reference.TILE_ROW_SIGN, number * h + i) for i in range(h)]
        beta = [reference.sign(seed, reference.TILE_COLUMN_SIGN, number * w + j) for j in range(w)]
        signed = np.outer(alpha, beta) * padded[top : top + h, left : left + w]
        shift = [
            reference.draw(seed, reference.TILE_SHIFT, side, 2 * number + axis)
            for axis, side in enumerate((h, w))
        ]
        total += np.roll(signed, shift, axis=(0, 1))
    return total.reshape(-1)


@pytest.mark.parametrize(
    ("d_in", "d_out", "k", "tokens"),
    [
        (700, 1100, 4096, 140),
        (1100, 700, 509, 1),
        (530, 1030, 1000, 2),
        (300, 40, 90_000, 3),
        # Wider than what is summed beside the output.
        (1700, 1100, 1025 * 1027, 2),
        (1700, 1100, 1025 * 1027, 1),
    ],
)
def test_wide_layers_equal_the_sum_of_rolled_tiles(
    d_in: int, d_out: int, k: int, tokens: int
) -> None:
    spec = reference.tile(d_in, d_out, k, 5)
    a, g = specs.inputs(spec, n=1, tokens=tokens)
    expected = sketch_tile_by_tile(spec, specs.gradients(a, g).reshape(d_out, d_in))
    # What falls into a bucket has random signs: its rounding errors add up like its values.
    size = np.sqrt(np.sum(expected**2) / k)
    np.testing.assert_allclose(specs.build(spec)(a, g)[0], expected, rtol=1e-5, atol=1e-5 * size)


@given(width=st.integers(1, 12), height=st.integers(1, 12), k=st.integers(1, 200), seed=specs.seeds)
def test_coordinates_of_one_tile_never_collide(width: int, height: int, k: int, seed: int) -> None:
    h, w = reference.tile_sides(k)
    height, width = min(height, h), min(width, w)
    matrix = grass.TileSketch(width, height, k, seed=seed).to_dense()
    np.testing.assert_array_equal(matrix.T @ matrix, np.eye(width * height))


@pytest.mark.parametrize(
    ("d_in", "d_out", "k"), [(6, 5, 4), (7, 5, 6), (9, 3, 7), (2, 9, 24), (5, 6, 1)]
)
@given(first=st.integers(0, 2**64 - 1500))
@example(first=0)
def test_tile_is_unbiased(d_in: int, d_out: int, k: int, first: int) -> None:
    moments.assert_unbiased(
        lambda seed: grass.TileSketch(d_in, d_out, k, seed=seed),
        moments.sketch(d_in * d_out, k),
        range(first, first + 1500),
    )


def product_variance(
    x: NDArray[np.float64], y: NDArray[np.float64], groups: NDArray[np.int64], k: int
) -> float:
    """Var <Sx, Sy> = (1 / k) sum of x_i^2 y_j^2 + x_i y_i x_j y_j over the ordered pairs that may collide.

    Coordinates of one group never collide.
    """

    def pairs(labels: NDArray[np.int64]) -> float:
        squares, products = (
            [np.bincount(labels, values) for values in pair]
            for pair in ((x**2, y**2), (x * y, x * y))
        )
        return squares[0] @ squares[1] + products[0] @ products[1]

    return (pairs(np.zeros_like(groups)) - pairs(groups)) / k


GRADIENTS: dict[str, Callable[[np.random.Generator, tuple[int, ...]], NDArray[np.float64]]] = {
    "normal": lambda rng, shape: rng.standard_normal(shape),
    # What shared signs or a missing shift would add up.
    "constant": lambda _, shape: np.ones(shape),
    "skewed": lambda rng, shape: rng.exponential(size=shape) ** 2,
}


@pytest.mark.parametrize("kind", GRADIENTS)
@pytest.mark.parametrize(("d_in", "d_out", "k"), [(8, 12, 8), (11, 7, 12), (10, 9, 5), (40, 4, 8)])
def test_variance_is_its_formula_and_at_most_that_of_iid(
    kind: str, d_in: int, d_out: int, k: int
) -> None:
    rng = np.random.default_rng(6)
    a = GRADIENTS[kind](rng, (2, 2, d_in)).astype(np.float32)
    g = GRADIENTS[kind](rng, (2, 2, d_out)).astype(np.float32)
    x, y = specs.gradients(a, g)
    h, w = reference.tile_sides(k)
    rows, columns = np.divmod(np.arange(d_out * d_in), d_in)
    tiles = rows // h * math.ceil(d_in / w) + columns // w
    trials = 3000
    sketches = np.array([grass.TileSketch(d_in, d_out, k, seed=s)(a, g) for s in range(trials)])
    for one, other, first, second in ((x, y, 0, 1), (x, x, 0, 0)):
        variance = product_variance(one, other, tiles, k)
        assert variance < product_variance(one, other, np.arange(len(tiles)), k)
        products = np.sum(sketches[:, first].astype(np.float64) * sketches[:, second], axis=1)
        squares = (products - one @ other) ** 2
        assert abs(squares.mean() - variance) < 4.5 * squares.std() / np.sqrt(trials)


@pytest.mark.parametrize("tokens", [1, 300])
@pytest.mark.parametrize("k", [64, 509])
def test_threads_that_share_an_example_change_no_bit(
    num_threads: Callable[[int], None], tokens: int, k: int
) -> None:
    spec = reference.tile(130, 1700, k, 8)
    a, g = specs.inputs(spec, n=3, tokens=tokens)
    results = set()
    for threads in (1, 2, 3, 7):
        num_threads(threads)
        together = specs.build(spec)(a, g)
        alone = [specs.build(spec)(a[i : i + 1], g[i : i + 1]) for i in range(3)]
        results |= {together.tobytes(), np.concatenate(alone).tobytes()}
    assert len(results) == 1


@pytest.mark.parametrize("name", ["in_features", "out_features", "output_dim"])
def test_tile_refuses_what_is_out_of_range(name: str) -> None:
    good = {"in_features": 8, "out_features": 5, "output_dim": 4, "seed": 0}
    with pytest.raises(grass.SpecError, match=name):
        grass.TileSketch(**(good | {name: 0}))
    with pytest.raises(grass.SpecError, match=r"output_dim|below 2\^62"):
        grass.TileSketch(**(good | {name: 2**63}))


def test_tile_refuses_outputs_beyond_what_its_sides_are_found_for() -> None:
    with pytest.raises(grass.SpecError, match="output_dim must be at most 4294967296"):
        grass.TileSketch(8, 5, 2**32 + 1, seed=0)
    assert grass.TileSketch(8, 5, 2**32, seed=0).output_dim == 2**32
    assert grass.TileSketch(8, 5, 2**32 - 5, seed=0).output_dim == 2**32 - 5
