"""Reading a store: rows, ids, checksums, and scores for queries."""

from __future__ import annotations

import sys
from functools import cached_property
from os import fspath
from pathlib import Path
from typing import TYPE_CHECKING, Any, final

import numpy as np

from grass_rs import _native
from grass_rs.errors import ShapeError, SpecError, UnsupportedArrayError, unknown_name
from grass_rs.store.columns import check_same_columns, check_same_fingerprints, from_native
from grass_rs.types import Scores

if TYPE_CHECKING:
    from os import PathLike

    from numpy.typing import NDArray

    from grass_rs.types import Column

METHODS = ("influence", "graddot", "gradcos")
"""How a query is compared with a stored row."""


@final
class Store:
    """The rows of a store, made by `open_store`.

    Of an unfinished store these are the rows that were committed when it was opened.
    `store[i]`, `store[a:b:c]` and `store[array of whole numbers]` give copies as float32.
    """

    def __init__(self, native: _native.StoreReader, path: Path) -> None:
        self._native = native
        self._path = path

    @property
    def path(self) -> Path:
        """Folder of the store."""
        return self._path

    @cached_property
    def columns(self) -> tuple[Column, ...]:
        """The blocks of a row, side by side."""
        return from_native(self._native.columns)

    @property
    def dtype(self) -> str:
        """Type of the stored numbers: "float32", "float16", "bfloat16" or "int8"."""
        return self._native.dtype

    @property
    def width(self) -> int:
        """Numbers in a row."""
        return self._native.width

    @property
    def complete(self) -> bool:
        """Whether the store is finished."""
        return self._native.complete

    @property
    def fingerprints(self) -> dict[str, str]:
        """Values that tell the plan and the model apart from others."""
        return self._native.fingerprints

    @property
    def skipped_ids(self) -> NDArray[np.uint64]:
        """Ids of examples that were left out on purpose, ascending: (m,) uint64."""
        return self._native.skipped_ids

    @cached_property
    def ids(self) -> NDArray[np.uint64]:
        """Ids of the rows, in their order: (n,) uint64, read-only.

        Raises
        ------
        CorruptStoreError
            If ids are damaged.

        """
        ids = self._native.ids()
        ids.flags.writeable = False
        return ids

    def __len__(self) -> int:
        return len(self._native)

    def __repr__(self) -> str:
        state = "complete" if self.complete else "unfinished"
        return (
            f"<Store {str(self._path)!r}: {state}, {len(self)} rows of {self.width} {self.dtype}>"
        )

    def __getitem__(self, index: Any) -> NDArray[np.float32]:
        """Return a copy of some rows as float32, without comparing checksums (`verify` does).

        Parameters
        ----------
        index
            A row number, negative from the end; a slice with any step; or an (m,) array of row
            numbers or of booleans, one a row.

        Returns
        -------
        numpy.ndarray
            (width,) for a number, (m, width) otherwise.

        Raises
        ------
        IndexError
            If a row is out of range.
        UnsupportedArrayError
            If the index is anything else.

        """
        if isinstance(index, slice):
            rows = range(len(self))[index]
            counted = np.arange(rows.start, rows.stop, rows.step, dtype=np.int64)
            return self._native.read_rows(counted.astype(np.uint64))
        numbers = np.asarray(index)
        if numbers.dtype == np.bool_ and numbers.shape == (len(self),):
            numbers = np.flatnonzero(numbers)
        elif numbers.size == 0 and numbers.ndim == 1:
            numbers = numbers.astype(np.int64)
        # A tuple would mean an axis each in NumPy.
        if numbers.dtype.kind not in "iu" or numbers.ndim > 1 or isinstance(index, tuple):
            raise UnsupportedArrayError(
                f"store[...] expects a row number, a slice, or an (m,) array of row numbers, got "
                f"{type(index).__name__} of shape {numbers.shape} and dtype {numbers.dtype}: index the result"
            )
        flat = numbers.reshape(-1)
        outside = (flat < -len(self)) | (flat >= len(self))
        if outside.any():
            raise IndexError(f"row {flat[outside][0]} is out of range for {len(self)} rows")
        wrapped = np.where(flat < 0, flat.astype(np.int64) + len(self), flat).astype(np.uint64)
        rows_found = self._native.read_rows(wrapped)
        return rows_found if numbers.ndim else rows_found[0]

    def verify(self) -> None:
        """Read every byte of the store and compare it with its checksums.

        Raises
        ------
        CorruptStoreError
            With all damage found, each with shard, chunk and row range. Of a store too damaged to be
            opened, `grass-rs verify` lists it.

        """
        self._native.verify()

    def score(
        self,
        queries: Any,
        method: str = "influence",
        damping: float = 0.4,
        top_k: int | None = None,
    ) -> Scores:
        """Score every row of the store for every query, in bounded memory; torch is not needed.

        Every chunk is compared with its checksum as it is read. The scores equal the formulas in
        double precision; their bits do not depend on the other queries, on the number of threads,
        or on how the store was written.

        Parameters
        ----------
        queries
            (n_query, width) floats, NumPy or torch on the CPU, rows compressed by the store's plan;
            or a `Store` of them.
        method
            "influence": g_query^T (F + lambda I)^-1 g_train, with the empirical Fisher
            F = (1/n) sum g g^T over the store's rows, a block a column; "graddot": g_query^T g_train;
            "gradcos": the cosine of whole rows, 0 for a row of zeros.
        damping
            Ridge of `influence`: lambda = damping * tr(F) / n of each column.
        top_k
            Keep only the best k rows of each query.

        Returns
        -------
        Scores
            Values (n_query, n) float32, or (n_query, top_k); positive = training on it lowers the
            query's loss.

        Raises
        ------
        ShapeError
            If the queries have another width or are none, or top_k is no whole number or out of range.
        UnsupportedArrayError
            If the queries are no numbers, or on another device.
        SpecError
            If the method is unknown, the damping no number, negative or not finite, or so small that
            F + lambda I has no inverse.
        NonFiniteError
            If a query, a stored row or a score is not finite.
        StoreMismatchError
            If the queries are a store of another plan or model; the first difference is named.
        CorruptStoreError
            If a chunk is damaged.
        StoreError
            If the store, or that of the queries, is unfinished or has no rows.

        """
        if method not in METHODS:
            raise SpecError(unknown_name("method", method, METHODS))
        native: _native.StoreReader | NDArray[np.float32]
        if isinstance(queries, Store):
            check_same_columns(self._path, self.columns, queries.columns)
            check_same_fingerprints(self._path, self.fingerprints, queries.fingerprints)
            native = queries._native  # noqa: SLF001 - another object of this class
        else:
            expected = f"score expects queries of shape (n, {self.width}) with n of at least 1"
            native = as_rows(queries, expected, self.width)
            if not len(native):
                raise ShapeError(f"{expected}, got {native.shape}: give at least one query")
        ids, values = _native.score_store(self._native, native, method, damping, top_k)
        return Scores(
            values=values,
            ids=ids,
            method=method,
            damping=float(damping) if method == "influence" else None,
        )


def open_store(path: str | PathLike[str]) -> Store:
    """Open a store for reading, finished or not.

    Lengths, counts and headers of all its files are compared; the checksums of rows and ids when
    they are read for `Store.score` and `Store.verify`.

    Raises
    ------
    StoreNotFoundError
        If there is no store at the path.
    CorruptStoreError
        With everything that does not fit.
    StoreError
        If the store has a later format, or cannot be read.

    """
    return Store(_native.StoreReader(path), Path(fspath(path)))


def verify_store(path: str | PathLike[str]) -> Store:
    """Compare all of a store with its checksums, also one too damaged to be opened, and open it.

    Raises
    ------
    StoreNotFoundError
        If there is no store at the path.
    CorruptStoreError
        With all damage that its manifest and the logs of its shards tell of.
    StoreError
        If the store has a later format, or cannot be read.

    """
    _native.verify_store(path)
    return open_store(path)


def first_line(error: Exception) -> str:
    """Return what another library says, as far as it fits in one line."""
    return str(error).partition("\n")[0]


def _as_array(rows: Any) -> np.ndarray[Any, Any]:
    torch = sys.modules.get("torch")
    if torch is None or not isinstance(rows, torch.Tensor):
        return np.asarray(rows)
    rows = rows.detach().resolve_neg()
    # NumPy has no bfloat16, which float32 holds like every smaller type.
    wide = rows.is_floating_point() and rows.dtype != torch.float64
    array: np.ndarray[Any, Any] = (rows.float() if wide else rows).numpy()
    return array


def as_rows(rows: Any, expected: str, width: int) -> NDArray[np.float32]:
    """Return rows as a C-contiguous (n, width) float32 array, without a copy where they are one.

    Parameters
    ----------
    rows
        What NumPy takes as an array, or a torch CPU tensor of any float dtype, which is detached.
    expected
        The beginning of messages.
    width
        Numbers in a row.

    Raises
    ------
    UnsupportedArrayError
        If they are no numbers that are in the CPU's memory.
    ShapeError
        If they have another shape, or none, as ragged lists.

    """
    try:
        values = _as_array(rows)
    except ValueError as error:
        raise ShapeError(
            f"{expected}, got a {type(rows).__name__} of no one shape ({first_line(error)}): give rows "
            f"of one length"
        ) from error
    except (RuntimeError, TypeError) as error:
        raise UnsupportedArrayError(
            f"{expected} of float numbers, got a {type(rows).__name__} that is no array "
            f"({first_line(error)}): convert it to a NumPy array of floats"
        ) from error
    if values.dtype.kind not in "fiu":
        raise UnsupportedArrayError(
            f"{expected} of float numbers, got {values.dtype}: convert them"
        )
    if values.ndim != 2 or values.shape[1] != width:
        raise ShapeError(
            f"{expected}, got {values.shape}: give rows as the store's plan compresses them"
        )
    # What is too large for float32 becomes an infinity, which is reported with its place.
    with np.errstate(over="ignore"):
        return np.ascontiguousarray(values, dtype=np.float32)
