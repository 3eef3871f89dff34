"""Writing a store: rows are appended, committed, and in the end the store is finished."""

from __future__ import annotations

import os
import weakref
from os import fspath
from pathlib import Path
from typing import TYPE_CHECKING, Any, final

import numpy as np

from grass_rs import _native
from grass_rs.errors import DataError, NonFiniteError, ShapeError, SpecError, unknown_name
from grass_rs.store.columns import to_native
from grass_rs.store.reader import Store, as_rows, first_line, open_store

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from os import PathLike
    from types import TracebackType

    from numpy.typing import ArrayLike, NDArray
    from typing_extensions import Self

    from grass_rs.types import Column

DTYPES = ("float32", "float16", "bfloat16", "int8")
"""Types in which a store keeps its numbers; int8 has one scale a row and column."""

_OPEN: weakref.WeakSet[_native.StoreWriter] = weakref.WeakSet()
"""The writers of this process."""


def _abandon_stores() -> None:
    """Leave the stores, and their locks, to the parent: a loader's workers may outlive it."""
    for native in list(_OPEN):
        native.abandon()


os.register_at_fork(after_in_child=_abandon_stores)


@final
class StoreWriter:
    """The one writer of a store, made by `create_store`.

    As a context manager it commits what was appended when it is left, by an exception too, and
    closes. Only `finish` makes the store complete.
    """

    def __init__(self, native: _native.StoreWriter, path: Path) -> None:
        self._native = native
        self._path = path
        _OPEN.add(native)

    @property
    def path(self) -> Path:
        """Folder of the store."""
        return self._path

    @property
    def width(self) -> int:
        """Numbers in a row."""
        return self._native.width

    @property
    def committed_ids(self) -> NDArray[np.uint64]:
        """Ids of the committed rows, in their order: (n,) uint64."""
        return self._native.committed_ids()

    def append(self, rows: Any, ids: ArrayLike) -> None:
        """Add rows, and commit when enough of them, or seconds, have gathered.

        Either all of the rows are taken or, at an error in them, none; Ctrl-C too leaves all or
        none in the writer, all where some were committed already.

        Parameters
        ----------
        rows
            (n, width) floats, NumPy or torch on the CPU; kept as the store's dtype.
        ids
            (n,) whole numbers from 0, which no other row has.

        Raises
        ------
        ShapeError
            If the rows have another width or no one shape, or there is not one id a row.
        UnsupportedArrayError
            If the rows are no numbers, or on another device.
        DataError
            If an id is negative, no whole number or repeated, or the dtype cannot hold a value.
        NonFiniteError
            If a row has a NaN or an infinity, also by conversion to float32.
        StoreError
            If a commit fails, by a full disk for instance; then the writer takes no more, and what was
            committed before stays: `create_store(..., resume=True)` goes on with it.

        """
        values = as_rows(rows, f"append expects rows of shape (n, {self.width})", self.width)
        numbers = as_ids(ids)
        if len(numbers) != len(values):
            raise ShapeError(
                f"append expects one id a row, got rows of shape {values.shape} and ids of shape "
                f"{numbers.shape}: give one id a row"
            )
        finite = np.isfinite(values).all(axis=1)
        if not finite.all():
            raise NonFiniteError(
                f"append expects finite rows, got a NaN or an infinity, or more than float32 holds, in "
                f"the row of id {numbers[~finite][0]}: leave the example out"
            )
        self._native.append(values, numbers)

    def commit(self) -> None:
        """Make all appended rows survive `kill -9` and a power loss.

        Raises
        ------
        StoreError
            If the rows cannot be written.

        """
        self._native.commit()

    def finish(self, skipped_ids: ArrayLike = ()) -> Store:
        """Commit, mark the store complete, close it, and return it opened for reading.

        Parameters
        ----------
        skipped_ids
            Ids of examples that were left out on purpose; `Store.skipped_ids` lists them.

        Raises
        ------
        DataError
            If a skipped id has a row.
        StoreError
            If the rows cannot be written.

        """
        self._native.finish(as_ids(skipped_ids))
        return open_store(self._path)

    def close(self) -> None:
        """Commit what was appended and let others write; again does nothing.

        Raises
        ------
        StoreError
            If the rows cannot be written.

        """
        self._native.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()


def create_store(
    path: str | PathLike[str],
    columns: Sequence[Column],
    dtype: str = "float32",
    *,
    fingerprints: Mapping[str, str] | None = None,
    resume: bool = False,
    commit_bytes: int = 64 * 2**20,
    commit_seconds: float = 30.0,
) -> StoreWriter:
    """Create a store for rows of these columns, or go on with one.

    A finished store may be opened with `resume` too; the first commit of more rows makes it
    unfinished again. The bytes of a finished store depend on its rows, ids, columns, dtype and
    fingerprints, never on when it was committed, killed or resumed.

    Parameters
    ----------
    path
        Folder of the store; it is made, or must be empty.
    columns
        The blocks of a row, side by side without gaps.
    dtype
        Type of the stored numbers: "float32", "float16", "bfloat16", or "int8" with one scale a row
        and column.
    fingerprints
        Values that tell the plan and the model apart from others.
    resume
        Whether to go on with a store that is there, after cutting off what was not committed.
    commit_bytes, commit_seconds
        Commit when rows of so many bytes wait, or, at an append, so many seconds have passed.

    Raises
    ------
    SpecError
        If the dtype is unknown, or no row can have these columns.
    StoreExistsError
        If there is anything at the path and `resume` is false.
    StoreMismatchError
        If the store there was made with another dtype, plan or model; the first difference is named.
    StoreLockedError
        If another process is writing the store.
    CorruptStoreError
        If committed rows of the store are damaged or missing.
    StoreError
        If the folder cannot be written.

    """
    if dtype not in DTYPES:
        raise SpecError(unknown_name("store dtype", dtype, DTYPES))
    if commit_bytes < 1:
        raise SpecError(
            f"commit_bytes must be at least 1, got {commit_bytes}: the default is 64 MiB"
        )
    native = _native.StoreWriter(
        path=path,
        columns=to_native(columns),
        dtype=dtype,
        fingerprints=dict(fingerprints or {}),
        resume=resume,
        commit_bytes=commit_bytes,
        commit_seconds=commit_seconds,
    )
    return StoreWriter(native, Path(fspath(path)))


def as_ids(ids: ArrayLike) -> NDArray[np.uint64]:
    """Return ids as (n,) uint64.

    Raises
    ------
    DataError
        If they are not whole numbers from 0 on one axis.

    """
    try:
        numbers = np.asarray(ids)
    except (RuntimeError, TypeError, ValueError) as error:  # ragged lists, tensors of a GPU
        raise DataError(
            f"ids expects whole numbers of shape (n,), got a {type(ids).__name__} that is no array "
            f"({first_line(error)}): give one whole number a row"
        ) from error
    whole = numbers.dtype.kind in "iu" or numbers.size == 0
    if numbers.ndim != 1 or not whole:
        raise DataError(
            f"ids expects whole numbers of shape (n,), got shape {numbers.shape} of {numbers.dtype}: give "
            f"one whole number a row"
        )
    if numbers.size and numbers.min() < 0:
        raise DataError(f"ids expects whole numbers from 0, got {numbers.min()}: give another id")
    return np.ascontiguousarray(numbers, dtype=np.uint64)
