"""Tile sketch on a device: the kernels on the CPU, their launches, what NVRTC makes of them."""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from typing import Any

import ml_dtypes
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import nvrtc
import reference
import specs
from cuda_on_cpu.device import EmulatedDevice
from cuda_on_cpu.factors import assert_same_bits, integers, run_program
from grass_rs import ShapeError, SpecError
from grass_rs._backends.cuda import tile, tile_plans
from grass_rs._backends.cuda.launch import DeviceArray
from grass_rs._backends.cuda.tile import TileProgram, examples_a_launch, is_aligned, tile_sides
from grass_rs._backends.cuda.tile_plans import (
    Cut,
    PatchShape,
    Problem,
    best_patch,
    cut,
    most_shared_bytes,
    portable_plan,
    portable_shared_bytes,
    tensor_plan,
    tile_plan,
)

BFLOAT16 = ml_dtypes.bfloat16
DTYPES = [np.float64, np.float32, np.float16, BFLOAT16]
SHARED_LIMITS = {80: 163, 86: 99, 87: 163, 89: 99, 90: 227, 100: 227, 120: 99}
"""KiB that a block may have, by compute capability."""


run = partial(run_program, TileProgram)


def kernels(device: EmulatedDevice) -> set[str]:
    return {launch.kernel.file for launch in device.launches} - {"sum.cu"}


# Results


@given(spec=specs.tiles(), n=st.integers(0, 3), tokens=st.sampled_from([0, 1, 2, 3, 5, 18]))
def test_equals_twin(spec: dict[str, Any], n: int, tokens: int) -> None:
    a, g = specs.inputs(spec, n, tokens=tokens)
    specs.assert_compressed(run(spec, a, g), reference.dense(spec), a, g)


@pytest.mark.parametrize("k", [1, 2, 97, 128, 300, 1024, 3100, 4096])
def test_multiply_adds_equal_the_cpu(k: int) -> None:
    spec = reference.tile(137, 70, k, 3)
    device = EmulatedDevice()
    for n, tokens in ((0, 3), (1, 0), (3, 1), (2, 3), (1, 33), (1, 130)):
        a, g = integers(spec, n, tokens)
        np.testing.assert_array_equal(run(spec, a, g, device=device), specs.build(spec)(a, g))
    assert kernels(device) == {"tile.cu"}


@pytest.mark.parametrize(
    ("d_in", "d_out", "k"),
    [
        (72, 40, 64),
        (136, 264, 1024),
        (600, 200, 1024),
        (201, 70, 1920),
        (264, 136, 4096),
        (520, 390, 4096),
        (33, 17, 4096),
        (300, 130, 8192),
        (257, 256, 16384),
    ],
)
def test_tensor_cores_equal_the_cpu(d_in: int, d_out: int, k: int) -> None:
    spec = reference.tile(d_in, d_out, k, 4)
    device = EmulatedDevice()
    for n, tokens in ((0, 33), (1, 9), (3, 33), (1, 130)):
        a, g = integers(spec, n, tokens, BFLOAT16)
        np.testing.assert_array_equal(run(spec, a, g, device=device), specs.build(spec)(a, g))
    assert kernels(device) == {"tile_tensor.cu"}


@pytest.mark.parametrize("tokens", [3, 40])
@pytest.mark.parametrize("dtype", DTYPES, ids=lambda dtype: dtype.__name__)
def test_dtypes_equal_twin(dtype: Any, tokens: int) -> None:
    spec = reference.tile(72, 40, 1024, 5)
    a, g = (x.astype(dtype) for x in specs.inputs(spec, 2, tokens=tokens))
    specs.assert_compressed(run(spec, a, g), specs.build(spec).to_dense(), a, g)


@pytest.mark.parametrize("compute_capability", [75, 80, 86, 90])
def test_devices_equal_the_cpu(compute_capability: int) -> None:
    spec = reference.tile(264, 200, 4096, 6)
    a, g = integers(spec, 1, 70, BFLOAT16)
    device = EmulatedDevice(compute_capability=compute_capability)
    np.testing.assert_array_equal(run(spec, a, g, device=device), specs.build(spec)(a, g))
    assert kernels(device) == {"tile.cu" if compute_capability == 75 else "tile_tensor.cu"}


def test_tensor_cores_equal_multiply_adds() -> None:
    spec = reference.tile(200, 136, 1024, 7)
    a, g = (x.astype(BFLOAT16) for x in specs.inputs(spec, 2, tokens=33))
    old = EmulatedDevice(compute_capability=75)
    expected = run(spec, a, g, device=old)
    assert kernels(old) == {"tile.cu"}
    unit = specs.magnitudes(a, g).sum() / 1024
    np.testing.assert_allclose(run(spec, a, g), expected, rtol=0, atol=1e-6 * unit)


def test_how_much_is_folded_at_once_changes_no_bit() -> None:
    spec = reference.tile(264, 200, 1024, 8)
    a, g = (x.astype(BFLOAT16) for x in specs.inputs(spec, 2, tokens=33))
    devices = [EmulatedDevice(compute_capability=capability) for capability in (80, 90)]
    assert_same_bits(*(run(spec, a, g, device=device) for device in devices))
    folded = {d.launches[0].kernel.macros[-2] for d in devices}
    assert len(folded) == 2


@pytest.mark.parametrize(("tokens", "k"), [(3, 97), (18, 300), (40, 64), (70, 4096)])
def test_schedules_give_the_same_bits(tokens: int, k: int) -> None:
    spec = reference.tile(137, 70, k, 9)
    a, g = (x.astype(BFLOAT16) for x in specs.inputs(spec, 2, tokens=tokens))
    first, *others = (run(spec, a, g, device=EmulatedDevice(schedule)) for schedule in range(4))
    for other in others:
        assert_same_bits(other, first)


@pytest.mark.parametrize(("tokens", "k"), [(1, 97), (3, 1024), (40, 64), (40, 1024)])
def test_an_example_alone_has_the_bits_it_has_in_a_batch(tokens: int, k: int) -> None:
    spec = reference.tile(137, 70, k, 10)
    a, g = (x.astype(BFLOAT16) for x in specs.inputs(spec, 3, tokens=tokens))
    together = run(spec, a, g)
    for example in range(3):
        alone = slice(example, example + 1)
        assert_same_bits(run(spec, a[alone], g[alone]), together[alone])


@pytest.mark.parametrize("dtype", [np.float32, BFLOAT16], ids=lambda dtype: dtype.__name__)
@pytest.mark.parametrize(("tokens_a_part", "most_parts"), [(32, 128), (32, 6), (4096, 2)])
def test_parts_change_no_sum(
    dtype: Any, tokens_a_part: int, most_parts: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tile_plans, "TOKENS_A_PART", tokens_a_part)
    monkeypatch.setattr(tile_plans, "MOST_PARTS", most_parts)
    spec = reference.tile(330, 300, 1024, 11)
    a, g = integers(spec, 2, 81, dtype)
    device = EmulatedDevice()
    np.testing.assert_array_equal(run(spec, a, g, device=device), specs.build(spec)(a, g))
    assert [launch.kernel.file for launch in device.launches][1:] == ["sum.cu"]


@pytest.mark.parametrize("tokens", [2, 40])
def test_a_small_workspace_changes_no_bit(tokens: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tile_plans, "_LEAST_PAIRS", 8)
    spec = reference.tile(330, 300, 1024, 12)
    a, g = (x.astype(BFLOAT16) for x in specs.inputs(spec, 5, tokens=tokens))
    expected, device = run(spec, a, g), EmulatedDevice()
    parts = tile_plan(problem(spec, "bfloat16", tokens), 90).parts
    assert parts > 1
    monkeypatch.setattr(tile, "WORKSPACE_BYTES", 2 * parts * 1024 * 4 + 5)
    assert_same_bits(run(spec, a, g, device=device), expected)
    assert len(device.launches) == 6


# Arguments


@pytest.mark.parametrize("d_in", [64, 65, 73, 129, 140])
@pytest.mark.parametrize(("tokens", "dtype"), [(2, np.float32), (40, BFLOAT16)])
def test_implied_ones_are_written_ones(d_in: int, tokens: int, dtype: Any) -> None:
    spec = reference.tile(d_in, 72, 1024, 13)
    a, g = (x.astype(dtype) for x in specs.inputs(spec, 2, tokens=tokens))
    a[..., -1] = 1
    result = run(spec, np.ascontiguousarray(a[..., :-1]), g, bias=True)
    assert_same_bits(result, run(spec, a, g))
    specs.assert_compressed(result, specs.build(spec).to_dense(), a, g)


@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize(("tokens", "dtype"), [(3, np.float32), (3, BFLOAT16), (40, BFLOAT16)])
def test_strided_factors_equal_the_cpu(tokens: int, dtype: Any, bias: bool) -> None:
    spec = reference.tile(72 + bias, 40, 1024, 14)
    rng = np.random.default_rng(0)
    wide = rng.integers(-4, 5, (4, 3 * tokens, 160)).astype(dtype)
    a, g = wide[::2, ::3, 8:80], wide[1::2, 1 : 2 * tokens + 1 : 2, 16:56]
    turned = wide[:2, :tokens].transpose(1, 0, 2).copy().transpose(1, 0, 2)
    same = np.broadcast_to(wide[:1, :tokens], (2, tokens, 160))
    once = np.broadcast_to(wide[:2, :1], (2, tokens, 160))
    backwards = wide[::-2, tokens - 1 :: -1]
    pairs = [(a, g), (wide[::2, :tokens, 3:75], g), (a, wide[::2, :tokens, 5:45])]
    pairs += [(x[..., :72], x[..., 80:120]) for x in (turned, same, once, backwards)]
    compressor = specs.build(spec)
    for inputs, grad_outputs in pairs:
        expected = compressor(
            *(np.ascontiguousarray(x, np.float32) for x in (inputs, grad_outputs)), bias=bias
        )
        np.testing.assert_array_equal(run(spec, inputs, grad_outputs, bias=bias), expected)


def test_no_tokens_give_zeros_and_no_examples_launch_nothing() -> None:
    spec = reference.tile(72, 40, 300, 15)
    for dtype in DTYPES:
        assert not np.any(run(spec, *integers(spec, 2, 0, dtype)))
    device = EmulatedDevice()
    assert run(spec, *integers(spec, 0, 5), device=device).shape == (0, 300)
    assert not device.launches


@pytest.mark.parametrize("name", ["in_features", "out_features", "output_dim"])
def test_too_large_dimensions_are_refused(name: str) -> None:
    spec = reference.tile(8, 8, 8, 0)
    TileProgram(spec | {name: 2**31 - 1})
    with pytest.raises(SpecError, match=rf"{name} expects less than 2\^31, got 2147483648"):
        TileProgram(spec | {name: 2**31})


def test_too_many_tokens_are_refused() -> None:
    layer = Problem(64, 64, 64, 64, "float32", 2**31, aligned=True, bias=False)
    with pytest.raises(ShapeError, match=r"less than 2\^31 tokens an example, got 2147483648"):
        tile_plan(layer, 90)
    flat = replace(layer, height=1, width=2**31 - 1, tokens=2**20)
    with pytest.raises(ShapeError, match="at most 2147483647 blocks an example, got 34359738368"):
        tile_plan(flat, 90)


# Launches


def problem(spec: dict[str, Any], dtype: str, tokens: int, *, bias: bool = False) -> Problem:
    sides, features = tile_sides(spec["output_dim"]), (spec["in_features"], spec["out_features"])
    return Problem(*sides, *features, dtype, tokens, aligned=True, bias=bias)


def test_sides() -> None:
    for k in (1, 2, 97, 128, 300, 4096, 2**31 - 1, 2**31 - 2):
        assert tile_sides(k) == reference.tile_sides(k)


def test_aligned() -> None:
    array = DeviceArray(32, (2, 3, 100), (1024, 104, 1), "bfloat16", None)
    assert is_aligned(array)
    assert not is_aligned(replace(array, pointer=40))
    assert not is_aligned(replace(array, strides=(1024, 100, 1)))
    assert is_aligned(replace(array, dtype="float32", strides=(1024, 100, 1)))
    assert not is_aligned(replace(array, strides=(1023, 104, 1)))
    assert is_aligned(replace(array, strides=(1023, 104, 1), shape=(1, 3, 100)))
    assert is_aligned(replace(array, strides=(1024, 100, 1), shape=(2, 1, 100)))
    assert is_aligned(replace(array, strides=(0, -104, 1)))


def test_work_is_cut_into_even_parts() -> None:
    assert cut(512, 1024, 1) == Cut(4, 128, 1024, 1)
    assert cut(130, 1024, 1) == Cut(2, 65, 1024, 1)
    assert cut(18, 16, 100) == Cut(18, 1, 16, 1)
    assert cut(18, 0, 1) == Cut(1, 18, 0, 1)
    assert cut(512, 4097, 1) == Cut(8, 64, 4096, 2)
    assert cut(512, 4096 * 200, 1) == Cut(512, 1, 4096, 200)
    assert cut(512, 1, 1, blocks_a_part=64) == Cut(256, 2, 1, 1)


def test_launches_of_a_wide_layer() -> None:
    layer = problem(reference.tile(4096, 4096, 4096, 0), "bfloat16", 1024)
    plan = tile_plan(layer, 90)
    # Patches of 128 x 256, all of which is folded at once.
    assert plan.kernel.macros[2:] == (
        "HEIGHT=64",
        "WIDTH=64",
        "WARP_ROWS=2",
        "WARP_COLUMNS=4",
        "TILES_DOWN=2",
        "TILES_ACROSS=4",
        "TILES_FOLDED=2",
        "STAGES=3",
    )
    assert (plan.threads, plan.shared_bytes, plan.blocks, plan.parts) == (256, 209088, 128, 128)
    assert examples_a_launch(plan, 4096) == 2**28 // (128 * 4096 * 4)
    single = tile_plan(replace(layer, dtype="float32", tokens=1), 90)
    assert (single.kernel.file, single.blocks) == ("tile.cu", 16)


def test_narrow_layers_have_small_patches() -> None:
    for d_in, columns in ((128, 2), (129, 4), (256, 4), (769, 2), (3073, 2), (4096, 4)):
        patch = best_patch(problem(reference.tile(d_in, 768, 1024, 0), "float16", 99), 227 * 1024)
        assert patch is not None
        assert patch.warp_columns == columns


def test_which_kernel_takes_what() -> None:
    def file(k: int = 4096, dtype: str = "bfloat16", tokens: int = 9, capability: int = 90) -> str:
        layer = problem(reference.tile(500, 500, k, 0), dtype, tokens)
        return tile_plan(layer, capability).kernel.file

    assert file() == file(k=64) == file(k=1920) == file(k=16384) == "tile_tensor.cu"
    assert file(tokens=8) == file(dtype="float32") == file(capability=75) == "tile.cu"
    assert file(k=63) == file(k=1000) == file(k=128 * 136) == "tile.cu"


def test_pieces_end_where_memory_does() -> None:
    def aligned(d_in: int, d_out: int, *, bias: bool = False, starts: bool = True) -> bool:
        layer = problem(reference.tile(d_in, d_out, 1024, 0), "float16", 9, bias=bias)
        patch = best_patch(replace(layer, aligned=starts), 99 * 1024)
        assert patch is not None
        return "ALIGNED=1" in patch.macros(replace(layer, aligned=starts))

    assert aligned(64, 40)
    assert aligned(65, 40, bias=True)
    assert not aligned(65, 40)
    assert not aligned(64, 40, bias=True)
    assert not aligned(64, 44)
    assert not aligned(64, 40, starts=False)


@pytest.mark.parametrize("capability", SHARED_LIMITS)
def test_patches_fit_into_shared_memory(capability: int) -> None:
    limit = SHARED_LIMITS[capability] * 1024
    assert most_shared_bytes(capability) == limit
    found = 0
    for height in range(8, 129, 8):
        for width in range(height, 129, 8):
            for d_in in (128, 4096):
                layer = Problem(height, width, d_in, 4096, "float16", 99, aligned=True, bias=False)
                patch = best_patch(layer, limit)
                if patch is None:
                    assert height * width > 8192
                    continue
                found += 1
                assert patch.shared_bytes <= limit
                assert patch.tiles_down % patch.tiles_folded == 0
    assert found > 150


def test_two_blocks_of_small_patches_share_a_multiprocessor() -> None:
    layer = problem(reference.tile(128, 4096, 4096, 0), "bfloat16", 99)
    patch = best_patch(layer, 227 * 1024)
    assert patch is not None
    assert 2 * (patch.shared_bytes + 1024) <= 228 * 1024


# What NVRTC makes of them


@pytest.mark.parametrize("arch", ["sm_75", "sm_80", "sm_90"])
@pytest.mark.parametrize("tokens", [1, 16])
@pytest.mark.parametrize(
    ("k", "registers"), [(4096, 168), (1024, 128), (256, 128)], ids=["64", "32", "16"]
)
def test_registers_of_multiply_adds(k: int, registers: int, tokens: int, arch: str) -> None:
    for dtype in ("float32", "float64"):
        kernel = portable_plan(problem(reference.tile(500, 500, k, 0), dtype, tokens)).kernel
        needs = nvrtc.resources(kernel.file, kernel.macros, arch)
        # Three blocks of 128 threads a multiprocessor.
        assert needs.registers <= registers
        assert needs.spilled_bytes == 0


def test_shared_memory_of_multiply_adds_needs_no_permission() -> None:
    for window in (16, 32, 64):
        assert portable_shared_bytes(window) <= 48 * 1024


@pytest.mark.parametrize("capability", [80, 90])
@pytest.mark.parametrize("k", [64, 1024, 1920, 4096, 8192])
def test_registers_of_tensor_cores(k: int, capability: int) -> None:
    for d_in, aligned in ((128, True), (4096, True), (4096, False)):
        layer = replace(problem(reference.tile(d_in, 4096, k, 0), "bfloat16", 99), aligned=aligned)
        patch = best_patch(layer, most_shared_bytes(capability))
        assert isinstance(patch, PatchShape)
        kernel = tensor_plan(layer, patch).kernel
        needs = nvrtc.resources(kernel.file, kernel.macros, f"sm_{capability}")
        # One block of 256 threads a multiprocessor, or two of 128.
        assert needs.registers <= 255
        assert needs.spilled_bytes == 0
