"""Standard errors of scores: how far compressing alone may have moved them."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from grass_rs.errors import NonFiniteError, ShapeError
from grass_rs.store.arrays import as_rows
from grass_rs.store.sketch_variance import sketches_of

if TYPE_CHECKING:
    from collections.abc import Iterator

    from numpy.typing import ArrayLike, NDArray

    from grass_rs.store.reader import Store
    from grass_rs.store.sketch_variance import Sketch

_NUMBERS_AT_ONCE = 2**21
"""Numbers of float64 in the rows, and in the variances, that are worked on together."""


def standard_errors(
    store: Store, preconditioned: ArrayLike, *, ids: NDArray[np.uint64] | None = None
) -> NDArray[np.float32]:
    r"""Return the standard error that the compressors' random choices give each score.

    The uncompressed score lies within two of them for about 95 of 100 seeds of the plan. They know
    of the compression alone: not of how well the scores' method predicts, nor of rows in few bits.

    Let a score be the sum over columns of u . g, with g the part of the stored row and u that of
    `preconditioned`, and z_b = u_b g_b, s = u . g. The variance of a column is, for k coordinates,

    - SJLT, Gaussian, tile sketch: (\|u\|^2 \|g\|^2 + s^2) / k, the exact one for normal entries;
      signs make it smaller, by terms that the stored rows do not tell.
    - Random mask of k of p coordinates: sampling without replacement,
      (1 - k / p) k / (k - 1) sum_b (z_b - s / k)^2, or the same of the sums of whole runs.
    - GraSS: the sum over buckets holds both the mask's variance and the SJLT's, because every bucket
      is a random group of kept coordinates.
    - FactGraSS, LoGra: choices of rows and of columns, whose variances add up (two-way analysis of
      variance); of pairs of coordinates of one row and of one column, found through the SJLT by
      the buckets they fell into.
    - Blocks kept whole: 0.

    Where columns have one compressor, as those of several checkpoints, their errors are taken
    together. A sample says little of a few large values that it missed: for a mask of less than
    some hundred coordinates, a LoGra of less than 16 directions a side, or gradients of which a few
    coordinates hold most, the standard errors are too small.

    For influence, u is itself made from compressed rows, whose inverse Fisher matrix makes up for much
    of the error: the standard errors are then upper bounds, often several times too large.

    Parameters
    ----------
    store
        Store whose rows are scored. They are read as `store[...]` reads them, a piece at a time.
    preconditioned
        (n_query, width) floats: what the rows are multiplied by. For "graddot" the queries, for
        "influence" (F + lambda I)^-1 times them, with the weights of the columns multiplied in. For
        a contrast, the difference of two queries' rows: errors do not subtract.
    ids
        Ids of the training examples of each query, (n_query, k), as in `Scores.ids` of top-k scores;
        all rows of the store, in their order, if None.

    Returns
    -------
    numpy.ndarray
        (n_query, n_train) float32, or (n_query, k) with `ids`; in units of the scores.

    Raises
    ------
    SpecError
        If the error of a column cannot be told from what is stored, as for selective masks and
        KfacGraSS, where nothing random chose the coordinates. Columns by which no query is multiplied
        are left out.
    ShapeError
        If `preconditioned` has another width, or `ids` another number of rows.
    DataError
        If an id has no row.
    UnsupportedArrayError
        If `preconditioned` is no array of numbers.
    NonFiniteError
        If a standard error is not finite in float32.

    """
    width = store.width
    given = as_rows(
        preconditioned, f"standard_errors expects preconditioned of shape (n, {width})", width
    )
    queries = given.astype(np.float64)
    used = [
        column
        for column in store.columns
        if queries[:, column.offset : column.offset + column.width].any()
    ]
    sketches = sketches_of(used)
    # What is not finite is found at the end, whatever it comes from.
    with np.errstate(over="ignore", invalid="ignore"):
        if ids is None:
            errors = _of_all(sketches, queries, store)
        else:
            errors = _of_ids(sketches, queries, store, ids)
    if not np.isfinite(errors).all():
        raise NonFiniteError(
            "standard_errors expects finite rows whose scores fit float32, got a standard error that is "
            "not finite: scale the queries down, or verify the store"
        )
    return errors


def _of_all(
    sketches: list[Sketch], queries: NDArray[np.float64], store: Store
) -> NDArray[np.float32]:
    errors = np.empty((len(queries), len(store)), np.float32)
    for begin, end in _pieces(len(store), store.width, len(queries)):
        errors[:, begin:end] = _errors(sketches, queries, store[begin:end])
    return errors


def _of_ids(
    sketches: list[Sketch], queries: NDArray[np.float64], store: Store, ids: NDArray[np.uint64]
) -> NDArray[np.float32]:
    if ids.ndim != 2 or len(ids) != len(queries):
        raise ShapeError(
            f"standard_errors expects ids of shape ({len(queries)}, k), got {ids.shape}: give those of "
            f"each query"
        )
    needed, places = np.unique(store.find(ids.reshape(-1)), return_inverse=True)
    places = places.reshape(ids.shape)
    errors = np.empty(ids.shape, np.float32)
    for begin, end in _pieces(len(needed), store.width, len(queries)):
        piece = _errors(sketches, queries, store[needed[begin:end]])
        query, rank = np.nonzero((places >= begin) & (places < end))
        errors[query, rank] = piece[query, places[query, rank] - begin]
    return errors


def _pieces(rows: int, width: int, queries: int) -> Iterator[tuple[int, int]]:
    """Yield the first row and the one after the last of pieces that fit into memory."""
    step = max(1, _NUMBERS_AT_ONCE // max(width, queries))
    for begin in range(0, rows, step):
        yield begin, min(begin + step, rows)


def _errors(
    sketches: list[Sketch], queries: NDArray[np.float64], rows: NDArray[np.float32]
) -> NDArray[np.float32]:
    wide = rows.astype(np.float64)
    total = np.zeros((len(queries), len(rows)))
    for sketch in sketches:
        total += sketch.variance(queries, wide)
    # Differences of sums: rounding may leave less than nothing of an error that is none.
    errors: NDArray[np.float32] = np.sqrt(np.maximum(total, 0.0)).astype(np.float32)
    return errors
