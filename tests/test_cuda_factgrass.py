"""FactGraSS on a device: the kernel on the CPU, its launches, what NVRTC makes of it."""

from __future__ import annotations

from functools import partial
from typing import Any

import ml_dtypes
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import grass_rs as grass
import nvrtc
import reference
import specs
from cuda_on_cpu.device import EmulatedDevice
from cuda_on_cpu.emulator import far_apart
from cuda_on_cpu.factors import assert_same_bits, integers, run_program
from grass_rs._backends.cuda import factgrass
from grass_rs._backends.cuda.factgrass import FactGraSSProgram, Parts, Slabs, cut, share
from grass_rs._backends.cuda.launch import Kernel, Launch
from grass_rs._backends.cuda.words import BUCKET, words

SHARED_LIMITS = {75: 64, 80: 163, 86: 99, 89: 99, 90: 227, 100: 227, 120: 99}
"""KiB that a block may have, by compute capability."""
DTYPES = [np.float64, np.float32, np.float16, ml_dtypes.bfloat16]
KINDS = pytest.mark.parametrize("kind", ["cyclic", "iid"])

MASKS: dict[str, dict[str, Any]] = {
    "default": reference.factgrass(70, 33, 300, 1),
    "whole layer": reference.factgrass(9, 7, 200, 2),
    "runs of 16": reference.factgrass(
        96,
        64,
        77,
        3,
        mask_in=reference.random_mask(96, 48, 5, block=16),
        mask_out=reference.random_mask(64, 32, 6, block=16),
    ),
    "explicit": reference.factgrass(
        40, 90, 65, 4, mask_in=reference.mask([0, 3, 39], 40), mask_out=reference.mask([89], 90)
    ),
    "explicit and random": reference.factgrass(
        30, 90, 64, 5, mask_in=reference.mask([1, 2, 28, 29], 30), mask_out=50
    ),
    "one output": reference.factgrass(20, 30, 1, 6, mask_in=20, mask_out=30),
    "one coordinate": reference.factgrass(20, 30, 5, 7, mask_in=1, mask_out=1),
    "one column": reference.factgrass(20, 70, 16, 8, mask_in=1, mask_out=61),
    "many pages": reference.factgrass(64, 64, 3, 9, mask_in=46, mask_out=46),
    "one page": reference.factgrass(64, 64, 3000, 10, mask_in=46, mask_out=46),
    "several slabs": reference.factgrass(600, 400, 1000, 11, mask_in=500, mask_out=300),
    "slabs beside each other": reference.factgrass(300, 9, 333, 12, mask_in=299, mask_out=5),
    "slabs under each other": reference.factgrass(9, 300, 333, 13, mask_in=5, mask_out=299),
}


run = partial(run_program, FactGraSSProgram)


# Results


@given(spec=specs.factgrasses(), n=st.integers(0, 3), tokens=st.sampled_from([0, 1, 2, 5, 17, 130]))
def test_equals_twin(spec: dict[str, Any], n: int, tokens: int) -> None:
    a, g = specs.inputs(spec, n, tokens=tokens)
    specs.assert_compressed(run(spec, a, g), reference.dense(spec), a, g)


@KINDS
@pytest.mark.parametrize("name", MASKS)
def test_masks_equal_the_cpu(name: str, kind: str) -> None:
    spec = MASKS[name] | {"kind": kind}
    a, g = integers(spec, n=2, tokens=20)
    np.testing.assert_array_equal(run(spec, a, g), specs.build(spec)(a, g))


@KINDS
@pytest.mark.parametrize("tokens", [0, 1, 2, 15, 16, 17, 63, 64, 65, 130])
@pytest.mark.parametrize("n", [0, 1, 3])
def test_tokens_equal_the_cpu(n: int, tokens: int, kind: str) -> None:
    spec = MASKS["default"] | {"kind": kind}
    a, g = integers(spec, n, tokens, ml_dtypes.bfloat16)
    np.testing.assert_array_equal(run(spec, a, g), specs.build(spec)(a, g))


@pytest.mark.parametrize("tokens", [3, 130])
@pytest.mark.parametrize("dtype", DTYPES, ids=lambda dtype: dtype.__name__)
def test_dtypes_equal_the_cpu(dtype: Any, tokens: int) -> None:
    spec = MASKS["default"]
    a, g = integers(spec, 2, tokens, dtype)
    np.testing.assert_array_equal(run(spec, a, g), specs.build(spec)(a, g))
    a, g = (x.astype(dtype) for x in specs.inputs(spec, 2, tokens=tokens))
    specs.assert_compressed(run(spec, a, g), specs.build(spec).to_dense(), a, g)


@pytest.mark.parametrize("compute_capability", [75, 80, 90])
def test_largest_slabs_on_every_device_equal_the_cpu(compute_capability: int) -> None:
    spec = reference.factgrass(300, 200, 4096, 14)
    a, g = integers(spec, 1, 70, ml_dtypes.bfloat16)
    device = EmulatedDevice(compute_capability=compute_capability)
    np.testing.assert_array_equal(run(spec, a, g, device=device), specs.build(spec)(a, g))
    shape = device.launches[0].kernel.macros[-3:-1]
    assert shape == ("SLAB_OUT=64" if compute_capability == 75 else "SLAB_OUT=128", "SLAB_IN=128")


def test_tensor_cores_equal_multiply_adds() -> None:
    spec = MASKS["default"]
    forms = {"TENSOR_CORES=0": EmulatedDevice(compute_capability=75), "TENSOR_CORES=1": None}
    a, g = integers(spec, 2, 33, np.float16)
    floats = [x.astype(np.float16) for x in specs.inputs(spec, 2, tokens=33)]
    exact, rounded = [], []
    for form, older in forms.items():
        device = older or EmulatedDevice()
        exact.append(run(spec, a, g, device=device))
        rounded.append(run(spec, *floats, device=device))
        assert form in device.launches[0].kernel.macros
    assert_same_bits(*exact)
    np.testing.assert_allclose(*rounded, rtol=0, atol=1e-5 * np.abs(rounded[0]).max())


@KINDS
@pytest.mark.parametrize("name", ["default", "many pages", "slabs beside each other"])
def test_schedules_give_the_same_bits(name: str, kind: str) -> None:
    spec = MASKS[name] | {"kind": kind}
    a, g = (x.astype(ml_dtypes.bfloat16) for x in specs.inputs(spec, 2, tokens=130))
    first, *others = (run(spec, a, g, device=EmulatedDevice(schedule)) for schedule in (0, 1, 2, 3))
    for other in others:
        assert_same_bits(other, first)


@pytest.mark.parametrize("tokens", [1, 200])
def test_an_example_alone_has_the_bits_it_has_in_a_batch(tokens: int) -> None:
    spec = MASKS["default"]
    a, g = specs.inputs(spec, 3, tokens=tokens)
    together = run(spec, a, g)
    for example in range(3):
        alone = slice(example, example + 1)
        assert_same_bits(run(spec, a[alone], g[alone]), together[alone])


@KINDS
@pytest.mark.parametrize("workspace", [1, 333 * 3, 333 * 16])
def test_a_small_workspace_changes_no_sum(
    workspace: int, kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    spec = MASKS["slabs beside each other"] | {"kind": kind}
    a, g = integers(spec, 3, 200)
    monkeypatch.setattr(factgrass, "WORKSPACE", workspace)
    monkeypatch.setattr(factgrass, "_prepare", factgrass._prepare.__wrapped__)
    device = EmulatedDevice()
    np.testing.assert_array_equal(run(spec, a, g, device=device), specs.build(spec)(a, g))
    grids = [launch.grid for launch in device.launches if launch.kernel.name == "factgrass"]
    assert (
        grids
        == {
            1: [(3, 1, 1)],
            333 * 3: [(1, 1, 3)] * 3,
            333 * 16: [(1, 4, 3)] * 3,
        }[workspace]
    )


# Arguments


@pytest.mark.parametrize("dtype", DTYPES, ids=lambda dtype: dtype.__name__)
@pytest.mark.parametrize("tokens", [2, 20])
def test_implied_ones_are_written_ones(dtype: Any, tokens: int) -> None:
    spec = reference.factgrass(9, 7, 200, 2)
    a, g = integers(spec, 2, tokens, dtype)
    a[..., -1] = 1
    assert_same_bits(run(spec, a[..., :-1], g, bias=True), run(spec, a, g))
    held = np.ascontiguousarray(a[..., :-1])
    assert_same_bits(run(spec, held, g, bias=True), specs.build(spec)(a, g))


@pytest.mark.parametrize("tokens", [0, 2])
def test_a_layer_of_a_bias_alone(tokens: int) -> None:
    spec = reference.factgrass(1, 7, 20, 2)
    _, g = integers(spec, 2, tokens)
    expected = specs.build(spec)(np.ones((2, tokens, 1), np.float32), g)
    nothing = np.empty((2, tokens, 0), np.float32)
    assert_same_bits(run(spec, nothing, g, bias=True), expected)


@pytest.mark.parametrize("dtype", [np.float32, ml_dtypes.bfloat16])
def test_any_strides_of_examples_and_tokens(dtype: Any) -> None:
    spec = MASKS["default"]
    a, g = integers(spec, 3, 20, dtype)
    expected = specs.build(spec)(a, g)
    tokens_first = np.ascontiguousarray(a.transpose(1, 0, 2)).transpose(1, 0, 2)
    wide = np.concatenate([g, g], axis=2)[..., : g.shape[2]]
    np.testing.assert_array_equal(run(spec, tokens_first, wide), expected)
    backwards = a[::-1, ::-1].copy()[::-1, ::-1]
    np.testing.assert_array_equal(run(spec, backwards, g), expected)


@pytest.mark.parametrize("tokens", [1, 20])
def test_examples_beyond_32_bits(tokens: int) -> None:
    spec = MASKS["default"]
    a, g = integers(spec, 3, tokens, np.float16)
    np.testing.assert_array_equal(run(spec, far_apart(a), far_apart(g)), specs.build(spec)(a, g))


@pytest.mark.parametrize("dtype", [np.float32, np.float16])
def test_tokens_beyond_32_bits(dtype: Any) -> None:
    spec = MASKS["default"]
    a, g = integers(spec, 1, 17, dtype)
    apart = [far_apart(factor[0], 2**28 + 7)[None] for factor in (a, g)]
    np.testing.assert_array_equal(run(spec, *apart), specs.build(spec)(a, g))


def test_repeated_examples_and_tokens_have_stride_zero() -> None:
    spec = MASKS["default"]
    a, g = integers(spec, 1, 1)
    a, g = np.broadcast_to(a, (2, 20, a.shape[2])), np.broadcast_to(g, (2, 20, g.shape[2]))
    assert a.strides[:2] == g.strides[:2] == (0, 0)
    np.testing.assert_array_equal(run(spec, a, g), specs.build(spec)(a.copy(), g.copy()))


def test_no_examples_launch_nothing() -> None:
    spec = MASKS["default"]
    device = EmulatedDevice()
    assert run(spec, *integers(spec, 0, 5), device=device).shape == (0, 300)
    assert device.launches == []


def test_a_structure_moves_to_a_device_once() -> None:
    spec = MASKS["default"] | {"kind": "iid"}
    made = []

    class Device(EmulatedDevice):
        def constant(self, key: Any, make: Any) -> Any:
            return super().constant(key, lambda: made.append(key) or make())

    device = Device()
    for tokens in (3, 4):
        run(spec, *integers(spec, 2, tokens), device=device)
    assert len(made) == len(set(made)) == 3


@pytest.mark.parametrize(
    ("width_in", "width_out", "side", "message"),
    [
        (2**31, 3, 2, "in_features must be at most 2147483647"),
        (3, 2**31, 2, "out_features must be at most 2147483647"),
        (2**17, 2**17, 2**16, "mask_in times mask_out must be at most 2147483647, got 4294967296"),
    ],
)
def test_layers_past_32_bits_are_refused(
    width_in: int, width_out: int, side: int, message: str
) -> None:
    spec = reference.factgrass(width_in, width_out, 4, 0, mask_in=side, mask_out=side)
    with pytest.raises(grass.SpecError, match=message):
        FactGraSSProgram(spec)


def test_tokens_past_32_bits_are_refused() -> None:
    spec = reference.factgrass(3, 3, 4, 0)
    many = np.broadcast_to(np.zeros(3, np.float32), (1, 2**31, 3))
    with pytest.raises(grass.ShapeError, match="at most 2147483647 tokens, got 2147483648"):
        run(spec, many, many)


def test_iid_tables_past_32_bits_are_refused() -> None:
    with pytest.raises(grass.SpecError, match="kind='cyclic'"):
        factgrass.iid_places(Slabs(256, 256, 128, 128), 2**30, seed=0)


# Tables


@pytest.mark.parametrize("count", [0, 1, 5, 1000])
def test_words_equal_twin(count: int) -> None:
    seed = 2**64 - 3
    expected = [reference.word(seed, BUCKET, n) for n in range(count)]
    result = words(seed, BUCKET, count)
    assert result.dtype == np.uint32
    np.testing.assert_array_equal(result, np.array(expected, np.uint32))


def test_places_list_each_coordinate_once_with_its_output() -> None:
    slabs, k, seed = Slabs(k_in=9, k_out=7, rows=4, columns=5), 6, 3
    places = factgrass.iid_places(slabs, k, seed)
    lists = slabs.count * k
    seen = []
    for number in range(lists):
        slab, output = divmod(number, k)
        top, left = slab // 2 * slabs.rows, slab % 2 * slabs.columns
        ends = places[number : number + 2]
        row, column = np.divmod(places[slice(*ends)].astype(int), 256)
        coordinates = (top + row) * slabs.k_in + left + column
        assert np.all(np.diff(coordinates) > 0)
        drawn = [reference.draw(seed, reference.BUCKET, k, int(i)) for i in coordinates]
        assert drawn == [output] * len(drawn)
        seen += coordinates.tolist()
    assert sorted(seen) == list(range(9 * 7))


# Launches


def launch_of(k_in: int, k_out: int, dtype: str, tokens: int, compute_capability: int) -> Launch:
    slabs = cut(k_in, k_out, compute_capability)
    return factgrass.factgrass_launch(
        slabs,
        share(tokens, slabs.count, 4096),
        8,
        tokens,
        kind="cyclic",
        dtype=dtype,
        compute_capability=compute_capability,
    )


def test_usual_launch_fills_a_large_device() -> None:
    assert launch_of(128, 128, "bfloat16", 1024, 90) == Launch(
        Kernel(
            "factgrass.cu",
            "factgrass",
            (
                "Scalar=BFloat16",
                "TENSOR_CORES=1",
                "IID=0",
                "SLAB_OUT=128",
                "SLAB_IN=128",
                "TOKENS=64",
            ),
        ),
        grid=(8, 16, 1),
        block=(256, 1, 1),
        shared_bytes=128 * 136 * 4 + 128 * 128 // 8 + 256 * 8,
    )


@pytest.mark.parametrize("compute_capability", SHARED_LIMITS)
def test_shared_memory_is_within_every_device(compute_capability: int) -> None:
    for dtype in ("float64", "float32", "float16", "bfloat16"):
        for k_in in (1, 46, 64, 65, 128, 300, 20_000):
            for k_out in (1, 64, 65, 128, 500):
                launch = launch_of(k_in, k_out, dtype, 100, compute_capability)
                assert launch.shared_bytes <= SHARED_LIMITS[compute_capability] * 1024


@pytest.mark.parametrize(
    ("dtype", "tokens", "compute_capability", "expected"),
    [
        ("bfloat16", 16, 80, 1),
        ("float16", 1000, 90, 1),
        ("bfloat16", 15, 90, 0),
        ("bfloat16", 1000, 75, 0),
        ("float32", 1000, 90, 0),
        ("float64", 1000, 90, 0),
    ],
)
def test_tensor_cores_where_they_can_and_pay(
    dtype: str, tokens: int, compute_capability: int, expected: int
) -> None:
    macros = launch_of(46, 46, dtype, tokens, compute_capability).kernel.macros
    assert f"TENSOR_CORES={expected}" in macros


@given(
    k_in=st.integers(1, 300) | st.integers(1, 100_000),
    k_out=st.integers(1, 300) | st.integers(1, 100_000),
    compute_capability=st.sampled_from(list(SHARED_LIMITS)),
    offset=st.integers(0, 2**31),
)
def test_slabs_cover_the_product_and_divide_exactly(
    k_in: int, k_out: int, compute_capability: int, offset: int
) -> None:
    slabs = cut(k_in, k_out, compute_capability)
    rows, columns = slabs.grid
    assert (rows - 1) * slabs.rows < k_out <= rows * slabs.rows
    assert (columns - 1) * slabs.columns < k_in <= columns * slabs.columns
    assert slabs.rows <= 128
    assert slabs.columns <= 128
    last = (slabs.rows - 1) * k_in + slabs.columns - 1
    for inside in {0, k_in - 1, last, offset % (last + 1)} & set(range(last + 1)):
        assert (inside + 1) * slabs.reciprocal >> 32 == inside // k_in
    # What is outside is known by its row or its column.
    outside = last + 1 + offset
    row = (outside + 1) * slabs.reciprocal >> 32
    assert row >= slabs.rows or outside - row * k_in >= slabs.columns


@given(
    tokens=st.integers(0, 3000) | st.integers(0, 2**31 - 1),
    slabs=st.integers(1, 100_000),
    k=st.integers(1, 2**31 - 1),
)
def test_parts_cover_the_work_in_the_workspace(tokens: int, slabs: int, k: int) -> None:
    parts = share(tokens, slabs, k)
    pieces, slab_parts = parts.grid
    assert parts.tokens % 64 == 0
    assert (pieces - 1) * parts.tokens < max(tokens, 1) <= pieces * parts.tokens
    assert (slab_parts - 1) * parts.slabs < slabs <= slab_parts * parts.slabs
    assert parts.count == 1 or parts.count * k <= factgrass.WORKSPACE
    assert max(parts.grid) < 2**16


def test_parts_of_usual_sizes() -> None:
    assert share(1024, 1, 4096) == Parts(tokens=64, slabs=1, grid=(16, 1))
    assert share(1000, 4, 8192) == Parts(tokens=64, slabs=1, grid=(16, 4))
    assert share(1, 1, 512) == share(0, 1, 512) == Parts(tokens=64, slabs=1, grid=(1, 1))


# The compiler


@pytest.mark.parametrize("arch", ["sm_80", "sm_90"])
@pytest.mark.parametrize("kind", ["cyclic", "iid"])
@pytest.mark.parametrize("dtype", ["float64", "float32", "float16", "bfloat16"])
def test_nothing_spills_and_two_blocks_fit_a_multiprocessor(
    dtype: str, kind: str, arch: str
) -> None:
    for side in (64, 128):
        slabs = Slabs(side, side, side, side)
        launch = factgrass.factgrass_launch(
            slabs,
            share(1024, 1, 4096),
            1,
            1024,
            kind=kind,
            dtype=dtype,
            compute_capability=int(arch[3:]),
        )
        resources = nvrtc.resources(launch.kernel.file, launch.kernel.macros, arch)
        assert resources.spilled_bytes == 0
        assert resources.stack_bytes == 0
        assert resources.shared_bytes == 0
        assert resources.registers * launch.block[0] * 2 <= 65536
