"""Count the machine instructions of the CUDA kernels' inner loops, which needs no GPU.

Each kernel is compiled for a GPU, as the call that is named would have it, and disassembled. Of the loop
that does most, the path that does most is counted: what a multiprocessor must issue for
every value that it reads, or every product of a tensor core. Beside it stands what it can issue in the
time that the memory takes to deliver the value, or the tensor core for the product. Above 1, the kernel
is bound by instructions and stays below the bandwidth, or the tensor cores' peak.
"""

from __future__ import annotations

import re
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

import grass_rs as grass
from grass_rs._backends.cuda.launch import DeviceArray
from grass_rs._backends.cuda.programs import Structure
from grass_rs._backends.cuda.sources import source

ROOT = Path(__file__).parents[2]
sys.path.append(str(ROOT / "tests"))

import nvrtc  # noqa: E402 - needs the path above

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from grass_rs._backends.cuda.launch import Launch

ARCHITECTURE = "sm_90"
BANDWIDTH = 4.8e12
"""Bytes a second from an H200's memory, by its data sheet."""
ISSUES = 132 * 4 * 32 * 1.755e9
"""Instructions of threads a second of an H200: multiprocessors, schedulers, lanes, clock."""
ISSUES_A_PRODUCT = 4
"""Cycles in which a tensor core of it multiplies 16 x 8 x 16, and a scheduler issues as many instructions."""

_INSTRUCTION = re.compile(r"/\*[0-9a-f]{4,}\*/\s+(@\S+\s+)?([A-Z][A-Z0-9_.]*)([^;]*);")
_LABEL = re.compile(r"(\.L_x_\d+):")
_TARGET = re.compile(r"\((\.L_x_\d+)\)")


@dataclass(frozen=True)
class Instruction:
    """An instruction, and where it goes on."""

    name: str
    conditional: bool
    target: str
    """Label that a branch goes to; empty for other instructions."""


class Recorder:
    """A device that remembers launches instead of making them."""

    compute_capability = 90

    def __init__(self) -> None:
        self.launches: list[Launch] = []

    def array(self, shape: tuple[int, ...], dtype: str) -> DeviceArray:
        """Return an array without memory."""
        strides = tuple(int(np.prod(shape[axis + 1 :])) for axis in range(len(shape)))
        return DeviceArray(0, shape, strides, dtype, None)

    def empty(self, shape: tuple[int, ...], dtype: str = "float32") -> DeviceArray:
        """Return an array without memory."""
        return self.array(shape, dtype)

    def constant(self, _key: tuple[str, ...], make: Callable[[], Any]) -> DeviceArray:
        """Return an array without memory, like the one that would be made."""
        values = make()
        return self.array(values.shape, values.dtype.name)

    def launch(self, launch: Launch, _args: Sequence[np.generic]) -> None:
        """Remember."""
        self.launches.append(launch)


def disassemble(launch: Launch) -> tuple[list[Instruction], dict[str, int], float]:
    """Return a kernel's instructions, the place that each label stands before, and the seconds to compile it."""
    kernel, begin = launch.kernel, time.perf_counter()
    code, _ = nvrtc.compile_source(source(kernel.file), kernel.file, kernel.macros, ARCHITECTURE)
    seconds = time.perf_counter() - begin
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(code)
        file.flush()
        command = [str(_nvdisasm()), "-c", file.name]
        text = subprocess.run(command, capture_output=True, text=True, check=True).stdout  # noqa: S603
    instructions, labels = [], {}
    for line in text.splitlines():
        if label := _LABEL.match(line.strip()):
            labels[label[1]] = len(instructions)
        if found := _INSTRUCTION.search(line):
            target = _TARGET.search(found[3]) if found[2] == "BRA" else None
            instructions.append(Instruction(found[2], bool(found[1]), target[1] if target else ""))
    return instructions, labels, seconds


def _nvdisasm() -> Path:
    spec = find_spec("triton")
    for folder in (spec and spec.submodule_search_locations) or ():
        for path in Path(folder).glob("**/bin/nvdisasm"):
            return path
    raise SystemExit("gpu_instructions expects nvdisasm, which torch for Linux brings with triton")


def loops_of(instructions: list[Instruction], labels: dict[str, int]) -> Iterator[tuple[int, int]]:
    """Yield the first and last place of every loop."""
    for place, instruction in enumerate(instructions):
        if instruction.target and labels[instruction.target] < place:
            yield labels[instruction.target], place


def best_path(
    instructions: list[Instruction], labels: dict[str, int], loop: tuple[int, int], work: str
) -> tuple[int, int]:
    """Return the work of the path through a loop that does most, and the instructions of the shortest such path.

    Of a loop inside, the path takes one round.
    """
    begin, end = loop
    none = (-1, 0)
    best = {end: (0, -1)}
    for place in range(end - 1, begin - 1, -1):
        here = instructions[place]
        follow = []
        if here.target:
            follow.append(best.get(labels[here.target], none))
        if not here.target or here.conditional:
            follow.append(best.get(place + 1, none))
        done, length = max(follow)
        best[place] = none if done < 0 else (done + here.name.startswith(work), length - 1)
    done, length = best[begin]
    return done, -length


def values_a_read(instructions: list[Instruction], loop: tuple[int, int], item_bytes: int) -> float:
    """Return the values that a read of the loop brings, on average."""
    widths = []
    for instruction in instructions[loop[0] : loop[1]]:
        if instruction.name.startswith("LDG"):
            bits = re.search(r"\.(U8|U16|64|128)\b", instruction.name)
            bytes_read = {"U8": 1, "U16": 2, "64": 8, "128": 16}[bits[1]] if bits else 4
            widths.append(bytes_read / item_bytes)
    return sum(widths) / len(widths)


def cases() -> Iterator[tuple[str, Launch, str, int]]:
    """Yield name, launch, the instruction that does the work, and the bytes of a value."""
    p, k = 2**24, 4096
    for dtype, size in (("float32", 4), ("bfloat16", 2)):
        for n in (1, 2, 32):
            launch = _launches(grass.SJLT(p, k, seed=0), dtype, (n, p))[0]
            yield f"cyclic {dtype} n={n}, p=2^24", launch, "LDG", size
    d, tokens = 4096, 1024
    for name, compressor in (
        ("FactGraSS", grass.FactGraSS(d, d, k, seed=0)),
        ("tile", grass.TileSketch(d, d, k, seed=0)),
    ):
        shape = (8, tokens, d)
        launch = _launches(compressor, "bfloat16", shape, shape)[0]
        yield f"{name} bfloat16, {d} to {d}", launch, "HMMA", 2


def _launches(compressor: Any, dtype: str, *shapes: tuple[int, ...]) -> list[Launch]:
    device = Recorder()
    arrays = [device.array(shape, dtype) for shape in shapes]
    out = device.array((shapes[0][0], compressor.output_dim), "float32")
    program = Structure(compressor._native).program  # noqa: SLF001 - the benches know the insides
    if len(arrays) == 2:
        program.run(device, *arrays, out, bias=False)
    else:
        program.run(device, *arrays, out)
    return device.launches


def main() -> None:
    """Print a line a kernel."""
    print(
        f"{ARCHITECTURE}; available: what an H200 issues while memory or tensor core does the work"
    )
    for name, launch, work, size in cases():
        instructions, labels, seconds = disassemble(launch)
        paths = {
            loop: best_path(instructions, labels, loop, work)
            for loop in loops_of(instructions, labels)
        }
        loop, (done, count) = max(paths.items(), key=lambda item: (item[1][0], -item[1][1]))
        if work == "LDG":
            done *= values_a_read(instructions, loop, size)
            available, of = ISSUES / (BANDWIDTH / size), "value read"
        else:
            available, of = ISSUES_A_PRODUCT, "tensor product"
        print(
            f"{name:32} {count / done:5.1f} instructions a {of}, {available:4.1f} available: "
            f"{count / done / available:.2f}; compiled in {seconds:.1f} s"
        )


if __name__ == "__main__":
    main()
