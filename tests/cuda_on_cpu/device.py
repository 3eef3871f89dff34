"""Devices without a GPU: one that remembers launches, and one that runs them on the CPU."""

from __future__ import annotations

from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import numpy as np

from cuda_on_cpu.emulator import guarded_empty, launch
from grass_rs._backends.cuda.launch import DeviceArray

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from numpy.typing import NDArray

    from grass_rs._backends.cuda.launch import Launch


class RecordingDevice:
    """Has NumPy arrays and remembers launches: what a program launches does not depend on values."""

    def __init__(self, compute_capability: int = 90) -> None:
        self.compute_capability = compute_capability
        self.launches: list[Launch] = []
        self.arrays: list[NDArray[Any]] = []
        """Everything that a pointer may point to."""
        self._constants: dict[tuple[str, ...], DeviceArray] = {}

    def array(self, values: NDArray[Any]) -> DeviceArray:
        """Return NumPy memory as the device's; ml_dtypes' bfloat16 keeps its name."""
        self.arrays.append(values)
        strides = tuple(stride // values.itemsize for stride in values.strides)
        return DeviceArray(values.ctypes.data, values.shape, strides, values.dtype.name, values)

    def empty(self, shape: tuple[int, ...], dtype: str = "float32") -> DeviceArray:
        return self.array(guarded_empty(shape, dtype))

    def constant(self, key: tuple[str, ...], make: Callable[[], NDArray[Any]]) -> DeviceArray:
        if key not in self._constants:
            self._constants[key] = self.array(np.ascontiguousarray(make()))
        return self._constants[key]

    def matmul(
        self,
        left: DeviceArray,
        right: DeviceArray,
        out: DeviceArray,
        add: DeviceArray | None = None,
    ) -> None:
        a, b, result = (values(array) for array in (left, right, out))
        result[...] = a.astype(np.float32) @ b
        if add is not None:
            result[...] += values(add)

    def launch(self, launched: Launch, args: Sequence[np.generic]) -> None:
        assert all(isinstance(arg, np.generic) for arg in args)
        self.launches.append(launched)


class EmulatedDevice(RecordingDevice):
    """Runs launches on the CPU, in the order of `schedule`."""

    def __init__(self, schedule: int = 0, compute_capability: int = 90) -> None:
        super().__init__(compute_capability)
        self.schedule = schedule

    def launch(self, launched: Launch, args: Sequence[np.generic]) -> None:
        super().launch(launched, args)
        launch(launched, args, self.schedule)


def values(array: DeviceArray) -> NDArray[Any]:
    """Return the memory of an array, a part of its owner or not, as NumPy sees it."""
    dtype = array.owner.dtype
    strides = tuple(stride * dtype.itemsize for stride in array.strides)
    return at_address(array.pointer, array.shape, strides, dtype, array.owner)


def at_address(
    pointer: int, shape: tuple[int, ...], strides: tuple[int, ...], dtype: np.dtype[Any], owner: Any
) -> NDArray[Any]:
    """Return memory as NumPy sees it; the result keeps its owner."""
    interface = {
        "version": 3,
        "data": (pointer, False),
        "shape": shape,
        "strides": strides,
        "typestr": dtype.str,
    }
    memory = SimpleNamespace(__array_interface__=interface, owner=owner)
    return np.asarray(memory).view(dtype)
