"""NumPy arrays and torch CPU tensors: the native core reads them in place, as NumPy views.

bfloat16 has no NumPy type of its own: it travels as its bits, in uint16.
"""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Any

import numpy as np

from grass_rs._backends import shapes
from grass_rs.errors import MASKED, ShapeError, UnsupportedArrayError, is_masked

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from grass_rs import _native

FLOATS = ("float64", "float32", "float16", "bfloat16")
"""The dtypes that inputs may have."""
_FLOAT_CHARS = "dfe"
"""NumPy's codes of the first three; reading a dtype's name takes microseconds."""


def unsupported(what: str, array: str) -> UnsupportedArrayError:
    """Return the error for an array that no backend takes.

    Parameters
    ----------
    what
        Name of the caller.
    array
        What came, and what to do.

    """
    return UnsupportedArrayError(
        f"{what} expects a NumPy array, torch tensor (CPU or CUDA) or CuPy array of "
        f"{', '.join(FLOATS)}, got {array}"
    )


def _torch_tensor(array: Any) -> bool:
    torch = sys.modules.get("torch")
    return torch is not None and isinstance(array, torch.Tensor)


def _tensor_view(what: str, tensor: Any) -> np.ndarray[Any, Any]:
    torch = sys.modules["torch"]
    if not tensor.is_cpu or tensor.layout is not torch.strided or tensor.is_neg():
        kind = f"a {tensor.layout} tensor on {tensor.device}, negative view {tensor.is_neg()}"
        raise unsupported(what, f"{kind}: pass tensor.to_dense().cpu().resolve_neg()")
    if tensor.requires_grad:
        tensor = tensor.detach()
    if tensor.dtype is torch.bfloat16:
        bits: np.ndarray[Any, Any] = tensor.view(torch.int16).numpy()
        return bits.view(np.uint16)
    if str(tensor.dtype).removeprefix("torch.") not in FLOATS:
        raise unsupported(what, f"a tensor of {tensor.dtype}: convert it with .float()")
    view: np.ndarray[Any, Any] = tensor.numpy()
    return view


def _array_view(what: str, array: Any) -> np.ndarray[Any, Any]:
    if type(array) is not np.ndarray:  # the common case, which the questions below make slow
        if is_masked(array):
            raise unsupported(what, MASKED)
        if not isinstance(array, np.ndarray):
            kind = f"{type(array).__module__}.{type(array).__qualname__}"
            raise unsupported(what, f"{kind}: pass numpy.asarray of it")
    if array.dtype.char in _FLOAT_CHARS:
        return array
    if array.dtype.name == "bfloat16":
        return array.view(np.uint16)
    raise unsupported(what, f"an array of {array.dtype}: convert it with .astype")


def _as_input(what: str, array: Any) -> np.ndarray[Any, Any]:
    """Return a view of `array` that the core reads: the bits of bfloat16 are in uint16.

    It shares memory with `array` unless its byte order or alignment forbids it.
    """
    if type(array) is not np.ndarray and _torch_tensor(array):
        view = _tensor_view(what, array.resolve_neg() if array.is_neg() else array)
    else:
        view = _array_view(what, array)
    if not view.dtype.isnative:
        view = view.astype(view.dtype.newbyteorder("="))
    if not view.flags.aligned:
        return view.copy()
    itemsize = view.itemsize
    for stride in view.strides:  # a generator would take three times as long
        if stride % itemsize:
            return view.copy()
    return view


def _plain_view(out: Any) -> np.ndarray[Any, Any] | None:
    """Return a view of memory that the core may write, None where there is no such view."""
    if not _torch_tensor(out):
        return out if isinstance(out, np.ndarray) and not is_masked(out) else None
    torch = sys.modules["torch"]
    plain = out.is_cpu and out.layout is torch.strided and out.dtype is torch.float32
    if not plain or out.is_nested or out.is_neg() or out.requires_grad:
        return None
    view: np.ndarray[Any, Any] = out.numpy()
    return view


def _described(array: Any) -> str:
    if _torch_tensor(array):
        return (
            f"a {array.layout} tensor of {array.dtype} on {array.device}, "
            f"requires_grad={array.requires_grad}, negative view {array.is_neg()}"
        )
    kind = f"{type(array).__module__}.{type(array).__qualname__}"
    if not isinstance(array, np.ndarray):
        return kind
    return f"{kind} of {array.dtype}, aligned={array.flags.aligned}"


def _as_output(what: str, out: Any, shape: tuple[int, ...]) -> np.ndarray[Any, Any]:
    """Return a view of `out` that the core writes: aligned, writable, C-contiguous float32."""
    view = out if type(out) is np.ndarray else _plain_view(out)
    if view is None or view.dtype != np.float32 or not view.flags.aligned:
        msg = (
            f"{what}: out expects an aligned float32 NumPy array, or torch CPU tensor of no autograd graph, "
            f"got {_described(out)}: allocate it with numpy.empty or torch.empty"
        )
        raise UnsupportedArrayError(msg)
    if view.shape != shape or not view.flags.c_contiguous or not view.flags.writeable:
        msg = (
            f"{what}: out expects a writable C-contiguous array of shape {shape}, got shape "
            f"{view.shape}, strides {view.strides}, writable={view.flags.writeable}: allocate it with "
            f"numpy.empty or torch.empty"
        )
        raise ShapeError(msg)
    return view


def _output(
    what: str, shape: tuple[int, ...], out: Any, like: Any, *inputs: NDArray[Any]
) -> tuple[Any, NDArray[np.float32]]:
    """Return what a call returns, `out` or a new array of the library of `like`, and its view for the core."""
    if out is not None:
        target = _as_output(what, out, shape)
        if any(np.may_share_memory(array, target) for array in inputs):
            msg = f"{what}: out expects memory of its own, got a part of an input: allocate it"
            raise ShapeError(msg)
        return out, target
    if type(like) is not np.ndarray and _torch_tensor(like):
        torch = sys.modules["torch"]
        tensor = torch.empty(shape, dtype=torch.float32, device=like.device)
        return tensor, tensor.numpy()
    array = np.empty(shape, dtype=np.float32)
    return array, array


def compress_rows(native: _native.Compressor, name: str, x: Any, out: Any) -> Any:
    """Compress gradients.

    Parameters
    ----------
    native
        The structure.
    name
        The compressor's, for messages.
    x
        (n, p) or (p,), a NumPy array or torch CPU tensor of any strides.
    out
        None, or a writable C-contiguous float32 array of the result's shape.

    Returns
    -------
    array
        `out`, or a new array (n, k) or (k,) of the library of x.

    Raises
    ------
    UnsupportedArrayError
        For another library, device or dtype.
    ShapeError
        If x has not the width p; if `out` has another shape, is not C-contiguous or not writable, or shares memory with x.

    """
    rows = _as_input(name, x)
    shape = shapes.row_output_shape(name, rows.shape, native.input_dim, native.output_dim)
    result, target = _output(name, shape, out, x, rows)
    if len(shape) == 1:
        rows, target = rows[None], target[None]
    native.compress(rows, target)
    return result


def compress_factors(  # noqa: PLR0917 - called alike on every backend
    native: _native.Compressor, name: str, inputs: Any, grad_outputs: Any, bias: bool, out: Any
) -> Any:
    """Compress the gradients of a linear layer, given by their factors.

    Parameters
    ----------
    native
        The structure.
    name
        The compressor's, for messages.
    inputs, grad_outputs
        (n, t, in_features) and (n, t, out_features), or both without t: NumPy arrays or torch CPU tensors.
    bias
        Whether `inputs` lacks the column of ones that is the layer's last input.
    out
        None, or a writable C-contiguous float32 array (n, k).

    Returns
    -------
    array
        `out`, or a new array (n, k) of the library of `inputs`.

    Raises
    ------
    UnsupportedArrayError
        For another library, device or dtype.
    ShapeError
        If the shapes do not fit the layer or each other; if `out` has another shape, is not C-contiguous or not writable,
        or shares memory with a factor.

    """
    left, right = _as_input(name, inputs), _as_input(name, grad_outputs)
    shape = shapes.factor_output_shape(
        name, left.shape, right.shape, native.features, bias, native.output_dim
    )
    result, target = _output(name, shape, out, inputs, left, right)
    if left.ndim == 2:
        left, right = left[:, None, :], right[:, None, :]
    native.compress_factors(left, right, bias, target)
    return result
