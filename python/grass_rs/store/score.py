"""Scores of a store's rows, in memory or in a file."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np
from numpy.lib.format import open_memmap

from grass_rs import _native
from grass_rs.errors import ScoresFileError, ShapeError, SpecError, path_of
from grass_rs.store.arrays import as_rows, first_line
from grass_rs.store.chosen import DAMPED
from grass_rs.types import Scores

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from os import PathLike

    from numpy.typing import NDArray

    from grass_rs.store.chosen import Chosen

    Queries: TypeAlias = "_native.StoreReader | NDArray[np.float32]"
    Tell: TypeAlias = Callable[[int, int], object] | None

Dampings: TypeAlias = "Sequence[float] | NDArray[Any]"
"""Several dampings: a sequence of numbers, or a NumPy array of one axis."""

_NATIVE = {"tracin": "graddot", "trak": "influence"}
"""The products that other methods weigh."""

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
    chosen: Chosen,
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
        store,
        chosen,
        queries,
        _NATIVE.get(method, method),
        given if method in DAMPED else [],
        top_k,
        tell,
    )
    scores = [
        _scores(values, ids, method, number)
        for (ids, values), number in zip(parts, given, strict=True)
    ]
    return scores[0] if dampings is None else scores


def score_to_file(
    store: _native.StoreReader,
    chosen: Chosen,
    queries: Queries,
    method: str,
    damping: Any,
    *,
    top_k: int | None,
    out: str | PathLike[str],
    tell: Tell,
) -> Scores:
    """Write scores to a file and return them as memory maps; see `Store.score`."""
    path = path_of("out", out)
    if _checked(method, damping) is not None:
        raise SpecError(
            f"score expects one damping with out, got {damping!r}: call it once a damping, which "
            f"uses the saved Fisher matrices again"
        )
    if top_k is not None:
        raise SpecError(f"score with out writes all scores, got top_k={top_k!r}: leave one out")
    if path.suffix != ".npy":
        raise SpecError(f"out expects a file NAME.npy, got {str(path)!r}: end its name so")
    if path.name.endswith(".ids.npy"):
        raise SpecError(
            f"out expects a file NAME.npy, got {str(path)!r}, a name of ids: choose another name"
        )
    if any(path.exists() and path.samefile(file) for file in _files_of(queries)):
        raise ScoresFileError(
            f"out expects a file of its own, got the queries' {path}: choose another"
        )
    ids_path = path.with_suffix(".ids.npy")
    _refuse_to_replace_others(path, ids_path)
    number = damping if method in DAMPED else 0.0
    name = _NATIVE.get(method, method)
    _native.score_to_file(store, chosen, queries, name, number, path, SYNC_SECONDS, tell)
    values = np.load(path, mmap_mode="r", allow_pickle=False)
    ids = np.load(ids_path, mmap_mode="r", allow_pickle=False)
    return _scores(values, ids, method, damping)


def _files_of(array: Any) -> Iterator[Path]:
    """Yield the files of which an array is a memory map."""
    while array is not None:
        if isinstance(array, np.memmap) and array.filename and Path(array.filename).exists():
            yield Path(array.filename)
        array = getattr(array, "base", None)


def _refuse_to_replace_others(path: Path, ids_path: Path) -> None:
    """Refuse to write where there is anything but scores and their ids, both of them.

    Raises
    ------
    ScoresFileError
        With the file that is in the way.

    """
    scores, ids = _array_there(path, "<f4", 2), _array_there(ids_path, "<u8", 1)
    # A call that was killed while it renamed left its journal, and one of two, or of different lengths.
    journal = path.with_name(f"{path.name}.progress")
    if (scores and scores[1:]) != ids and not journal.exists():
        raise ScoresFileError(
            f"out expects nothing, or scores and their ids, at {path} and {ids_path}, got "
            f"{_told(scores)} and {_told(ids)}: choose another name, or remove what is there"
        )


def _told(shape: tuple[int, ...] | None) -> str:
    return "nothing" if shape is None else f"numbers of shape {shape}"


def _array_there(path: Path, dtype: str, axes: int) -> tuple[int, ...] | None:
    """Return the shape of the array in a `.npy` file; None if there is nothing.

    Raises
    ------
    ScoresFileError
        If there is anything else than an array of this dtype and so many axes.

    """
    if not os.path.lexists(path):
        return None
    try:
        array = open_memmap(path, mode="r")
    except (OSError, ValueError) as error:
        hint = "name a file in it" if path.is_dir() else "choose another name, or remove it"
        raise ScoresFileError(
            f"out expects nothing, or scores and their ids, got something else at {path} "
            f"({first_line(error)}): {hint}"
        ) from error
    if array.dtype != dtype or array.ndim != axes or not array.flags.c_contiguous:
        raise ScoresFileError(
            f"out expects nothing, or scores and their ids, got {array.dtype} numbers of shape "
            f"{array.shape} at {path}: choose another name, or remove it"
        )
    return array.shape


def _checked(method: str, damping: Any) -> list[Any] | None:
    """Return several dampings, None for one, for a method that takes them."""
    dampings = several(damping)
    if dampings is not None and method not in DAMPED:
        raise SpecError(
            f"several dampings are for methods {' and '.join(map(repr, DAMPED))}, got method "
            f"{method!r}: leave damping out"
        )
    return dampings


def _scores(
    values: NDArray[np.float32], ids: NDArray[np.uint64], method: str, damping: Any
) -> Scores:
    return Scores(
        values=values,
        ids=ids,
        method=method,
        damping=float(damping) if method in DAMPED else None,
    )
