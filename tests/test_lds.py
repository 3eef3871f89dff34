"""`lds` against scipy's Spearman correlation and by closed forms; one named error a wrong input."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from scipy.stats import spearmanr

from grass_rs.errors import DataError, NonFiniteError, ShapeError, UnsupportedArrayError
from grass_rs.evaluate import lds
from grass_rs.types import Scores

RNG = np.random.default_rng(3)
SCORES = RNG.standard_normal((5, 30))
SUBSETS = RNG.random((12, 30)) < 0.5
OUTCOMES = RNG.standard_normal((12, 5))


def by_scipy(scores: Any, subsets: Any, outcomes: Any) -> Any:
    predicted = subsets.astype(float) @ scores.T
    columns = range(outcomes.shape[1])
    return np.array([spearmanr(predicted[:, q], outcomes[:, q]).statistic for q in columns])


def test_equals_scipy() -> None:
    got = lds(SCORES, SUBSETS, OUTCOMES)
    assert got.dtype == np.float64
    assert got.shape == (5,)
    np.testing.assert_allclose(got, by_scipy(SCORES, SUBSETS, OUTCOMES), rtol=1e-12)


@pytest.mark.parametrize("levels", [2, 3, 5])
def test_ties_share_their_average_rank(levels: int) -> None:
    # Small integers: sums are exact, so predictions tie as well as outcomes.
    scores = RNG.integers(0, levels, (5, 30)).astype(np.float32)
    outcomes = RNG.integers(0, levels, (12, 5))
    got = lds(scores, SUBSETS, outcomes)
    np.testing.assert_allclose(got, by_scipy(scores, SUBSETS, outcomes), rtol=1e-12)


def test_perfect_and_reversed_scores() -> None:
    truth = SUBSETS.astype(float) @ SCORES.T
    np.testing.assert_allclose(lds(SCORES, SUBSETS, truth**3), 1.0)
    np.testing.assert_allclose(lds(-SCORES, SUBSETS, truth), -1.0)


def test_only_ranks_matter() -> None:
    base = lds(SCORES, SUBSETS, OUTCOMES)
    np.testing.assert_array_equal(lds(SCORES, SUBSETS, np.exp(OUTCOMES)), base)
    np.testing.assert_array_equal(lds(4 * SCORES, SUBSETS, OUTCOMES), base)


def test_takes_scores_and_lists() -> None:
    values = SCORES.astype(np.float32)
    scores = Scores(values, np.arange(30, dtype=np.uint64), "influence", 0.4)
    expected = lds(values, SUBSETS, OUTCOMES)
    np.testing.assert_array_equal(lds(scores, SUBSETS, OUTCOMES), expected)
    listed = lds(values.tolist(), SUBSETS.tolist(), OUTCOMES.tolist())
    np.testing.assert_array_equal(listed, expected)


def test_a_constant_column_has_no_ranking() -> None:
    scores, outcomes = SCORES.copy(), OUTCOMES.copy()
    scores[1] = 0
    outcomes[:, 3] = 7
    got = lds(scores, SUBSETS, outcomes)
    np.testing.assert_array_equal(np.isnan(got), [False, True, False, True, False])


def test_no_queries() -> None:
    assert lds(SCORES[:0], SUBSETS, OUTCOMES[:, :0]).shape == (0,)


@pytest.mark.parametrize(
    ("scores", "subsets", "outcomes", "error", "message"),
    [
        (SCORES[0], SUBSETS, OUTCOMES, ShapeError, r"scores \(n_query, n_train\), got \(30,\)"),
        (SCORES, SUBSETS[:, 1:], OUTCOMES, ShapeError, r"subsets \(m, 30\).*got \(12, 29\)"),
        (SCORES, SUBSETS[0], OUTCOMES, ShapeError, r"subsets \(m, 30\).*got \(30,\)"),
        (SCORES, SUBSETS, OUTCOMES.T, ShapeError, r"outcomes \(12, 5\).*got \(5, 12\)"),
        (SCORES, SUBSETS, OUTCOMES[0], ShapeError, r"outcomes \(m, n_query\), got \(5,\)"),
        (SCORES, SUBSETS.astype(int), OUTCOMES, UnsupportedArrayError, "bool subsets.*got int64"),
        (SCORES > 0, SUBSETS, OUTCOMES, UnsupportedArrayError, "scores of real numbers, got bool"),
        (SCORES, SUBSETS, OUTCOMES * 1j, UnsupportedArrayError, "outcomes.*got complex128"),
        (
            SCORES,
            SUBSETS[:1],
            OUTCOMES[:1],
            DataError,
            "at least 2 retrained models to rank, got 1",
        ),
        (
            SCORES,
            SUBSETS[:0],
            OUTCOMES[:0],
            DataError,
            "at least 2 retrained models to rank, got 0",
        ),
    ],
)
def test_wrong_input(
    scores: Any, subsets: Any, outcomes: Any, error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=message):
        lds(scores, subsets, outcomes)


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_not_finite(bad: float) -> None:
    scores, outcomes = SCORES.copy(), OUTCOMES.copy()
    scores[2, 4] = outcomes[1, 3] = bad
    with pytest.raises(NonFiniteError, match=rf"finite scores, got {bad} at \[2, 4\]"):
        lds(scores, SUBSETS, OUTCOMES)
    with pytest.raises(NonFiniteError, match=rf"finite outcomes, got {bad} at \[1, 3\]"):
        lds(SCORES, SUBSETS, outcomes)


def test_top_k_scores_are_refused() -> None:
    top = Scores(np.ones((5, 3), np.float32), np.ones((5, 3), np.uint64), "influence", 0.4)
    with pytest.raises(DataError, match="got the top 3 a query: score again without top_k"):
        lds(top, SUBSETS, OUTCOMES)
