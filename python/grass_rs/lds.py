"""The linear datamodeling score (LDS): how well summed scores rank retrained models."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from grass_rs.errors import (
    MASKED,
    DataError,
    NonFiniteError,
    ShapeError,
    UnsupportedArrayError,
    is_masked,
)
from grass_rs.types import Scores

if TYPE_CHECKING:
    from numpy.typing import ArrayLike, NDArray


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
        If there are fewer than two models, or `scores` kept only the top k.
    NonFiniteError
        If a score or an outcome is NaN or infinite.

    """
    if isinstance(scores, Scores):
        if scores.ids.ndim != 1:
            msg = (
                f"lds expects the score of every training example, got the top "
                f"{scores.values.shape[1]} a query: score again without top_k"
            )
            raise DataError(msg)
        scores = scores.values
    values = _real_matrix("scores", "(n_query, n_train)", scores)
    results = _real_matrix("outcomes", "(m, n_query)", outcomes)
    members = _unmasked("bool subsets", subsets)
    if members.dtype != np.bool_:
        msg = (
            f"lds expects bool subsets (True = trained on it), got {members.dtype}: "
            f"pass a mask, not indices"
        )
        raise UnsupportedArrayError(msg)
    n_query, n_train = values.shape
    if members.ndim != 2 or members.shape[1] != n_train:
        msg = (
            f"lds expects subsets (m, {n_train}) to fit scores {values.shape}, "
            f"got {members.shape}: give one column a training example"
        )
        raise ShapeError(msg)
    if results.shape != (len(members), n_query):
        msg = (
            f"lds expects outcomes ({len(members)}, {n_query}), a row a model and a column a "
            f"query, to fit subsets {members.shape} and scores {values.shape}, got {results.shape}"
        )
        raise ShapeError(msg)
    if len(members) < 2:
        msg = f"lds expects at least 2 retrained models to rank, got {len(members)}: retrain more"
        raise DataError(msg)
    return _spearman(members.astype(np.float64) @ values.T, results)


def _unmasked(expected: str, array: Any) -> NDArray[Any]:
    if is_masked(array):
        msg = f"lds expects {expected}, got {MASKED}"
        raise UnsupportedArrayError(msg)
    return np.asarray(array)


def _real_matrix(name: str, axes: str, array: Any) -> NDArray[np.float64]:
    """Return `array` as a finite float64 matrix."""
    matrix = _unmasked(f"{name} of real numbers", array)
    if matrix.dtype.kind not in "fiu":
        msg = f"lds expects {name} of real numbers, got {matrix.dtype}: convert them to float32"
        raise UnsupportedArrayError(msg)
    if matrix.ndim != 2:
        msg = f"lds expects {name} {axes}, got {matrix.shape}: give two axes"
        raise ShapeError(msg)
    finite = np.isfinite(matrix)
    if not finite.all():
        row, column = np.argwhere(~finite)[0]
        msg = (
            f"lds expects finite {name}, got {matrix[row, column]} at [{row}, {column}]: "
            f"drop that row or column"
        )
        raise NonFiniteError(msg)
    return matrix.astype(np.float64)


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
