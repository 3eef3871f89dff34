"""The emulator: it finds planted mistakes, and finds none where there are none."""

from __future__ import annotations

import re
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

from cuda_on_cpu.device import EmulatedDevice
from cuda_on_cpu.emulator import HERE, guarded, guarded_empty, launch
from cuda_on_cpu.sanitizers import SanitizedDevice
from grass_rs._backends.cuda.launch import Kernel, Launch

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from cuda_on_cpu.device import RecordingDevice

COUNT = 64

ERRORS = {
    "outside_array": r"thread \(63, 0, 0\) of block \(0, 0, 0\) touched memory that is not its own: "
    r"0 bytes behind the end of an array of 256 bytes",
    "outside_shared": r"thread \(63, .*: 0 bytes behind the end of shared memory of 256 bytes",
    "divergent_barrier": r"thread \(0, 0, 0\) of block \(0, 0, 0\) waits at divergent_barrier.cu:7 for "
    r"thread \(1, 0, 0\), which waits at divergent_barrier.cu:9",
    "divergent_shuffle": r"waits at divergent_shuffle.cu:7 for thread \(1, 0, 0\), which waits at .*:8",
    "wrong_mask": r"thread \(31, 0, 0\) .* calls with a mask without its own lane at wrong_mask.cu:6",
    "misaligned_copy": r"copies 8 bytes asynchronously, but an address is not a multiple of that",
    "large_stack": r"bytes before a thread's stack of 65536 bytes",
}
WRONG_RESULTS = {
    "missing_barrier",
    "early_reuse",
    "unwritten_shared",
    "missing_wait",
    "copy_into_use",
}
"""What nobody wrote is NaN, and what depends on the order of threads differs between schedules."""
SANITIZERS = {
    "outside_array": ("address", "heap-buffer-overflow.*outside_array.cu:6"),
    "outside_shared": ("address", "use-after-poison.*outside_shared.cu:7"),
    "signed_overflow": ("address", "signed_overflow.cu:7:.*signed integer overflow"),
    "misaligned": ("address", "misaligned.cu:9:.*misaligned address"),
    "missing_barrier": ("thread", "data race.*missing_barrier.cu:12"),
    "early_reuse": ("thread", "data race.*early_reuse.cu:9"),
    "copy_into_use": ("thread", "data race"),
    "shuffle_as_barrier": ("thread", "data race.*shuffle_as_barrier.cu:12"),
    "race_of_blocks": ("thread", "data race.*race_of_blocks.cu:7"),
}


def run(device: RecordingDevice, name: str, mistake: int, count: int = COUNT) -> NDArray[Any]:
    """Run a kernel of the mistakes' folder, with its mistake or without, and return its result."""
    x = device.array(guarded(np.arange(1, count + 1, dtype=np.float32)))
    out = device.empty((count,))
    # Threads beyond the count return at once where the kernel says so.
    threads = 96 if name == "missing_barrier" else count
    blocks = 2 if name == "race_of_blocks" else 1
    kernel = Kernel(f"{name}.cu", name, (f"MISTAKE={mistake}",))
    args = (np.uint64(x.pointer), np.uint64(out.pointer), np.uint32(count))
    device.launch(Launch(kernel, (blocks, 1, 1), (threads, 1, 1), 4 * count), args)
    return out.owner


def test_every_mistake_is_looked_for() -> None:
    planted = {path.stem for path in (HERE / "mistakes").glob("*.cu")}
    assert planted == {*ERRORS, *WRONG_RESULTS, *SANITIZERS}
    assert len(planted) == 16


@pytest.mark.parametrize("name", ERRORS)
def test_error_says_what_is_wrong(name: str) -> None:
    results = [run(EmulatedDevice(schedule), name, 0) for schedule in range(4)]
    assert all(np.array_equal(result, results[0]) for result in results)
    with pytest.raises(RuntimeError, match=f"^{name}.cu: .*{ERRORS[name]}"):
        run(EmulatedDevice(), name, 1)


@pytest.mark.parametrize("name", sorted(WRONG_RESULTS))
def test_results_show_a_mistake(name: str) -> None:
    results = [run(EmulatedDevice(schedule), name, 0) for schedule in range(4)]
    assert all(np.array_equal(result, results[0]) for result in results)
    assert not np.any(np.isnan(results[0]))
    wrong = [run(EmulatedDevice(schedule), name, 1) for schedule in range(4)]
    assert all(not np.array_equal(result, results[0]) for result in wrong)
    assert any(not np.array_equal(result, wrong[0]) for result in wrong) or np.isnan(wrong).any()


@pytest.mark.parametrize("name", SANITIZERS)
def test_sanitizer_finds_a_mistake(name: str) -> None:
    sanitizer, finding = SANITIZERS[name]
    # 244 bytes, which do not end where pages do.
    count = 61 if sanitizer == "address" else COUNT
    result = run(SanitizedDevice(sanitizer), name, 0, count)
    assert np.array_equal(result, run(EmulatedDevice(), name, 0, count), equal_nan=True)
    with pytest.raises(RuntimeError) as caught:
        run(SanitizedDevice(sanitizer), name, 1, count)
    assert re.search(finding, str(caught.value), re.DOTALL)


def test_lanes_exchange() -> None:
    values = np.random.default_rng(0).integers(0, 6, 32).astype(np.uint32)
    out, lane = guarded_empty((8, 32), np.uint32), np.arange(32)
    bits = np.uint32(1) << lane.astype(np.uint32)
    halves = [np.sum(bits[half] * (values[half] % 2)) for half in (slice(0, 16), slice(16, 32))]
    turned = np.where(lane < 16, values[lane ^ 1], 0)
    expected = [
        np.full(32, values[5]),
        values[lane ^ 9],
        np.where(lane + 3 < 32, values[(lane + 3) % 32], values),
        np.where(lane >= 3, values[lane - 3], values),
        (values == values[:, None]) @ bits,
        np.full(32, np.sum(bits[values % 3 == 0])),
        np.ones(32),
        np.where(lane < 16, *halves) ^ turned,
    ]
    for schedule in range(4):
        launched = Launch(Kernel("lanes.cu", "lanes", ()), (1, 1, 1), (32, 1, 1), 0)
        launch(launched, [guarded(values), out], schedule)
        assert np.array_equal(out, expected)


WORDS = Launch(Kernel("words.cu", "words", ()), (1, 1, 1), (32, 1, 1), 0)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"block": (1025, 1, 1)}, "expected 1 to 1024 threads"),
        ({"block": (8, 1, 65)}, "at most 64 on the last axis, got (8, 1, 65)"),
        ({"grid": (0, 1, 1)}, "expected 1 to (2147483647, 65535, 65535) blocks, got (0, 1, 1)"),
        ({"grid": (1, 65536, 1)}, "blocks, got (1, 65536, 1)"),
        ({"shared_bytes": 232449}, "expected at most 232448 bytes of shared memory, got 232449"),
    ],
)
def test_launch_that_cuda_refuses(change: dict[str, Any], message: str) -> None:
    args = [*[np.uint64(0)] * 4, np.uint32(0), *[np.uint64(0)] * 2]
    with pytest.raises(RuntimeError, match=re.escape(message)):
        launch(replace(WORDS, **change), args)


@pytest.mark.parametrize("count", [np.int32(0), np.float32(0), np.uint64(0)])
def test_argument_of_another_type(count: np.generic) -> None:
    args = [*[np.uint64(0)] * 4, count, *[np.uint64(0)] * 2]
    given = f"(u8 u8 u8 u8 {count.dtype.str[1:]} u8 u8)"
    with pytest.raises(
        RuntimeError, match=r"takes \(u8 u8 u8 u8 u4 u8 u8\), the launch gives "
    ) as error:
        launch(WORDS, args)
    assert str(error.value).endswith(given)


def test_null_pointer_ends_the_launch_alone() -> None:
    args = [*[np.uint64(0)] * 4, np.uint32(1), *[np.uint64(0)] * 2]
    with pytest.raises(RuntimeError, match="not its own: an address of no array"):
        launch(WORDS, args)
    test_lanes_exchange()


@pytest.mark.parametrize("distance", [-1, 8])
def test_guarded_array_has_nobody_beside_it(distance: int) -> None:
    """One element before an array that fills its pages, and one behind one that does not."""
    size = 1024 if distance < 0 else 8
    ranges = guarded(np.ones(size, dtype=np.uint32))
    place = np.uint64(ranges.ctypes.data + 4 * distance)
    numbers = [guarded(np.zeros(1, dtype=dtype)) for dtype in ("u8", "u4", "u8")]
    out = [guarded_empty((1,), np.uint32) for _ in range(2)]
    where = "4 bytes before" if distance < 0 else "0 bytes behind the end of"
    with pytest.raises(RuntimeError, match=f"{where} an array of {4 * size} bytes"):
        launch(WORDS, [*numbers, place, np.uint32(1), *out])
