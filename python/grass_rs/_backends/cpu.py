"""NumPy arrays and torch CPU tensors as NumPy views, without a copy where the core can read them.

bfloat16 has no NumPy type of its own: it travels as its bits, in uint16.
"""

from __future__ import annotations

import sys
from typing import Any

import numpy as np

from grass_rs.errors import ShapeError, UnsupportedArrayError

_FLOATS = ("float64", "float32", "float16", "bfloat16")
_FLOAT_CHARS = "dfe"
"""NumPy's codes of the first three; reading a dtype's name takes microseconds."""


def _torch_tensor(array: Any) -> bool:
    if type(array) is np.ndarray:  # the common case, which the question below makes slow
        return False
    torch = sys.modules.get("torch")
    return torch is not None and isinstance(array, torch.Tensor)


def _masked(array: Any) -> bool:
    # NumPy imports this module when it is asked for, in milliseconds; masked arrays exist only after.
    return isinstance(array, getattr(sys.modules.get("numpy.ma"), "MaskedArray", ()))


def _unsupported(what: str, array: Any) -> UnsupportedArrayError:
    return UnsupportedArrayError(
        f"{what} expects a NumPy array or torch CPU tensor of {', '.join(_FLOATS)}, got {array}"
    )


def _tensor_view(what: str, tensor: Any) -> np.ndarray[Any, Any]:
    torch = sys.modules["torch"]
    if tensor.device.type != "cpu" or tensor.layout != torch.strided or tensor.is_neg():
        kind = f"a {tensor.layout} tensor on {tensor.device}, negative view {tensor.is_neg()}"
        raise _unsupported(what, f"{kind}: pass tensor.to_dense().cpu().resolve_neg()")
    tensor = tensor.detach()
    if tensor.dtype == torch.bfloat16:
        bits: np.ndarray[Any, Any] = tensor.view(torch.int16).numpy()
        return bits.view(np.uint16)
    if str(tensor.dtype).removeprefix("torch.") not in _FLOATS:
        raise _unsupported(what, f"a tensor of {tensor.dtype}: convert it with .float()")
    view: np.ndarray[Any, Any] = tensor.numpy()
    return view


def _view(what: str, array: Any) -> np.ndarray[Any, Any]:
    if type(array) is not np.ndarray:
        if _torch_tensor(array):
            return _tensor_view(what, array)
        if _masked(array):
            raise _unsupported(what, "a masked array: pass .filled(0), or only the unmasked rows")
        if not isinstance(array, np.ndarray):
            kind = f"{type(array).__module__}.{type(array).__qualname__}"
            hint = ": copy it to the CPU first" if "cupy" in kind else ": pass numpy.asarray of it"
            raise _unsupported(what, kind + hint)
    if array.dtype.char in _FLOAT_CHARS:
        return array
    if array.dtype.name == "bfloat16":
        return array.view(np.uint16)
    raise _unsupported(what, f"an array of {array.dtype}: convert it with .astype")


def _readable(array: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    """Copy what the core cannot read in place: foreign byte order, unaligned or odd strides."""
    if not array.dtype.isnative:
        array = array.astype(array.dtype.newbyteorder("="))
    if not array.flags.aligned:
        return array.copy()
    itemsize = array.itemsize
    for stride in array.strides:  # a generator would take three times as long
        if stride % itemsize:
            return array.copy()
    return array


def as_input(what: str, array: Any) -> np.ndarray[Any, Any]:
    """Return a view of `array` that the core reads.

    Parameters
    ----------
    what
        Name of the caller, for messages.
    array
        NumPy array or torch CPU tensor, of any shape and strides.

    Returns
    -------
    numpy.ndarray
        Of float64, float32 or float16, or the bits of bfloat16 in uint16; shares memory with
        `array` unless its byte order or alignment forbids it.

    Raises
    ------
    UnsupportedArrayError
        For another library, device or dtype.

    """
    if _torch_tensor(array):
        array = array.resolve_neg()
    return _readable(_view(what, array))


def as_output(what: str, out: Any, shape: tuple[int, ...]) -> np.ndarray[Any, Any]:
    """Return a view of `out` that the core writes.

    Parameters
    ----------
    what
        Name of the caller, for messages.
    out
        Writable C-contiguous float32 array or CPU tensor.
    shape
        The shape it must have.

    Raises
    ------
    UnsupportedArrayError
        For another library, device or dtype.
    ShapeError
        For another shape, or an array that is not C-contiguous or not writable.

    """
    if _torch_tensor(out) and out.requires_grad:
        raise _unsupported(
            f"{what}: out", "a tensor of an autograd graph: allocate it with torch.empty"
        )
    view = _view(what, out)
    if view.dtype != np.float32 or not view.dtype.isnative or not view.flags.aligned:
        kind = f"{view.dtype}, aligned={view.flags.aligned}: allocate it as float32"
        raise _unsupported(f"{what}: out", kind)
    if view.shape != shape or not view.flags.c_contiguous or not view.flags.writeable:
        msg = (
            f"{what}: out expects a writable C-contiguous array of shape {shape}, got shape "
            f"{view.shape}, strides {view.strides}, writable={view.flags.writeable}"
        )
        raise ShapeError(msg)
    return view


def new_output(like: Any, shape: tuple[int, ...]) -> tuple[Any, np.ndarray[Any, Any]]:
    """Return an uninitialised float32 array of the library of `like`, and its view for the core."""
    if _torch_tensor(like):
        torch = sys.modules["torch"]
        tensor = torch.empty(shape, dtype=torch.float32)
        return tensor, tensor.numpy()
    array = np.empty(shape, dtype=np.float32)
    return array, array
