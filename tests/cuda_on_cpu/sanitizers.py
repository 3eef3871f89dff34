"""Launches under the compiler's sanitizers, each in a process of its own."""

from __future__ import annotations

import ctypes
import os
import struct
import subprocess
import tempfile
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from cuda_on_cpu.device import RecordingDevice
from cuda_on_cpu.emulator import HERE, SANITIZERS, build, library, types_of

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

    from grass_rs._backends.cuda.launch import Launch

_OPTIONS = {
    "ASAN_OPTIONS": "detect_leaks=0",
    "UBSAN_OPTIONS": "print_stacktrace=1",
    "TSAN_OPTIONS": "halt_on_error=1:atexit_sleep_ms=0",
}
_RANDOM_BITS = Path("/proc/sys/vm/mmap_rnd_bits")
_MOST_RANDOM_BITS = 28
"""ThreadSanitizer of gcc before 14 does not start where addresses are more random than this."""


class SanitizedDevice(RecordingDevice):
    """Runs launches under a sanitizer; what it finds is a RuntimeError.

    "address" finds accesses outside of arrays and shared memory, to the byte, and undefined behaviour.
    "thread" finds accesses of two threads, of one block or of two, that no barrier orders.
    """

    def __init__(self, sanitizer: str, compute_capability: int = 90) -> None:
        super().__init__(compute_capability)
        self.sanitizer = sanitizer

    def launch(self, launched: Launch, args: Sequence[np.generic]) -> None:
        super().launch(launched, args)
        roots = list({id(root): root for root in map(_root, self.arrays)}.values())
        types = types_of(args)
        numbers = [*launched.grid, *launched.block, launched.shared_bytes, 0]
        numbers += [len(args), len(roots), len(types)]
        for arg in args:
            numbers += _argument(arg, roots)
        for root in roots:
            numbers += [root.ctypes.data, root.nbytes]
        header = struct.pack(f"<{len(numbers)}Q", *numbers) + types
        with tempfile.TemporaryDirectory() as folder:
            file = Path(folder) / "launch"
            file.write_bytes(header + b"".join(map(_bytes_of, roots)))
            code = library(launched.kernel, self.sanitizer)
            done = subprocess.run(
                [*_fixed_addresses(), str(_runner(self.sanitizer)), str(code), str(file)],
                env={**os.environ, **_OPTIONS},
                capture_output=True,
                text=True,
                check=False,
            )
            if done.returncode:
                raise RuntimeError(
                    f"{launched.kernel.file}: exit status {done.returncode}\n{done.stderr}"
                )
            results = file.read_bytes()[len(header) :]
        for root in roots:
            if root.flags.writeable:
                ctypes.memmove(root.ctypes.data, results[: root.nbytes], root.nbytes)
            results = results[root.nbytes :]


def _root(values: NDArray[Any]) -> NDArray[Any]:
    """Return the array whose memory `values` is a part of."""
    while isinstance(values.base, np.ndarray):
        values = values.base
    assert values.flags.forc
    return values


def _bytes_of(root: NDArray[Any]) -> bytes:
    return ctypes.string_at(root.ctypes.data, root.nbytes)


def _argument(arg: np.generic, roots: Sequence[NDArray[Any]]) -> tuple[int, int]:
    """Return the array that an argument points to and the offset there, or 2^64 - 1 and its value."""
    value = int.from_bytes(arg.tobytes(), "little")
    for i, root in enumerate(roots):
        if arg.dtype == np.uint64 and 0 <= value - root.ctypes.data < max(1, root.nbytes):
            return i, value - root.ctypes.data
    return 2**64 - 1, value


@cache
def _runner(sanitizer: str) -> Path:
    text = (HERE / "runner.cpp").read_text(encoding="utf-8")
    return build("runner", text, [*SANITIZERS[sanitizer], "-ldl"])


def _fixed_addresses() -> list[str]:
    random = _RANDOM_BITS.exists() and int(_RANDOM_BITS.read_text()) > _MOST_RANDOM_BITS
    return ["setarch", "--addr-no-randomize"] if random else []
