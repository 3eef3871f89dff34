"""Which backend compresses an array: by its library, its device, and whether torch is tracing."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Any, Protocol

from grass_rs._backends import cpu
from grass_rs.errors import UnsupportedArrayError

if TYPE_CHECKING:
    from grass_rs import _native


NESTED = "a nested tensor, whose rows are of any shape: pass a tensor of rows of one shape"
"""What came and what to do, for messages."""


class Backend(Protocol):
    """What compresses arrays of some libraries on some devices: a module with these functions."""

    def compress_rows(self, native: _native.Compressor, name: str, x: Any, out: Any) -> Any:
        """Compress gradients (n, p) or (p,) to `out`, or to a new float32 array (n, k) or (k,)."""

    def compress_factors(  # noqa: PLR0917 - what a layer and its factors are
        self,
        native: _native.Compressor,
        name: str,
        inputs: Any,
        grad_outputs: Any,
        bias: bool,
        out: Any,
    ) -> Any:
        """Compress a layer's factors (n, t, in), (n, t, out) to `out`, or to a new float32 array (n, k)."""


def is_traced(array: Any) -> bool:
    """Return whether torch records what is done to the array, so that it must see an operator.

    That is so while torch compiles, exports or traces (`torch.jit.trace`), inside a `torch.func` transform, for
    tensors without values, and while a dispatch mode is watching (`make_fx`, a counter of operations).
    """
    torch = sys.modules.get("torch")
    # While Dynamo traces this function, it compiles, and sees no other question.
    return (
        torch is not None
        and isinstance(array, torch.Tensor)
        and (
            torch.compiler.is_compiling()
            or torch._C._len_torch_dispatch_stack() > 0  # noqa: SLF001 - torch has no public name for it
            or torch._C._functorch.peek_interpreter_stack() is not None  # noqa: SLF001
            or torch._C._is_tracing()  # noqa: SLF001 - the public name asks twice
            or type(array).__torch_dispatch__ is not torch.Tensor.__torch_dispatch__
        )
    )


def backend_of(name: str, array: Any) -> Backend:
    """Return the backend that takes an array, which torch does not trace.

    An array of no known library or dtype is for the CPU's to refuse.

    Parameters
    ----------
    name
        The compressor's, for messages.
    array
        What to compress.

    Raises
    ------
    UnsupportedArrayError
        For a tensor without values, or a nested one.

    """
    torch = sys.modules.get("torch")
    if torch is not None and isinstance(array, torch.Tensor):
        if array.is_nested:
            raise cpu.unsupported(name, NESTED)
        if array.is_cpu:
            return cpu
        if array.is_meta:
            raise cpu.unsupported(name, "a tensor on meta, which has no values: pass a real one")
        if not array.is_cuda:
            from grass_rs._backends import torch_device  # noqa: PLC0415 - loads torch

            return torch_device
    elif "cupy" not in sys.modules:
        return cpu
    from grass_rs._backends import cuda  # noqa: PLC0415 - no array of the CPU needs it

    return cuda if cuda.is_device_array(array) else cpu


def backend_of_both(name: str, first: Any, second: Any) -> Backend:
    """Return the backend that takes two arrays, as `backend_of`.

    Raises
    ------
    UnsupportedArrayError
        For a tensor without values, or arrays on devices that no one backend takes.

    """
    backend = backend_of(name, first)
    if backend_of(name, second) is not backend:
        places = f"{_place(first)} and {_place(second)}"
        msg = f"{name} expects arrays on one device, got them on {places}: move one to the other's"
        raise UnsupportedArrayError(msg)
    return backend


def _place(array: Any) -> str:
    return str(getattr(array, "device", "cpu"))
