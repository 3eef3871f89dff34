"""Measures of scores besides the LDS: leaving out, mislabelled examples, known origins."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from grass_rs.errors import DataError, ShapeError, whole_number
from grass_rs.evaluate.inputs import bool_array, real_array, score_matrix, summed_and_measured
from grass_rs.types import Scores

if TYPE_CHECKING:
    from numpy.typing import ArrayLike, NDArray

__all__ = ["leave_out_correlation", "mislabel_auc", "recall_at_k"]


def leave_out_correlation(
    scores: Scores | ArrayLike, removed: ArrayLike, outcomes: ArrayLike
) -> NDArray[np.float64]:
    """Judge scores against models that were retrained without a few examples.

    For each query, Pearson's correlation over the m retrained models between the sum of the scores
    of the examples that a model kept and its outcome. With one example removed a model, this is
    leave-one-out (Koh and Liang 2017, "Understanding Black-box Predictions via Influence
    Functions", arXiv 1703.04730, section 4); with k, leave-k-out. Differences between such models
    are small beside the noise of retraining, unless all start from the same initialisation and
    their training converges.

    Parameters
    ----------
    scores
        (n_query, n_train) scores, or a `Scores` that holds all of them.
    removed
        (m, n_train) bool: which training examples model i was trained without. A row of none is
        a model of all examples.
    outcomes
        (m, n_query): how well model i does on each query, higher = better for the query.

    Returns
    -------
    NDArray[np.float64]
        (n_query,) correlations from -1 to 1. NaN where all m sums or all m outcomes of a query are
        equal: no correlation.

    Raises
    ------
    ShapeError
        If the shapes do not fit each other.
    UnsupportedArrayError
        If `removed` is not bool, or `scores` or `outcomes` are not real numbers.
    DataError
        If there are fewer than two models, one was trained on nothing, all on the same examples, or
        `scores` kept only the top k.
    NonFiniteError
        If a score or an outcome is NaN or infinite.

    """
    what = "leave_out_correlation"
    without = bool_array(what, "removed", removed, "trained without it")
    predicted, measured = summed_and_measured(what, scores, "removed", ~without, outcomes)
    defined = (predicted != predicted[0]).any(axis=0) & (measured != measured[0]).any(axis=0)
    x, y = (side - side.mean(axis=0) for side in (predicted, measured))
    scale = np.sqrt((x**2).sum(axis=0)) * np.sqrt((y**2).sum(axis=0))
    correlation = np.full(scale.shape, np.nan)
    np.divide((x * y).sum(axis=0), scale, out=correlation, where=defined & (scale > 0))
    return correlation


def mislabel_auc(self_influence: ArrayLike, mislabelled: ArrayLike) -> float:
    """Judge how well self-influence finds wrong labels.

    The area under the ROC curve: the probability that a mislabelled example has a higher
    self-influence than a rightly labelled one, ties counting one half. 1 = all wrong labels come
    first, 0.5 = chance (Koh and Liang 2017, section 5.4; Pruthi et al. 2020, "TracIn",
    arXiv 2002.08484, section 4.1).

    Parameters
    ----------
    self_influence
        (n,) self-influence of the training examples.
    mislabelled
        (n,) bool: which labels are known to be wrong.

    Raises
    ------
    ShapeError
        If the shapes differ.
    UnsupportedArrayError
        If `mislabelled` is not bool, or `self_influence` not real.
    DataError
        If all labels are wrong or none is.
    NonFiniteError
        If a value is NaN or infinite.

    """
    what = "mislabel_auc"
    values = real_array(what, "self_influence", "(n,)", self_influence)
    wrong = bool_array(what, "mislabelled", mislabelled, "wrong label")
    if wrong.shape != values.shape:
        msg = (
            f"{what} expects mislabelled {values.shape} to fit self_influence, got {wrong.shape}: "
            f"give one flag an example"
        )
        raise ShapeError(msg)
    count = np.count_nonzero(wrong)
    if not 0 < count < len(wrong):
        msg = f"{what} expects some wrong labels and some right ones, got {count} wrong of {len(wrong)}"
        raise DataError(msg)
    right = np.sort(values[~wrong])
    below = np.searchsorted(right, values[wrong], side="left")
    not_above = np.searchsorted(right, values[wrong], side="right")
    return float((below + not_above).mean() / (2 * len(right)))


def recall_at_k(scores: Scores | ArrayLike, relevant: ArrayLike, k: int) -> NDArray[np.float64]:
    """Judge whether the top k find the training examples that are known to matter.

    For each query, which share of its relevant training examples is among the k with the highest
    scores; equal scores by smaller position. Relevant may be a planted duplicate of the query, or
    the documents that state its fact.

    Parameters
    ----------
    scores
        (n_query, n_train) scores, or a `Scores`, whose ids are then the columns of `relevant`; it
        may hold only the top k.
    relevant
        (n_query, n_train) bool.
    k
        How many of the highest scores count, from 1 to the number of scores a query.

    Returns
    -------
    NDArray[np.float64]
        (n_query,) from 0 to 1; NaN for a query to which nothing is relevant.

    Raises
    ------
    ShapeError
        If the shapes do not fit each other, or k is not in range.
    UnsupportedArrayError
        If `relevant` is not bool, or `scores` are not real numbers.
    DataError
        If an id is no column of `relevant`.
    NonFiniteError
        If a score is NaN or infinite.

    """
    what = "recall_at_k"
    k = whole_number("k", k, least=1)
    matters = bool_array(what, "relevant", relevant, "relevant")
    if not isinstance(scores, Scores):
        values = score_matrix(what, scores)
        # Scores of float32 might tie where these do not.
        ids = np.arange(values.shape[1], dtype=np.uint64)
        found = np.argsort(-values, axis=1, kind="stable")[:, :k].astype(np.uint64)
    else:
        real_array(what, "scores", "(n_query, n_train)", scores.values)
        ids = scores.ids
        found = scores.top(k)[0]
    if matters.ndim != 2 or found.shape != (len(matters), k):
        msg = (
            f"{what} expects relevant (n_query, n_train) and at least {k} scores for each of its "
            f"queries, got relevant {matters.shape} and {ids.shape[-1]} scores for {len(found)}"
        )
        raise ShapeError(msg)
    if ids.size and ids.max() >= matters.shape[1]:
        msg = (
            f"{what} expects ids below {matters.shape[1]}, the columns of relevant "
            f"{matters.shape}, got id {ids.max()}: give relevant a column an id"
        )
        raise DataError(msg)
    hits = np.take_along_axis(matters, found.astype(np.int64), axis=1).sum(axis=1)
    total = matters.sum(axis=1)
    recall = np.full(len(matters), np.nan)
    np.divide(hits, total, out=recall, where=total > 0)
    return recall
