"""What measures against retrained models take: scores, who was trained on what, what came out."""

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

__all__ = ["bool_array", "real_array", "score_matrix", "summed_and_measured"]


def summed_and_measured(
    what: str,
    scores: Scores | ArrayLike,
    name: str,
    kept: NDArray[np.bool_],
    outcomes: ArrayLike,
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Return what scores predict of m retrained models, and what came out.

    Parameters
    ----------
    what
        Name of the measure, for messages.
    scores
        (n_query, n_train) scores, or a `Scores` that holds all of them.
    name
        What the caller calls the flags, for messages.
    kept
        (m, n_train) bool: which training examples each model was trained on.
    outcomes
        (m, n_query): how well each model does on each query.

    Returns
    -------
    predicted, measured
        Each (m, n_query) float64: the sum of the scores of the examples that the model kept, and
        the outcome.

    Raises
    ------
    ShapeError
        If the shapes do not fit each other.
    UnsupportedArrayError
        If the scores or outcomes are not real numbers.
    DataError
        If `scores` kept only the top k, there are fewer than two models, a model was trained on
        nothing, or all on the same examples.
    NonFiniteError
        If a score or an outcome is NaN or infinite.

    """
    values = score_matrix(what, scores)
    measured = real_array(what, "outcomes", "(m, n_query)", outcomes)
    n_query, n_train = values.shape
    if kept.ndim != 2 or kept.shape[1] != n_train:
        msg = (
            f"{what} expects {name} (m, {n_train}) to fit scores {values.shape}, "
            f"got {kept.shape}: give one column a training example"
        )
        raise ShapeError(msg)
    m = len(kept)
    if measured.shape != (m, n_query):
        msg = (
            f"{what} expects outcomes ({m}, {n_query}), a row a model and a column a "
            f"query, to fit {name} {kept.shape} and scores {values.shape}, got {measured.shape}"
        )
        raise ShapeError(msg)
    if m < 2:
        msg = f"{what} expects at least 2 retrained models to rank, got {m}: retrain more"
        raise DataError(msg)
    sizes = np.count_nonzero(kept, axis=1)
    if not sizes.all():
        msg = (
            f"{what} expects every model to be trained on some example, but model "
            f"{int(sizes.argmin())} has none: leave it out"
        )
        raise DataError(msg)
    if (kept == kept[0]).all():
        msg = (
            f"{what} expects models trained on different examples, got {m} models of the same "
            f"{sizes[0]} of {n_train}: retrain on other subsets"
        )
        raise DataError(msg)
    predicted = kept.astype(np.float64) @ values.T
    # Rounding would rank sums of equal scores: they have a closed form.
    equal = (values == values[:, :1]).all(axis=1)
    predicted[:, equal] = sizes[:, None] * values[equal, 0]
    return predicted, measured


def score_matrix(what: str, scores: Scores | ArrayLike) -> NDArray[np.float64]:
    """Return the finite scores (n_query, n_train) of every training example, in float64."""
    if isinstance(scores, Scores):
        if scores.ids.ndim != 1:
            msg = (
                f"{what} expects the score of every training example, got the top "
                f"{scores.values.shape[1]} a query: score again without top_k"
            )
            raise DataError(msg)
        scores = scores.values
    return real_array(what, "scores", "(n_query, n_train)", scores)


def real_array(what: str, name: str, axes: str, array: Any) -> NDArray[np.float64]:
    """Return `array` as finite float64 numbers with as many axes as `axes` has names."""
    numbers = _unmasked(f"{what} expects {name} of real numbers", array)
    if numbers.dtype.kind not in "fiu":
        msg = f"{what} expects {name} of real numbers, got {numbers.dtype}: convert them to float32"
        raise UnsupportedArrayError(msg)
    wanted = len(axes.strip("(),").split(","))
    if numbers.ndim != wanted:
        give = "one axis" if wanted == 1 else "two axes"
        msg = f"{what} expects {name} {axes}, got {numbers.shape}: give {give}"
        raise ShapeError(msg)
    finite = np.isfinite(numbers)
    if not finite.all():
        place = tuple(map(int, np.argwhere(~finite)[0]))
        msg = (
            f"{what} expects finite {name}, got {numbers[place]} at {list(place)}: "
            f"drop that row or column"
        )
        raise NonFiniteError(msg)
    return numbers.astype(np.float64)


def bool_array(what: str, name: str, array: Any, meaning: str) -> NDArray[np.bool_]:
    """Return `array` as bool; `meaning` is that of True."""
    flags = _unmasked(f"{what} expects bool {name}", array)
    if flags.dtype != np.bool_:
        msg = (
            f"{what} expects bool {name} (True = {meaning}), got {flags.dtype}: "
            f"pass a mask, not indices"
        )
        raise UnsupportedArrayError(msg)
    return flags


def _unmasked(expected: str, array: Any) -> NDArray[Any]:
    if is_masked(array):
        raise UnsupportedArrayError(f"{expected}, got {MASKED}")
    return np.asarray(array)
