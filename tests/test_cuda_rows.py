"""Masks, SJLTs and GraSS in CUDA, run on the CPU: equal to the core's results, whatever the cut and the order."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any

import ml_dtypes
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import reference
import specs
from cuda_on_cpu.device import EmulatedDevice
from cuda_on_cpu.emulator import far_apart
from grass_rs._backends.cuda import cyclic, iid, sjlt
from grass_rs._backends.cuda.launch import SCALARS
from grass_rs._backends.cuda.mask import MaskIndices, MaskProgram, mask_launch
from grass_rs._backends.cuda.sjlt import GraSSProgram, SJLTProgram, rows_at_once
from grass_rs._backends.cuda.sources import source
from nvrtc import resources

if TYPE_CHECKING:
    from numpy.typing import NDArray

PROGRAMS: dict[str, Any] = {
    "mask": MaskProgram,
    "random_mask": MaskProgram,
    "sjlt": SJLTProgram,
    "grass": GraSSProgram,
}


def run(
    spec: dict[str, Any], x: NDArray[Any], device: EmulatedDevice | None = None
) -> NDArray[np.float32]:
    device = device or EmulatedDevice()
    out = device.empty((len(x), specs.build(spec).output_dim))
    PROGRAMS[spec["type"]](spec).run(device, device.array(x), out)
    result: NDArray[np.float32] = out.owner
    return result


def integers(n: int, p: int, seed: int = 0) -> NDArray[np.float32]:
    """Return rows whose sums are exact in float32, in any order, and that the other dtypes hold too."""
    return np.random.default_rng(seed).integers(-8, 9, (n, p)).astype(np.float32)


def numbers(n: int, p: int) -> NDArray[np.float32]:
    """Return rows whose sums depend on the order."""
    rng = np.random.default_rng(1)
    scales = np.exp(rng.standard_normal((n, p), dtype=np.float32) * 4)
    return rng.standard_normal((n, p), dtype=np.float32) * scales


def iids(p: int, k: int, seed: int = 9, nnz: int = 1) -> dict[str, Any]:
    return reference.sjlt(p, k, seed, nnz, "iid")


BLOCKS = reference.random_mask(6400, 640, 4, block=16)

SPECS: dict[str, dict[str, Any]] = {
    "mask": reference.mask([0, 2, 3, 50, 99], 100),
    "mask, one": reference.mask([4], 5),
    "random mask": reference.random_mask(5000, 700, 1),
    "block mask": BLOCKS,
    "identity mask": reference.random_mask(130, 130, 2),
    "cyclic, one": reference.sjlt(1, 1, 3),
    "cyclic, k=1": reference.sjlt(3000, 1, 4),
    "cyclic, lossless": reference.sjlt(100, 129, 5),
    "cyclic, narrow": reference.sjlt(4000, 7, 6),
    "cyclic, 127": reference.sjlt(1000, 127, 7),
    "cyclic, 128": reference.sjlt(1025, 128, 8),
    "cyclic, 129": reference.sjlt(1290, 129, 9),
    "cyclic, teams": reference.sjlt(40_001, 500, 10),
    "cyclic, one slice": reference.sjlt(5000, 1000, 11),
    "cyclic, slices": reference.sjlt(9001, 1111, 12),
    "cyclic, k=4096": reference.sjlt(150_000, 4096, 2**64 - 1),
    "cyclic, page - 1": reference.sjlt(4095, 4096, 13),
    "cyclic, page + 1": reference.sjlt(4097, 4096, 14),
    "cyclic, nnz=2": reference.sjlt(3000, 2 * 64, 15, nnz=2),
    "cyclic, nnz=3": reference.sjlt(7000, 3 * 700, 16, nnz=3),
    "grass": reference.grass(9000, 300, 17),
    "grass, slices": reference.grass(9000, 1300, 18, mask_dim=5300),
    "grass, block mask": reference.grass(6400, 160, 19, mask=BLOCKS),
    "grass, explicit mask": reference.grass(100, 9, 20, mask=reference.mask([1, 5, 98], 100)),
    "iid, one": iids(1, 1),
    "iid, k=1": iids(600, 1),
    "iid, 127": iids(127, 60),
    "iid, 129": iids(129, 1000),
    "iid, parts": iids(6000, 100),
    "iid, k=4096": iids(9000, 4096),
    "iid, slices": iids(2000, 9000),
    "iid, nnz=2": iids(900, 2 * 33, nnz=2),
    "iid, nnz=3": iids(1025, 3 * 100, nnz=3),
    "grass, iid": reference.grass(5000, 200, 21, kind="iid"),
}

SMALL_CUTS = {"_ENOUGH_BLOCKS": 1, "_MIN_PAGES": 1, "_BATCH_PAGES": 4}
"""Cuts of the cyclic SJLT that large inputs have: many sums a thread, many groups, many batches."""


@pytest.fixture(params=["as it is", "as large inputs"])
def cuts(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    if request.param == "as large inputs":
        for name, value in SMALL_CUTS.items():
            monkeypatch.setattr(cyclic, name, value)


# Results


@pytest.mark.usefixtures("cuts")
@pytest.mark.parametrize("n", [1, 3, 9])
@pytest.mark.parametrize("spec", SPECS.values(), ids=SPECS.keys())
def test_exact_sums_equal_the_core(spec: dict[str, Any], n: int) -> None:
    x = integers(n, spec["input_dim"])
    assert np.array_equal(run(spec, x), specs.build(spec)(x))


@pytest.mark.parametrize("name", ["random mask", "cyclic, slices", "grass", "iid, parts"])
def test_sums_equal_the_matrix_to_rounding(name: str) -> None:
    spec = SPECS[name]
    x = np.random.default_rng(2).standard_normal((3, spec["input_dim"]), dtype=np.float32)
    specs.assert_compressed(run(spec, x), specs.build(spec).to_dense(), x)


@settings(max_examples=40, deadline=None)
@given(
    st.one_of(specs.masks(), specs.random_masks(), specs.sjlts(), specs.grasses()),
    st.integers(1, 5),
)
def test_any_spec_equals_the_core(spec: dict[str, Any], n: int) -> None:
    x = integers(n, spec["input_dim"])
    assert np.array_equal(run(spec, x), specs.build(spec)(x))


@pytest.mark.parametrize("dtype", [np.float64, np.float16, ml_dtypes.bfloat16])
@pytest.mark.parametrize("name", ["random mask", "cyclic, k=4096", "iid, k=1"])
def test_dtypes(name: str, dtype: Any) -> None:
    spec = SPECS[name]
    x = integers(4, spec["input_dim"])
    assert np.array_equal(run(spec, x.astype(dtype)), specs.build(spec)(x))


@pytest.mark.parametrize("name", ["random mask", "cyclic, teams", "grass", "iid, nnz=3"])
def test_any_stride_of_the_rows(name: str) -> None:
    spec = SPECS[name]
    p = spec["input_dim"]
    wide = integers(7, p + 5)
    for x in (
        wide[::2, 3 : p + 3],
        wide[::-1, :p],
        np.broadcast_to(wide[0, 5:], (5, p)),
    ):
        assert np.array_equal(run(spec, x), specs.build(spec)(np.ascontiguousarray(x)))


@pytest.mark.parametrize("spec", SPECS.values(), ids=SPECS.keys())
def test_no_rows_launch_nothing(spec: dict[str, Any]) -> None:
    device = EmulatedDevice()
    assert run(spec, integers(0, spec["input_dim"]), device).shape[0] == 0
    assert not device.launches


# Order


ORDERED = [
    "cyclic, k=1",
    "cyclic, narrow",
    "cyclic, teams",
    "cyclic, slices",
    "cyclic, nnz=3",
    "grass, slices",
    "iid, k=1",
    "iid, parts",
    "iid, slices",
    "grass, iid",
]


@pytest.mark.parametrize("name", ORDERED)
def test_no_schedule_changes_a_bit(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cyclic, "_BATCH_PAGES", 4)
    spec = SPECS[name]
    x = numbers(5, spec["input_dim"])
    results = [run(spec, x, EmulatedDevice(schedule)) for schedule in range(4)]
    assert all(np.array_equal(result, results[0]) for result in results)


@pytest.mark.parametrize("name", ORDERED)
def test_a_row_alone_has_the_bits_it_has_in_a_batch(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    spec = SPECS[name]
    x = numbers(9, spec["input_dim"])
    together = run(spec, x)
    for row in (0, 8):
        assert np.array_equal(run(spec, x[row : row + 1])[0], together[row])
    monkeypatch.setattr(cyclic, "_ENOUGH_BLOCKS", 1)
    assert np.array_equal(run(spec, x), together)


@pytest.mark.parametrize("name", ["cyclic, teams", "iid, parts"])
def test_rows_that_exceed_the_workspace_go_in_several_launches(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    spec = SPECS[name]
    x = numbers(9, spec["input_dim"])
    device = EmulatedDevice()
    together = run(spec, x, device)
    assert len(device.launches) == 2
    parts = SJLTProgram(spec)._sketch._cut.parts
    monkeypatch.setattr(sjlt, "_WORKSPACE", 2 * parts * spec["output_dim"])
    device = EmulatedDevice()
    assert np.array_equal(run(spec, x, device), together)
    assert len(device.launches) == 2 * 5


def test_results_do_not_depend_on_the_compute_capability() -> None:
    spec = SPECS["iid, k=4096"]
    x = numbers(9, spec["input_dim"])
    devices = [EmulatedDevice(compute_capability=c) for c in (75, 90)]
    results = [run(spec, x, device) for device in devices]
    assert devices[0].launches[0].block != devices[1].launches[0].block
    assert np.array_equal(*results)


# Large arrays: memory that is never touched costs nothing


@pytest.mark.parametrize("p", [2**31, 2**31 + 64])
def test_indices_beyond_32_bits(p: int) -> None:
    x = np.zeros((1, p), dtype=np.float16)
    x[0, p - 3 :] = [1, 2, 3]
    indices = reference.mask([7, p - 3, p - 1], p)
    assert np.array_equal(run(indices, x), [[0, 1, 3]])
    spec = reference.grass(p, 2, 5, mask=indices)
    kept = reference.sjlt(3, 2, reference.derive(5, "sjlt"))
    assert np.array_equal(run(spec, x), specs.build(kept)(np.float32([[0, 1, 3]])))
    assert MaskIndices(indices).scalar == ("int" if p == 2**31 else "i64")


@pytest.mark.parametrize(
    "spec",
    [
        reference.mask([0, 7, 299], 300),
        reference.sjlt(300, 60, 5),
        iids(300, 60),
        reference.grass(300, 60, 5, mask=reference.mask(list(range(150, 300)), 300)),
    ],
    ids=["mask", "cyclic", "iid", "grass"],
)
def test_rows_beyond_32_bits(spec: dict[str, Any]) -> None:
    x = far_apart(integers(3, 300).astype(np.float16))
    assert np.array_equal(run(spec, x), specs.build(spec)(integers(3, 300)))


# Launch arithmetic


widths = st.integers(1, 5000) | st.integers(1, 2**31 - 1)
lengths = st.integers(1, 10_000_000) | st.integers(1, 2**38)


@settings(max_examples=500, deadline=None)
@given(lengths, widths, st.integers(1, 100_000), st.sampled_from(sorted(SCALARS)))
def test_cyclic_launches(p: int, width: int, n: int, dtype: str) -> None:
    cut = cyclic.cut(p, width)
    pages = -(-p // width)
    assert (cut.parts - 1) * cut.group_pages < pages <= cut.parts * cut.group_pages
    assert cut.parts <= 512
    launch, (slices, sign_blocks, batch_pages, group_pages) = cyclic.launch(cut, n, 1, dtype, None)
    macros = dict(macro.split("=") for macro in launch.kernel.macros)
    rows, columns = int(macros["ROWS"]), int(macros["COLUMNS"])
    threads, teams, _ = launch.block
    covered = threads * columns
    assert launch.grid == (-(-n // rows) * int(slices), cut.parts, 1)
    assert (slices - 1) * covered < width <= slices * covered
    assert threads * teams <= 256
    assert teams == cut.teams
    assert columns == 1 or threads % 32 == 0
    assert launch.shared_bytes <= 48 << 10 or width >= 2**20
    assert int(batch_pages) * width < 2**31
    assert group_pages == cut.group_pages < 2**32
    page_blocks = -(-width // 128)
    if macros["SLICED"] == "0":
        assert slices == 1
        assert sign_blocks == page_blocks
    else:
        # The last bit that a thread may ask for, and the last block, counted past the end at most once.
        assert 127 + covered - 1 + -width % 128 < sign_blocks * 128
        assert page_blocks - 1 + int(sign_blocks) - 1 < 2 * page_blocks


def test_cyclic_launches_of_the_usual_sizes() -> None:
    """One row of 2^24 fills a device; more rows share the signs; parts add little to what is read."""
    for exponent in (24, 26, 28, 33):
        cut = cyclic.cut(1 << exponent, 4096)
        assert (cut.parts, cut.group_pages) == (128, 1 << (exponent - 19))
        single, how = cyclic.launch(cut, 1, 1, "float32", None)
        assert (single.grid, single.block) == ((4, 128, 1), (256, 1, 1))
        assert {"ROWS=1", "COLUMNS=4", "SLICED=1"} < set(single.kernel.macros)
        assert how == (4, 9, min(64, cut.group_pages), cut.group_pages)
        batch, _ = cyclic.launch(cut, 32, 1, "float32", None)
        assert batch.grid == (32, 128, 1)
        assert "ROWS=4" in batch.kernel.macros


@settings(max_examples=300, deadline=None)
@given(
    lengths,
    widths,
    st.integers(1, 100_000),
    st.integers(1, 3),
    st.sampled_from([70, 75, 80, 86, 90, 100, 120]),
)
def test_iid_launches(p: int, width: int, n: int, draws: int, capability: int) -> None:
    cut = iid.cut(p, width)
    assert cut.part_size % 512 == 0
    assert (cut.parts - 1) * cut.part_size < p <= cut.parts * cut.part_size
    launch, (slices, slice_width, block_rows, _, parts) = iid.launch(
        cut, n, draws, "float32", None, compute_capability=capability
    )
    warps = launch.block[1]
    teams = warps // int(block_rows)
    assert teams * block_rows == warps <= 8
    assert launch.shared_bytes <= (64 if capability == 75 else 96) << 10
    assert launch.shared_bytes == teams * 2112 + warps * 4 * (int(slice_width) + 32)
    assert (slices - 1) * slice_width < width <= slices * slice_width
    assert launch.grid == (
        -(-n // int(block_rows)) * draws * int(slices),
        -(-cut.parts // teams),
        1,
    )
    assert parts == cut.parts <= 4096


@given(st.integers(1, 4096), st.integers(1, 2**31 - 1))
def test_rows_of_a_launch(parts: int, k: int) -> None:
    rows = rows_at_once(parts, k)
    assert rows * k <= 2**31 - 1
    assert parts == 1 or rows == 1 or rows * parts * k <= 2**26


def test_mask_launches() -> None:
    assert mask_launch(9, 257, "float32", "int").grid == (2, 3, 1)
    huge = mask_launch(1 << 40, (1 << 31) - 1, "float16", "i64")
    assert huge.grid == (1 << 23, 65535, 1)
    assert huge.kernel.macros == ("Scalar=Half", "Index=i64")


def test_numbers_that_sources_and_launches_share() -> None:
    def constant(file: str, name: str) -> int:
        match = re.search(rf"constexpr (?:u32|i64) {name} = (\d+);", source(file))
        assert match is not None
        return int(match[1])

    assert constant("iid.cu", "STEPS") == iid._STEPS
    assert constant("cyclic.cu", "WARP") == constant("iid.cu", "WARP") == cyclic._WARP == iid._WARP
    assert constant("cyclic.cu", "SIGN_BLOCK") == cyclic._SIGN_BLOCK
    assert constant("mask.cu", "ROWS") == mask_launch(2**17, 1, "float32", "int").grid[1] // 2**13
    bounds = [int(n) for n in re.findall(r"__launch_bounds__\((\d+)", source("cyclic.cu"))]
    assert bounds == [cyclic._THREADS]


# Registers: what the launch bounds give, without spills


def gathers(rows: int, columns: int, sliced: int, gather: int) -> tuple[str, ...]:
    return (
        f"ROWS={rows}",
        f"COLUMNS={columns}",
        f"SLICED={sliced}",
        f"GATHER={gather}",
        "Index=int",
    )


@pytest.mark.parametrize("arch", ["sm_80", "sm_90"])
@pytest.mark.parametrize(
    ("file", "macros", "registers"),
    [
        ("mask.cu", ("Scalar=float", "Index=i64"), 32),
        ("cyclic.cu", ("Scalar=float", *gathers(1, 4, 1, 0)), 64),
        ("cyclic.cu", ("Scalar=float", *gathers(2, 4, 1, 0)), 64),
        ("cyclic.cu", ("Scalar=float", *gathers(4, 4, 1, 0)), 64),
        ("cyclic.cu", ("Scalar=float", *gathers(4, 4, 0, 0)), 64),
        ("cyclic.cu", ("Scalar=float", *gathers(1, 1, 1, 0)), 64),
        ("cyclic.cu", ("Scalar=Half", *gathers(4, 4, 1, 0)), 64),
        ("cyclic.cu", ("Scalar=BFloat16", *gathers(1, 4, 1, 0)), 64),
        ("cyclic.cu", ("Scalar=double", *gathers(2, 4, 1, 0)), 64),
        ("cyclic.cu", ("Scalar=float", *gathers(4, 4, 1, 1)), 128),
        ("cyclic.cu", ("Scalar=BFloat16", *gathers(1, 1, 1, 1)), 64),
        ("iid.cu", ("Scalar=float", "GATHER=0", "Index=int"), 80),
        ("iid.cu", ("Scalar=Half", "GATHER=1", "Index=i64"), 96),
    ],
)
def test_registers(file: str, macros: tuple[str, ...], registers: int, arch: str) -> None:
    needs = resources(file, macros, arch)
    assert needs.spilled_bytes == needs.stack_bytes == needs.shared_bytes == 0
    assert needs.registers <= registers
