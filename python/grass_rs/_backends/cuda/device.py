"""A CUDA device as one compressor's program sees it, through the library of the call's arrays."""

from __future__ import annotations

import math
from threading import Lock
from typing import TYPE_CHECKING, Any

import numpy as np

from grass_rs._backends.cuda import modules
from grass_rs.errors import DeviceError

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from numpy.typing import NDArray

    from grass_rs._backends.cuda.launch import DeviceArray, Launch
    from grass_rs._backends.cuda.libraries import Library


class CudaDevice:
    """Launches on the library's current stream and allocates from its allocator; implements `launch.Device`.

    Its methods are called with the device current. It keeps the structures of one compressor: they
    are freed with it.
    """

    def __init__(self, library: Library) -> None:
        self._library = library
        self.compute_capability = modules.compute_capability(library.ordinal)
        self._constants: dict[tuple[str, ...], DeviceArray] = {}
        self._lock = Lock()

    def empty(self, shape: tuple[int, ...], dtype: str = "float32") -> DeviceArray:
        """Return uninitialised memory, C-contiguous."""
        return self._library.view(self._library.empty(shape, dtype))

    def constant(self, key: tuple[str, ...], make: Callable[[], NDArray[Any]]) -> DeviceArray:
        """Return the device's copy of an array of the structure; it is made and moved once a key.

        Moving waits for the copy, so that work on every stream may read it.

        Raises
        ------
        DeviceError
            If a CUDA graph is being captured and the array is not there yet.

        """
        constant = self._constants.get(key)
        if constant is not None:
            return constant
        library = self._library
        with self._lock:
            if key not in self._constants:
                if library.capturing():
                    where = f"cuda:{library.ordinal}"
                    raise DeviceError(f"a structure is not on {where} yet: {modules.WARM_UP}")
                values = np.ascontiguousarray(make())
                self._constants[key] = library.view(library.upload(values))
            return self._constants[key]

    def launch(self, launch: Launch, args: Sequence[np.generic]) -> None:
        """Enqueue a launch on the library's current stream.

        Raises
        ------
        DeviceError
            If the kernel does not compile, load or start.

        """
        library = self._library
        address = library.stream()
        stream = None if address is None else modules.cupy_stream(library.ordinal, address)
        modules.enqueue(library.ordinal, launch, args, stream, library.capturing)

    def matmul(
        self,
        left: DeviceArray,
        right: DeviceArray,
        out: DeviceArray,
        add: DeviceArray | None = None,
    ) -> None:
        """Enqueue out = left right + add in float32 by the library, whose settings decide about TF32."""
        library = self._library
        a, b, result = (library.as_array(view) for view in (left, right, out))
        if len(right.shape) == 2:  # one product, whatever the leading axes of left
            tokens = math.prod(left.shape[:-1])
            a, result = a.reshape(tokens, left.shape[-1]), result.reshape(tokens, out.shape[-1])
        added = None if add is None else library.as_array(add)
        library.matmul(library.float32(a), b, result, added)
