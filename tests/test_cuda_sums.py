"""The sum of partial results: equal to adding the parts one after the other, whatever the order of threads."""

from __future__ import annotations

import numpy as np
import pytest

from cuda_on_cpu.device import EmulatedDevice
from grass_rs._backends.cuda.sums import add_parts, sum_launch
from nvrtc import resources


@pytest.mark.parametrize("count", [1, 2, 7, 8, 31, 33, 200])
@pytest.mark.parametrize(("n", "k"), [(1, 1), (1, 31), (3, 33), (2, 100)])
def test_integers_add_exactly(count: int, n: int, k: int) -> None:
    device = EmulatedDevice()
    values = np.random.default_rng(0).integers(-9, 10, (count, n, k)).astype(np.float32)
    wide = np.full((n, k + 3), 7, dtype=np.float32)
    add_parts(device, device.array(values), device.array(wide[:, :k]), 0.5)
    assert np.array_equal(wide[:, :k], 0.5 * values.sum(axis=0))
    assert np.all(wide[:, k:] == 7)


def test_order_of_additions_is_fixed() -> None:
    values = np.random.default_rng(1).standard_normal((150, 4, 45), dtype=np.float32)
    results = []
    for schedule in range(4):
        device = EmulatedDevice(schedule)
        out = device.empty((4, 45))
        add_parts(device, device.array(values), out, 0.7)
        results.append(out.owner)
        for row in range(4):
            alone = device.empty((1, 45))
            part = np.ascontiguousarray(values[:, row : row + 1])
            add_parts(device, device.array(part), alone, 0.7)
            assert np.array_equal(alone.owner[0], out.owner[row])
    assert all(np.array_equal(result, results[0]) for result in results)
    assert np.allclose(results[0], 0.7 * values.sum(axis=0, dtype=np.float64), atol=1e-5)


@pytest.mark.parametrize(("n", "k"), [(0, 5), (3, 0)])
def test_nothing_to_add_launches_nothing(n: int, k: int) -> None:
    device = EmulatedDevice()
    add_parts(device, device.empty((3, n, k)), device.empty((n, k)), 1.0)
    assert not device.launches


def test_launch() -> None:
    assert sum_launch(1, 1, 1).block == (32, 1, 1)
    many = sum_launch(1000, 1, 4096)
    assert (many.grid, many.block, many.shared_bytes) == ((128, 1, 1), (32, 32, 1), 4096)
    huge = sum_launch(3, 1 << 20, 1 << 15)
    assert huge.grid == (1 << 30, 1, 1)


@pytest.mark.parametrize("arch", ["sm_80", "sm_90"])
def test_registers(arch: str) -> None:
    needs = resources("sum.cu", (), arch)
    assert needs.registers <= 32
    assert needs.spilled_bytes == 0
