"""The plain values that stages hand to each other."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from grass_rs.errors import MASKED, DataError, ShapeError, is_masked

if TYPE_CHECKING:
    from collections.abc import Hashable
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
    """Scores of training examples for queries; positive = training on it lowers the query's loss.

    Why A rather than B: scores of "influence" and "graddot" are linear in the query's row, so those of
    the difference of two queries' rows are the differences of their scores. Positive then = training
    on it lowers the loss of A by more than that of B; 0 where it does as much for both. "gradcos" is
    not linear: its scores of a difference are cosines with the difference. Standard errors of the
    difference come from its rows, not from the two queries' standard errors, which are correlated.
    """

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
    standard_errors: NDArray[np.float32] | None = None
    """Standard error of each score that the compressors' random choices cause, in the shape and the
    units of `values`; None where it was not asked for."""

    def __post_init__(self) -> None:
        """Check that every score has an id, and a standard error where there are any.

        Raises
        ------
        ShapeError
            If `values` is not a matrix, or `ids` or `standard_errors` does not fit it.

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
        errors = self.standard_errors
        if errors is not None and errors.shape != self.values.shape:
            raise ShapeError(
                f"Scores expects standard_errors of the shape of values, {self.values.shape}, got "
                f"{errors.shape}: give one a value"
            )

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
        self._check_rank("top", k)
        best_ids = np.empty((len(self.values), k), np.uint64)
        best_values = np.empty((len(self.values), k), np.float32)
        all_ids = np.broadcast_to(self.ids, self.values.shape)
        # Query by query: memory for the scores of one, where those of all are in a file.
        for query, (ids, values) in enumerate(zip(all_ids, self.values, strict=True)):
            order = _best(ids, values)[:k]
            best_ids[query], best_values[query] = ids[order], values[order]
        return best_ids, best_values

    def separated(self, k: int) -> NDArray[np.bool_]:
        """Tell which of the best k ranks compressing the gradients cannot have swapped.

        Rank r is separated if its score is more than two standard errors of the difference above that
        of rank r + 1. The standard error of a difference is taken as that of independent errors,
        sqrt(a^2 + b^2); those of similar examples go the same way, so it is rather too large.

        Parameters
        ----------
        k
            How many ranks, from 1 to the number of scores a query.

        Returns
        -------
        numpy.ndarray
            (n_query, k) bool, in the order of `top`. False for a rank below which no score was kept.

        Raises
        ------
        ShapeError
            If k is not in range.
        DataError
            If the scores have no standard errors.

        """
        self._check_rank("separated", k)
        if self.standard_errors is None:
            raise DataError(
                "separated expects scores with standard errors, got none: score with standard_errors=True"
            )
        apart = np.zeros((len(self.values), k), np.bool_)
        all_ids = np.broadcast_to(self.ids, self.values.shape)
        for query, (ids, values, errors) in enumerate(
            zip(all_ids, self.values, self.standard_errors, strict=True)
        ):
            order = _best(ids, values)[: k + 1]
            above, below = values[order][:-1], values[order][1:]
            variances = errors[order].astype(np.float64) ** 2
            allowed = 2.0 * np.sqrt(variances[:-1] + variances[1:])
            apart[query, : len(above)] = above.astype(np.float64) - below > allowed
        return apart

    def grouped(
        self, groups: Iterable[Hashable] | NDArray[Any]
    ) -> tuple[list[Hashable], NDArray[np.float32]]:
        """Sum the scores over groups of training examples: sources, authors, classes.

        To first order, the sum is what training on all of a group does to the query's loss. Larger
        groups have larger sums; divide by `collections.Counter` of the labels for means.

        Parameters
        ----------
        groups
            The group of each training example, in the order of `ids`: (n_train,) numbers, strings or
            other hashable labels, in a NumPy array, a tensor, or any sequence.

        Returns
        -------
        names, values
            Labels in the order in which they come first, and (n_query, n_groups) float32, summed in
            float64.

        Raises
        ------
        ShapeError
            If there are not as many labels as scores a query, or only the top k were kept, from
            which no sum over a group follows.
        DataError
            If a label is not hashable, or missing (NaN, NaT).

        """
        if self.ids.ndim != 1:
            raise ShapeError(
                f"grouped expects all scores of each query, got the best {self.ids.shape[1]}: score "
                f"without top_k"
            )
        labels = _labels(groups)
        if len(labels) != len(self.ids):
            raise ShapeError(
                f"grouped expects {len(self.ids)} labels, one a training example in the order of ids, "
                f"got {len(labels)}: give one each"
            )
        numbers: dict[Hashable, int] = {}
        codes = np.empty(len(labels), np.intp)
        for index, label in enumerate(labels):
            try:
                codes[index] = numbers.setdefault(label, len(numbers))
                missing = bool(label != label)  # noqa: PLR0124 - only what is missing differs from itself
            except (TypeError, ValueError) as error:
                raise DataError(
                    f"grouped expects hashable labels, got a {type(label).__name__} at {index}: give text, "
                    f"numbers or tuples"
                ) from error
            if missing:
                raise DataError(
                    f"grouped expects a label for each training example, got {label} at {index}: give "
                    f"missing ones a name"
                )
        values = np.empty((len(self.values), len(numbers)), np.float32)
        for query, row in enumerate(self.values):
            values[query] = np.bincount(codes, weights=row, minlength=len(numbers))
        return list(numbers), values

    def _check_rank(self, what: str, k: object) -> None:
        kept = self.values.shape[1]
        if isinstance(k, bool) or not isinstance(k, (int, np.integer)) or not 1 <= k <= kept:
            msg = f"{what} expects k from 1 to {kept} (scores a query), got {k}"
            raise ShapeError(msg)

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
        arrays: dict[str, Any] = {"values": self.values, "ids": self.ids}
        if self.standard_errors is not None:
            arrays["standard_errors"] = self.standard_errors
        with open(path, "wb") as file:  # noqa: PTH123 - accepts any path type; savez renames plain names
            np.savez(file, method=self.method, damping=damping, **arrays)

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
                errors = file["standard_errors"] if "standard_errors" in file.files else None
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
            standard_errors=errors,
        )


def _best(ids: NDArray[np.uint64], values: NDArray[np.float32]) -> NDArray[np.intp]:
    """Return the order of one query's scores: best first, equal ones by smaller id."""
    return np.lexsort((ids, -values))


def _labels(groups: Iterable[Hashable] | NDArray[Any]) -> list[Any]:
    """Return labels that NumPy arrays, tensors or other sequences hold, as Python compares them.

    Raises
    ------
    ShapeError
        If an array of labels has another number of axes than one.
    DataError
        If they are a masked array, or cannot be gone through.

    """
    shape = getattr(groups, "shape", None)
    if shape is not None and len(shape) != 1:
        raise ShapeError(
            f"grouped expects labels of shape (n_train,), got {tuple(shape)}: give one a training example"
        )
    if is_masked(groups):
        raise DataError(f"grouped expects a label for each training example, got {MASKED}")
    # Numbers of a tensor are tensors, none of which equals another as a key; and NumPy's dates turn
    # into plain numbers as a list.
    dates = isinstance(groups, np.ndarray) and groups.dtype.kind in "mM"
    if hasattr(groups, "tolist") and not dates:
        labels: list[Any] = groups.tolist()
        return labels
    if isinstance(groups, (str, bytes)) or not isinstance(groups, Iterable):
        raise DataError(
            f"grouped expects a sequence of labels, got a {type(groups).__name__}: give one a training "
            f"example"
        )
    return list(groups)
