"""Compile a CUDA source for the CPU and launch its kernel on NumPy arrays."""

from __future__ import annotations

import ctypes
import hashlib
import subprocess
import tempfile
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from grass_rs._backends.cuda.sources import source

if TYPE_CHECKING:
    from collections.abc import Sequence

HERE = Path(__file__).parent
FLAGS = (
    "-std=c++17",
    "-O1",
    "-g",
    "-shared",
    "-fPIC",
    "-ffp-contract=off",
    "-Wall",
    "-Wextra",
    "-Werror",
    "-Wno-unknown-pragmas",
)
_BUILD = Path(tempfile.gettempdir()) / "grass_rs_cuda_on_cpu"


@cache
def compiled(file: str, kernel: str, macros: tuple[str, ...]) -> Any:
    """Return the launcher of a kernel; what was compiled before is kept by the hash of its source."""
    text = source(file, platform=HERE / "platform.cuh") + f"\nEMULATE({kernel})\n"
    command = ["g++", *FLAGS, *(f"-D{macro}" for macro in macros)]
    digest = hashlib.sha256("\0".join([*command, text]).encode()).hexdigest()[:24]
    _BUILD.mkdir(exist_ok=True)
    library = _BUILD / f"{kernel}-{digest}.so"
    if not library.exists():
        with tempfile.TemporaryDirectory(dir=_BUILD) as folder:
            code, built = Path(folder) / f"{kernel}.cpp", Path(folder) / "built.so"
            code.write_text(text, encoding="utf-8")
            subprocess.run([*command, "-o", str(built), str(code)], check=True)
            built.rename(library)
    launcher = ctypes.CDLL(str(library)).launch
    launcher.restype = ctypes.c_char_p
    return launcher


def launch(
    file: str,
    kernel: str,
    macros: tuple[str, ...],
    grid: Sequence[int],
    block: Sequence[int],
    shared_bytes: int,
    args: Sequence[np.generic | np.ndarray],
    schedule: int = 0,
) -> None:
    """Run a kernel; arguments are NumPy scalars of the kernel's types, and arrays where it takes pointers."""
    values = [np.uint64(arg.ctypes.data) if isinstance(arg, np.ndarray) else arg for arg in args]
    buffers = [ctypes.create_string_buffer(value.tobytes(), value.nbytes) for value in values]
    pointers = (ctypes.c_void_p * len(buffers))(*(ctypes.addressof(b) for b in buffers))
    sizes = (ctypes.c_uint * len(values))(*(value.nbytes for value in values))
    shape = (ctypes.c_uint * 6)(*grid, *[1] * (3 - len(grid)), *block, *[1] * (3 - len(block)))
    error = compiled(file, kernel, macros)(
        shape, shared_bytes, schedule, pointers, sizes, len(values)
    )
    if error:
        raise RuntimeError(f"{file}: {error.decode()}")
