"""Compressors on CUDA arrays: kernels compiled at first use, on torch tensors and CuPy arrays.

Calls enqueue work on the library's current stream and return; only the first call of a compressor on a
device waits, for kernels and structures. Without CuPy, torch tensors are compressed by torch operations.
"""

from __future__ import annotations

import warnings
from contextlib import contextmanager
from functools import cache
from typing import TYPE_CHECKING, Any

from grass_rs._backends import shapes
from grass_rs._backends.cuda import modules
from grass_rs._backends.cuda.arrays import as_input, as_output, described, with_axis
from grass_rs._backends.cuda.libraries import library_of
from grass_rs._backends.cuda.programs import structure_of
from grass_rs.errors import DeviceError, UnsupportedArrayError

if TYPE_CHECKING:
    from collections.abc import Iterator
    from types import ModuleType

    from grass_rs import _native
    from grass_rs._backends.cuda.launch import DeviceArray
    from grass_rs._backends.cuda.libraries import Library


def is_device_array(array: Any) -> bool:
    """Return whether `array` is a torch CUDA tensor or a CuPy array."""
    return library_of(array) is not None


def compress_rows(native: _native.Compressor, name: str, x: Any, out: Any = None) -> Any:
    """Compress gradients on their device.

    Parameters
    ----------
    native
        A compressor of whole gradients.
    name
        Its class, for messages.
    x
        (n, p) or (p,), a torch CUDA tensor or CuPy array of float64, float32, float16 or bfloat16, with any
        strides.
    out
        Where to write: a C-contiguous float32 array of the result's shape, of the library and device of x, that
        shares no memory with x.

    Returns
    -------
    array
        (n, k) or (k,) float32, of the library and device of x.

    Raises
    ------
    ShapeError
        If the last axis of x is not `input_dim` long, or `out` has another shape.
    UnsupportedArrayError
        For an array of another library, device or dtype.
    SpecError
        If the compressor has too many outputs for the kernels.
    DeviceError
        If the device is out of memory, or cannot run the kernels.

    """
    library = _library_of(name, x=x)
    if (reason := modules.missing_cupy()) is not None:
        return _torch_device(reason).compress_rows(native, name, x, out)
    shape = shapes.row_output_shape(name, tuple(x.shape), native.input_dim, native.output_dim)
    with _current(name, library):
        rows = as_input(name, x, library)
        result, target = _output(name, out, shape, library, rows)
        if len(shape) == 1:
            rows, target = with_axis(rows, 0), with_axis(target, 0)
        if 0 not in shape:
            structure = structure_of(native)
            structure.program.run(structure.device(library), rows, target)
        return result


def compress_factors(  # noqa: PLR0917 - called alike on every backend
    native: _native.Compressor,
    name: str,
    inputs: Any,
    grad_outputs: Any,
    bias: bool,
    out: Any = None,
) -> Any:
    """Compress a linear layer's gradients, given by their factors, on their device.

    Parameters
    ----------
    native
        A factorised compressor.
    name
        Its class, for messages.
    inputs
        (n, t, in_features), or (n, in_features) for t = 1; one column less with `bias`.
    grad_outputs
        (n, t, out_features) or (n, out_features), of the library and device of `inputs`. Where the dtypes
        differ, both are read as float32.
    bias
        Whether the layer's last input is a column of ones, which `inputs` does not hold.
    out
        Where to write: a C-contiguous float32 array (n, k), of the library and device of the factors, that
        shares no memory with them.

    Returns
    -------
    array
        (n, k) float32, of the library and device of the factors.

    Raises
    ------
    ShapeError, UnsupportedArrayError, SpecError, DeviceError
        As `compress_rows`.

    """
    library = _library_of(name, inputs=inputs, grad_outputs=grad_outputs)
    if (reason := modules.missing_cupy()) is not None:
        return _torch_device(reason).compress_factors(native, name, inputs, grad_outputs, bias, out)
    shape_in, shape_out = tuple(inputs.shape), tuple(grad_outputs.shape)
    shape = shapes.factor_output_shape(
        name, shape_in, shape_out, native.features, bias, native.output_dim
    )
    with _current(name, library):
        left, right = as_input(name, inputs, library), as_input(name, grad_outputs, library)
        result, target = _output(name, out, shape, library, left, right)
        if left.dtype != right.dtype:
            left, right = _as_float32(library, left), _as_float32(library, right)
        if len(shape_in) == 2:
            left, right = with_axis(left, 1), with_axis(right, 1)
        if 0 not in shape:
            structure = structure_of(native)
            structure.program.run(structure.device(library), left, right, target, bias=bias)
        return result


def _library_of(name: str, **arrays: Any) -> Library:
    """Return the library and device of all arrays."""
    libraries = [library_of(array) for array in arrays.values()]
    library = libraries[0]
    if library is None or any(other is not library for other in libraries):
        got = ", ".join(f"{which} of {described(array)}" for which, array in arrays.items())
        msg = f"{name} expects CUDA arrays of one library on one device, got {got}: move them to one device"
        raise UnsupportedArrayError(msg)
    return library


def _output(
    name: str, out: Any, shape: tuple[int, ...], library: Library, *inputs: DeviceArray
) -> tuple[Any, DeviceArray]:
    """Return what a call returns, `out` or a new array, and how the program sees it."""
    if out is not None:
        return out, as_output(name, out, shape, library, *inputs)
    result = library.empty(shape, "float32")
    return result, library.view(result)


def _as_float32(library: Library, view: DeviceArray) -> DeviceArray:
    return library.view(library.float32(library.as_array(view)))


@contextmanager
def _current(name: str, library: Library) -> Iterator[None]:
    """Make the device current; say what is missing where its memory ends."""
    with modules.current_device(library.ordinal):
        try:
            yield
        except library.out_of_memory() as error:
            reason = str(error).strip().partition("\n")[0]
            msg = (
                f"{name}: cuda:{library.ordinal} has not enough memory, {library.free_bytes()} bytes are free: "
                f"{reason}: pass fewer rows a call"
            )
            raise DeviceError(msg) from error


@cache
def _torch_device(reason: str) -> ModuleType:
    """Return the backend for torch tensors where CuPy is not here; say so once."""
    from grass_rs._backends import torch_device  # noqa: PLC0415 - loads torch

    msg = (
        f"CUDA tensors are compressed by torch operations, slower than by kernels, because CuPy cannot be "
        f"imported ({reason}): pip install 'grass_rs[cuda]'"
    )
    warnings.warn(msg, stacklevel=2)
    return torch_device
