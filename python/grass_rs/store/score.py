"""Scores of a store's rows, in memory or in a file."""

from __future__ import annotations

from collections.abc import Sequence
from os import fspath
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np

from grass_rs import _native
from grass_rs.errors import ShapeError, SpecError, unknown_name
from grass_rs.store.arrays import as_rows
from grass_rs.types import Scores

if TYPE_CHECKING:
    from collections.abc import Callable
    from os import PathLike

    from numpy.typing import NDArray

    Queries: TypeAlias = "_native.StoreReader | NDArray[np.float32]"
    Tell: TypeAlias = Callable[[int, int], object] | None

Dampings: TypeAlias = "Sequence[float] | NDArray[Any]"
"""Several dampings: a sequence of numbers, or a NumPy array of one axis."""

METHODS = ("influence", "graddot", "gradcos")
"""How a query is compared with a stored row."""

SYNC_SECONDS = 5.0
"""How often scores in a file are made to survive whatever happens."""


def as_queries(queries: Any, width: int) -> NDArray[np.float32]:
    """Return queries as a C-contiguous (n, width) float32 array, n at least 1.

    Raises
    ------
    ShapeError, UnsupportedArrayError
        If they are none.

    """
    expected = f"score expects queries of shape (n, {width}) with n of at least 1"
    rows = as_rows(queries, expected, width)
    if not len(rows):
        raise ShapeError(f"{expected}, got {rows.shape}: give at least one query")
    return rows


def several(damping: Any) -> list[Any] | None:
    """Return the dampings of a sequence; None for a damping that is no sequence.

    Raises
    ------
    SpecError
        If there are none.

    """
    array = isinstance(damping, np.ndarray) and damping.ndim == 1
    if not array and (not isinstance(damping, Sequence) or isinstance(damping, (str, bytes))):
        return None
    dampings = list(damping)
    if not dampings:
        raise SpecError("damping expects a number, or at least one, got none: the default is 0.4")
    return dampings


def score(
    store: _native.StoreReader,
    queries: Queries,
    method: str,
    damping: Any,
    *,
    top_k: int | None,
    tell: Tell,
) -> Scores | list[Scores]:
    """Return scores in memory, a list of them for several dampings; see `Store.score`."""
    dampings = _checked(method, damping)
    # Methods without a damping take none.
    given = [damping] if dampings is None else dampings
    parts = _native.score_store(
        store, queries, method, given if method == "influence" else [], top_k, tell
    )
    scores = [
        _scores(values, ids, method, number)
        for (ids, values), number in zip(parts, given, strict=True)
    ]
    return scores[0] if dampings is None else scores


def score_to_file(
    store: _native.StoreReader,
    queries: Queries,
    method: str,
    damping: Any,
    *,
    top_k: int | None,
    out: str | PathLike[str],
    tell: Tell,
) -> Scores:
    """Write scores to a file and return them as memory maps; see `Store.score`."""
    path = Path(fspath(out))
    if _checked(method, damping) is not None:
        raise SpecError(
            f"score expects one damping with out, got {damping!r}: call it once a damping, which "
            f"uses the saved Fisher matrices again"
        )
    if top_k is not None:
        raise SpecError(f"score with out writes all scores, got top_k={top_k!r}: leave one out")
    if path.suffix != ".npy":
        raise SpecError(f"out expects a file NAME.npy, got {str(path)!r}: end its name so")
    number = damping if method == "influence" else 0.0
    _native.score_to_file(store, queries, method, number, path, SYNC_SECONDS, tell)
    values = np.load(path, mmap_mode="r", allow_pickle=False)
    ids = np.load(path.with_suffix(".ids.npy"), mmap_mode="r", allow_pickle=False)
    return _scores(values, ids, method, damping)


def _checked(method: str, damping: Any) -> list[Any] | None:
    """Return several dampings, None for one, for a method that is known and takes them."""
    if method not in METHODS:
        raise SpecError(unknown_name("method", method, METHODS))
    dampings = several(damping)
    if dampings is not None and method != "influence":
        raise SpecError(
            f"several dampings are for method 'influence', got method {method!r}: leave damping out"
        )
    return dampings


def _scores(
    values: NDArray[np.float32], ids: NDArray[np.uint64], method: str, damping: Any
) -> Scores:
    return Scores(
        values=values,
        ids=ids,
        method=method,
        damping=float(damping) if method == "influence" else None,
    )
