"""Kernels compiled by NVRTC and launched through CuPy.

CuPy keeps compiled kernels on disk by the whole source, the options, the architecture and the version of
NVRTC. It always compiles with -ftz=true: float32 numbers below 1.2e-38 count as 0.
"""

from __future__ import annotations

import importlib
from contextlib import contextmanager
from functools import cache, lru_cache
from threading import Lock
from typing import TYPE_CHECKING, Any

from grass_rs._backends.cuda.sources import source
from grass_rs.errors import DeviceError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    import numpy as np

    from grass_rs._backends.cuda.launch import Kernel, Launch

OLDEST_CAPABILITY = 70
DEFAULT_SHARED_BYTES = 48 * 1024
"""Shared memory that a block may have without asking."""
WARM_UP = (
    "this cannot be done while a CUDA graph is captured: make the same call once before the capture"
)
"""What to do about a first call during capture."""


@cache
def missing_cupy() -> str | None:
    """Return why CuPy cannot be imported, None where it can."""
    try:
        importlib.import_module("cupy")
    except ImportError as error:
        return str(error).strip().partition("\n")[0]
    return None


@cache
def _cupy() -> Any:
    return importlib.import_module("cupy")


def _cuda_errors() -> tuple[type[Exception], ...]:
    cuda = _cupy().cuda
    return cuda.driver.CUDADriverError, cuda.runtime.CUDARuntimeError


@cache
def compute_capability(ordinal: int) -> int:
    """Return ten times the major version plus the minor of a device.

    Raises
    ------
    DeviceError
        If there is no such device, its driver is too old, or it is older than sm_70.

    """
    cuda = _cupy().cuda
    try:
        capability = int(cuda.Device(ordinal).compute_capability)
    except _cuda_errors() as error:
        driver, built = cuda.runtime.driverGetVersion(), cuda.runtime.runtimeGetVersion()
        msg = (
            f"cuda:{ordinal} cannot be used: {error}: the driver serves CUDA {_version(driver)}, this "
            f"CuPy needs CUDA {_version(built)}: install or update the NVIDIA driver, or CuPy for "
            f"the driver's CUDA ('grass_rs[cuda]' has CUDA 13, 'grass_rs[cuda12]' CUDA 12)"
        )
        raise DeviceError(msg) from error
    if capability < OLDEST_CAPABILITY:
        msg = (
            f"cuda:{ordinal} has architecture sm_{capability}, the kernels need sm_{OLDEST_CAPABILITY} "
            f"or later: pass CPU arrays, or use a newer device"
        )
        raise DeviceError(msg)
    return capability


def _version(number: int) -> str:
    return f"{number // 1000}.{number % 1000 // 10}" if number else "none"


@contextmanager
def current_device(ordinal: int) -> Iterator[None]:
    """Make a device current for the calling thread, and afterwards the one that was.

    Raises
    ------
    DeviceError
        As `compute_capability`.

    """
    compute_capability(ordinal)
    runtime = _cupy().cuda.runtime
    before = runtime.getDevice()
    if before == ordinal:
        yield
        return
    runtime.setDevice(ordinal)
    try:
        yield
    finally:
        runtime.setDevice(before)


class _ForeignStream:
    """A stream of another library, by the CUDA stream protocol."""

    def __init__(self, address: int) -> None:
        self._address = address

    def __cuda_stream__(self) -> tuple[int, int]:
        return 0, self._address


@lru_cache(maxsize=256)
def cupy_stream(ordinal: int, address: int) -> Any:
    """Return CuPy's view of a stream of another library."""
    cuda = _cupy().cuda
    if hasattr(cuda.Stream, "from_external"):
        return cuda.Stream.from_external(_ForeignStream(address))
    return cuda.ExternalStream(address, ordinal)  # CuPy 13


class _Module:
    """A kernel on a device, and the shared memory that its blocks may have."""

    def __init__(self, raw: Any) -> None:
        self._raw = raw
        self.function: Callable[..., None] = raw.kernel
        self.shared_bytes = DEFAULT_SHARED_BYTES

    def allow(self, shared_bytes: int) -> None:
        """Let blocks have this much, if they have not yet."""
        with _lock:
            if shared_bytes > self.shared_bytes:
                self._raw.max_dynamic_shared_size_bytes = shared_bytes
                self.shared_bytes = shared_bytes


_modules: dict[tuple[int, Kernel], _Module] = {}
_lock = Lock()


def enqueue(
    ordinal: int,
    launch: Launch,
    args: Sequence[np.generic],
    stream: Any | None,
    capturing: Callable[[], bool],
) -> None:
    """Launch a kernel on a device, which is current; compile it before the first time.

    Parameters
    ----------
    ordinal
        Number of the device.
    launch
        The kernel and its grid; an empty grid launches nothing.
    args
        NumPy scalars of the kernel's types.
    stream
        CuPy's view of a stream, None for CuPy's current one.
    capturing
        Whether the stream is being captured into a CUDA graph: no kernel can be loaded then.

    Raises
    ------
    DeviceError
        If the kernel does not compile, load or start.

    """
    if 0 in launch.grid:  # CuPy would launch one block
        return
    module = _modules.get((ordinal, launch.kernel))
    if module is None:
        module = _load(ordinal, launch.kernel, capturing)
    try:
        if launch.shared_bytes > module.shared_bytes:
            module.allow(launch.shared_bytes)
        module.function(
            launch.grid, launch.block, args, shared_mem=launch.shared_bytes, stream=stream
        )
    except _cuda_errors() as error:
        msg = (
            f"{launch.kernel.file} did not start on cuda:{ordinal} (sm_{compute_capability(ordinal)}) with grid "
            f"{launch.grid}, block {launch.block} and {launch.shared_bytes} bytes of shared memory: {error}: if "
            f"every later call fails too, an earlier kernel broke this process's device; restart the process"
        )
        raise DeviceError(msg) from error


def _load(ordinal: int, kernel: Kernel, capturing: Callable[[], bool]) -> _Module:
    with _lock:
        module = _modules.get((ordinal, kernel))
        if module is None:
            if capturing():
                raise DeviceError(f"{kernel.file} is not loaded on cuda:{ordinal} yet: {WARM_UP}")
            module = _modules[ordinal, kernel] = _Module(_compiled(ordinal, kernel))
        return module


def _compiled(ordinal: int, kernel: Kernel) -> Any:
    cupy = _cupy()
    # Macros are written into the source: CuPy compiles an empty file for every new set of options.
    defines = "".join(f"#define {macro.replace('=', ' ', 1)}\n" for macro in kernel.macros)
    code = defines + source(kernel.file)
    module = cupy.RawModule(code=code, options=("-std=c++17",), backend="nvrtc")
    what = f"{kernel.file} with {' '.join(kernel.macros) or 'no macros'} for sm_{compute_capability(ordinal)}"
    try:
        return module.get_function(kernel.name)
    except cupy.cuda.compiler.CompileException as error:
        msg = (
            f"{what} does not compile with CuPy {cupy.__version__}: for devices before sm_75 install "
            f"'grass_rs[cuda12]' (CUDA 13 has given them up), for the newest ones the latest CuPy; the compiler's log:\n{error}"
        )
        raise DeviceError(msg) from error
    except (RuntimeError, ImportError, OSError) as error:
        reason = str(error).strip().partition("\n")[0]
        fix = "update the NVIDIA driver"
        # Where CuPy finds no headers it compiles nothing, not even what includes none.
        if "nvrtc" in reason.lower() or "CUDA_PATH" in reason:
            fix = (
                "NVRTC or the headers are missing: pip install nvidia-cuda-nvrtc and nvidia-cuda-runtime of CuPy's CUDA "
                "version, which torch for CUDA brings along"
            )
        elif "out_of_memory" in reason.lower():
            fix = "free some of the device's memory, which kernels take too"
        raise DeviceError(f"{what} cannot be loaded: {reason}: {fix}") from error
