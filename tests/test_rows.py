"""Rows of a batch: added up on the devices of the layers, side by side on the host."""

from __future__ import annotations

from types import SimpleNamespace
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import nn

import grass_rs as grass
from grass_rs.capture import Factors
from grass_rs.engine.rows import DeviceRows, RowLayout

if TYPE_CHECKING:
    from collections.abc import Sequence


def model() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(4, 3), nn.LayerNorm(3), nn.Linear(3, 2), nn.Linear(2, 2))


def layout_on(devices: Sequence[str]) -> RowLayout:
    """Return the layout of the model as if its blocks were on these devices."""
    plan = grass.Plan.for_model(model(), "sjlt", dim=5)
    on = {
        name: SimpleNamespace(device=torch.device(device))
        for block, device in zip(plan.blocks, devices, strict=True)
        for name in block.parameters
    }
    return RowLayout(SimpleNamespace(get_parameter=on.__getitem__), plan)  # type: ignore[arg-type]


def test_parts_of_several_devices_are_put_side_by_side() -> None:
    layout = layout_on(["cuda:1", "cpu", "cuda:0", "cuda:1"])
    assert list(layout.widths) == [torch.device(name) for name in ("cuda:1", "cpu", "cuda:0")]
    whole = np.arange(3.0 * layout.plan.width, dtype=np.float32).reshape(3, -1)
    columns = [
        whole[:, column.offset : column.offset + column.width] for column in layout.plan.columns
    ]
    parts = [np.concatenate([columns[0], columns[3]], axis=1), columns[1], columns[2]]
    assert [part.shape[1] for part in parts] == list(layout.widths.values())
    np.testing.assert_array_equal(layout.side_by_side(parts), whole)


def test_the_part_of_one_device_is_the_rows() -> None:
    layout = layout_on(["cuda:0"] * 4)
    part = np.zeros((3, layout.plan.width), dtype=np.float32)
    assert layout.side_by_side([part]) is part


def test_other_devices_are_served_by_the_cpu() -> None:
    layout = layout_on(["mps:0", "cpu", "mps:0", "cpu"])
    assert layout.widths == {torch.device("cpu"): layout.plan.width}


def test_what_comes_for_one_example_and_block_adds_up() -> None:
    torch.manual_seed(1)
    layout = layout_on(["cpu"] * 4)
    rows = DeviceRows(layout, 4)
    first, norm, *_ = layout.plan.blocks
    gradient = torch.randn(2, norm.size)
    factors = Factors(torch.randn(4, 2, 4), torch.randn(4, 2, 3), bias=True)
    rows.add(norm, slice(0, 2), gradient)
    rows.add(norm, slice(2, 4), gradient)
    rows.add(first, slice(0, 4), factors)
    rows.add(norm, slice(1, 3), gradient)
    (part,) = rows.parts
    expected = np.zeros((4, layout.plan.width), dtype=np.float32)
    _, column, *_ = layout.plan.columns
    small = layout.plan[norm.name](gradient.numpy())
    for start in (0, 2, 1):
        expected[start : start + 2, column.offset : column.offset + column.width] += small
    whole = factors.gradients(slice(None), torch.float32).numpy()
    expected[:, : column.offset] = layout.plan[first.name](whole)
    np.testing.assert_array_equal(part.numpy(), expected)
