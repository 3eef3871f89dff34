"""The GPU bench, run small on the CPU: every part works, and every goal has a row."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
import torch

if TYPE_CHECKING:
    from collections.abc import Callable

sys.path.append(str(Path(__file__).parents[1] / "benches" / "python"))

import bench_gpu
import gpu_goals
import tables

SCALE = 256


class CallOnce:
    """A timer that calls everything once and says that each took a second."""

    device = torch.device("cpu")

    def kernels(self, *calls: Callable[[], Any]) -> list[float]:
        for call in calls:
            call()
        return [1.0] * len(calls)

    passes = kernels


@pytest.fixture(autouse=True)
def eager(monkeypatch: pytest.MonkeyPatch) -> None:
    """Compile nothing: that torch compiles its own operations needs no test here."""
    monkeypatch.setattr(torch, "compile", lambda function, **_: function)


def test_every_part_runs_and_every_goal_is_judged() -> None:
    rows = [row for part in bench_gpu.PARTS.values() for row in part(CallOnce(), SCALE)]
    assert all(row.value > 0 and row.its_value > 0 for row in rows)
    missing = gpu_goals.GPU.not_measured(rows)
    # The rival with tables is a CUDA kernel.
    assert {against for _, against in missing} == {gpu_goals.TABLES}
    by_key = {(row.what, row.against): row for row in rows}
    printed = tables.for_terminal(rows, gpu_goals.GPU).splitlines()
    for against, speed in ((gpu_goals.COPY, "GB/s"), (gpu_goals.WEIGHT_GRADIENT, "GFLOP/s")):
        lines = [line for line in printed if against in line]
        assert lines
        assert all(line.endswith(speed) for line in lines)
    for key in (*gpu_goals.GPU.most, *gpu_goals.GPU.least):
        if key in by_key:
            assert gpu_goals.GPU.judge(by_key[key]).goal
