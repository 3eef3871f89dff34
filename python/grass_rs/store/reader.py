"""Reading a store: rows, ids, checksums, and scores for queries."""

from __future__ import annotations

from functools import cached_property
from os import fspath
from pathlib import Path
from typing import TYPE_CHECKING, Any, final, overload

import numpy as np

from grass_rs import _native
from grass_rs.errors import DataError
from grass_rs.store.arrays import as_ids, as_row_numbers
from grass_rs.store.chosen import choose, damping_or_default, unweighted
from grass_rs.store.columns import check_same_columns, check_same_fingerprints, from_native
from grass_rs.store.progress import byte_bar
from grass_rs.store.score import as_queries, score, score_to_file, several

if TYPE_CHECKING:
    from collections.abc import Iterable
    from os import PathLike

    from numpy.typing import ArrayLike, NDArray

    from grass_rs.store.score import Dampings
    from grass_rs.types import Column, Scores


@final
class Store:
    """The rows of a store, made by `open_store`.

    Of an unfinished store these are the rows that were committed when it was opened.
    `store[i]`, `store[a:b:c]` and `store[array of whole numbers]` give copies as float32.
    Rows are in the order in which they were written: `store[store.find([7, 3])]` reads them by id,
    and `store[np.argsort(store.ids)]` in the order of ids.

    What is checked when: opening compares the manifest, the logs with their checksums, the headers,
    and the lengths of all files, whatever their size, in milliseconds; `ids` and `find` also the
    checksums of the ids; `score` and `self_influence` those of every chunk that they read, before
    its results count; `verify` all of them. `store[...]` reads single rows, and so compares no
    checksums.
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

    @cached_property
    def _by_id(self) -> NDArray[np.int64]:
        """Numbers of the rows in the order of their ids."""
        return np.argsort(self.ids).astype(np.int64, copy=False)

    def find(self, ids: ArrayLike) -> NDArray[np.int64]:
        """Return the numbers of the rows of these ids: `store[store.find([7, 3])]` reads by id.

        The first call sorts all ids and keeps their order, 8 bytes a row.

        Parameters
        ----------
        ids
            (m,) whole numbers from 0; the same one may come several times.

        Returns
        -------
        numpy.ndarray
            (m,) int64, in the order of `ids`.

        Raises
        ------
        DataError
            If an id has no row, with the first of them; if they are no whole numbers from 0.
        CorruptStoreError
            If stored ids are damaged.

        """
        wanted = as_ids(ids)
        places = np.searchsorted(self.ids, wanted, sorter=self._by_id)
        # Beyond the last one is none.
        found = np.append(self._by_id, 0)[places]
        known = places < len(self)
        known[known] = self.ids[found[known]] == wanted[known]
        if not known.all():
            missing = wanted[~known][0]
            skipped = " (it was skipped)" if missing in self.skipped_ids else ""
            raise DataError(
                f"find expects ids of rows of {self._path}, got {missing}, which has none{skipped}: "
                f"Store.ids lists those that have"
            )
        return found

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
        numbers = as_row_numbers(index, len(self))
        rows = self._native.read_rows(numbers.reshape(-1))
        return rows if numbers.ndim else rows[0]

    def verify(self) -> None:
        """Read every byte of the store and compare it with its checksums.

        Ids that two rows have, and skipped ids that have a row, are damage too, as for
        `verify_store`.

        Raises
        ------
        CorruptStoreError
            With all damage found, each with shard, chunk and row range. Of a store too damaged to be
            opened, `grass-rs verify` lists it.

        """
        self._native.verify()

    @overload
    def score(
        self,
        queries: Any,
        method: str = ...,
        damping: float | None = ...,
        top_k: int | None = ...,
        *,
        columns: str | Iterable[str] | None = ...,
        learning_rates: Iterable[float] | None = ...,
        fisher: str = ...,
        out: str | PathLike[str] | None = ...,
        progress: bool = ...,
    ) -> Scores: ...

    @overload
    def score(
        self,
        queries: Any,
        method: str = ...,
        damping: Dampings = ...,
        top_k: int | None = ...,
        *,
        columns: str | Iterable[str] | None = ...,
        learning_rates: Iterable[float] | None = ...,
        fisher: str = ...,
        out: None = ...,
        progress: bool = ...,
    ) -> list[Scores]: ...

    @overload
    def score(
        self,
        queries: Any,
        method: str = ...,
        damping: float | Dampings | None = ...,
        top_k: int | None = ...,
        *,
        columns: str | Iterable[str] | None = ...,
        learning_rates: Iterable[float] | None = ...,
        fisher: str = ...,
        out: str | PathLike[str] | None = ...,
        progress: bool = ...,
    ) -> Scores | list[Scores]: ...

    def score(
        self,
        queries: Any,
        method: str = "influence",
        damping: float | Dampings | None = None,
        top_k: int | None = None,
        *,
        columns: str | Iterable[str] | None = None,
        learning_rates: Iterable[float] | None = None,
        fisher: str = "layer",
        out: str | PathLike[str] | None = None,
        progress: bool = False,
    ) -> Scores | list[Scores]:
        """Score every row of the store for every query, in bounded memory; torch is not needed.

        Every chunk is compared with its checksum as it is read, and a damaged one is an error, so no
        score comes from a row that `verify` would refuse. The bits of a score do not depend on the
        other queries, on the number of threads, or on how the store was written. Other Python
        threads run meanwhile, and any number of calls may read a store at once. Ctrl-C stops a call.

        The rounding of `influence` grows where the rows of a column hardly span it and there is little
        damping. With s the smallest eigenvalue of F + lambda I scaled to ones on its diagonal, a column
        is worked on in single precision down to s = 2^-11 and in double, more slowly, to s = 2^-32;
        below that it is refused. The root mean square of the errors over the rows is about
        2^-13 sqrt(q^T (F + lambda I)^-1 q) at most; for usual rows it is 1e-6 of that of the scores.

        Parameters
        ----------
        queries
            (n_query, width) floats, NumPy or torch on the CPU, rows compressed by the store's plan;
            or a `Store` of them.
        method
            "influence": g_query^T (F + lambda I)^-1 g_train, with the empirical Fisher
            F = (1/n) sum g g^T over the store's rows, a block a column; "graddot": g_query^T g_train;
            "gradcos": the cosine of whole rows, 0 for a row of zeros; "tracin": the sum over
            checkpoints of learning rate times g_query^T g_train; "trak": `influence` times the mean
            of the row's "(weight)" columns, which the loss "margin" stores. Over several checkpoints
            (columns NAME@0, NAME@1, ...), `influence`, `graddot` and `trak` are means.
        damping
            Ridge of `influence` and `trak`: lambda = damping * tr(F) / n of each block of F; None for
            0.4, or 1.0 with fisher="row". A sequence of numbers gives the scores for each of them,
            from one decomposition of F.
        top_k
            Keep only the best k rows of each query: exact, equal scores by smaller id.
        columns
            Names of the columns that count, or shell patterns ("*.mlp.*"), with "@c" for one
            checkpoint or without for all; None for all columns. Means are over the checkpoints that
            count.
        learning_rates
            Of `tracin`: a number from 0 for each checkpoint of the store.
        fisher
            "layer" for a block of F a column, or "row" for one over all columns of a checkpoint that
            count, which must be side by side.
        out
            A file "NAME.npy" for all scores (`top_k` must be None): they are written as they are
            made, never all in memory, with their ids in "NAME.ids.npy", and come back as read-only
            memory maps. Until both are finished they are called "NAME.npy.part" and
            "NAME.ids.npy.part", and "NAME.npy.progress" says which scores survive whatever
            happens; the same call again, after a kill or Ctrl-C too, makes only the others. Finished
            scores and ids that are there stay until they are replaced by the new ones; anything else
            there is never replaced. Delete the ".part" files to drop what was begun.
        progress
            Whether to show a progress bar, of the bytes of rows.

        Returns
        -------
        Scores or list of Scores
            Values (n_query, n) float32, or (n_query, top_k); positive = training on it lowers the
            query's loss. A list, one each, for a sequence of dampings.

        Raises
        ------
        ShapeError
            If the queries have another width or are none, or top_k is no whole number or out of range.
        UnsupportedArrayError
            If the queries are no numbers, on another device, or a masked array.
        SpecError
            If the method is unknown, the damping no number, negative or not finite, or so small that
            F + lambda I has no inverse; if there are several dampings of a method without one, or
            with `out`, or none; if `out` has another name or comes with `top_k`; if `columns` fits
            none; if learning rates are missing, or more or fewer than checkpoints, or not finite
            numbers from 0; if the store lacks the columns of `trak`.
        NonFiniteError
            If a query, a stored row or a score is not finite.
        StoreMismatchError
            If the queries are a store of another plan or model; the first difference is named.
        CorruptStoreError
            If a chunk is damaged.
        StoreError
            If the store, or that of the queries, is unfinished or has no rows.
        ScoresFileError
            If `out` cannot be written, by a full disk for instance: what was written stays, and the
            same call goes on with it. If an unfinished file of another call is there, or another
            call is writing it, or there is anything but the scores and ids of an earlier call.

        """
        chosen = choose(
            self.columns, method, names=columns, learning_rates=learning_rates, fisher=fisher
        )
        damping = damping_or_default(damping, fisher)
        native = self._queries(queries)
        with byte_bar(f"score {self._path.name}", shown=progress) as bar:
            if out is None:
                return score(self._native, chosen, native, method, damping, top_k=top_k, tell=bar)
            return score_to_file(
                self._native, chosen, native, method, damping, top_k=top_k, out=out, tell=bar
            )

    def _queries(self, queries: Any) -> _native.StoreReader | NDArray[np.float32]:
        """Return queries as the native module takes them, if they fit this store."""
        if not isinstance(queries, Store):
            return as_queries(queries, self.width)
        check_same_columns(self._path, self.columns, queries.columns)
        check_same_fingerprints(self._path, self.fingerprints, queries.fingerprints)
        return queries._native  # noqa: SLF001 - another object of this class

    def precondition(
        self,
        queries: Any,
        damping: float | None = None,
        *,
        columns: str | Iterable[str] | None = None,
        fisher: str = "layer",
        progress: bool = False,
    ) -> NDArray[np.float32]:
        """Return (F + lambda I)^-1 q of every query: their `graddot` scores are its `influence`.

        Rounded to single precision, so where a column has more coordinates than the store has rows
        and the damping is small, `score` with "influence" keeps more digits.

        Parameters
        ----------
        queries, damping, columns, fisher, progress
            As for `score`.

        Returns
        -------
        numpy.ndarray
            (n_query, width) float32; 0 in columns that are left out, and where all rows are zero.

        Raises
        ------
        GrassError
            As `score` does for the same arguments.

        """
        chosen = choose(self.columns, "influence", names=columns, fisher=fisher)
        given: Any = damping_or_default(damping, fisher)
        native = self._queries(queries)
        with byte_bar(f"precondition {self._path.name}", shown=progress) as bar:
            return _native.precondition(self._native, unweighted(chosen), native, given, bar)

    @overload
    def self_influence(
        self,
        damping: float | None = ...,
        *,
        columns: str | Iterable[str] | None = ...,
        fisher: str = ...,
        progress: bool = ...,
    ) -> NDArray[np.float32]: ...

    @overload
    def self_influence(
        self,
        damping: Dampings,
        *,
        columns: str | Iterable[str] | None = ...,
        fisher: str = ...,
        progress: bool = ...,
    ) -> list[NDArray[np.float32]]: ...

    def self_influence(
        self,
        damping: float | Dampings | None = None,
        *,
        columns: str | Iterable[str] | None = None,
        fisher: str = "layer",
        progress: bool = False,
    ) -> NDArray[np.float32] | list[NDArray[np.float32]]:
        """Return the influence of every row on itself, g^T (F + lambda I)^-1 g, summed over columns.

        Of rows at several checkpoints it is the mean over them.

        Large values are examples that the model could not have learnt from the others: rare ones,
        and mislabelled ones.

        Parameters
        ----------
        damping
            lambda = damping * tr(F) / n of each block of F, as for `score`; None for 0.4, or 1.0 with
            fisher="row"; a sequence of numbers gives a list of arrays, one each.
        columns, fisher
            As for `score`.
        progress
            Whether to show a progress bar, of the bytes of rows.

        Returns
        -------
        numpy.ndarray or list of numpy.ndarray
            (n,) float32, in the order of `ids`.

        Raises
        ------
        SpecError
            If the damping is no number, negative or not finite, or so small that F + lambda I has no
            inverse, or there is none; if `columns` fits none.
        NonFiniteError
            If a stored row is not finite.
        CorruptStoreError
            If a chunk is damaged.
        StoreError
            If the store is unfinished or has no rows.

        """
        chosen = choose(self.columns, "influence", names=columns, fisher=fisher)
        damping = damping_or_default(damping, fisher)
        dampings = several(damping)
        given: list[Any] = [damping] if dampings is None else dampings
        with byte_bar(f"self-influence {self._path.name}", shown=progress) as bar:
            values = _native.self_influence(self._native, chosen, given, bar)
        return values[0] if dampings is None else values


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

    Ids that two rows have, and skipped ids that have a row, are damage too: to find them takes
    8 bytes of memory a row, for a moment up to twice that.

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
