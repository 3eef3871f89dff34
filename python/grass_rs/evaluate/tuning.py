"""Choosing a method and its damping for a store, with ground truth or without."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from grass_rs.errors import (
    DataError,
    NonFiniteError,
    ShapeError,
    SpecError,
    StoreError,
    unknown_name,
)
from grass_rs.evaluate.estimate import Estimate, estimate
from grass_rs.evaluate.inputs import bool_array, real_array
from grass_rs.evaluate.lds import lds
from grass_rs.store import Store, check_same_columns, check_same_fingerprints
from grass_rs.store.score import as_queries, several

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from numpy.typing import ArrayLike, NDArray

    from grass_rs.types import Scores

__all__ = ["DAMPINGS", "Candidate", "Tuning", "effective_directions", "tune"]

DAMPINGS = (0.025, 0.05, 0.1, 0.2, 0.4, 0.8, 1.6, 3.2, 6.4, 12.8, 25.6, 51.2)
"""Dampings that `tune` tries unless it is told otherwise."""

METHODS = ("influence", "graddot", "gradcos")
"""Methods that `tune` knows: those that need nothing beside the rows."""

_DEFAULT = 0.4  # damping of `Store.score`
_ROOT_SHARE = 0.5  # damping over the root of the effective directions
_MOST_ROWS = 2048
_LEAST_ROWS = 256
_SAMPLE_BYTES = 256 * 2**20
_SCORES_BYTES = 256 * 2**20
_COORDINATES = 4096  # converted to float64 at a time


@dataclass(frozen=True)
class Candidate:
    """One method and damping, and how good it is."""

    method: str
    """"influence", "graddot" or "gradcos"."""
    damping: float | None
    """Damping of "influence"; None for the others."""
    value: float
    """Mean LDS over the queries; without ground truth, minus the octaves to the rule's damping."""
    lds: Estimate | None
    """The LDS with its standard error; None without ground truth."""


@dataclass(frozen=True)
class Tuning:
    """What `tune` tried, and what it chose."""

    table: tuple[Candidate, ...]
    """Everything tried, method by method, dampings ascending."""
    method: str
    """The chosen method, for `Store.score`."""
    damping: float
    """The chosen damping, for `Store.score`; for a method without one, the default, 0.4."""
    directions: float | None
    """Effective directions of a column, which the criterion goes by; None with ground truth."""

    def __str__(self) -> str:
        measure = "criterion" if self.directions is not None else "LDS\ts.e.m."
        lines = [f"method\tdamping\t{measure}\tchosen"]
        for row in self.table:
            chosen = row.method == self.method and row.damping in (None, self.damping)
            numbers = (
                f"{row.value:.4f}" if row.lds is None else f"{row.value:.4f}\t{row.lds.sem:.4f}"
            )
            damping = "" if row.damping is None else f"{row.damping:g}"
            lines.append(f"{row.method}\t{damping}\t{numbers}\t{'*' if chosen else ''}")
        return "\n".join(lines)


def tune(
    store: Store,
    queries: Any = None,
    *,
    subsets: ArrayLike | None = None,
    outcomes: ArrayLike | None = None,
    dampings: Sequence[float] = DAMPINGS,
    methods: Sequence[str] = METHODS,
) -> Tuning:
    """Choose the method and the damping with which a store's rows are scored; torch is not needed.

    With ground truth, every method and damping is judged by its mean LDS over the queries (see
    `grass_rs.lds`), and the best is chosen. Where the default, influence with damping 0.4, is among
    them and less than one standard error of the paired difference behind the best, it is kept: the
    best of many would win by chance.

    Without, the method is "influence" and the damping is the one nearest, by its logarithm, to half
    the root of the effective directions of a column, r = tr(F)^2 / tr(F^2) of its Fisher F, averaged
    over the columns: rows of a flat spectrum, as whitened ones are, get more damping than those of a
    steep one. The rule was fitted to the four models of docs/tuning.md, where it gives away .009 LDS
    on average, .019 on the transformer, and so no less than damping 1.6 for everything does. It is a place
    to start from; ground truth is better.

    Parameters
    ----------
    store
        Rows of the training examples.
    queries
        (n_query, width) compressed gradients of held-out examples, or a `Store` of them, as for
        `Store.score`. Without ground truth they are not looked at, and may be left out.
    subsets
        (m, n) bool: which examples each of m retrained models was trained on, in the order of the
        store's rows. None, as `outcomes`, without ground truth.
    outcomes
        (m, n_query): how well each model does on each query, higher = better.
    dampings
        What to try for "influence": numbers above 0.
    methods
        What to try: "influence", "graddot", "gradcos".

    Returns
    -------
    Tuning
        The table of everything tried, and the choice.

    Raises
    ------
    SpecError
        If only one of `subsets` and `outcomes` is given, there is nothing to try, a method is unknown,
        a damping is not above 0, or "influence" is not among the methods and there is no ground truth.
    ShapeError, UnsupportedArrayError, NonFiniteError
        If the arrays do not fit the store or the queries, or hold what they should not.
    DataError
        If the LDS is undefined for all queries but one, or every row is 0.
    StoreError
        If the store cannot be scored.

    """
    given, tried = _checked(dampings, methods)
    if (subsets is None) != (outcomes is None):
        missing = "subsets" if subsets is None else "outcomes"
        raise SpecError(
            f"tune expects subsets and outcomes, or neither, got no {missing}: give both, or leave "
            f"both out to go by the rows alone"
        )
    if subsets is None or outcomes is None:
        return _by_rows(store, given, tried)
    return _by_outcomes(store, queries, given, tried, (subsets, outcomes))


def effective_directions(store: Store) -> float:
    """Return r = tr(F)^2 / tr(F^2) of a column's Fisher F = (1/n) sum g g^T, averaged over columns.

    It is 1 where all rows of a column are parallel, and its width where F is a multiple of the
    identity. Columns of zeros are left out. Up to 2048 rows, or those of 256 MiB, but at least 256,
    are all used. Of more, as many are taken at even distances: tr(F^2) is then estimated without bias
    from their inner products, (1 - 1/n) mean over pairs of (g_i g_j)^2 + (1/n) mean of |g|^4.

    Raises
    ------
    StoreError
        If the store is unfinished or has no rows.
    NonFiniteError
        If a row is not finite.
    DataError
        If every row is 0.

    """
    n = len(store)
    if not store.complete or not n:
        state = "without rows" if store.complete else "unfinished"
        raise StoreError(f"tune expects a finished store with rows, got {store.path}, {state}")
    fit = _SAMPLE_BYTES // (4 * store.width)
    m = min(n, max(_LEAST_ROWS, min(_MOST_ROWS, fit)))
    rows = store[np.arange(m) * n // m]
    found = [
        _directions(rows[:, column.offset : column.offset + column.width], n)
        for column in store.columns
    ]
    used = [directions for directions in found if directions is not None]
    if not used:
        raise DataError(f"tune expects rows that are not all 0, got {m} such from {store.path}")
    return math.fsum(used) / len(used)


def _directions(rows: NDArray[np.float32], n: int) -> float | None:
    """Return tr(F)^2 / tr(F^2) of the n rows of which these are some; None if they are zeros."""
    largest = float(np.abs(rows).max())
    if not math.isfinite(largest):
        raise NonFiniteError("tune expects finite rows, got a NaN or an infinity: cache them again")
    if largest == 0:
        return None
    m, width = rows.shape
    gram = np.zeros((m, m))
    for begin in range(0, width, _COORDINATES):
        # Scaled, fourth powers fit float64; the ratio does not change.
        part = rows[:, begin : begin + _COORDINATES].astype(np.float64) / largest
        gram += part @ part.T
    squares: NDArray[np.float64] = gram.diagonal()
    fourth = float((squares**2).mean())
    pairs = float((gram**2).sum() - (squares**2).sum()) / max(1, m * (m - 1))
    trace = float(squares.mean())
    second: float = (1 - 1 / n) * pairs + fourth / n
    return trace * trace / second


def _by_rows(store: Store, dampings: list[float], methods: list[str]) -> Tuning:
    if "influence" not in methods:
        raise SpecError(
            f"tune without subsets and outcomes expects 'influence' among the methods, got "
            f"{methods}: nothing but ground truth tells methods apart"
        )
    directions = effective_directions(store)
    expected = _ROOT_SHARE * math.sqrt(directions)
    table = tuple(
        Candidate("influence", damping, -abs(math.log2(damping / expected)), None)
        for damping in dampings
    )
    best = max(table, key=lambda row: row.value)
    return Tuning(table, best.method, best.damping or _DEFAULT, directions)


def _by_outcomes(
    store: Store,
    queries: Any,
    dampings: list[float],
    methods: list[str],
    truth: tuple[ArrayLike, ArrayLike],
) -> Tuning:
    subsets, outcomes = truth
    members = bool_array("tune", "subsets", subsets, "trained on it")
    measured = real_array("tune", "outcomes", "(m, n_query)", outcomes)
    if isinstance(queries, Store):
        check_same_columns(store.path, store.columns, queries.columns)
        check_same_fingerprints(store.path, store.fingerprints, queries.fingerprints)
        queries = queries[:]
    rows = as_queries(queries, store.width)
    if measured.shape[1] != len(rows):
        raise ShapeError(
            f"tune expects outcomes (m, {len(rows)}), a column a query, got {measured.shape}"
        )
    step = max(1, _SCORES_BYTES // (4 * len(dampings) * max(1, len(store))))
    found: dict[tuple[str, float | None], list[NDArray[np.float64]]] = {}
    for begin in range(0, len(rows), step):
        block = slice(begin, begin + step)
        for scores in _scored(store, rows[block], dampings, methods):
            values = lds(scores, members, measured[:, block])
            found.setdefault((scores.method, scores.damping), []).append(values)
    judged = {key: np.concatenate(parts) for key, parts in found.items()}
    table = []
    for (method, damping), values in judged.items():
        judgement = estimate(values)
        table.append(Candidate(method, damping, judgement.mean, judgement))
    best = max(table, key=lambda row: row.value)
    method, damping = best.method, best.damping
    default = judged.get(("influence", _DEFAULT))
    if default is not None and _tied(judged[method, damping], default):
        method, damping = "influence", _DEFAULT
    return Tuning(tuple(table), method, _DEFAULT if damping is None else damping, None)


def _scored(
    store: Store, rows: NDArray[np.float32], dampings: list[float], methods: list[str]
) -> Iterator[Scores]:
    for method in methods:
        if method == "influence":
            yield from store.score(rows, method, dampings)
        else:
            yield store.score(rows, method)


def _tied(best: NDArray[np.float64], other: NDArray[np.float64]) -> bool:
    """Return whether `best` leads by at most the standard error of the mean difference."""
    lead = best - other
    lead = lead[~np.isnan(lead)]
    return len(lead) > 1 and bool(lead.mean() <= lead.std(ddof=1) / math.sqrt(len(lead)))


def _checked(dampings: Any, methods: Any) -> tuple[list[float], list[str]]:
    """Return the dampings, ascending, and the methods, each once."""
    given = several(dampings)
    numbers = [] if given is None else [_positive(damping) for damping in given]
    tried = [methods] if isinstance(methods, str) else list(dict.fromkeys(methods))
    if given is None or not tried:
        raise SpecError(
            f"tune expects a list of dampings and of methods, got {dampings!r} and {methods!r}"
        )
    for method in tried:
        if method not in METHODS:
            raise SpecError(unknown_name("method", method, METHODS))
    return sorted(set(numbers)), tried


def _positive(damping: Any) -> float:
    number = isinstance(damping, (int, float, np.number)) and not isinstance(damping, bool)
    if not number or not 0 < damping < math.inf:
        raise SpecError(f"tune expects dampings above 0, got {damping!r}")
    return float(damping)
