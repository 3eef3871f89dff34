"""Writing a store: rows are appended, committed, and in the end the store is finished."""

from __future__ import annotations

import math
import os
import weakref
from numbers import Real
from os import fspath
from pathlib import Path
from typing import TYPE_CHECKING, Any, final

import numpy as np

from grass_rs import _native
from grass_rs.errors import ShapeError, SpecError, unknown_name, whole_number
from grass_rs.store.arrays import as_ids, as_rows
from grass_rs.store.columns import fingerprints_to_native, to_native
from grass_rs.store.reader import Store, open_store

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from os import PathLike
    from types import TracebackType

    from numpy.typing import ArrayLike, NDArray
    from typing_extensions import Self

    from grass_rs.types import Column

DTYPES = ("float32", "float16", "bfloat16", "int8")
"""Types in which a store keeps its numbers; int8 has one scale a row and column."""

MAX_WRITERS = 100_000
"""As many as a store has shards."""

_OPEN: weakref.WeakSet[_native.StoreWriter] = weakref.WeakSet()
"""The writers of this process."""


def _abandon_stores() -> None:
    """Leave the stores, and their locks, to the parent: a loader's workers may outlive it."""
    for native in list(_OPEN):
        native.abandon()


os.register_at_fork(after_in_child=_abandon_stores)


@final
class StoreWriter:
    """A writer of a store, alone or one of several, made by `create_store`.

    As a context manager it commits what was appended when it is left, by an exception too, and
    closes. Only `finish` makes the store complete, that of the last writer where there are several.
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
        """Ids of the committed rows of all writers, in their order: (n,) uint64."""
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
        """Commit, finish, close the writer, and return the store opened for reading.

        The store is complete when all of its writers have finished; until then `Store.complete` is
        False.

        Parameters
        ----------
        skipped_ids
            Ids of examples that were left out on purpose; `Store.skipped_ids` lists them beside
            those recorded before, until they get a row.

        Raises
        ------
        DataError
            If a skipped id has a row, or an id has a row of two writers: the store stays unfinished.
        StoreLockedError
            If another process keeps the manifest: the writer goes on as before, and `finish` can be
            called again. So can `append`, which changes the manifest of a finished store.
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


def _as_path(path: Any) -> Path:
    try:
        text = fspath(path)
        if isinstance(text, str) and b"\0" not in os.fsencode(text):
            return Path(text)
    except (TypeError, UnicodeEncodeError):
        pass
    raise SpecError(
        f"path must be a str or a path that the system can name, got {path!r}: give another folder"
    )


def _as_seconds(seconds: Any) -> float:
    if isinstance(seconds, bool) or not isinstance(seconds, Real):
        raise SpecError(
            f"commit_seconds must be a number from 0, got {seconds!r}: the default is 30"
        )
    try:
        return float(seconds)
    except OverflowError:  # of an int, so long that it is for ever
        return math.inf if seconds == abs(seconds) else -math.inf


def create_store(
    path: str | PathLike[str],
    columns: Sequence[Column],
    dtype: str = "float32",
    *,
    fingerprints: Mapping[str, str] | None = None,
    resume: bool = False,
    commit_bytes: int = 64 * 2**20,
    commit_seconds: float = 30.0,
    writer: int = 0,
    writers: int = 1,
) -> StoreWriter:
    """Create a store for rows of these columns, or go on with one.

    A finished store may be opened with `resume` too; the first commit of more rows makes it
    unfinished again, and they get a shard of their own. The bytes of a finished store depend on its
    rows, ids, columns, dtype and fingerprints, and on which writer wrote which rows, never on when
    it was committed, killed or resumed.

    Several processes may write one store at once, each rows of its own: all of them call this with
    `resume=True`, the same `writers`, and a `writer` of their own.

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
        Commit when rows of so many bytes wait, or, at an append, so many seconds have passed;
        infinitely many seconds are never.
    writer, writers
        The number of this writer, from 0, and how many there are. Writer `w` writes the shards
        `w`, `w + writers`, `w + 2 * writers` and so on. Once nobody writes the store, it may be
        resumed by another number of writers.

    Raises
    ------
    SpecError
        If the dtype is unknown, no row can have these columns, there is no such writer, or another
        argument is none of its kind.
    StoreExistsError
        If there is anything at the path and `resume` is false.
    StoreMismatchError
        If the store there was made with another dtype, plan or model; the first difference is named.
    StoreLockedError
        If another process is writing the store as the same writer, or as one of another number of
        writers.
    CorruptStoreError
        If committed rows of the store are damaged or missing.
    StoreError
        If the folder cannot be written.

    """
    if dtype not in DTYPES:
        raise SpecError(unknown_name("store dtype", dtype, DTYPES))
    if not isinstance(resume, (bool, np.bool_)):
        raise SpecError(f"resume must be True or False, got {resume!r}")
    writers = whole_number("writers", writers, 1, MAX_WRITERS)
    writer = whole_number("writer", writer, 0, MAX_WRITERS - 1)
    if writer >= writers:
        raise SpecError(
            f"a store has 1 to {MAX_WRITERS} writers numbered from 0, got writer {writer} of "
            f"{writers}: give writer < writers"
        )
    folder = _as_path(path)
    native = _native.StoreWriter(
        path=folder,
        columns=to_native(columns),
        dtype=dtype,
        fingerprints=fingerprints_to_native({} if fingerprints is None else fingerprints),
        resume=bool(resume),
        commit_bytes=whole_number("commit_bytes", commit_bytes, 1),
        commit_seconds=_as_seconds(commit_seconds),
        writer=writer,
        writers=writers,
    )
    return StoreWriter(native, folder)
