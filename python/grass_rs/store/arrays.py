"""Rows and ids as users give them, as the arrays that the native module takes."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Any

import numpy as np

from grass_rs.errors import MASKED, DataError, ShapeError, UnsupportedArrayError, is_masked

if TYPE_CHECKING:
    from numpy.typing import ArrayLike, NDArray


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
        If they are no numbers that are in the CPU's memory, or a masked array.
    ShapeError
        If they have another shape, or none, as ragged lists.

    """
    if is_masked(rows):
        raise UnsupportedArrayError(f"{expected} of float numbers, got {MASKED}")
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


def as_row_numbers(index: Any, rows: int) -> NDArray[np.uint64]:
    """Return the numbers of rows that an index means, of so many: () or (m,) uint64.

    Raises
    ------
    IndexError
        If a row is out of range.
    UnsupportedArrayError
        If the index is no row number, slice, or array of row numbers or booleans.

    """
    if isinstance(index, slice):
        cut = range(rows)[index]
        counted = np.arange(cut.start, cut.stop, cut.step, dtype=np.int64)
        return counted.astype(np.uint64)
    if is_masked(index):
        raise UnsupportedArrayError(f"store[...] expects row numbers, got {MASKED}")
    numbers = np.asarray(index)
    if numbers.dtype == np.bool_ and numbers.shape == (rows,):
        numbers = np.flatnonzero(numbers)
    elif numbers.size == 0 and numbers.ndim == 1:
        numbers = numbers.astype(np.int64)
    # A tuple would mean an axis each in NumPy.
    if numbers.dtype.kind not in "iu" or numbers.ndim > 1 or isinstance(index, tuple):
        raise UnsupportedArrayError(
            f"store[...] expects a row number, a slice, or an (m,) array of row numbers, got "
            f"{type(index).__name__} of shape {numbers.shape} and dtype {numbers.dtype}: index the result"
        )
    outside = (numbers < -rows) | (numbers >= rows)
    if outside.any():
        raise IndexError(f"row {numbers[outside].reshape(-1)[0]} is out of range for {rows} rows")
    signed = numbers.astype(np.int64)
    return np.where(numbers < 0, signed + rows, signed).astype(np.uint64)


def as_ids(ids: ArrayLike) -> NDArray[np.uint64]:
    """Return ids as (n,) uint64.

    Raises
    ------
    DataError
        If they are not whole numbers from 0 on one axis, or a masked array.

    """
    if is_masked(ids):
        raise DataError(f"ids expects whole numbers of shape (n,), got {MASKED}")
    try:
        numbers = np.asarray(ids)
    except (RuntimeError, TypeError, ValueError) as error:  # ragged lists, tensors of a GPU
        raise DataError(
            f"ids expects whole numbers of shape (n,), got a {type(ids).__name__} that is no array "
            f"({first_line(error)}): give one whole number a row"
        ) from error
    if (
        numbers.dtype.kind == "f"
        and isinstance(ids, (list, tuple))
        and all(isinstance(number, (int, np.integer)) and number >= 0 for number in ids)
    ):
        # NumPy makes floats of a list with numbers on both sides of 2^63.
        numbers = np.asarray([int(number) for number in ids], dtype=np.uint64)
    whole = numbers.dtype.kind in "iu" or numbers.size == 0
    if numbers.ndim != 1 or not whole:
        raise DataError(
            f"ids expects whole numbers of shape (n,), got shape {numbers.shape} of {numbers.dtype}: give "
            f"one whole number a row"
        )
    if numbers.size and numbers.min() < 0:
        raise DataError(f"ids expects whole numbers from 0, got {numbers.min()}: give another id")
    return np.ascontiguousarray(numbers, dtype=np.uint64)
