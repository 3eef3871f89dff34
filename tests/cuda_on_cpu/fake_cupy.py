"""CuPy on the CPU, as far as the device layer uses it: devices are numbers, kernels run in the emulator.

What is asked of it is kept in `log`. It has nothing that waits for a device, so a call that would wait fails.
"""

from __future__ import annotations

import re
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import numpy as np

from cuda_on_cpu import emulator
from cuda_on_cpu.device import at_address
from grass_rs._backends.cuda.launch import Kernel, Launch
from grass_rs._backends.cuda.sources import source

if TYPE_CHECKING:
    from collections.abc import Callable

    from numpy.typing import NDArray

DEFAULT_SHARED_BYTES = 48 * 1024


class CUDARuntimeError(RuntimeError):
    """As cupy.cuda.runtime.CUDARuntimeError."""


class CUDADriverError(RuntimeError):
    """As cupy.cuda.driver.CUDADriverError."""


class OutOfMemoryError(MemoryError):
    """As cupy.cuda.memory.OutOfMemoryError."""


class CompileException(Exception):  # noqa: N818 - CuPy's name
    """As cupy.cuda.compiler.CompileException."""


class Memory:
    """As cupy.cuda.MemoryPointer, into memory that NumPy owns."""

    def __init__(self, pointer: int, device: int, owner: Any) -> None:
        self.ptr, self.device, self.owner = pointer, SimpleNamespace(id=device), owner

    def __add__(self, offset: int) -> Memory:
        return Memory(self.ptr + offset, self.device.id, self.owner)


class Array:
    """As cupy.ndarray."""

    def __init__(
        self, shape: tuple[int, ...], dtype: Any, memory: Memory, strides: tuple[int, ...]
    ) -> None:
        self.data, self.device = memory, memory.device
        self.shape, self.strides = shape, strides
        self.dtype, self.itemsize = np.dtype(dtype), np.dtype(dtype).itemsize
        self.values = at_address(memory.ptr, shape, strides, self.dtype, memory)

    @classmethod
    def of(cls, values: NDArray[Any], device: int) -> Array:
        """Return NumPy memory as an array on a device."""
        memory = Memory(values.ctypes.data, device, values)
        return cls(values.shape, values.dtype, memory, values.strides)

    def copy(self) -> Array:
        return Array.of(self.values.copy(), self.device.id)

    def astype(self, dtype: str, *, copy: bool) -> Array:
        return Array.of(self.values.astype(dtype, copy=copy), self.device.id)

    def reshape(self, *shape: int) -> Array:
        return Array.of(self.values.reshape(shape), self.device.id)


class FakeCupy:
    """The module `cupy`, with `devices` of an architecture."""

    __version__ = "14.0.fake"

    def __init__(self, devices: int = 2, capability: str = "90", *, run: bool = True) -> None:
        self.log: list[tuple[Any, ...]] = []
        self.current = 0
        self.stream = SimpleNamespace(ptr=0)
        self.most_bytes = 1 << 30
        self.error: Exception | None = None
        """What the next launch raises."""
        self.compile_error: Exception | None = None
        """What every compilation raises."""
        self.run = run
        self.ndarray = Array
        self.cuda = SimpleNamespace(
            Device=lambda ordinal: _Device(ordinal, devices, capability),
            Stream=_Stream,
            get_current_stream=lambda: self.stream,
            memory=SimpleNamespace(OutOfMemoryError=OutOfMemoryError),
            compiler=SimpleNamespace(CompileException=CompileException),
            driver=SimpleNamespace(CUDADriverError=CUDADriverError),
            runtime=SimpleNamespace(
                CUDARuntimeError=CUDARuntimeError,
                getDevice=lambda: self.current,
                setDevice=self._set_device,
                memGetInfo=lambda: (self.most_bytes, 2 * self.most_bytes),
                driverGetVersion=lambda: 12040,
                runtimeGetVersion=lambda: 13020,
            ),
        )

    def __repr__(self) -> str:
        return "FakeCupy"

    def logged(self, kind: str) -> list[tuple[Any, ...]]:
        """Return what was logged of a kind: "compile", "launch", "empty", "upload", "device"."""
        return [rest for first, *rest in self.log if first == kind]

    def empty(self, shape: tuple[int, ...], dtype: str) -> Array:
        self._take(shape, dtype, "empty")
        values = np.empty(shape, dtype=dtype)
        values.view(np.uint8).fill(0xFF)
        return Array.of(values, self.current)

    def asarray(self, values: NDArray[Any], *, blocking: bool) -> Array:
        assert blocking
        self._take(values.shape, values.dtype.name, "upload")
        return Array.of(values.copy(), self.current)

    def ascontiguousarray(self, array: Array) -> Array:
        self._take(array.shape, array.dtype.name, "copy")
        return Array.of(np.ascontiguousarray(array.values), array.device.id)

    def matmul(self, left: Array, right: Array, out: Array) -> None:
        self.log.append(("matmul", self.current, left.shape, right.shape))
        np.matmul(left.values, right.values, out=out.values)

    def add(self, left: Array, right: Array, out: Array) -> None:
        np.add(left.values, right.values, out=out.values)

    def RawModule(self, *, code: str, options: tuple[str, ...], backend: str) -> Any:  # noqa: N802 - CuPy's name
        assert backend == "nvrtc"
        return SimpleNamespace(get_function=lambda name: self._compiled(code, options, name))

    def _compiled(self, code: str, options: tuple[str, ...], name: str) -> RawKernel:
        file = re.search(r'^#line 1 "([^"]+)"', code, re.MULTILINE)
        assert file is not None
        defines = code[: file.start()]
        assert code[file.start() :] == source(file[1])
        macros = tuple(
            "=".join(m) for m in re.findall(r"^#define (\w+) (.+)$", defines, re.MULTILINE)
        )
        kernel = Kernel(file[1], name, macros)
        self.log.append(("compile", self.current, kernel, options))
        if self.compile_error is not None:
            raise self.compile_error
        return RawKernel(self, kernel)

    def _set_device(self, ordinal: int) -> None:
        self.current = ordinal
        self.log.append(("device", ordinal))

    def _take(self, shape: tuple[int, ...], dtype: str, kind: str) -> None:
        size = int(np.prod(shape)) * np.dtype(dtype).itemsize
        if size > self.most_bytes:
            raise OutOfMemoryError(f"Out of memory allocating {size:,} bytes")
        self.log.append((kind, self.current, shape, dtype))


class RawKernel:
    """As cupy.RawKernel: a kernel on the device that was current."""

    def __init__(self, cupy: FakeCupy, kernel: Kernel) -> None:
        self._cupy, self._kernel, self._device = cupy, kernel, cupy.current
        self._shared_bytes = DEFAULT_SHARED_BYTES
        self.kernel: Callable[..., None] = self._launch

    @property
    def max_dynamic_shared_size_bytes(self) -> int:
        return self._shared_bytes

    @max_dynamic_shared_size_bytes.setter
    def max_dynamic_shared_size_bytes(self, shared_bytes: int) -> None:
        assert self._cupy.current == self._device
        self._cupy.log.append(("shared", self._device, shared_bytes))
        self._shared_bytes = shared_bytes

    def _launch(
        self,
        grid: tuple[int, int, int],
        block: tuple[int, int, int],
        args: tuple[np.generic, ...],
        *,
        shared_mem: int,
        stream: Any,
    ) -> None:
        cupy = self._cupy
        assert cupy.current == self._device
        assert all(isinstance(arg, np.generic) for arg in args)
        if cupy.error is not None:
            error, cupy.error = cupy.error, None
            raise error
        if shared_mem > self._shared_bytes:
            raise CUDADriverError("CUDA_ERROR_INVALID_VALUE: invalid argument")
        where = cupy.stream if stream is None else stream
        cupy.log.append(("launch", cupy.current, self._kernel, where.ptr, args))
        if cupy.run:
            kernel = self._kernel
            grid = tuple(max(1, blocks) for blocks in grid)
            emulator.launch(Launch(kernel, grid, block, shared_mem), args)


class _Device:
    def __init__(self, ordinal: int, devices: int, capability: str) -> None:
        self._exists, self._capability = ordinal < devices, capability

    @property
    def compute_capability(self) -> str:
        if not self._exists:
            raise CUDARuntimeError("cudaErrorInvalidDevice: invalid device ordinal")
        return self._capability


class _Stream:
    """As cupy.cuda.Stream of another library's stream."""

    def __init__(self, pointer: int) -> None:
        self.ptr = pointer

    @classmethod
    def from_external(cls, stream: Any) -> _Stream:
        version, pointer = stream.__cuda_stream__()
        assert version == 0
        return cls(pointer)
