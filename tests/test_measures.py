"""Measures of scores and the estimate of their mean, against scipy, scikit-learn and closed forms."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from scipy import stats
from sklearn.metrics import roc_auc_score, top_k_accuracy_score

import grass_rs as grass
from grass_rs.evaluate import (
    Estimate,
    estimate,
    leave_out_correlation,
    mislabel_auc,
    random_subsets,
    recall_at_k,
)

if TYPE_CHECKING:
    from collections.abc import Callable

RNG = np.random.default_rng(11)
SCORES = RNG.standard_normal((5, 30))
REMOVED = RNG.random((12, 30)) < 0.1
REMOVED[:, 0] |= ~REMOVED.any(axis=1)
OUTCOMES = RNG.standard_normal((12, 5))


# Estimates


def test_estimate_equals_scipy() -> None:
    values = RNG.gamma(1.0, size=80)
    found = estimate(values)
    assert found.mean == pytest.approx(values.mean())
    assert found.sem == pytest.approx(stats.sem(values))
    interval = stats.bootstrap(
        (values,), np.mean, n_resamples=9999, method="percentile", rng=np.random.default_rng(1)
    ).confidence_interval
    assert found.low == pytest.approx(interval.low, abs=0.1 * found.sem)
    assert found.high == pytest.approx(interval.high, abs=0.1 * found.sem)
    assert found == estimate(values.tolist(), seed=0)
    assert found.low != estimate(values, seed=1).low
    assert str(found) == f"{found.mean:.3f} +- {found.sem:.3f}"


def test_the_interval_covers() -> None:
    """The mean of normal numbers is in 95% of the intervals, to 3 standard errors of 200 tries."""
    tries = [estimate(RNG.standard_normal(60), seed=seed) for seed in range(200)]
    share = np.mean([found.low <= 0 <= found.high for found in tries])
    assert abs(share - 0.94) < 3 * np.sqrt(0.06 * 0.94 / 200)


def test_undefined_queries_are_left_out() -> None:
    values = np.array([0.1, np.nan, 0.5, 0.3, np.nan])
    assert estimate(values) == estimate(values[[0, 2, 3]])
    assert estimate(values).n == 3
    same = estimate([0.25, 0.25])
    assert same == Estimate(0.25, 0.0, 0.25, 0.25, 2)


@pytest.mark.parametrize(
    ("values", "error", "message"),
    [
        ([np.nan] * 3, grass.DataError, "at least 2 queries, got 0 of 3"),
        ([1.0, np.nan], grass.DataError, "at least 2 queries, got 1 of 2"),
        ([], grass.DataError, "got 0 of 0"),
        ([[1.0, 2.0]], grass.ShapeError, r"values \(n,\), one a query, got \(1, 2\)"),
        ([1.0, np.inf], grass.NonFiniteError, r"got inf at \[1\]"),
        ([True, False], grass.UnsupportedArrayError, "real numbers, got bool"),
    ],
)
def test_estimate_wrong_input(values: Any, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message) as caught:
        estimate(values)
    assert "\n" not in str(caught.value)


# Leaving out


def test_leave_out_equals_scipy() -> None:
    found = leave_out_correlation(SCORES, REMOVED, OUTCOMES)
    kept = (~REMOVED).astype(float) @ SCORES.T
    expected = [stats.pearsonr(kept[:, q], OUTCOMES[:, q]).statistic for q in range(5)]
    np.testing.assert_allclose(found, expected, rtol=1e-10)


def test_leave_one_out_compares_scores_themselves() -> None:
    one = np.eye(30, dtype=bool)
    # To first order, the outcome without an example is lower by its score.
    np.testing.assert_allclose(leave_out_correlation(SCORES, one, 7 - 2 * SCORES.T), 1)
    np.testing.assert_allclose(leave_out_correlation(-SCORES, one, 7 - 2 * SCORES.T), -1)
    outcomes = RNG.standard_normal((30, 5))
    expected = [stats.pearsonr(-SCORES[q], outcomes[:, q]).statistic for q in range(5)]
    found = leave_out_correlation(SCORES, one, outcomes)
    np.testing.assert_allclose(found, expected, rtol=1e-9)


@pytest.mark.parametrize("measure", [leave_out_correlation, grass.lds])
def test_what_does_not_differ_has_no_correlation(measure: Callable[..., Any]) -> None:
    scores, outcomes = SCORES.copy(), OUTCOMES.copy()
    members = random_subsets(12, 30, 0.5, seed=0)
    # Sums of .1 in another order round otherwise, and their mean is not one of them.
    scores[1] = 0.1
    outcomes[:, 3] = 0.1
    found = measure(scores, members, outcomes)
    np.testing.assert_array_equal(np.isnan(found), [False, True, False, True, False])
    # Subsets of several sizes differ even where all scores are equal.
    sized = np.tril(np.ones((12, 30), dtype=bool))
    scores[1] = -0.1
    assert not np.isnan(measure(scores, sized, outcomes)[1])


@pytest.mark.parametrize("measure", [leave_out_correlation, grass.lds])
@pytest.mark.parametrize(
    ("removed", "message"),
    [
        (np.ones((4, 30), dtype=bool), "model 0 has none"),
        (np.arange(4)[:, None] == np.full(30, 2), "model 2 has none"),
        (np.zeros((4, 30), dtype=bool), "4 models of the same 30 of 30"),
        (np.tile(np.arange(30) < 20, (4, 1)), "4 models of the same 10 of 30"),
        (REMOVED[:1], "at least 2 retrained models"),
    ],
)
def test_subsets_of_all_or_none(
    measure: Callable[..., Any], removed: np.ndarray, message: str
) -> None:
    subsets = removed if measure is leave_out_correlation else ~removed
    with pytest.raises(grass.DataError, match=message) as caught:
        measure(SCORES, subsets, OUTCOMES[: len(removed)])
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("removed", "outcomes", "error", "message"),
    [
        (REMOVED, OUTCOMES.T, grass.ShapeError, r"outcomes \(12, 5\).*got \(5, 12\)"),
        (REMOVED[:, 1:], OUTCOMES, grass.ShapeError, r"removed \(m, 30\).*got \(12, 29\)"),
        (REMOVED[0], OUTCOMES, grass.ShapeError, r"removed \(m, 30\).*got \(30,\)"),
        (REMOVED.astype(int), OUTCOMES, grass.UnsupportedArrayError, "bool removed.*got int64"),
        (REMOVED, OUTCOMES * np.nan, grass.NonFiniteError, "finite outcomes"),
    ],
)
def test_leave_out_wrong_input(
    removed: Any, outcomes: Any, error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=message):
        leave_out_correlation(SCORES, removed, outcomes)


# Wrong labels


@pytest.mark.parametrize("levels", [3, 1000])
def test_auc_equals_scikit_learn(levels: int) -> None:
    values = RNG.integers(0, levels, 200).astype(np.float32)
    wrong = RNG.random(200) < 0.2
    assert mislabel_auc(values, wrong) == pytest.approx(roc_auc_score(wrong, values))


def test_auc_closed_forms() -> None:
    values = np.arange(10.0)
    assert mislabel_auc(values, values >= 7) == 1
    assert mislabel_auc(values, values < 3) == 0
    assert mislabel_auc(np.ones(10), values < 3) == 0.5


@pytest.mark.parametrize(
    ("values", "wrong", "error", "message"),
    [
        (np.ones(3), np.zeros(3, bool), grass.DataError, "got 0 wrong of 3"),
        (np.ones(3), np.ones(3, bool), grass.DataError, "got 3 wrong of 3"),
        (np.ones(3), np.ones(4, bool), grass.ShapeError, r"mislabelled \(3,\).*got \(4,\)"),
        (np.ones((3, 1)), np.ones(3, bool), grass.ShapeError, r"\(n,\), got \(3, 1\): give one"),
        (np.ones(3), np.ones(3), grass.UnsupportedArrayError, "bool mislabelled"),
        (np.array([1, np.nan]), np.ones(2, bool), grass.NonFiniteError, r"got nan at \[1\]"),
    ],
)
def test_auc_wrong_input(values: Any, wrong: Any, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        mislabel_auc(values, wrong)


# Recall


@pytest.mark.parametrize("k", [1, 3, 30])
def test_recall_of_one_duplicate_equals_scikit_learn(k: int) -> None:
    scores = RNG.standard_normal((50, 30))
    duplicate = RNG.integers(0, 30, 50)
    found = recall_at_k(scores, np.arange(30) == duplicate[:, None], k)
    assert set(found) <= {0.0, 1.0}
    if k < 30:  # scikit-learn warns where it is 1 for certain
        assert found.mean() == pytest.approx(
            top_k_accuracy_score(duplicate, scores, k=k, labels=np.arange(30))
        )
    else:
        assert found.mean() == 1


def test_recall_counts_what_is_found() -> None:
    scores = np.array([[3.0, 2.0, 1.0, 1.0], [0.0, 0.0, 0.0, 0.0], [1.0, 2.0, 3.0, 4.0]])
    relevant = np.array([[1, 0, 1, 1], [0, 1, 0, 0], [0, 0, 0, 0]], dtype=bool)
    # Ties go to the smaller position; nothing is relevant to the last query.
    np.testing.assert_array_equal(recall_at_k(scores, relevant, 1), [1 / 3, 0, np.nan])
    np.testing.assert_array_equal(recall_at_k(scores, relevant, 3), [2 / 3, 1, np.nan])


def test_recall_takes_scores_by_id() -> None:
    relevant = RNG.random((5, 30)) < 0.2
    relevant[:, 0] = True
    values = SCORES.astype(np.float32)
    every = grass.Scores(values, np.arange(30, dtype=np.uint64), "graddot", None)
    expected = recall_at_k(values, relevant, 4)
    np.testing.assert_array_equal(recall_at_k(every, relevant, 4), expected)
    shuffled = RNG.permutation(30)
    moved = grass.Scores(values[:, shuffled], shuffled.astype(np.uint64), "graddot", None)
    np.testing.assert_array_equal(recall_at_k(moved, relevant, 4), expected)
    ids, best = every.top(6)
    top = grass.Scores(best, ids, "graddot", None)
    np.testing.assert_array_equal(recall_at_k(top, relevant, 4), expected)


@pytest.mark.parametrize(
    ("scores", "k", "error", "message"),
    [
        (SCORES, 0, grass.SpecError, "k must be a whole number from 1"),
        (SCORES, 31, grass.ShapeError, r"at least 31 scores.*\(5, 30\) and 30 scores for 5"),
        (SCORES[1:], 2, grass.ShapeError, r"relevant \(5, 30\) and 30 scores for 4"),
        (SCORES * np.nan, 2, grass.NonFiniteError, "finite scores"),
        (
            grass.Scores(SCORES.astype("f4"), np.arange(1, 31, dtype="u8"), "graddot", None),
            2,
            grass.DataError,
            "ids below 30.*got id 30",
        ),
    ],
)
def test_recall_wrong_input(scores: Any, k: int, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        recall_at_k(scores, np.ones((5, 30), dtype=bool), k)


# Subsets


def test_random_subsets() -> None:
    subsets = random_subsets(200, 40, 0.3, seed=5)
    assert subsets.shape == (200, 40)
    assert (subsets.sum(axis=1) == 12).all()
    # Every example is in 200 * .3 subsets on average, with a variance of 200 * .3 * .7.
    assert abs(subsets.sum(axis=0) - 60).max() < 4 * np.sqrt(42)
    np.testing.assert_array_equal(subsets, random_subsets(200, 40, 0.3, seed=5))
    assert not np.array_equal(subsets, random_subsets(200, 40, 0.3, seed=6))


@pytest.mark.parametrize("fraction", [0, 1, -0.5, 1.5, 0.01, 0.99, float("nan")])
def test_random_subsets_of_all_or_none(fraction: float) -> None:
    with pytest.raises(grass.SpecError, match="not none and not all, got"):
        random_subsets(3, 40, fraction, seed=0)
