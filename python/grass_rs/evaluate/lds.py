"""The linear datamodeling score (LDS): how well summed scores rank retrained models."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from grass_rs.evaluate.inputs import bool_array, summed_and_measured

if TYPE_CHECKING:
    from numpy.typing import ArrayLike, NDArray

    from grass_rs.types import Scores

__all__ = ["lds"]


def lds(scores: Scores | ArrayLike, subsets: ArrayLike, outcomes: ArrayLike) -> NDArray[np.float64]:
    """Judge scores against models that were retrained on subsets of the training set.

    For each query, the Spearman rank correlation over the m retrained models between what the
    scores predict (the sum of the scores of the examples in the model's subset) and what came out.
    1 = the scores rank the models perfectly, 0 = they know nothing (Park et al. 2023, "TRAK",
    arXiv 2303.14186).

    Parameters
    ----------
    scores
        (n_query, n_train) scores, or a `Scores` that holds all of them (made without `top_k`).
    subsets
        (m, n_train) bool: which training examples model i was trained on, in the order of the
        scores' columns.
    outcomes
        (m, n_query): how well model i does on each query, higher = better for the query, such as
        minus the loss or the margin.

    Returns
    -------
    NDArray[np.float64]
        (n_query,) correlations from -1 to 1. NaN where all m predictions or all m outcomes of a
        query are equal: no ranking, hence no correlation.

    Raises
    ------
    ShapeError
        If the shapes do not fit each other.
    UnsupportedArrayError
        If `subsets` is not bool, or `scores` or `outcomes` are not real numbers, or one is a masked
        array.
    DataError
        If there are fewer than two models, a model was trained on nothing, all were trained on the
        same examples, or `scores` kept only the top k.
    NonFiniteError
        If a score or an outcome is NaN or infinite.

    """
    members = bool_array("lds", "subsets", subsets, "trained on it")
    return _spearman(*summed_and_measured("lds", scores, "subsets", members, outcomes))


def _spearman(x: NDArray[np.float64], y: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return the rank correlation of each column of `x` (m, q) with that of `y` (m, q)."""
    rank_x, rank_y = _centred_ranks(x), _centred_ranks(y)
    scale = np.sqrt((rank_x**2).sum(axis=0) * (rank_y**2).sum(axis=0))
    correlation = np.full(scale.shape, np.nan)
    np.divide((rank_x * rank_y).sum(axis=0), scale, out=correlation, where=scale > 0)
    return correlation


def _centred_ranks(matrix: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return each column's ranks minus their mean; equal values share their average rank."""
    ranks = np.empty_like(matrix)
    for column in range(matrix.shape[1]):
        _, which, counts = np.unique(matrix[:, column], return_inverse=True, return_counts=True)
        # A run of c equal values that ends at rank e has the average rank e - (c - 1) / 2.
        ranks[:, column] = (np.cumsum(counts) - (counts - 1) / 2)[which]
    centred: NDArray[np.float64] = ranks - (len(matrix) + 1) / 2
    return centred
