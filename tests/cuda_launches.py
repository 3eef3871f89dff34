"""One small launch of every kernel: what the tests of all kernels run."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import ml_dtypes  # noqa: F401 - gives NumPy its bfloat16
import numpy as np

import reference
import specs
from cuda_on_cpu.emulator import guarded
from grass_rs._backends.cuda.factgrass import FactGraSSProgram
from grass_rs._backends.cuda.gaussian import GaussianProgram
from grass_rs._backends.cuda.launch import SCALARS, Kernel, Launch
from grass_rs._backends.cuda.mask import MaskProgram
from grass_rs._backends.cuda.sjlt import GraSSProgram, SJLTProgram
from grass_rs._backends.cuda.sums import add_parts
from grass_rs._backends.cuda.tile import TileProgram

if TYPE_CHECKING:
    from collections.abc import Callable

    from numpy.typing import NDArray

    from cuda_on_cpu.device import RecordingDevice


@dataclass(frozen=True)
class Case:
    """Something that launches."""

    run: Callable[[RecordingDevice, str], NDArray[Any]]
    """Runs on a device with inputs of a dtype, and returns the result."""
    dtypes: tuple[str, ...] = ("float32", "float16", "bfloat16", "float64")
    """Those it takes; the sanitizers see the first."""
    compute_capability: int = 75
    """The least it runs on."""


def compressor(
    program: Callable[[dict[str, Any]], Any],
    spec: dict[str, Any],
    *,
    n: int = 2,
    tokens: int = 5,
    dtypes: tuple[str, ...] = Case.dtypes,
) -> Case:
    """Return the case of a compressor's program on small whole numbers."""
    assert set(dtypes) <= set(SCALARS)

    def run(device: RecordingDevice, dtype: str) -> NDArray[Any]:
        drawn = specs.inputs(spec, n, tokens=tokens)
        arrays = [device.array(guarded(np.rint(2 * array).astype(dtype))) for array in drawn]
        out = device.empty((n, specs.build(spec).output_dim))
        flags = {"bias": False} if specs.is_factorised(spec) else {}
        program(spec).run(device, *arrays, out, **flags)
        return out.owner

    return Case(run, dtypes)


def run_words(device: RecordingDevice, _: str) -> NDArray[Any]:
    count = 100
    numbers = np.arange(count)
    given = [device.array(guarded(numbers.astype(d))) for d in ("u8", "u4", "u8", "u4")]
    words, draws = (device.empty((count,), "uint32") for _ in range(2))
    pointers = [np.uint64(array.pointer) for array in (*given, words, draws)]
    launched = Launch(Kernel("words.cu", "words", ()), (4, 1, 1), (32, 1, 1), 0)
    device.launch(launched, (*pointers[:4], np.uint32(count), *pointers[4:]))
    return np.stack([words.owner, draws.owner])


def run_product(device: RecordingDevice, dtype: str) -> NDArray[Any]:
    steps, count = 3, 3 * 256 - 5
    numbers = np.random.default_rng(0).integers(-8, 9, (2, steps * 256)).astype(dtype)
    a, b = device.array(guarded(numbers[0])), device.array(guarded(numbers[1, :count]))
    out = device.empty((2, 16, 16))
    macros = ("SIZE=16", "TRANSPOSED_A=0", "TRANSPOSED_B=0", "PAIRS=0")
    kernel = Kernel("product.cu", "product", (f"Scalar={SCALARS[dtype]}", *macros))
    pointers = [np.uint64(array.pointer) for array in (a, b, out)]
    args = (*pointers[:2], np.uint32(steps), np.uint32(count), pointers[2])
    device.launch(Launch(kernel, (2, 1, 1), (32, 1, 1), 2048), args)
    return out.owner


def run_sum(device: RecordingDevice, dtype: str) -> NDArray[Any]:
    parts = np.random.default_rng(0).standard_normal((9, 3, 25)).astype(dtype)
    out = device.empty((3, 25))
    add_parts(device, device.array(guarded(parts)), out, 0.5)
    return out.owner


CASES: dict[str, Case] = {
    "words": Case(run_words, ("float32",)),
    "product": Case(run_product, ("float16", "bfloat16"), compute_capability=80),
    "sum": Case(run_sum, ("float32",)),
    "mask": compressor(MaskProgram, reference.random_mask(300, 70, 1)),
    "cyclic": compressor(SJLTProgram, reference.sjlt(5000, 260, 2)),
    "cyclic of slices": compressor(SJLTProgram, reference.sjlt(5000, 1100, 3), n=5),
    "cyclic of teams": compressor(SJLTProgram, reference.sjlt(5000, 66, 4, nnz=2), n=1),
    "cyclic of many batches": compressor(SJLTProgram, reference.sjlt(20_003, 7, 3), n=1),
    "iid": compressor(SJLTProgram, reference.sjlt(3000, 70, 5, kind="iid")),
    "grass": compressor(GraSSProgram, reference.grass(3000, 140, 6)),
    "grass iid": compressor(GraSSProgram, reference.grass(3000, 50, 7, kind="iid")),
    "gaussian": compressor(GaussianProgram, reference.gaussian(300, 70, 8)),
    "rademacher": compressor(GaussianProgram, reference.gaussian(300, 70, 9, kind="rademacher")),
    "factgrass": compressor(FactGraSSProgram, reference.factgrass(40, 30, 50, 1)),
    "factgrass iid": compressor(FactGraSSProgram, reference.factgrass(40, 30, 50, 1, kind="iid")),
    "factgrass on tensor cores": compressor(
        FactGraSSProgram,
        reference.factgrass(140, 90, 4000, 2),
        tokens=70,
        dtypes=("bfloat16", "float16"),
    ),
    "factgrass of many slabs": compressor(
        FactGraSSProgram,
        reference.factgrass(300, 200, 70, 3, mask_in=290, mask_out=190),
        tokens=20,
        dtypes=("bfloat16", "float32"),
    ),
    "tile": compressor(TileProgram, reference.tile(137, 70, 4096, 10)),
    "tile on tensor cores": compressor(
        TileProgram, reference.tile(336, 136, 1024, 11), tokens=70, dtypes=("bfloat16", "float16")
    ),
    "tile on tensor cores, odd": compressor(
        TileProgram, reference.tile(135, 71, 256, 12), tokens=70, dtypes=("bfloat16",)
    ),
    "tile on tensor cores, 64 x 64": compressor(
        TileProgram, reference.tile(136, 72, 4096, 13), tokens=70, dtypes=("bfloat16",)
    ),
}
"""By name; a compressor's is one line, compressor(Program, spec), for every kernel and way it takes."""
