"""Influence scores equal g_q^T (F + lambda I)^-1 g_z, dense and in double precision."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import grass_rs as grass
from stores import numbers, write

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path


TOLERANCE = 1e-6
"""What rounding the scores to float32 leaves, for rows that are not badly conditioned."""


def dense_influence(
    rows: np.ndarray,
    queries: np.ndarray,
    widths: Sequence[int],
    damping: float,
    *,
    of: np.ndarray | None = None,
) -> np.ndarray:
    """Return the scores (n_query, n) by the formula, a block a column, in float64; of other vectors with `of`."""
    rows, queries = rows.astype(np.float64), queries.astype(np.float64)
    vectors = rows if of is None else of
    n = len(rows)
    cuts = np.cumsum(widths)[:-1]
    total = np.zeros((len(queries), len(vectors)))
    split = (np.split(matrix, cuts, axis=1) for matrix in (rows, queries, vectors))
    for g, q, v in zip(*split, strict=True):
        fisher = g.T @ g / n
        ridge = damping * np.trace(fisher) / n
        total += q @ np.linalg.solve(fisher + ridge * np.eye(len(fisher)), v.T)
    return total


def relative_error(store: grass.Store, queries: np.ndarray, damping: float) -> float:
    """Return the largest difference from the dense formula, over the largest score of its query."""
    widths = [column.width for column in store.columns]
    expected = dense_influence(store[:], queries, widths, damping)
    differences = np.abs(store.score(queries, damping=damping).values - expected)
    return float((differences.max(axis=1) / np.abs(expected).max(axis=1)).max())


@given(
    n=st.integers(1, 70),
    widths=st.lists(st.integers(1, 60), min_size=1, max_size=4),
    count=st.integers(1, 9),
    damping=st.floats(1e-4, 1e3),
    seed=st.integers(0, 99),
)
def test_scores_equal_the_dense_formula(
    tmp_path_factory: pytest.TempPathFactory,
    *,
    n: int,
    widths: list[int],
    count: int,
    damping: float,
    seed: int,
) -> None:
    store = write(tmp_path_factory.mktemp("dense") / "s", numbers(n, sum(widths), seed), widths)
    queries = numbers(count, sum(widths), seed + 1)
    expected = dense_influence(store[:], queries, widths, damping)
    # The unit of every rounding: lengths of x = (F + lambda I)^-1 q and of the row, whose product may cancel in the score.
    basis = dense_influence(store[:], queries, widths, damping, of=np.eye(sum(widths)))
    lengths = np.linalg.norm(store[:].astype(np.float64), axis=1)
    unit = np.linalg.norm(basis, axis=1)[:, None] * lengths
    assert (np.abs(store.score(queries, damping=damping).values - expected) <= 1e-6 * unit).all()


@pytest.mark.parametrize("damping", [0.0, 1e-3, 0.4])
def test_more_rows_than_coordinates(tmp_path: Path, damping: float) -> None:
    store = write(tmp_path / "s", numbers(3000, 300), (260, 40))
    assert relative_error(store, numbers(40, 300, 1), damping) < TOLERANCE


@pytest.mark.parametrize("damping", [1e-3, 0.4])
def test_more_coordinates_than_rows(tmp_path: Path, damping: float) -> None:
    store = write(tmp_path / "s", numbers(300, 2600), (2000, 600))
    assert relative_error(store, numbers(40, 2600, 1), damping) < TOLERANCE


@pytest.mark.parametrize("dtype", ["bfloat16", "int8"])
def test_small_dtypes(tmp_path: Path, dtype: str) -> None:
    store = write(tmp_path / "s", numbers(300, 90), (70, 20), dtype)
    assert relative_error(store, numbers(5, 90, 1), 0.4) < TOLERANCE


@pytest.mark.parametrize(("n", "width"), [(4000, 60), (80, 300)])
@pytest.mark.parametrize("damping", [1e-4, 0.4])
def test_a_few_directions_that_hold_almost_everything(
    tmp_path: Path, n: int, width: int, damping: float
) -> None:
    rows = numbers(n, width) * np.geomspace(100, 1e-3, width, dtype=np.float32)
    rows[:, 0] += 300
    store = write(tmp_path / "s", rows, (width,))
    assert relative_error(store, numbers(4, width, 9), damping) < 1e-4


def test_damping_is_relative_to_the_mean_squared_length_over_the_number_of_rows(
    tmp_path: Path,
) -> None:
    # One coordinate: F = mean g^2 = tr(F), so the score is q g / (F (1 + damping / n)).
    rows = np.array([[1.0], [2.0], [3.0], [-4.0]], np.float32)
    store = write(tmp_path / "s", rows, (1,))
    fisher = 30 / 4
    for damping in (0.0, 0.4, 8.0):
        expected = 5 * rows[:, 0] / (fisher * (1 + damping / 4))
        scores = store.score([[5.0]], damping=damping)
        np.testing.assert_allclose(scores.values[0], expected, rtol=1e-6)


def test_scaling_a_column_of_all_gradients_changes_nothing(tmp_path: Path) -> None:
    rows, queries = numbers(80, 30), numbers(3, 30, 1)
    scale = np.repeat(np.float32([1024, 1 / 64]), [10, 20])
    plain = write(tmp_path / "a", rows, (10, 20)).score(queries)
    scaled = write(tmp_path / "b", rows * scale, (10, 20)).score(queries * scale)
    np.testing.assert_allclose(scaled.values, plain.values, rtol=1e-5, atol=1e-5)


def test_dead_coordinates_and_dead_columns_add_nothing(tmp_path: Path) -> None:
    rows, queries = numbers(80, 30), numbers(3, 30, 1)
    rows[:, 4:6] = 0
    rows[:, 20:] = 0
    live = np.r_[0:4, 6:20]
    with_dead = write(tmp_path / "a", rows, (20, 10)).score(queries)
    without = write(tmp_path / "b", rows[:, live], (18,)).score(queries[:, live])
    np.testing.assert_allclose(with_dead.values, without.values, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("n", [100, 11])
def test_a_fisher_matrix_without_inverse_asks_for_damping(tmp_path: Path, n: int) -> None:
    rows = numbers(n, 12)
    rows[:, 3] = 0
    store = write(tmp_path / "s", rows, (12,))
    with pytest.raises(grass.SpecError, match=r'column "layer0" .* is singular.*raise damping'):
        store.score(numbers(1, 12), damping=0.0)
    assert store.score(numbers(1, 12), damping=1e-6).values.shape == (1, n)
