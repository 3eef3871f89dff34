"""Which columns of a store count in scores, and how much: by method, checkpoint and name."""

from __future__ import annotations

import math
import re
from collections.abc import Iterable
from fnmatch import fnmatchcase
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from grass_rs.errors import SpecError, is_masked, unknown_name

if TYPE_CHECKING:
    from collections.abc import Sequence

    from grass_rs.types import Column

METHODS = ("influence", "graddot", "gradcos", "tracin", "trak")
"""How a query is compared with a stored row."""

DAMPED = ("influence", "trak")
"""The methods with a Fisher matrix, and so with a damping."""

FISHERS = {"layer": 0.4, "row": 1.0}
"""What a block of the Fisher matrix is, and the default damping for it."""

_AT_CHECKPOINT = re.compile(r"(.*)@(\d+)", re.DOTALL)
_LISTED = 8


class Chosen(NamedTuple):
    """What the native module takes: columns by their numbers."""

    weights: list[float]
    """By what the part of each column in a score is multiplied; 0 leaves it out."""
    blocks: list[tuple[int, int]]
    """First column and the one after the last of each block of the Fisher matrix."""
    row_weights: list[int]
    """Columns by whose mean the scores of a row are multiplied."""


def choose(
    columns: Sequence[Column],
    method: str,
    *,
    names: str | Iterable[str] | None = None,
    learning_rates: Iterable[float] | None = None,
    fisher: str,
) -> Chosen:
    """Return what counts in the scores of a method; see `Store.score`.

    Columns of TRAK's weights are in no product, length or Fisher matrix.

    Raises
    ------
    SpecError
        If the method or `fisher` is unknown; if a name fits no block; if learning rates are missing,
        or not one finite number from 0 for each checkpoint, or for another method; if the store has
        no weights for `trak`; if `fisher="row"` is for columns that are not side by side.

    """
    if method not in METHODS:
        raise SpecError(unknown_name("method", method, METHODS))
    blocks = [number for number, column in enumerate(columns) if not _weighs_rows(column)]
    bare, checkpoints = _by_checkpoint(columns)
    count = max(checkpoints) + 1
    rates = _learning_rates(method, learning_rates, count)
    chosen = _named(columns, bare, blocks, names)
    used = sorted({checkpoints[number] for number in chosen})
    weights = [0.0] * len(columns)
    for number in chosen:
        if rates is not None:
            weights[number] = rates[checkpoints[number]]
        else:
            weights[number] = 1.0 if method == "gradcos" else 1 / len(used)
    weighing = [
        number
        for number, column in enumerate(columns)
        if _weighs_rows(column) and checkpoints[number] in used
    ]
    if method == "trak" and len(weighing) != len(used):
        raise SpecError(
            "method 'trak' expects a column \"(weight)\" a checkpoint, got "
            f"{len(weighing)} for {len(used)}: cache with loss='margin'"
        )
    return Chosen(
        weights=weights,
        blocks=_fisher_blocks(method, fisher, [(checkpoints[number], number) for number in chosen]),
        row_weights=weighing if method == "trak" else [],
    )


def unweighted(chosen: Chosen) -> Chosen:
    """Return the same columns, each with weight 1, or 0 where it is left out."""
    return chosen._replace(weights=[float(weight != 0) for weight in chosen.weights])


def damping_or_default(damping: Any, fisher: str) -> Any:
    """Return what is given, or for None the default for a known kind of Fisher matrix."""
    return FISHERS[fisher] if damping is None else damping


def _weighs_rows(column: Column) -> bool:
    return column.spec.get("type") == "trak_weight"


def _by_checkpoint(columns: Sequence[Column]) -> tuple[list[str], list[int]]:
    """Return the names of columns without their checkpoints, and the checkpoints' numbers."""
    found = [_AT_CHECKPOINT.fullmatch(column.name) for column in columns]
    parts = [(match[1], int(match[2])) for match in found if match is not None]
    numbers = {number for _, number in parts}
    # A lone name with such an end is the block's own.
    if len(parts) < len(columns) or numbers != set(range(len(numbers))):
        return [column.name for column in columns], [0] * len(columns)
    return [name for name, _ in parts], [number for _, number in parts]


def _learning_rates(method: str, given: Any, count: int) -> list[float] | None:
    """Return the learning rates of `tracin`; None for other methods."""
    if method != "tracin":
        if given is not None:
            raise SpecError(
                f"learning_rates are for method 'tracin', got method {method!r}: leave them out"
            )
        return None
    expected = f"method 'tracin' expects learning_rates, one for each of {count} checkpoints"
    if given is None:
        raise SpecError(f"{expected}, got none: give those of the training run")
    if isinstance(given, (str, bytes)) or not isinstance(given, Iterable) or is_masked(given):
        raise SpecError(f"{expected}, got a {type(given).__name__}: give a list of numbers")
    if isinstance(given, np.ndarray) and given.ndim != 1:
        raise SpecError(f"{expected}, got an array of shape {given.shape}: give a list of numbers")
    rates = list(given)
    for number, rate in enumerate(rates):
        if not _is_rate(rate):
            raise SpecError(
                f"learning_rates must be finite numbers of at least 0, got {type(rate).__name__} "
                f"{_short(rate)} for checkpoint {number}: give those of the training run"
            )
    if len(rates) != count:
        raise SpecError(f"{expected}, got {len(rates)}: give one each, in their order")
    return [float(rate) for rate in rates]


def _is_rate(rate: Any) -> bool:
    if isinstance(rate, bool) or not isinstance(rate, (int, float, np.integer, np.floating)):
        return False
    try:
        return math.isfinite(rate) and float(rate) >= 0
    except OverflowError:  # a whole number that no float holds
        return False


def _short(value: Any) -> str:
    try:
        return " ".join(repr(value).split())[:60]
    except ValueError:  # a whole number of thousands of digits
        return "of many digits"


def _named(
    columns: Sequence[Column],
    bare: Sequence[str],
    blocks: list[int],
    names: Any,
) -> list[int]:
    """Return the blocks that a name, or a pattern, fits, with its checkpoint or without."""
    known = [columns[number].name for number in blocks]
    listed = ", ".join(map(repr, known[:_LISTED])) + (", ..." if len(known) > _LISTED else "")
    if names is None:
        names = ["*"]
    patterns = [names] if isinstance(names, str) else names
    if not isinstance(patterns, Iterable) or isinstance(patterns, bytes):
        raise SpecError(
            f"columns expects names of blocks or patterns of them, got {_short(names)}: the store has "
            f"{listed}"
        )
    chosen: set[int] = set()
    for pattern in patterns:
        if not isinstance(pattern, str):
            raise SpecError(
                f"columns expects names of blocks or patterns of them, got {_short(pattern)} among "
                f"them: the store has {listed}"
            )
        # A name may have the signs of a pattern in it.
        fitting = {
            number
            for number in blocks
            for name in (columns[number].name, bare[number])
            if name == pattern or fnmatchcase(name, pattern)
        }
        if not fitting:
            raise SpecError(f"columns: no block is called {pattern!r}: the store has {listed}")
        chosen |= fitting
    if not chosen:
        raise SpecError(f"columns expects at least one name of a block, got none: {listed}")
    return sorted(chosen)


def _fisher_blocks(
    method: str, fisher: str, chosen: Sequence[tuple[int, int]]
) -> list[tuple[int, int]]:
    """Return the blocks of the Fisher matrix for columns, each given as (checkpoint, number)."""
    if not isinstance(fisher, str) or fisher not in FISHERS:
        raise SpecError(unknown_name("fisher", fisher, FISHERS))
    if fisher == "layer":
        return [(number, number + 1) for _, number in chosen]
    if method not in DAMPED:
        raise SpecError(
            f"fisher='row' is for methods {' and '.join(map(repr, DAMPED))}, got method {method!r}: "
            f"leave it out"
        )
    blocks: dict[int, tuple[int, int]] = {}
    for checkpoint, number in chosen:
        first, end = blocks.get(checkpoint, (number, number))
        if end != number:
            raise SpecError(
                "fisher='row' expects the chosen columns of a checkpoint side by side, got a gap "
                f"before column {number}: choose the ones between too, or fisher='layer'"
            )
        blocks[checkpoint] = (first, number + 1)
    return sorted(blocks.values())
