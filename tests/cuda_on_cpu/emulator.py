"""Compile a CUDA source for the CPU and launch its kernel on NumPy arrays."""

from __future__ import annotations

import ctypes
import hashlib
import os
import shutil
import subprocess
import tempfile
import weakref
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from grass_rs._backends.cuda.sources import KERNELS, source

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

    from grass_rs._backends.cuda.launch import Kernel, Launch

HERE = Path(__file__).parent
FLAGS = ("-std=c++17", "-O1", "-g", "-fPIC", "-Wall", "-Wextra", "-Werror", "-Wno-unknown-pragmas")
_BUILD = Path(tempfile.gettempdir()) / f"grass_rs_cuda_on_cpu_{os.getuid()}"
SANITIZERS = {
    "address": (
        "-fsanitize=address,undefined",
        "-fno-sanitize-recover=undefined",
        "-fno-omit-frame-pointer",
    ),
    "thread": ("-fsanitize=thread",),
}
"""Flags that a sanitizer's build of the kernels takes."""


def build(name: str, text: str, flags: Sequence[str]) -> Path:
    """Return what g++ makes of a source; it is kept by the hash of all that goes into it."""
    assert shutil.which("g++"), "g++ compiles the CUDA sources for the CPU, but there is none"
    headers = [path.read_text(encoding="utf-8") for path in sorted(HERE.glob("*.h"))]
    digest = hashlib.sha256("\0".join([*FLAGS, *flags, text, *headers]).encode()).hexdigest()[:24]
    _BUILD.mkdir(mode=0o700, exist_ok=True)
    result = _BUILD / f"{name}-{digest}.so"
    if not result.exists():
        with tempfile.TemporaryDirectory(dir=_BUILD) as folder:
            code, built = Path(folder) / f"{name}.cpp", Path(folder) / "built"
            code.write_text(text, encoding="utf-8")
            # Libraries among the flags come behind the source that takes from them.
            command = ["g++", *FLAGS, f"-I{HERE}", "-o", str(built), str(code), *flags]
            done = subprocess.run(command, capture_output=True, text=True, check=False)
            if done.returncode:
                raise RuntimeError(f"{name} does not compile with {flags}:\n{done.stderr}")
            built.rename(result)
    return result


@cache
def machine(sanitizer: str | None = None) -> Path:
    """Return the library that runs kernels; it is compiled without the sanitizer it works with."""
    text = (HERE / "machine.cpp").read_text(encoding="utf-8")
    flags = ["-DEMULATOR_" + sanitizer.upper() + "_SANITIZER"] if sanitizer else []
    return build("machine", text, ["-O2", "-shared", *flags])


@cache
def library(kernel: Kernel, sanitizer: str | None = None) -> Path:
    """Return the library of a kernel, whose function `launch` runs it."""
    folders = (HERE, HERE / "mistakes", KERNELS)
    text = source(kernel.file, folders) + f"\nEMULATE({kernel.name})\n"
    flags = ["-shared", "-ffp-contract=off", *(f"-D{macro}" for macro in kernel.macros)]
    checks = SANITIZERS[sanitizer] if sanitizer else ()
    return build(kernel.name, text, [*flags, *checks, str(machine(sanitizer))])


@cache
def _launcher(kernel: Kernel) -> Any:
    launcher = ctypes.CDLL(str(library(kernel))).launch
    launcher.restype = ctypes.c_char_p
    return launcher


def launch(launched: Launch, args: Sequence[np.generic | NDArray[Any]], schedule: int = 0) -> None:
    """Run a kernel; arguments are NumPy scalars of the kernel's types, and arrays where it takes pointers."""
    kernel = launched.kernel
    values = [np.uint64(arg.ctypes.data) if isinstance(arg, np.ndarray) else arg for arg in args]
    buffers = [ctypes.create_string_buffer(value.tobytes(), value.nbytes) for value in values]
    pointers = (ctypes.c_void_p * len(buffers))(*(ctypes.addressof(b) for b in buffers))
    error = _launcher(kernel)(
        (ctypes.c_uint * 6)(*launched.grid, *launched.block),
        launched.shared_bytes,
        schedule,
        pointers,
        types_of(values),
    )
    if error:
        raise RuntimeError(f"{kernel.file}: {error.decode()}")


def types_of(values: Sequence[np.generic]) -> bytes:
    """Return the arguments' types, such as b"u8 f4"."""
    return " ".join(value.dtype.str[1:] for value in values).encode()


def guarded_empty(shape: tuple[int, ...], dtype: Any) -> NDArray[Any]:
    """Return memory full of NaN: a thread that touches what is before or behind it ends its launch.

    Less than 16 bytes behind it, and less than a page before it, are NaN too and can be touched.
    """
    bytes_ = int(np.prod(shape)) * np.dtype(dtype).itemsize
    pages = _memory().new_array(bytes_)
    data = (ctypes.c_char * bytes_).from_address(_memory().array_data(pages))
    weakref.finalize(data, _memory().delete_array, pages)
    return np.ndarray(shape, dtype, buffer=data)


def guarded(values: NDArray[Any]) -> NDArray[Any]:
    """Return a copy in such memory."""
    copy = guarded_empty(values.shape, values.dtype)
    copy[...] = values
    return copy


def far_apart(values: NDArray[Any], stride: int = 2**30 + 7) -> NDArray[Any]:
    """Return a copy whose first axis steps over `stride` elements: memory that is never touched costs nothing.

    Three entries, or more with a smaller stride, are further apart than 32 bits count.
    """
    size = values[0].size
    memory = np.zeros((len(values) - 1) * stride + size, dtype=values.dtype)
    strides = (stride * values.itemsize, *np.empty_like(values[0]).strides)
    copy = np.lib.stride_tricks.as_strided(memory, values.shape, strides)
    copy[...] = values
    return copy


@cache
def _memory() -> Any:
    memory = ctypes.CDLL(str(machine()))
    memory.new_array.restype = memory.array_data.restype = ctypes.c_void_p
    memory.new_array.argtypes = (ctypes.c_size_t,)
    memory.array_data.argtypes = memory.delete_array.argtypes = (ctypes.c_void_p,)
    return memory
