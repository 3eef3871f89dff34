"""NVRTC through ctypes: compiles the CUDA sources without a GPU, a driver or nvcc."""

from __future__ import annotations

import ctypes
import importlib.util
import re
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from cuda_on_cpu.emulator import HERE
from grass_rs._backends.cuda.sources import KERNELS, source


@dataclass(frozen=True)
class Resources:
    """What the assembler says of a kernel."""

    registers: int
    shared_bytes: int
    """Static shared memory."""
    spilled_bytes: int
    stack_bytes: int


@cache
def _library() -> Any:
    spec = importlib.util.find_spec("nvidia")
    for folder in (spec and spec.submodule_search_locations) or ():
        for path in sorted(Path(folder).glob("**/libnvrtc.so.*")):
            return ctypes.CDLL(str(path))
    raise AssertionError(
        "NVRTC compiles the CUDA sources, but no package has it: pip install --group test"
    )


def compile_source(text: str, name: str, macros: tuple[str, ...], arch: str) -> tuple[bytes, str]:
    """Return the machine code and the log; raise with the log where it does not compile."""
    nvrtc = _library()
    program = ctypes.c_void_p()
    assert (
        nvrtc.nvrtcCreateProgram(ctypes.byref(program), text.encode(), name.encode(), 0, None, None)
        == 0
    )
    options = [
        f"--gpu-architecture={arch}",
        "-std=c++17",
        "-ftz=true",  # this and the next as CuPy does
        "--device-as-default-execution-space",
        "--ptxas-options=-v",
        *(f"-D{m}" for m in macros),
    ]
    array = (ctypes.c_char_p * len(options))(*(option.encode() for option in options))
    status = nvrtc.nvrtcCompileProgram(program, len(options), array)
    size = ctypes.c_size_t()
    nvrtc.nvrtcGetProgramLogSize(program, ctypes.byref(size))
    log = ctypes.create_string_buffer(size.value)
    nvrtc.nvrtcGetProgramLog(program, log)
    code = b""
    if status == 0:
        nvrtc.nvrtcGetCUBINSize(program, ctypes.byref(size))
        buffer = ctypes.create_string_buffer(size.value)
        nvrtc.nvrtcGetCUBIN(program, buffer)
        code = buffer.raw
    nvrtc.nvrtcDestroyProgram(ctypes.byref(program))
    if status != 0:
        raise RuntimeError(
            f"{name} does not compile for {arch} with {macros}:\n{log.value.decode()}"
        )
    return code, log.value.decode()


@cache
def resources(file: str, macros: tuple[str, ...], arch: str) -> Resources:
    """Compile a source of the kernels' folder or of the tests', and return what its kernel needs."""
    _, log = compile_source(source(file, (KERNELS, HERE)), file, macros, arch)
    numbers = [int(n) for n in re.findall(r"Used (\d+) registers", log)]
    assert len(numbers) == 1, (
        f"expected one kernel in {file}, the assembler's log has {len(numbers)}:\n{log}"
    )
    spills = sum(int(n) for n in re.findall(r"(\d+) bytes spill", log))
    stack = sum(int(n) for n in re.findall(r"(\d+) bytes stack frame", log))
    shared = sum(int(n) for n in re.findall(r"(\d+) bytes smem", log))
    return Resources(numbers[0], shared, spills, stack)
