"""The plain values that stages hand to each other."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from grass_rs.errors import DataError, ShapeError

if TYPE_CHECKING:
    from os import PathLike

    from numpy.typing import NDArray


@dataclass(frozen=True)
class Column:
    """The part of a store's row that holds one block of the plan."""

    name: str
    """Name of the block: the module's qualified name."""
    offset: int
    """First coordinate of the block in a row."""
    width: int
    """Number of coordinates: the compressor's output dimension."""
    spec: dict[str, Any]
    """Spec of the block's compressor."""


@dataclass(frozen=True)
class Scores:
    """Scores of training examples for queries; positive = training on it lowers the query's loss."""

    values: NDArray[np.float32]
    """(n_query, n_train), or (n_query, k), best first, when only the top k were kept; a read-only
    memory map where they were scored into a file."""
    ids: NDArray[np.uint64]
    """Ids of the training examples: (n_train,), or (n_query, k) when only the top k were kept; a
    memory map like `values`."""
    method: str
    """Attribution method that gave the scores."""
    damping: float | None
    """Damping of `influence`, in units of tr(F) / n; None for methods without one."""

    def __post_init__(self) -> None:
        """Check that every score has an id.

        Raises
        ------
        ShapeError
            If `values` is not a matrix or `ids` does not fit it.

        """
        if self.values.ndim != 2 or self.ids.shape not in {
            self.values.shape,
            self.values.shape[1:],
        }:
            msg = (
                f"Scores expects values (n_query, n) and ids (n,) or (n_query, n), got "
                f"{self.values.shape} and {self.ids.shape}: give one id a column or a value"
            )
            raise ShapeError(msg)

    def top(self, k: int) -> tuple[NDArray[np.uint64], NDArray[np.float32]]:
        """Return the k training examples that help each query most.

        Parameters
        ----------
        k
            How many, from 1 to the number of scores a query.

        Returns
        -------
        ids, values
            Each (n_query, k), best first; equal scores by smaller id.

        Raises
        ------
        ShapeError
            If k is not in range.

        """
        kept = self.values.shape[1]
        if isinstance(k, bool) or not isinstance(k, (int, np.integer)) or not 1 <= k <= kept:
            msg = f"top expects k from 1 to {kept} (scores a query), got {k}"
            raise ShapeError(msg)
        best_ids = np.empty((len(self.values), k), np.uint64)
        best_values = np.empty((len(self.values), k), np.float32)
        all_ids = np.broadcast_to(self.ids, self.values.shape)
        # Query by query: memory for the scores of one, where those of all are in a file.
        for query, (ids, values) in enumerate(zip(all_ids, self.values, strict=True)):
            order = np.lexsort((ids, -values))[:k]
            best_ids[query], best_values[query] = ids[order], values[order]
        return best_ids, best_values

    def save(self, path: str | PathLike[str]) -> None:
        """Write the scores to an `.npz` file, readable by `numpy.load` and `Scores.load`.

        Values and ids that are memory maps are copied piece by piece.

        Parameters
        ----------
        path
            File to write; one that is there is replaced.

        Raises
        ------
        OSError
            If the file cannot be written.

        """
        damping = np.nan if self.damping is None else self.damping
        with open(path, "wb") as file:  # noqa: PTH123 - accepts any path type; savez renames plain names
            np.savez(file, values=self.values, ids=self.ids, method=self.method, damping=damping)

    @classmethod
    def load(cls, path: str | PathLike[str]) -> Scores:
        """Read what `save` wrote.

        Raises
        ------
        OSError
            If the file cannot be read.
        DataError
            If it was not written by `save`.

        """
        from zipfile import BadZipFile  # noqa: PLC0415 - milliseconds that no other call needs

        try:
            with np.load(path, allow_pickle=False) as file:
                parts = {name: file[name] for name in ("values", "ids", "method", "damping")}
        except (AttributeError, BadZipFile, EOFError, KeyError, TypeError, ValueError) as error:
            raise DataError(
                f"Scores.load expects a file that Scores.save wrote, got {path} ({error}): check the path"
            ) from error
        damping = float(parts["damping"])
        return cls(
            values=parts["values"],
            ids=parts["ids"],
            method=str(parts["method"]),
            damping=None if np.isnan(damping) else damping,
        )
