"""NVRTC on the CUDA sources: every kernel compiles for every architecture, within what it may use."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from cuda_launches import CASES
from cuda_on_cpu.device import RecordingDevice
from cuda_on_cpu.emulator import HERE, build
from grass_rs._backends.cuda import cyclic
from grass_rs._backends.cuda.gaussian import ROW_TILES, projection_launch
from grass_rs._backends.cuda.sources import KERNELS, source
from nvrtc import compile_source, resources

if TYPE_CHECKING:
    from pathlib import Path

    from grass_rs._backends.cuda.launch import Kernel, Launch

ARCHITECTURES = {75: "sm_75", 80: "sm_80", 90: "sm_90", 100: "sm_100"}
SHARED_BYTES = {75: 64 << 10, 80: 163 << 10, 90: 227 << 10, 100: 227 << 10}
"""Of a block, at most."""
REGISTERS = 65536
"""Of a multiprocessor, given to warps in pieces of 8 a thread."""

CEILINGS = {
    "add_parts": 32,  # 2048 threads on a multiprocessor
    "cyclic": 64,  # four blocks on a multiprocessor
    "cyclic of kept coordinates": 128,  # two blocks
    "factgrass": 128,  # two blocks on a multiprocessor
    "iid": 128,
    "iid of kept coordinates": 128,
    "mask": 64,
    "product": 64,
    "project": 128,
    "tile": 168,  # three blocks
    "tile_tensor": 255,  # one block on a multiprocessor: a warp holds 64 x 64 sums
    "words": 32,
}
"""Registers a thread, by kernel; twice as many on sm_75, which has half as many threads."""


def launches(name: str, compute_capability: int) -> list[Launch]:
    """Return what a case launches, with inputs of each dtype it takes."""
    case, device = CASES[name], RecordingDevice(compute_capability)
    for dtype in case.dtypes:
        case.run(device, dtype)
    return list(dict.fromkeys(device.launches))


def described(kernel: Kernel) -> str:
    """Return a kernel's name, and whether it reads through a mask."""
    return kernel.name + (" of kept coordinates" if "GATHER=1" in kernel.macros else "")


@pytest.mark.parametrize(
    ("name", "compute_capability"),
    [(name, c) for name in CASES for c in ARCHITECTURES if c >= CASES[name].compute_capability],
)
def test_kernels_keep_to_their_registers(name: str, compute_capability: int) -> None:
    launched = launches(name, compute_capability)
    assert launched
    for launch in launched:
        assert_kept(launch, compute_capability)


@pytest.mark.parametrize("index", [None, "i64"])
def test_many_rows_keep_to_the_registers_of_few(index: str | None) -> None:
    launch, _ = cyclic.launch(cyclic.cut(2**24, 4096), 32, 1, "float32", index)
    assert "ROWS=4" in launch.kernel.macros
    assert_kept(launch, 90)


@pytest.mark.parametrize("normal", [False, True])
def test_a_projection_of_many_rows_keeps_to_the_registers_of_one(normal: bool) -> None:
    for rows in ROW_TILES:
        assert_kept(projection_launch(rows, 4096, 8, "float32", normal=normal), 90)


def assert_kept(launch: Launch, compute_capability: int) -> None:
    kernel, (x, y, z) = launch.kernel, launch.block
    needs = resources(kernel.file, kernel.macros, ARCHITECTURES[compute_capability])
    assert needs.spilled_bytes == needs.stack_bytes == needs.shared_bytes == 0, kernel
    ceiling = CEILINGS[described(kernel)] * (2 if compute_capability == 75 else 1)
    assert needs.registers <= ceiling, (kernel, needs)
    assert -(-needs.registers // 8) * 8 * x * y * z <= REGISTERS, (launch, needs)
    assert launch.shared_bytes <= SHARED_BYTES[compute_capability], launch


def test_every_ceiling_is_of_a_kernel() -> None:
    names = {described(launch.kernel) for name in CASES for launch in launches(name, 90)}
    assert names == set(CEILINGS)


# sources.source


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Return a folder of sources, two of which do not compile where MISTAKE says."""
    mistake = "#if MISTAKE == {}\nint no = missing;\n#endif\n"
    outer = f'#pragma once\n\n#include "inner.cuh"\n\n{mistake.format(1)}'
    inner = f'#pragma once\n#include "common.cuh"\n{mistake.format(2)}'
    main = f'// A kernel.\n\n#include "inner.cuh"\n#include "outer.cuh"\n#include "common.cuh"\n{mistake.format(3)}'
    kernel = 'extern "C" __global__ void main_kernel(u32* out) { out[threadIdx.x] = 0; }\n'
    for name, text in {"outer.cuh": outer, "inner.cuh": inner, "main.cu": main + kernel}.items():
        (tmp_path / name).write_text(text, encoding="utf-8")
    return tmp_path


def test_source_has_each_header_once(folder: Path) -> None:
    text = source("main.cu", (folder, KERNELS))
    for once in ("struct Words {", '"inner.cuh"\n\n', "#if MISTAKE == 1", "half_bits_to_float(uns"):
        assert text.count(once) == 1, once
    assert "#include" not in text
    assert "#pragma once" not in text
    for arch in ARCHITECTURES.values():
        assert compile_source(text, "main.cu", ("MISTAKE=0",), arch)[0]


@pytest.mark.parametrize(
    ("mistake", "file", "line"), [(1, "outer.cuh", 6), (2, "inner.cuh", 4), (3, "main.cu", 7)]
)
def test_errors_name_file_and_line(folder: Path, mistake: int, file: str, line: int) -> None:
    macros = (f"MISTAKE={mistake}",)
    with pytest.raises(
        RuntimeError, match=rf"main.cu does not compile for sm_80[^$]*{file}\({line}\): error"
    ):
        compile_source(source("main.cu", (folder, KERNELS)), "main.cu", macros, "sm_80")
    text = source("main.cu", (folder, HERE, KERNELS))
    with pytest.raises(RuntimeError, match=rf"{file}:{line}:\d+: error: .missing."):
        build("main_kernel", text, ["-shared", f"-D{macros[0]}"])


def test_first_folder_comes_first(folder: Path) -> None:
    assert "cvt.f32.f16" in source("platform.cuh")
    assert "cvt.f32.f16" not in source("platform.cuh", (HERE, KERNELS))
    with pytest.raises(FileNotFoundError, match=r"kernels/other\.cuh"):
        source("other.cuh", (folder, KERNELS))


def test_kernels_include_what_source_writes_out() -> None:
    """An #include in another form would be left to NVRTC, which has no folder to look in."""
    files = [*KERNELS.glob("*.cu"), *HERE.glob("*.cu")]
    assert len(files) > 4
    for file in files:
        assert "#include" not in source(file.name, (KERNELS, HERE)), file
