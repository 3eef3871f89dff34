"""Gaussian and Rademacher in CUDA, run on the CPU: the same numbers as the core's, bit for bit, and their sums."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import ml_dtypes
import numpy as np
import pytest

import grass_rs as grass
import nvrtc
import reference
import specs
from cuda_on_cpu import emulator
from cuda_on_cpu.device import EmulatedDevice
from cuda_on_cpu.emulator import far_apart
from grass_rs._backends.cuda import gaussian
from grass_rs._backends.cuda.gaussian import GaussianProgram, groups_of, projection_launch
from grass_rs._backends.cuda.launch import Kernel, Launch

if TYPE_CHECKING:
    from numpy.typing import NDArray

every_kind = pytest.mark.parametrize("kind", ["normal", "rademacher"])


def run(
    spec: dict[str, Any], x: NDArray[Any], device: EmulatedDevice | None = None
) -> NDArray[np.float32]:
    device = EmulatedDevice() if device is None else device
    out = device.empty((len(x), spec["output_dim"]))
    array = device.array(x)
    if x.flags.c_contiguous:
        array = device.empty(x.shape, x.dtype.name)  # with ends that the emulator guards
        array.owner[...] = x
    GaussianProgram(spec).run(device, array, out)
    result: NDArray[np.float32] = out.owner
    return result


# Numbers


@every_kind
@pytest.mark.parametrize(("p", "k"), [(130, 64), (33, 4), (70, 256), (300, 1)])
def test_entries_are_the_core_s_bit_for_bit(kind: str, p: int, k: int) -> None:
    # The scale is a power of two, and every sum has one term that is not zero.
    spec = reference.gaussian(p, k, 2**63 + 5, kind)
    entries = run(spec, np.eye(p, dtype=np.float32))
    np.testing.assert_array_equal(entries, specs.build(spec).to_dense().T)


def test_normal_numbers_at_the_edges() -> None:
    powers = np.array([1 << power for power in range(32)])
    eighths = np.array([eighth << 29 for eighth in range(8)])
    centers = np.concatenate([powers, eighths, [int(0.5**0.5 * 2**32)]])
    edges = (centers[:, None] + np.arange(-150, 151)).ravel() % 2**32
    random = np.random.default_rng(0).integers(0, 2**32, edges.size)
    ones = np.full(edges.size, 2**32 - 1)
    words = [(edges, random), (random, edges), (ones, edges), (ones * 0, edges), (edges, ones * 0)]
    words = np.concatenate([np.stack(pair, axis=1) for pair in words]).astype(np.uint32)
    numbers = np.empty(words.shape, dtype=np.float32)
    grid = -(-len(words) // 256), 1, 1
    args = words, np.uint32(len(words)), numbers
    kernel = Kernel("normal_pairs.cu", "normal_pairs", ())
    emulator.launch(Launch(kernel, grid, (256, 1, 1), 0), args)
    first, second = words.astype(np.float64).T
    radius = np.sqrt(-2 * np.log((first + 1) / 2**32))
    angle = 2 * np.pi * second / 2**32
    expected = radius[:, None] * np.stack([np.cos(angle), np.sin(angle)], axis=1)
    assert len(words) > 60_000
    assert np.max(np.abs(numbers - expected)) <= 1e-6


# Sums


@every_kind
@pytest.mark.parametrize(
    ("n", "p", "k"),
    [(1, 1, 1), (3, 31, 5), (16, 32, 64), (15, 33, 63), (2, 257, 65), (1, 1100, 130), (9, 600, 3)],
)
def test_equals_twin(kind: str, n: int, p: int, k: int) -> None:
    spec = reference.gaussian(p, k, 9, kind)
    (x,) = specs.inputs(spec, n)
    specs.assert_compressed(run(spec, x), specs.build(spec).to_dense(), x)


def test_integers_and_signs_add_exactly() -> None:
    spec = reference.gaussian(1100, 64, 1, "rademacher")
    x = np.random.default_rng(0).integers(-9, 10, (5, 1100)).astype(np.float32)
    signs = specs.build(spec).to_dense() * 8
    np.testing.assert_array_equal(run(spec, x), (x @ signs.T) / 8)


def test_long_sums_are_taken_in_segments(monkeypatch: pytest.MonkeyPatch) -> None:
    # In one sum of positive numbers the rounding errors would be five times the tolerance.
    spec = reference.gaussian(40_960, 1, 1, "rademacher")
    monkeypatch.setattr(gaussian, "BLOCKS", 1)
    device = EmulatedDevice()
    signs = specs.build(spec).to_dense()
    x = signs * np.random.default_rng(0).uniform(1, 1.001, signs.shape).astype(np.float32)
    specs.assert_compressed(run(spec, x, device), signs, x)
    assert device.launches[0].grid == (1, 1, 1)


@every_kind
@pytest.mark.parametrize("n", [17, 40, 129])
def test_rows_do_not_depend_on_the_batch(kind: str, n: int) -> None:
    spec = reference.gaussian(300, 70, 4, kind)
    (x,) = specs.inputs(spec, n)
    device = EmulatedDevice()
    result = run(spec, x, device)
    assert "ROWS=16" not in device.launches[0].kernel.macros
    for row in (0, n // 2, n - 1):
        np.testing.assert_array_equal(run(spec, x[row : row + 1])[0], result[row])


@every_kind
def test_order_of_threads_does_not_matter(kind: str) -> None:
    spec = reference.gaussian(300, 70, 4, kind)
    (x,) = specs.inputs(spec, 3)
    results = [run(spec, x, EmulatedDevice(schedule)) for schedule in range(4)]
    for result in results[1:]:
        np.testing.assert_array_equal(result, results[0])


@pytest.mark.parametrize("dtype", [np.float64, np.float16, ml_dtypes.bfloat16])
def test_dtypes_and_strides(dtype: Any) -> None:
    spec = reference.gaussian(50, 6, 4)
    (x,) = specs.inputs(spec, 3)
    wide = np.full((6, 57), np.nan, dtype=dtype)
    wide[::2, 4:54] = x
    view = wide[::2, 4:54]
    exact = view.astype(np.float64)
    specs.assert_compressed(run(spec, view), reference.dense(spec), exact)


def test_rows_beyond_32_bits() -> None:
    spec = reference.gaussian(50, 4, 4, "rademacher")
    x = np.random.default_rng(0).integers(-9, 10, (3, 50)).astype(np.float16)
    np.testing.assert_array_equal(run(spec, far_apart(x)), run(spec, x))


def test_many_rows_share_a_workspace(monkeypatch: pytest.MonkeyPatch) -> None:
    spec = reference.gaussian(300, 20, 4)
    (x,) = specs.inputs(spec, 11)
    expected = run(spec, x)
    monkeypatch.setattr(gaussian, "WORKSPACE", 2 * 20 * 4)
    device = EmulatedDevice()
    np.testing.assert_array_equal(run(spec, x, device), expected)
    assert len(device.launches) == 2 * 3  # four rows at a time
    monkeypatch.setattr(gaussian, "WORKSPACE", 1)
    np.testing.assert_array_equal(run(spec, x), expected)


def test_no_rows_launch_nothing() -> None:
    device = EmulatedDevice()
    assert run(reference.gaussian(50, 6, 4), np.empty((0, 50), np.float32), device).shape == (0, 6)
    assert not device.launches


# Launches


@pytest.mark.parametrize("p", [1, 255, 256, 257, 4096, 10**6, 2**28, 2**40])
@pytest.mark.parametrize("k", [1, 64, 65, 4096, 2**31 - 1])
def test_groups_cover_the_coordinates(p: int, k: int) -> None:
    groups, length = groups_of(p, k)
    assert length % gaussian.DEPTH == 0
    assert (groups - 1) * length < p <= groups * length
    assert groups == 1 or length >= gaussian.LEAST_GROUP // 2
    assert groups <= gaussian.BLOCKS
    tiles = -(-k // gaussian.COLUMNS)
    if p >= gaussian.BLOCKS * gaussian.LEAST_GROUP:
        assert groups * tiles >= gaussian.BLOCKS // 2


def test_launch() -> None:
    launch = projection_launch(1, 64, 8, "float32", normal=True)
    assert launch.kernel.macros == ("Scalar=float", "NORMAL=1", "ROWS=16")
    assert (launch.grid, launch.block) == ((1, 8, 1), (256, 1, 1))
    many = projection_launch(300, 130, 5, "bfloat16", normal=False)
    assert many.kernel.macros == ("Scalar=BFloat16", "NORMAL=0", "ROWS=128")
    assert many.grid == (9, 5, 1)
    assert many.shared_bytes == 4 * 32 * (64 + 132) <= 48 * 1024


@pytest.mark.parametrize("arch", ["sm_80", "sm_90"])
@pytest.mark.parametrize("normal", [0, 1])
@pytest.mark.parametrize("rows", [16, 128])
def test_registers(arch: str, normal: int, rows: int) -> None:
    macros = "Scalar=float", f"NORMAL={normal}", f"ROWS={rows}"
    needs = nvrtc.resources("gaussian.cu", macros, arch)
    assert needs.spilled_bytes == needs.stack_bytes == 0
    assert needs.registers <= (128 if rows == 128 else 64)  # two and four blocks a multiprocessor


def test_kinds_are_told_apart() -> None:
    x = np.ones((1, 40), dtype=np.float32)
    normal, rademacher = (
        run(reference.gaussian(40, 4, 4, kind), x) for kind in grass.Gaussian.kinds
    )
    assert not np.array_equal(normal, rademacher)
