"""Rows at several checkpoints, and the columns of TRAK's weights."""

from __future__ import annotations

import copy
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import safetensors.torch
import torch
from torch import nn

import grass_rs as grass

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

N, CLASSES = 9, 4


def network(seed: int) -> nn.Sequential:
    torch.manual_seed(seed)
    model = nn.Sequential(nn.Linear(6, 8), nn.BatchNorm1d(8), nn.Tanh(), nn.Linear(8, CLASSES))
    with torch.no_grad():
        model(torch.randn(32, 6))  # running statistics of its own
    return model


def batches() -> list[tuple[torch.Tensor, torch.Tensor]]:
    generator = torch.Generator().manual_seed(5)
    x = torch.randn(N, 6, generator=generator)
    y = torch.randint(CLASSES, (N,), generator=generator)
    return [(x[:4], y[:4]), (x[4:5], y[4:5]), (x[5:], y[5:])]


def plan_of(model: nn.Module, seed: int = 0) -> grass.Plan:
    return grass.Plan.for_model(model, "factgrass", 16, seed=seed)


def rows(attributor: grass.Attributor, path: Path) -> grass.Store:
    return attributor.cache(batches(), path, progress=False)


@pytest.fixture
def models() -> list[nn.Sequential]:
    return [network(seed) for seed in (1, 2, 3)]


def test_columns_of_a_checkpoint_are_the_rows_of_its_model(
    models: list[nn.Sequential], tmp_path: Path
) -> None:
    model = network(0)
    before = copy.deepcopy(model.state_dict())
    attributor = grass.Attributor(
        model,
        "cross_entropy",
        plan_of(model),
        checkpoints=[each.state_dict() for each in models],
    )
    together = rows(attributor, tmp_path / "together.grass")
    alone = [
        rows(grass.Attributor(each, "cross_entropy", plan_of(each)), tmp_path / f"{number}.grass")
        for number, each in enumerate(models)
    ]
    np.testing.assert_array_equal(together[:], np.concatenate([each[:] for each in alone], axis=1))
    names = [column.name for column in alone[0].columns]
    assert [column.name for column in together.columns] == [
        f"{name}@{number}" for number in range(3) for name in names
    ]
    for name, tensor in model.state_dict().items():
        assert torch.equal(tensor, before[name])


@pytest.mark.parametrize(
    ("suffix", "write"), [(".pt", torch.save), (".safetensors", safetensors.torch.save_file)]
)
def test_files_are_the_states_in_them(
    models: list[nn.Sequential], tmp_path: Path, suffix: str, write: Callable[..., None]
) -> None:
    states = [each.state_dict() for each in models]
    paths = [tmp_path / f"{number}{suffix}" for number in range(3)]
    for state, path in zip(states, paths, strict=True):
        write(state, path)
    model = network(0)
    stores = [
        rows(
            grass.Attributor(model, "cross_entropy", plan_of(model), checkpoints=given),
            tmp_path / f"{name}.grass",
        )
        for name, given in (("states", states), ("paths", paths))
    ]
    np.testing.assert_array_equal(stores[0][:], stores[1][:])
    assert stores[0].fingerprints == stores[1].fingerprints


def test_a_plan_each(models: list[nn.Sequential], tmp_path: Path) -> None:
    plans = [plan_of(models[0], seed) for seed in (7, 8)]
    states = [models[0].state_dict()] * 2
    attributor = grass.Attributor(models[0], "cross_entropy", plans, checkpoints=states)
    store = rows(attributor, tmp_path / "both.grass")
    for number, plan in enumerate(plans):
        alone = rows(
            grass.Attributor(models[0], "cross_entropy", plan), tmp_path / f"{number}.grass"
        )
        part = slice(number * plan.width, (number + 1) * plan.width)
        np.testing.assert_array_equal(store[:][:, part], alone[:])


def test_an_interrupted_cache_is_finished_to_the_same_bytes(
    models: list[nn.Sequential], tmp_path: Path
) -> None:
    def attributor() -> grass.Attributor:
        return grass.Attributor(
            network(0),
            "margin",
            plan_of(models[0]),
            checkpoints=[each.state_dict() for each in models],
        )

    def broken() -> Any:
        yield batches()[0]
        raise KeyboardInterrupt

    whole = rows(attributor(), tmp_path / "whole.grass")
    with pytest.raises(KeyboardInterrupt):
        attributor().cache(broken(), tmp_path / "torn.grass", progress=False, commit_bytes=1)
    torn = rows(attributor(), tmp_path / "torn.grass")
    np.testing.assert_array_equal(torn[:], whole[:])
    # Other checkpoints are another store.
    other = grass.Attributor(
        network(0), "margin", plan_of(models[0]), checkpoints=[models[0].state_dict()] * 3
    )
    with pytest.raises(grass.StoreMismatchError):
        rows(other, tmp_path / "torn.grass")


def test_margin_rows_have_the_weight_of_trak(models: list[nn.Sequential], tmp_path: Path) -> None:
    attributor = grass.Attributor(
        network(0),
        "margin",
        plan_of(models[0]),
        checkpoints=[each.state_dict() for each in models],
    )
    store = rows(attributor, tmp_path / "margin.grass")
    x, y = map(torch.cat, zip(*batches(), strict=True))
    for number, model in enumerate(models):
        (column,) = [c for c in store.columns if c.name == f"(weight)@{number}"]
        p = model.eval()(x).softmax(dim=1)[torch.arange(N), y].detach().numpy()
        np.testing.assert_allclose(store[:][:, column.offset], 1 - p, rtol=1e-5)


def test_margin_is_minus_the_log_odds() -> None:
    logits = torch.randn(5, CLASSES, dtype=torch.float64)
    y = torch.tensor([0, 3, 1, 1, 2])
    model = nn.Identity()
    losses = grass.capture.resolve_loss("margin")(model, (logits, y))
    p = logits.softmax(dim=1)[torch.arange(5), y]
    torch.testing.assert_close(losses, -torch.log(p / (1 - p)))
    # A float32 p would be 1, and the odds infinite.
    sure = torch.tensor([[200.0, 0, 0, 0]])
    certain = grass.capture.resolve_loss("margin")(model, (sure, y[:1]))
    torch.testing.assert_close(certain, torch.tensor([np.log(3) - 200], dtype=torch.float32))


@pytest.mark.parametrize(
    ("batch", "message"),
    [
        ((torch.zeros(2, 3, 4), torch.zeros(2, 4, dtype=torch.long)), "at least two classes"),
        ((torch.zeros(2, 1), torch.zeros(2, dtype=torch.long)), "at least two classes"),
        ((torch.zeros(2, 3), torch.zeros(3, dtype=torch.long)), r"got \(2, 3\) and \(3,\)"),
        ((torch.zeros(2, 3), torch.zeros(2)), "numbers of classes"),
    ],
)
def test_margin_refuses_what_has_no_class(batch: Any, message: str) -> None:
    with pytest.raises(grass.LossError, match=message):
        grass.capture.resolve_loss("margin")(nn.Identity(), batch)


def _without(state: dict[str, Any], name: str) -> dict[str, Any]:
    return {key: value for key, value in state.items() if key != name}


@pytest.mark.parametrize(
    ("checkpoints", "message"),
    [
        ([], "at least one state dict"),
        ({"a": torch.zeros(1)}, "expects a list of state dicts or paths, got dict"),
        ([3], r"checkpoint 0: expected a state dict of tensors, got int"),
        ([{"model": {}}], "expected a state dict of tensors"),
        ([_without(network(1).state_dict(), "3.bias")], r"expected '3\.bias' of shape \(4,\)"),
        ([{**network(1).state_dict(), "3.bias": torch.zeros(5)}], r"got \(5,\)"),
        ([{**network(1).state_dict(), "4.bias": torch.zeros(5)}], r"got '4\.bias' besides"),
        (["missing.pt"], r"checkpoint 0: expected a state dict .* missing\.pt"),
        (["missing.safetensors"], r"checkpoint 0: expected a state dict .* missing\.safetensors"),
    ],
)
def test_checkpoints_that_do_not_fit_are_refused(checkpoints: Any, message: str) -> None:
    model = network(0)
    with pytest.raises(grass.SpecError, match=message):
        grass.Attributor(model, "cross_entropy", plan_of(model), checkpoints=checkpoints)


@pytest.mark.parametrize("suffix", [".pt", ".safetensors"])
def test_files_that_hold_no_state_are_refused(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"noise{suffix}"
    path.write_bytes(b"\x00\xff" * 100)
    model = network(0)
    with pytest.raises(grass.SpecError, match="check the path"):
        grass.Attributor(model, "cross_entropy", plan_of(model), checkpoints=[path])


def test_plans_that_do_not_fit_are_refused() -> None:
    model = network(0)
    states = [model.state_dict()] * 2
    part = grass.Plan.for_model(model, layers=["0"])
    for plans in ([plan_of(model)], [plan_of(model), part]):
        with pytest.raises(grass.SpecError, match="one for each of 2 checkpoints"):
            grass.Attributor(model, "cross_entropy", plans, checkpoints=states)
    with pytest.raises(grass.SpecError, match="expects a Plan"):
        grass.Attributor(model, "cross_entropy", [1], checkpoints=states)
