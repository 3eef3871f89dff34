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


def by_singular_vectors(
    rows: np.ndarray, queries: np.ndarray, damping: float
) -> tuple[np.ndarray, np.ndarray, float]:
    """Return scores of one column, the queries' lengths sqrt(q^T (F + lambda I)^-1 q), and the smallest eigenvalue.

    Never squares the rows, so that what is small in them is right; the eigenvalue is that of F + lambda I
    after scaling to ones on the diagonal.
    """
    rows, queries = rows.astype(np.float64), queries.astype(np.float64)
    n, width = rows.shape
    left, values, right = np.linalg.svd(rows)
    squares = np.zeros(width)
    squares[: len(values)] = values**2
    ridge = damping * squares.sum() / n
    parts = queries @ right.T
    shown = len(values)
    scores = n * (parts[:, :shown] * (values / (squares[:shown] + ridge))) @ left[:, :shown].T
    lengths = np.sqrt(n * (parts**2 / (squares + ridge)).sum(axis=1))
    matrix = rows.T @ rows + ridge * np.eye(width)
    scales = np.sqrt(np.diag(matrix))
    return scores, lengths, float(np.linalg.eigvalsh(matrix / np.outer(scales, scales))[0])


def root_mean_square(values: np.ndarray) -> np.ndarray:
    return np.sqrt((values**2).mean(axis=-1))


def two_equal_columns() -> np.ndarray:
    rows = numbers(200, 10)
    rows[:, 3] = rows[:, 7]
    return rows


def low_rank(n: int, width: int, rank: int) -> np.ndarray:
    """Return rows of whole numbers, of exactly this rank."""
    factors = np.round(2 * numbers(n, rank)), np.round(2 * numbers(rank, width, 1))
    return (factors[0] @ factors[1]).astype(np.float32)


@pytest.mark.parametrize(
    ("rows", "dampings"),
    [
        (two_equal_columns(), (1e-7, 1e-6, 1e-4, 1e-3, 0.4)),
        (low_rank(2000, 64, 12), (1e-6, 1e-4, 0.4)),
        (low_rank(2000, 64, 12) + 1e-6 * numbers(2000, 64, 3), (1e-5, 1e-4, 0.4)),
        (np.tile(numbers(1, 40), (500, 1)), (1e-5, 1e-3, 0.4)),
    ],
    ids=["two equal columns", "low rank", "low rank but for noise", "equal rows"],
)
def test_rows_that_hardly_span_their_column(
    tmp_path: Path, rows: np.ndarray, dampings: tuple[float, ...]
) -> None:
    width = rows.shape[1]
    # Beside a usual column and a zero one: parts in single and in double precision are added.
    usual = numbers(len(rows), 7, 5)
    both = np.concatenate([usual, rows, np.zeros_like(usual)], axis=1)
    store = write(tmp_path / "s", both, (7, width, 7))
    queries = numbers(9, 14 + width, 2)
    sweep = store.score(queries, damping=dampings)
    selves = store.self_influence(dampings)
    for damping, swept, own in zip(dampings, sweep, selves, strict=True):
        expected, _, _ = by_singular_vectors(rows, queries[:, 7:-7], damping)
        expected += by_singular_vectors(usual, queries[:, :7], damping)[0]
        single = store.score(queries, damping=damping)
        for scores in (single, swept):
            errors = root_mean_square(scores.values - expected)
            assert (errors < 1e-3 * root_mean_square(expected)).all(), damping
        alone = store.score(queries[4:5], damping=damping).values[0]
        np.testing.assert_array_equal(alone, single.values[4])
        few = slice(0, 5)
        expected_own = by_singular_vectors(rows, rows[few], damping)[0]
        expected_own = expected_own + by_singular_vectors(usual, usual[few], damping)[0]
        np.testing.assert_allclose(own[few], np.diag(expected_own[:, few]), rtol=1e-4)
        np.testing.assert_allclose(store.self_influence(damping), own, rtol=1e-4)


@pytest.mark.parametrize("damping", [0.0, 1e-13, [0.4, 0.0], [1e-13, 1.0]])
@pytest.mark.parametrize(
    "rows",
    [two_equal_columns(), low_rank(500, 30, 11), np.tile(numbers(20, 30), (2, 1))],
    ids=["two equal columns", "low rank", "wide"],
)
def test_rows_of_low_rank_without_damping_are_refused(
    tmp_path: Path, rows: np.ndarray, damping: float | list[float]
) -> None:
    store = write(tmp_path / "s", rows[: 2 * rows.shape[1] * 10], (rows.shape[1],))
    smallest = min(damping) if isinstance(damping, list) else damping
    named = f"damping {'0e0' if smallest == 0 else '1e-13'} is singular.*raise damping"
    with pytest.raises(grass.SpecError, match=named):
        store.score(numbers(2, rows.shape[1]), damping=damping)
    with pytest.raises(grass.SpecError, match=named):
        store.self_influence(damping)


@pytest.mark.parametrize(("n", "width"), [(300, 30), (30, 60)])
def test_a_coordinate_that_is_much_larger(tmp_path: Path, n: int, width: int) -> None:
    rows, queries = numbers(n, width), numbers(5, width, 1)
    rows[:, 5] *= 1e8
    store = write(tmp_path / "s", rows, (width,))
    for damping in (1e-6, 1e-3, 0.4):
        expected, _, _ = by_singular_vectors(rows, queries, damping)
        for scores in (
            store.score(queries, damping=damping),
            *store.score(queries, damping=[damping, 1])[:1],
        ):
            errors = root_mean_square(scores.values - expected)
            assert (errors < 1e-6 * root_mean_square(expected)).all()


@given(
    n=st.integers(1, 200),
    width=st.integers(1, 40),
    rank=st.integers(1, 40),
    spread=st.floats(0, 6),
    log_damping=st.floats(-14, 1),
    several=st.booleans(),
    seed=st.integers(0, 99),
)
def test_a_score_is_right_or_refused(
    tmp_path_factory: pytest.TempPathFactory,
    *,
    n: int,
    width: int,
    rank: int,
    spread: float,
    log_damping: float,
    several: bool,
    seed: int,
) -> None:
    rank = min(n, width, rank)
    scales = np.geomspace(1, 10**-spread, rank, dtype=np.float32)
    rows = (numbers(n, rank, seed) * scales) @ numbers(rank, width, seed + 1)
    queries = numbers(3, width, seed + 2)
    damping = 10**log_damping
    store = write(tmp_path_factory.mktemp("any") / "s", rows, (width,))
    expected, lengths, smallest = by_singular_vectors(rows, queries, damping)
    try:
        scores = store.score(queries, damping=[damping, 0.4] if several else damping)
    except grass.SpecError as error:
        if "is singular to working precision" not in str(error):
            raise
        # Wide columns are refused by another matrix: of rows, not of coordinates.
        assert smallest < 2**-30 or width > n
        return
    values = scores[0].values if isinstance(scores, list) else scores.values
    assert (root_mean_square(values - expected) <= 2**-12 * lengths).all()
