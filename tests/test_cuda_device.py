"""CUDA devices, their streams, kernels and structures: used where they should be, made once, missed clearly."""

from __future__ import annotations

import gc
import sys
import weakref
from concurrent.futures import ThreadPoolExecutor
from threading import Barrier, Lock
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import torch

import grass_rs as grass
import specs
from cuda_on_cpu.calls import (
    GAUSSIAN,
    LOGRA,
    TORCH_STREAM,
    K,
    P,
    as_numpy,
    assert_projected,
    every_library,
    installed,
    on_cupy,
    on_torch,
    project,
    project_factors,
    rows,
)
from cuda_on_cpu.fake_cupy import CompileException, CUDADriverError, CUDARuntimeError, FakeCupy
from grass_rs import _backends
from grass_rs._backends.cuda import device as device_module
from grass_rs._backends.cuda import libraries, modules, programs
from grass_rs._backends.cuda.device import CudaDevice
from grass_rs._backends.cuda.launch import Kernel, Launch

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from numpy.typing import NDArray


@pytest.fixture
def idle_cupy(monkeypatch: pytest.MonkeyPatch) -> Iterator[FakeCupy]:
    """Return a CuPy whose launches do nothing: the emulator runs one kernel at a time."""
    with installed(monkeypatch, FakeCupy(run=False)) as fake:
        yield fake


# Devices and streams


def test_work_goes_to_the_device_of_the_array(cupy: FakeCupy) -> None:
    assert_projected(project(on_cupy(rows(), 1)), rows())
    for kind in ("compile", "empty", "launch"):
        assert {device for device, *_ in cupy.logged(kind)} == {1}
    assert cupy.logged("device") == [[1], [0]]
    cupy.log.clear()
    project(on_cupy(rows(), 0))
    assert cupy.logged("device") == []
    assert {device for device, *_ in cupy.logged("launch")} == {0}


def test_device_is_restored_after_an_error(cupy: FakeCupy) -> None:
    cupy.error = CUDADriverError("CUDA_ERROR_LAUNCH_FAILED")
    with pytest.raises(grass.DeviceError):
        project(on_cupy(rows(), 1))
    assert cupy.current == 0


def test_structures_are_on_the_device_of_the_array(cupy: FakeCupy) -> None:
    arguments = specs.inputs(LOGRA.spec, 2)
    for ordinal in (1, 0, 1):
        result = project_factors(*(on_cupy(x, ordinal) for x in arguments))
        assert_projected(result, *arguments, compressor=LOGRA)
    assert [device for device, *_ in cupy.logged("upload")] == [1, 1, 0, 0]


def test_streams(cupy: FakeCupy) -> None:
    project(on_torch(rows()))
    cupy.stream = SimpleNamespace(ptr=99, is_capturing=lambda: False)
    project(on_cupy(rows()))
    assert [stream for _, _, stream, _ in cupy.logged("launch")] == [TORCH_STREAM] * 2 + [99] * 2


def test_streams_of_cupy_13(cupy: FakeCupy) -> None:
    made = []

    def external(pointer: int, device: int) -> Any:
        made.append((pointer, device))
        return SimpleNamespace(ptr=pointer)

    cupy.cuda.Stream = SimpleNamespace()
    cupy.cuda.ExternalStream = external
    project(on_torch(rows(), 1))
    project(on_torch(rows(), 1))
    assert made == [(TORCH_STREAM, 1)]
    assert {stream for _, _, stream, _ in cupy.logged("launch")} == {TORCH_STREAM}


def test_torch_allocates_what_torch_uses(cupy: FakeCupy) -> None:
    project(on_torch(rows()))
    project_factors(*map(on_torch, specs.inputs(LOGRA.spec, 2)))
    assert not cupy.logged("empty")
    assert not cupy.logged("upload")


# What is made once


def test_kernels_compile_once_a_device(cupy: FakeCupy) -> None:
    def compiled() -> list[Any]:
        return [(device, kernel.file) for device, kernel, _ in cupy.logged("compile")]

    project(on_cupy(rows()))
    assert compiled() == [(0, "gaussian.cu"), (0, "sum.cu")]
    project(on_torch(rows(5)))
    project(on_cupy(rows()), compressor=grass.Gaussian(P, K, seed=8))
    assert len(compiled()) == 2
    project(on_cupy(rows().astype(np.float16)))
    assert compiled()[2:] == [(0, "gaussian.cu")]
    project(on_cupy(rows(), 1))
    assert compiled()[3:] == [(1, "gaussian.cu"), (1, "sum.cu")]
    assert {options for _, _, options in cupy.logged("compile")} == {("-std=c++17",)}


class MeetingLock:
    """A lock that all threads reach before the first gets it."""

    def __init__(self, barrier: Barrier) -> None:
        self._barrier, self._lock = barrier, Lock()

    def __enter__(self) -> None:
        self._barrier.wait()
        self._lock.acquire()

    def __exit__(self, *_: object) -> None:
        self._lock.release()


def test_threads_share_kernels_and_structures(
    idle_cupy: FakeCupy, monkeypatch: pytest.MonkeyPatch
) -> None:
    threads = 4
    barrier = Barrier(threads, timeout=60)
    for module in (modules, programs):
        monkeypatch.setattr(module, "_lock", MeetingLock(barrier))
    monkeypatch.setattr(device_module, "Lock", lambda: MeetingLock(barrier))
    x, arguments = rows(), specs.inputs(LOGRA.spec, 2)

    def work(_: int) -> None:
        project(on_cupy(x))
        project_factors(*map(on_cupy, arguments))

    with ThreadPoolExecutor(threads) as pool:
        list(pool.map(work, range(threads)))
    assert len(idle_cupy.logged("launch")) == 2 * threads
    assert len(idle_cupy.logged("compile")) == 2
    assert len(idle_cupy.logged("upload")) == 2


def test_constants_are_made_once(cupy: FakeCupy) -> None:
    device = CudaDevice(libraries._cupy_library(0))
    made = []

    def make() -> NDArray[np.uint32]:
        made.append(1)
        return np.arange(6, dtype=np.uint32).reshape(2, 3)[:, ::2]

    first, again = device.constant(("a",), make), device.constant(("a",), make)
    other = device.constant(("b",), make)
    assert first is again
    assert first is not other
    assert len(made) == len(cupy.logged("upload")) == 2
    assert (first.shape, first.strides, first.dtype) == ((2, 2), (2, 1), "uint32")
    np.testing.assert_array_equal(first.owner.values, [[0, 2], [3, 5]])


@pytest.mark.usefixtures("cupy")
@pytest.mark.parametrize("dtype", ["uint8", "uint32", "int32", "uint64", "int64", "float32"])
@every_library
def test_constants_of_any_dtype(on: Callable[..., Any], dtype: str) -> None:
    values = np.arange(5).astype(dtype)
    values.flags.writeable = False
    library = libraries.library_of(on(rows()))
    assert library is not None
    device = CudaDevice(library)
    constant = device.constant(("a",), lambda: values)
    assert constant.dtype == device.empty((2, 3), dtype).dtype == dtype
    np.testing.assert_array_equal(as_numpy(constant.owner), values)


def test_structures_die_with_their_compressor(cupy: FakeCupy) -> None:
    compressor = grass.LoGra(9, 7, 3, 2, seed=11)
    project_factors(*map(on_cupy, specs.inputs(LOGRA.spec, 2)), compressor=compressor)
    structure = weakref.ref(programs.structure_of(compressor._native))
    (device,) = structure()._devices.values()  # type: ignore[union-attr]
    memory = [weakref.ref(constant.owner) for constant in device._constants.values()]
    assert len(memory) == 2
    del device, compressor
    gc.collect()
    assert structure() is None
    assert [kept() for kept in memory] == [None, None]
    assert len(cupy.logged("upload")) == 2


def test_every_type_has_a_program() -> None:
    assert set(programs._PROGRAMS) == set(specs._CONSTRUCTORS)


# Capture into a CUDA graph


@every_library
def test_first_call_during_capture(
    cupy: FakeCupy, on: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    capturing = True
    monkeypatch.setattr(torch.cuda, "is_current_stream_capturing", lambda: capturing)
    cupy.stream = SimpleNamespace(ptr=5, is_capturing=lambda: capturing)
    x, factors = on(rows()), [on(x) for x in specs.inputs(LOGRA.spec, 2)]
    with pytest.raises(
        grass.DeviceError, match=r"gaussian.cu is not loaded on cuda:0.*once before"
    ):
        project(x)
    with pytest.raises(grass.DeviceError, match=r"structure is not on cuda:0.*once before"):
        project_factors(*factors)
    assert not cupy.logged("compile")
    capturing = False
    project(x)
    project_factors(*factors)
    capturing = True
    assert_projected(project(x), rows())
    project_factors(*factors)


def test_default_stream_is_not_asked_about_capture(cupy: FakeCupy) -> None:
    assert not hasattr(cupy.stream, "is_capturing")
    project(on_cupy(rows()))
    assert cupy.logged("launch")


# Launches


def device_with_kernel() -> tuple[CudaDevice, Callable[..., Launch]]:
    def launch(shared_bytes: int = 0, grid: tuple[int, int, int] = (1, 1, 1)) -> Launch:
        return Launch(Kernel("sum.cu", "add_parts", ()), grid, (32, 1, 1), shared_bytes)

    return CudaDevice(libraries._cupy_library(0)), launch


def test_much_shared_memory_is_asked_for_once(idle_cupy: FakeCupy) -> None:
    device, launch = device_with_kernel()
    for shared_bytes in (1000, 48 * 1024, 60_000, 50_000, 60_000, 70_000):
        device.launch(launch(shared_bytes), ())
    assert idle_cupy.logged("shared") == [[0, 60_000], [0, 70_000]]
    assert len(idle_cupy.logged("launch")) == 6


@pytest.mark.parametrize("grid", [(0, 1, 1), (1, 0, 1)])
def test_empty_grid_launches_nothing(idle_cupy: FakeCupy, grid: tuple[int, int, int]) -> None:
    device, launch = device_with_kernel()
    device.launch(launch(grid=grid), ())
    assert not idle_cupy.log


def test_failed_launch_leaves_the_layer_usable(cupy: FakeCupy) -> None:
    project(on_cupy(rows()))
    cupy.error = CUDADriverError("CUDA_ERROR_LAUNCH_OUT_OF_RESOURCES: too many resources")
    with pytest.raises(
        grass.DeviceError, match=r"gaussian.cu did not start on cuda:0 \(sm_90\).*OUT_OF_RESOURCES"
    ):
        project(on_cupy(rows()))
    assert_projected(project(on_cupy(rows())), rows())
    assert len(cupy.logged("compile")) == 2


# What is missing


def test_compile_failure(cupy: FakeCupy) -> None:
    cupy.compile_error = CompileException("gaussian.cu(12): error: no")
    for _ in range(2):
        with pytest.raises(grass.DeviceError) as failed:
            project(on_cupy(rows()))
        line, log = str(failed.value).split("\n")
        assert line.startswith(
            "gaussian.cu with Scalar=float NORMAL=1 ROWS=16 for sm_90 does not compile"
        )
        assert "grass_rs[cuda12]" in line
        assert log == "gaussian.cu(12): error: no"
    cupy.compile_error = None
    assert_projected(project(on_cupy(rows())), rows())


@pytest.mark.parametrize(
    ("error", "message"),
    [
        (
            RuntimeError('Failure finding "libnvrtc.so.13"\nNo such file'),
            "pip install nvidia-cuda-nvrtc",
        ),
        (
            RuntimeError("Failed to find CUDA headers. Please install them or specify CUDA_PATH"),
            "pip install nvidia-cuda-nvrtc and nvidia-cuda-runtime",
        ),
        (
            CUDADriverError("CUDA_ERROR_INVALID_IMAGE: invalid"),
            "INVALID_IMAGE.*update the NVIDIA driver",
        ),
        (
            CUDADriverError("CUDA_ERROR_OUT_OF_MEMORY: out of memory"),
            "free some of the device's memory",
        ),
    ],
    ids=["nvrtc", "headers", "image", "memory"],
)
def test_kernels_that_cannot_be_loaded(cupy: FakeCupy, error: Exception, message: str) -> None:
    cupy.compile_error = error
    with pytest.raises(
        grass.DeviceError, match=f"gaussian.cu .* for sm_90 cannot be loaded.*{message}"
    ) as failed:
        project(on_torch(rows()))
    assert "\n" not in str(failed.value)


def test_old_driver(cupy: FakeCupy) -> None:
    def insufficient(_: int) -> None:
        raise CUDARuntimeError("cudaErrorInsufficientDriver: CUDA driver version is insufficient")

    cupy.cuda.Device = insufficient
    with pytest.raises(
        grass.DeviceError,
        match=r"InsufficientDriver.*driver serves CUDA 12\.4.*needs CUDA 13\.2.*update",
    ):
        project(on_torch(rows()))


@pytest.mark.parametrize(("capability", "runs"), [("61", False), ("70", True), ("103", True)])
def test_old_architecture(monkeypatch: pytest.MonkeyPatch, capability: str, runs: bool) -> None:
    with installed(monkeypatch, FakeCupy(capability=capability)):
        if runs:
            project(on_cupy(rows()))
            return
        with pytest.raises(grass.DeviceError, match="sm_61, the kernels need sm_70"):
            project(on_cupy(rows()))


def test_out_of_memory_in_cupy(cupy: FakeCupy) -> None:
    cupy.most_bytes = 1000
    with pytest.raises(
        grass.DeviceError,
        match=r"Gaussian: cuda:0 .* 1000 bytes are free: .*allocating 6,400 bytes",
    ):
        project(on_cupy(rows(100)))
    cupy.most_bytes = 1 << 30
    assert_projected(project(on_cupy(rows())), rows())


def test_out_of_memory_in_torch(cupy: FakeCupy, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: Any, **__: Any) -> None:
        raise torch.cuda.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 GiB.")

    x = on_torch(rows())
    monkeypatch.setattr(torch, "empty", full)
    with pytest.raises(grass.DeviceError, match=r"cuda:0 .* 1234 bytes are free: .*20\.00 GiB"):
        project(x)
    assert not cupy.logged("launch")


def test_without_cupy(cupy: FakeCupy, monkeypatch: pytest.MonkeyPatch) -> None:
    calls = []

    def compress(*arguments: Any) -> str:
        calls.append(arguments)
        return "result"

    fallback = SimpleNamespace(compress_rows=compress, compress_factors=compress)
    monkeypatch.setattr(_backends, "torch_device", fallback, raising=False)
    monkeypatch.setitem(sys.modules, "grass_rs._backends.torch_device", fallback)
    monkeypatch.setitem(sys.modules, "cupy", None)
    x, out = on_torch(rows()), torch.empty(3, K)
    with pytest.warns(UserWarning, match=r"slower.*pip install 'grass_rs\[cuda\]'"):
        project(x, out)
    # Warnings are errors here: it is said once.
    assert project_factors(x, x, bias=True) == "result"
    assert project(x) == "result"
    assert calls == [
        (GAUSSIAN._native, "Gaussian", x, out),
        (LOGRA._native, "LoGra", x, x, True, None),
        (GAUSSIAN._native, "Gaussian", x, None),
    ]
    assert not cupy.log


# The real CuPy


def test_what_is_used_of_cupy_exists() -> None:
    cupy = pytest.importorskip("cupy")
    modelled = FakeCupy()
    for name in ("ndarray", "empty", "asarray", "ascontiguousarray", "matmul", "add", "RawModule"):
        assert hasattr(cupy, name)
    for name in vars(modelled.cuda):
        assert hasattr(cupy.cuda, name), name
        inner = getattr(modelled.cuda, name)
        if isinstance(inner, SimpleNamespace):
            assert all(hasattr(getattr(cupy.cuda, name), part) for part in vars(inner)), name
    assert hasattr(cupy.RawKernel, "max_dynamic_shared_size_bytes")
    assert hasattr(cupy.cuda.Stream, "from_external") or hasattr(cupy.cuda, "ExternalStream")
    stream = modules.cupy_stream(0, TORCH_STREAM)
    assert stream.ptr == TORCH_STREAM


REAL_CUPY = """
import sys
from grass_rs._backends.cuda import modules
from grass_rs.errors import DeviceError
import cupy
if cupy.cuda.is_available():
    print("cuda")
    sys.exit()
try:
    with modules.current_device(0):
        print("no error")
except DeviceError as error:
    print(error)
"""


def test_cupy_without_a_device_is_one_clear_error(run_script: Callable[..., str]) -> None:
    pytest.importorskip("cupy")
    printed = run_script(REAL_CUPY)
    if printed != "cuda\n":
        assert printed.startswith("cuda:0 cannot be used: ")
        assert printed.count("\n") == 1
