"""Every kernel on the CPU: the same bits in any order of threads, and nothing that a sanitizer finds."""

from __future__ import annotations

import numpy as np
import pytest

from cuda_launches import CASES
from cuda_on_cpu.device import EmulatedDevice, RecordingDevice
from cuda_on_cpu.sanitizers import SanitizedDevice
from grass_rs._backends.cuda.sources import KERNELS


def test_every_kernel_has_a_case() -> None:
    launched = set()
    for case in CASES.values():
        device = RecordingDevice()
        case.run(device, case.dtypes[0])
        launched |= {launch.kernel.file for launch in device.launches}
    written = {path.name for path in KERNELS.glob("*.cu")}
    assert written
    assert written <= launched


@pytest.mark.parametrize("name", CASES)
def test_order_of_threads_and_blocks_changes_no_bit(name: str) -> None:
    case = CASES[name]
    for dtype in case.dtypes[:1]:
        results = [case.run(EmulatedDevice(schedule), dtype) for schedule in range(4)]
        assert not np.any(np.isnan(results[0]))
        assert all(np.array_equal(result, results[0]) for result in results)


@pytest.mark.parametrize("sanitizer", ["address", "thread"])
@pytest.mark.parametrize("name", CASES)
def test_sanitizers_find_nothing(name: str, sanitizer: str) -> None:
    case, device = CASES[name], SanitizedDevice(sanitizer)
    result = case.run(device, case.dtypes[0])
    assert device.launches
    assert np.array_equal(result, case.run(EmulatedDevice(), case.dtypes[0]))
