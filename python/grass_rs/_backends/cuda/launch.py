"""What the programs of all compressors are written in: arrays on a device, kernels, launches."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Protocol

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    import numpy as np
    from numpy.typing import NDArray

SCALARS = {"float64": "double", "float32": "float", "float16": "Half", "bfloat16": "BFloat16"}
"""The sources' name of each dtype that inputs may have."""
ITEM_BYTES = {"float64": 8, "float32": 4, "float16": 2, "bfloat16": 2}
"""Of an entry of each."""


@dataclass(frozen=True)
class DeviceArray:
    """An array in a device's memory, whatever library it is of."""

    pointer: int
    """Address of its first element."""
    shape: tuple[int, ...]
    strides: tuple[int, ...]
    """Elements from one entry of an axis to the next."""
    dtype: str
    """NumPy's name of the dtype, or "bfloat16"."""
    owner: Any
    """What keeps the memory."""

    def rows(self, first: int, count: int) -> DeviceArray:
        """Return entries `first` to `first + count - 1` of the first axis, or up to its last."""
        offset = first * self.strides[0] * ITEM_BYTES[self.dtype]
        shape = (min(count, self.shape[0] - first), *self.shape[1:])
        return replace(self, pointer=self.pointer + offset, shape=shape)


@dataclass(frozen=True)
class Kernel:
    """A kernel of a source, compiled with some macros."""

    file: str
    """Source in the kernels' folder."""
    name: str
    """Its only `extern "C" __global__` function."""
    macros: tuple[str, ...]
    """Definitions such as "Scalar=float" or "ROWS=4"."""


@dataclass(frozen=True)
class Launch:
    """A kernel and the grid it runs on."""

    kernel: Kernel
    grid: tuple[int, int, int]
    """Blocks; the second and third at most 65535."""
    block: tuple[int, int, int]
    """Threads."""
    shared_bytes: int
    """Shared memory of a block."""


class Device(Protocol):
    """A device with a stream to launch on and a library to allocate from."""

    @property
    def compute_capability(self) -> int:
        """Ten times the major version plus the minor, for example 90."""

    def empty(self, shape: tuple[int, ...], dtype: str = "float32") -> DeviceArray:
        """Return uninitialised memory, C-contiguous."""

    def constant(self, key: tuple[str, ...], make: Callable[[], NDArray[Any]]) -> DeviceArray:
        """Return the device's copy of an array of a structure; it is made and moved once a key."""

    def launch(self, launch: Launch, args: Sequence[np.generic]) -> None:
        """Enqueue a launch; arguments have the kernel's types, pointers are np.uint64."""

    def matmul(
        self,
        left: DeviceArray,
        right: DeviceArray,
        out: DeviceArray,
        add: DeviceArray | None = None,
    ) -> None:
        """Enqueue out = left right + add by the array library, in float32.

        left (..., m, q) of any dtype; right and add float32, (q, n) and (n,), or (..., q, n) and
        None; out (..., m, n), C-contiguous float32. Strides of the inputs may be any.
        """


class RowProgram(Protocol):
    """How a compressor of whole gradients runs on a device; built once from the compressor's spec."""

    def run(self, device: Device, x: DeviceArray, out: DeviceArray) -> None:
        """Write the compressed rows of x (n, p), stride 1 on the last axis, to out (n, k), contiguous float32."""


class FactorProgram(Protocol):
    """How a compressor of a linear layer's gradients runs on a device; built once from its spec."""

    def run(
        self,
        device: Device,
        inputs: DeviceArray,
        grad_outputs: DeviceArray,
        out: DeviceArray,
        *,
        bias: bool,
    ) -> None:
        """Write to out (n, k), contiguous float32, from (n, t, in) and (n, t, out) of one dtype.

        The last axis has stride 1. With `bias`, inputs has no last column: it is ones.
        """
