"""The array libraries: torch and CuPy, each on one CUDA device.

Neither is imported here: an array of a library can only come after the library.
"""

from __future__ import annotations

import sys
from functools import cache
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np

from grass_rs._backends.cuda.launch import DeviceArray

if TYPE_CHECKING:
    from numpy.typing import NDArray


class Library(Protocol):
    """An array library on one device: its arrays, its allocator, its stream."""

    name: str
    ordinal: int
    """Number of the device."""

    def view(self, array: Any) -> DeviceArray:
        """Return an array as it lies in memory."""

    def as_array(self, view: DeviceArray) -> Any:
        """Return an array of this library on memory that one of its arrays owns."""

    def contiguous(self, array: Any) -> Any:
        """Return an array in C order, a copy where it is not."""

    def float32(self, array: Any) -> Any:
        """Return an array in float32."""

    def unreadable(self, array: Any) -> str | None:
        """Return why an array has no elements in memory, None where it has."""

    def unwritable(self, array: Any) -> str | None:
        """Return why an array must not be written in place, None where it may."""

    def empty(self, shape: tuple[int, ...], dtype: str) -> Any:
        """Return uninitialised memory from the library's allocator; the device is current."""

    def upload(self, values: NDArray[Any]) -> Any:
        """Return a copy of `values` that work on every stream may read."""

    def matmul(self, left: Any, right: Any, out: Any, add: Any | None) -> None:
        """Enqueue out = left right + add, all float32 arrays of this library."""

    def stream(self) -> int | None:
        """Return the address of the library's current stream, None where it is CuPy's."""

    def capturing(self) -> bool:
        """Return whether the current stream is being captured into a CUDA graph."""

    def free_bytes(self) -> int:
        """Return how much of the device's memory no process holds."""

    def out_of_memory(self) -> type[Exception]:
        """Return what the allocator raises."""


class TorchLibrary:
    """torch on one CUDA device."""

    name = "torch"

    def __init__(self, device: Any, ordinal: int) -> None:
        self.ordinal = ordinal
        self._device = device
        self._torch = sys.modules["torch"]

    def view(self, array: Any) -> DeviceArray:
        dtype = str(array.dtype).removeprefix("torch.")
        if array.is_neg():
            array = array.resolve_neg()
        if array.requires_grad:
            array = array.detach()
        return DeviceArray(array.data_ptr(), tuple(array.shape), array.stride(), dtype, array)

    def as_array(self, view: DeviceArray) -> Any:
        owner = view.owner
        first = (view.pointer - owner.data_ptr()) // owner.element_size() + owner.storage_offset()
        return owner.as_strided(view.shape, view.strides, first)

    def contiguous(self, array: Any) -> Any:
        return array.contiguous()

    def float32(self, array: Any) -> Any:
        return array.float()

    def unreadable(self, array: Any) -> str | None:
        if array.layout == self._torch.strided:
            return None
        return f"a {array.layout} tensor: pass tensor.to_dense()"

    def unwritable(self, array: Any) -> str | None:
        if array.requires_grad:
            return "a tensor of an autograd graph: allocate it with torch.empty"
        return "a negative view: allocate it with torch.empty" if array.is_neg() else None

    def empty(self, shape: tuple[int, ...], dtype: str) -> Any:
        return self._torch.empty(shape, dtype=getattr(self._torch, dtype), device=self._device)

    def upload(self, values: NDArray[Any]) -> Any:
        # Copies from pageable memory: torch waits until the copy is there.
        return self._torch.tensor(values, device=self._device)

    def matmul(self, left: Any, right: Any, out: Any, add: Any | None) -> None:
        # With `out`, autocast leaves the operands in float32.
        if add is None:
            self._torch.matmul(left, right, out=out)
        else:
            self._torch.addmm(add, left, right, out=out)

    def stream(self) -> int | None:
        stream: int = self._torch.cuda.current_stream(self._device).cuda_stream
        return stream

    def capturing(self) -> bool:
        return bool(self._torch.cuda.is_current_stream_capturing())

    def free_bytes(self) -> int:
        return int(self._torch.cuda.mem_get_info(self._device)[0])

    def out_of_memory(self) -> type[Exception]:
        error: type[Exception] = self._torch.cuda.OutOfMemoryError
        return error


class CupyLibrary:
    """CuPy on one device."""

    name = "cupy"

    def __init__(self, ordinal: int) -> None:
        self.ordinal = ordinal
        self._cupy = sys.modules["cupy"]

    def view(self, array: Any) -> DeviceArray:
        size = array.itemsize
        if array.data.ptr % size or any(stride % size for stride in array.strides):
            array = array.copy()
        strides = tuple(stride // size for stride in array.strides)
        return DeviceArray(array.data.ptr, array.shape, strides, array.dtype.name, array)

    def as_array(self, view: DeviceArray) -> Any:
        owner = view.owner
        memory = owner.data + (view.pointer - owner.data.ptr)
        strides = tuple(stride * owner.itemsize for stride in view.strides)
        return self._cupy.ndarray(view.shape, owner.dtype, memory, strides)

    def contiguous(self, array: Any) -> Any:
        return self._cupy.ascontiguousarray(array)

    def float32(self, array: Any) -> Any:
        return array.astype("float32", copy=False)

    def unreadable(self, array: Any) -> str | None:  # noqa: ARG002 - every CuPy array is plain memory
        return None

    def unwritable(self, array: Any) -> str | None:  # noqa: ARG002 - and may be written
        return None

    def empty(self, shape: tuple[int, ...], dtype: str) -> Any:
        return self._cupy.empty(shape, dtype=dtype)

    def upload(self, values: NDArray[Any]) -> Any:
        return self._cupy.asarray(values, blocking=True)

    def matmul(self, left: Any, right: Any, out: Any, add: Any | None) -> None:
        self._cupy.matmul(left, right, out=out)
        if add is not None:
            self._cupy.add(out, add, out=out)

    def stream(self) -> int | None:
        return None

    def capturing(self) -> bool:
        stream = self._cupy.cuda.get_current_stream()
        # The default stream cannot be captured, and must not be asked while another is.
        return stream.ptr != 0 and bool(stream.is_capturing())

    def free_bytes(self) -> int:
        return int(self._cupy.cuda.runtime.memGetInfo()[0])

    def out_of_memory(self) -> type[Exception]:
        error: type[Exception] = self._cupy.cuda.memory.OutOfMemoryError
        return error


_torch_library = cache(TorchLibrary)
_cupy_library = cache(CupyLibrary)


def _torch_ordinal(tensor: Any) -> int | None:
    """Return the number of a tensor's CUDA device, None on any other device."""
    ordinal: int | None = tensor.device.index if tensor.is_cuda else None
    return ordinal


def library_of(array: Any) -> Library | None:
    """Return the library and device of a CUDA array, None for anything else."""
    if type(array) is np.ndarray:  # the common case on the CPU, which must stay cheap
        return None
    torch, cupy = sys.modules.get("torch"), sys.modules.get("cupy")
    if torch is not None and isinstance(array, torch.Tensor):
        ordinal = _torch_ordinal(array)
        return None if ordinal is None else _torch_library(array.device, ordinal)
    if cupy is not None and isinstance(array, cupy.ndarray):
        return _cupy_library(array.device.id)
    return None
