"""CUDA arrays of callers, seen without copies as what the programs take."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from grass_rs._backends.cuda.launch import ITEM_BYTES, SCALARS, DeviceArray
from grass_rs._backends.cuda.libraries import library_of
from grass_rs.errors import ShapeError, UnsupportedArrayError

if TYPE_CHECKING:
    from grass_rs._backends.cuda.libraries import Library


def _unsupported(what: str, got: str) -> UnsupportedArrayError:
    dtypes = ", ".join(SCALARS)
    return UnsupportedArrayError(
        f"{what} expects a torch CUDA tensor or CuPy array of {dtypes}, got {got}"
    )


def described(array: Any) -> str:
    """Return an array's library and device, for messages."""
    library = library_of(array)
    if library is not None:
        return f"{library.name} on cuda:{library.ordinal}"
    kind = type(array)
    return f"{kind.__module__}.{kind.__qualname__} on {getattr(array, 'device', 'cpu')}"


def as_input(what: str, array: Any, library: Library) -> DeviceArray:
    """Return an array of `library` with stride 1 on its last axis.

    Raises
    ------
    UnsupportedArrayError
        For another dtype, or a tensor without plain memory.

    """
    if reason := library.unreadable(array):
        raise _unsupported(what, reason)
    view = library.view(array)
    if view.dtype not in SCALARS:
        raise _unsupported(what, f"an array of {view.dtype}: convert it to float32")
    if view.shape and view.strides[-1] != 1:
        if view.shape[-1] > 1:
            return library.view(library.contiguous(view.owner))
        view = replace(view, strides=(*view.strides[:-1], 1))
    return view


def as_output(
    what: str, out: Any, shape: tuple[int, ...], library: Library, *inputs: DeviceArray
) -> DeviceArray:
    """Return `out` as a program writes it.

    Parameters
    ----------
    what
        Name of the caller, for messages.
    out
        C-contiguous float32 array of `library`.
    shape
        The shape it must have.
    library
        The library and device of the inputs.
    inputs
        What it must share no memory with.

    Raises
    ------
    UnsupportedArrayError
        For another library, device or dtype.
    ShapeError
        For another shape, an array that is not C-contiguous, or a part of an input.

    """
    what = f"{what}: out"
    where = f"float32 {library.name} array on cuda:{library.ordinal}"
    if library_of(out) is not library:
        msg = f"{what} expects a {where}, as the input, got {described(out)}: allocate it there"
        raise UnsupportedArrayError(msg)
    reason = library.unreadable(out) or library.unwritable(out)
    if reason is None and (view := library.view(out)).dtype != "float32":
        reason = f"one of {view.dtype}: allocate it as float32"
    if reason is not None:
        raise UnsupportedArrayError(f"{what} expects a {where}, got {reason}")
    if view.shape != shape or not _is_contiguous(view):
        msg = (
            f"{what} expects a C-contiguous array of shape {shape}, got shape {view.shape}, "
            f"strides {view.strides}: allocate it with {library.name}.empty"
        )
        raise ShapeError(msg)
    if any(_overlap(view, taken) for taken in inputs):
        msg = f"{what} expects memory of its own, got a part of an input: allocate it"
        raise ShapeError(msg)
    return view


def with_axis(array: DeviceArray, axis: int) -> DeviceArray:
    """Return an array with an axis of length 1 before `axis`, contiguous where it was."""
    shape, strides = array.shape, array.strides
    step = shape[axis] * strides[axis]
    return replace(
        array,
        shape=(*shape[:axis], 1, *shape[axis:]),
        strides=(*strides[:axis], step, *strides[axis:]),
    )


def _contiguous_strides(shape: tuple[int, ...]) -> tuple[int, ...]:
    """Return the strides of C order, in elements."""
    return tuple(math.prod(shape[axis + 1 :]) for axis in range(len(shape)))


def transposed(array: DeviceArray) -> DeviceArray:
    """Return an array with its last two axes exchanged."""
    shape, strides = array.shape, array.strides
    return replace(
        array,
        shape=(*shape[:-2], shape[-1], shape[-2]),
        strides=(*strides[:-2], strides[-1], strides[-2]),
    )


def _is_contiguous(array: DeviceArray) -> bool:
    steps = zip(array.shape, array.strides, _contiguous_strides(array.shape), strict=True)
    return 0 in array.shape or all(size == 1 or got == step for size, got, step in steps)


def _overlap(first: DeviceArray, second: DeviceArray) -> bool:
    """Return whether the ranges of memory from the first to the last byte meet."""
    (start, end), (other_start, other_end) = _extent(first), _extent(second)
    return start < other_end and other_start < end


def _extent(array: DeviceArray) -> tuple[int, int]:
    if 0 in array.shape:
        return array.pointer, array.pointer
    size = ITEM_BYTES[array.dtype]
    steps = [(n - 1) * step for n, step in zip(array.shape, array.strides, strict=True)]
    low = sum(step for step in steps if step < 0)
    high = sum(step for step in steps if step > 0)
    return array.pointer + low * size, array.pointer + (high + 1) * size
