"""`train_together` against a plain training loop; resuming, refusals, and what it leaves alone."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import grass_rs as grass
from grass_rs.evaluate import Ensemble, Recipe, train_together
from plain_training import train_alone

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

N, CLASSES = 60, 4
RECIPE = Recipe(epochs=3, batch_size=8, learning_rate=0.05)
ADAMW = replace(RECIPE, optimizer="adamw", learning_rate=0.01)


def mlp() -> nn.Module:
    return nn.Sequential(nn.Flatten(), nn.Linear(16, 10), nn.Tanh(), nn.Linear(10, CLASSES))


def convolutional() -> nn.Module:
    # No bias before batch norm: its gradient would be rounding, which AdamW makes as large as any.
    return nn.Sequential(
        nn.Conv2d(1, 3, 3, padding=1, bias=False),
        nn.BatchNorm2d(3),
        nn.ReLU(),
        nn.Flatten(),
        nn.Linear(48, 6, bias=False),
        nn.BatchNorm1d(6, affine=False),
        nn.Linear(6, CLASSES),
    )


class Tied(nn.Module):
    """Two layers of one weight, a buffer, and a frozen parameter."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Linear(16, 16)
        self.second = nn.Linear(16, 16)
        self.second.weight = self.first.weight
        self.scale = nn.Parameter(torch.rand(1), requires_grad=False)
        self.register_buffer("calls", torch.zeros((), dtype=torch.int64))

    def forward(self, inputs: Tensor) -> Tensor:
        if self.training:
            self.calls.add_(1)
        return self.scale * self.second(self.first(inputs.flatten(1)).tanh())


def cross_entropy(model: nn.Module, batch: Any) -> Tensor:
    inputs, labels = batch
    return nn.functional.cross_entropy(model(inputs), labels, reduction="none")


def data_of(dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(5)
    inputs = torch.randn(N, 1, 4, 4, generator=generator, dtype=torch.float64).to(dtype)
    return inputs, torch.randint(CLASSES, (N,), generator=generator)


DATA = data_of(torch.float32)


def subsets_of(*sizes: int) -> np.ndarray:
    rng = np.random.default_rng(2)
    return np.array([rng.permutation(N) < size for size in sizes])


EQUAL, UNEQUAL = subsets_of(30, 30, 30, 30), subsets_of(30, 18, 29, 60, 30, 3)


def train(build: Callable[[], nn.Module] = mlp, **changed: Any) -> Ensemble:
    arguments: dict[str, Any] = {
        "loss": "cross_entropy",
        "data": DATA,
        "subsets": EQUAL,
        "recipe": RECIPE,
        "seed": 7,
        **changed,
    }
    return train_together(build, progress=False, **arguments)


def assert_same_models(left: Ensemble, right: Ensemble, **tolerance: float) -> None:
    assert list(left.parameters) == list(right.parameters)
    assert list(left.buffers) == list(right.buffers)
    for name, values in {**left.parameters, **left.buffers}.items():
        other = {**right.parameters, **right.buffers}[name]
        torch.testing.assert_close(values, other, **(tolerance or {"rtol": 0, "atol": 0}))


@pytest.mark.parametrize("subsets", [EQUAL, UNEQUAL], ids=["equal", "unequal"])
@pytest.mark.parametrize("recipe", [RECIPE, ADAMW], ids=["sgd", "adamw"])
@pytest.mark.parametrize("build", [mlp, convolutional, Tied])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_equals_training_alone(
    build: Callable[[], nn.Module], recipe: Recipe, subsets: np.ndarray, dtype: torch.dtype
) -> None:
    data = data_of(dtype)

    def in_dtype() -> nn.Module:
        return build().to(dtype)

    ensemble = train(in_dtype, data=data, subsets=subsets, recipe=recipe)
    assert len(ensemble) == len(subsets)
    exact = dtype == torch.float64
    tolerance = {"rtol": 1e-9, "atol": 1e-10} if exact else {"rtol": 1e-4, "atol": 1e-4}
    for index in range(len(subsets)):
        alone = train_alone(in_dtype, cross_entropy, data, subsets, recipe, seed=7, index=index)
        member, expected = ensemble.member(index).state_dict(), alone.state_dict()
        assert list(member) == list(expected)
        for name, values in expected.items():
            torch.testing.assert_close(member[name], values, **tolerance)
        with torch.no_grad():
            losses, outputs = cross_entropy(alone, data), alone(data[0])
        torch.testing.assert_close(ensemble.losses(data)[index], losses, rtol=1e-3, atol=1e-3)
        torch.testing.assert_close(ensemble.outputs(data[0])[index], outputs, rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("build", [mlp, convolutional])
@pytest.mark.parametrize("at_once", [1, 2, 3])
def test_how_many_at_once_does_not_matter(build: Callable[[], nn.Module], at_once: int) -> None:
    together, apart = (train(build, subsets=UNEQUAL, at_once=n) for n in (50, at_once))
    assert_same_models(together, apart, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(together.losses(DATA), apart.losses(DATA), rtol=1e-4, atol=1e-4)


def test_a_name_and_a_function_are_one_loss() -> None:
    assert_same_models(train(), train(loss=cross_entropy))


def test_subsets_may_be_a_view() -> None:
    members = np.broadcast_to(EQUAL[0], EQUAL.shape)[::-1]  # cannot be written to
    assert_same_models(train(subsets=members), train(subsets=np.array(members)))


def test_the_seed_decides() -> None:
    assert_same_models(train(convolutional), train(convolutional))
    first = train().parameters["1.weight"]
    assert not torch.equal(first, train(seed=8).parameters["1.weight"])
    assert len(torch.unique(first, dim=0)) == len(EQUAL)


def test_training_leaves_the_global_rng_alone() -> None:
    before = torch.random.get_rng_state()
    train(lambda: nn.Sequential(mlp(), nn.Dropout(0.5))).member(0)
    assert torch.equal(torch.random.get_rng_state(), before)


class Dropped(nn.Module):
    """The gradient of its weight is a dropout mask."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(200))

    def forward(self, inputs: Tensor) -> Tensor:
        return (nn.functional.dropout(self.weight + 1, 0.5, self.training)).sum() + inputs[:, 0]


def test_dropout_differs_between_models_and_not_between_runs() -> None:
    def loss(model: nn.Module, batch: Any) -> Tensor:
        outputs: Tensor = model(batch[0].flatten(1))
        return outputs

    recipe = Recipe(epochs=1, batch_size=N, learning_rate=1, momentum=0, weight_decay=0)
    first, second = (train(Dropped, loss=loss, recipe=recipe, subsets=EQUAL) for _ in range(2))
    masks = first.parameters["weight"]
    assert torch.equal(masks, second.parameters["weight"])
    assert set(masks.unique().round(decimals=4).tolist()) == {-2.0, 0.0}
    assert len(torch.unique(masks, dim=0)) == len(EQUAL)
    # In evaluation mode nothing is dropped.
    torch.testing.assert_close(
        first.losses(DATA), (masks + 1).sum(dim=1)[:, None] + DATA[0].flatten(1)[:, 0]
    )


def test_members_are_models_of_their_own() -> None:
    ensemble = train(convolutional)
    member = ensemble.member(2)
    assert not any(module.training for module in member.modules())
    fresh = convolutional()
    fresh.load_state_dict(ensemble.state_dict(2))
    with torch.no_grad():
        torch.testing.assert_close(fresh.eval()(DATA[0]), member(DATA[0]))
        before = ensemble.parameters["0.weight"].clone()
        for parameter in member.parameters():
            parameter.zero_()
    assert torch.equal(ensemble.parameters["0.weight"], before)
    for index in (-1, 4):
        with pytest.raises(grass.SpecError, match=f"model from 0 to 3, got {index}"):
            ensemble.member(index)


# Folders


class Interrupted(Exception):  # noqa: N818 - no error of anything
    pass


def test_a_run_goes_on_where_it_stopped(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from grass_rs.evaluate import training

    folder = tmp_path / "run"
    whole = train(convolutional, at_once=2, subsets=UNEQUAL)
    train_group, trained = training._Run.train, []

    def interrupted(run: Any, group: Any, done: Any) -> Any:
        if len(trained) == 2:
            raise Interrupted
        trained.append(group)
        return train_group(run, group, done)

    monkeypatch.setattr(training._Run, "train", interrupted)
    with pytest.raises(Interrupted):
        train(convolutional, at_once=2, subsets=UNEQUAL, folder=folder)
    written = {path.name: path.stat().st_mtime_ns for path in folder.glob("*.pt")}
    assert len(written) == 2
    trained.clear()

    def counted(run: Any, group: Any, done: Any) -> Any:
        trained.append(group)
        return train_group(run, group, done)

    monkeypatch.setattr(training._Run, "train", counted)
    resumed = train(convolutional, at_once=2, subsets=UNEQUAL, folder=folder)
    assert_same_models(resumed, whole)
    assert len(trained) == len(list(folder.glob("*.pt"))) - 2 == 3
    assert {name: (folder / name).stat().st_mtime_ns for name in written} == written
    again = train(convolutional, at_once=2, subsets=UNEQUAL, folder=folder)
    assert len(trained) == 3
    assert_same_models(again, whole)
    assert {path.suffix for path in folder.iterdir()} == {".pt", ".json"}


def wider() -> nn.Module:
    return nn.Sequential(nn.Flatten(), nn.Linear(16, 11), nn.Tanh(), nn.Linear(11, CLASSES))


def zeroed() -> nn.Module:
    model = mlp()
    nn.init.zeros_(model[3].bias)
    return model


def doubled(model: nn.Module, batch: Any) -> Tensor:
    return 2 * cross_entropy(model, batch)


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"build": wider}, r"model was '[0-9a-f]{12}\.\.\.' and is '"),
        ({"build": zeroed}, "model was"),
        ({"loss": "binary_cross_entropy", "data": (DATA[0], torch.rand(N, CLASSES))}, "data was"),
        ({"loss": doubled}, "loss was 'cross_entropy' and is 'doubled'"),
        ({"data": (DATA[0] + 1, DATA[1])}, "data was"),
        ({"data": (DATA[0], DATA[1].roll(1))}, "data was"),
        ({"subsets": EQUAL[::-1]}, "subsets was"),
        ({"subsets": EQUAL[:3]}, "subsets was"),
        ({"recipe": replace(RECIPE, epochs=4)}, r"recipe\.epochs was 3 and is 4"),
        (
            {"recipe": replace(RECIPE, optimizer="adamw")},
            "recipe.optimizer was 'sgd' and is 'adamw'",
        ),
        ({"seed": 8}, "seed was 7 and is 8"),
        ({"at_once": 3}, "at_once was 50 and is 3"),
    ],
)
def test_a_folder_of_another_run_is_refused(
    tmp_path: Path, changed: dict[str, Any], message: str
) -> None:
    train(folder=tmp_path)
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    with pytest.raises(grass.BenchmarkError, match="expects the run that began it, but") as caught:
        train(**{"build": mlp, **changed}, folder=tmp_path)
    assert "\n" not in str(caught.value)
    assert caught.match(message)
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == before


def test_a_loss_of_the_same_name_is_known_by_its_values(tmp_path: Path) -> None:
    def named(factor: float) -> Callable[[nn.Module, Any], Tensor]:
        return lambda model, batch: factor * cross_entropy(model, batch)

    train(loss=named(1), folder=tmp_path)
    train(loss=named(1), folder=tmp_path)
    with pytest.raises(grass.BenchmarkError, match=r"losses of the first examples was \[\d\.\d+, "):
        train(loss=named(2), folder=tmp_path)


def test_numbers_of_numpy_are_numbers(tmp_path: Path) -> None:
    recipe = replace(RECIPE, epochs=np.int64(3), learning_rate=np.float32(0.25))
    train(recipe=recipe, seed=np.uint64(7), folder=tmp_path)
    train(recipe=replace(RECIPE, learning_rate=0.25), folder=tmp_path)


def test_damage_is_found(tmp_path: Path) -> None:
    train(folder=tmp_path)
    (file,) = tmp_path.glob("*.pt")
    whole, journal = file.read_bytes(), (tmp_path / "run.json").read_bytes()
    for damaged in (whole[:-1], whole[:500] + bytes([whole[500] ^ 1]) + whole[501:], b""):
        file.write_bytes(damaged)
        with pytest.raises(grass.BenchmarkError, match="expects the bytes that were written"):
            train(folder=tmp_path)
    file.unlink()
    with pytest.raises(grass.BenchmarkError, match=r"No such file.*delete .* to start again"):
        train(folder=tmp_path)
    file.write_bytes(whole)
    later = json.dumps({**json.loads(journal), "format": 2}).encode()
    for damaged in (b"", b"[]", b"\xff", journal[:-30], later):
        (tmp_path / "run.json").write_bytes(damaged)
        with pytest.raises(grass.BenchmarkError, match=r"delete .* to start again"):
            train(folder=tmp_path)
    (tmp_path / "run.json").write_bytes(journal)
    train(folder=tmp_path)
    with pytest.raises(grass.BenchmarkError, match="expects a folder, got a file"):
        train(folder=file)
    with pytest.raises(grass.BenchmarkError, match="cannot be"):
        train(folder=file / "below")


# Bad input


class Branching(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(16, CLASSES)

    def forward(self, inputs: Tensor) -> Tensor:
        outputs: Tensor = self.layer(inputs.flatten(1))
        return outputs if outputs.sum().item() > 0 else 2 * outputs


def test_a_model_that_vmap_refuses_trains_one_by_one() -> None:
    with pytest.raises(grass.SpecError, match=r"vmap cannot run this model .*pass at_once=1"):
        train(Branching)
    ensemble = train(Branching, at_once=1)
    alone = train_alone(Branching, cross_entropy, DATA, EQUAL, RECIPE, seed=7, index=1)
    for name, values in alone.named_parameters():
        torch.testing.assert_close(ensemble.parameters[name][1], values.detach())
    assert ensemble.losses(DATA).shape == (4, N)


@pytest.mark.parametrize(
    ("changed", "error", "message"),
    [
        ({"subsets": EQUAL & (np.arange(4) != 2)[:, None]}, grass.DataError, "subset 2 has none"),
        ({"subsets": EQUAL[:, 1:]}, grass.ShapeError, r"subsets \(m, 60\).*got \(4, 59\)"),
        ({"subsets": EQUAL[0]}, grass.ShapeError, r"subsets \(m, 60\).*got \(60,\)"),
        ({"subsets": EQUAL[:0]}, grass.ShapeError, r"got \(0, 60\)"),
        ({"subsets": EQUAL.astype(int)}, grass.UnsupportedArrayError, "bool subsets.*got int64"),
        ({"data": (DATA[0], DATA[1][1:])}, grass.DataError, "has 60 and batch.1. has 59"),
        ({"data": ()}, grass.DataError, "expects tensors"),
        ({"loss": "cross"}, grass.SpecError, "did you mean 'cross_entropy'"),
        ({"loss": lambda m, b: cross_entropy(m, b).mean()}, grass.LossError, "got a scalar"),
        ({"loss": lambda m, b: cross_entropy(m, b).detach()}, grass.LossError, "without gradient"),
        ({"build": nn.Flatten}, grass.SpecError, "parameters to train, got none"),
        ({"at_once": 0}, grass.SpecError, "at_once must be a whole number from 1"),
        ({"seed": -1}, grass.SpecError, "seed must be a whole number from 0"),
        (
            {"loss": lambda m, b: cross_entropy(m, b) * torch.nan},
            grass.NonFiniteError,
            "model 0 has parameters that are not finite: lower the learning rate",
        ),
    ],
)
def test_wrong_input(changed: dict[str, Any], error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message) as caught:
        train(**{"build": mlp, **changed})
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("epochs", 0),
        ("batch_size", 1.5),
        ("learning_rate", -0.1),
        ("learning_rate", float("nan")),
        ("momentum", 1.0),
        ("weight_decay", float("inf")),
        ("optimizer", "adam"),
    ],
)
def test_wrong_recipe(name: str, value: Any) -> None:
    with pytest.raises(grass.SpecError, match=f"{name} must be .*got {value!r}"):
        replace(RECIPE, **{name: value})


# What an import loads

LAZY = """
import sys
import grass_rs.evaluate as evaluate
evaluate.lds, evaluate.estimate, evaluate.recall_at_k
assert not {"torch", "tqdm"} & set(sys.modules)
sys.modules["torch"] = None
for name in ("Benchmark", "tail_patch", "train_together"):
    try:
        getattr(evaluate, name)
    except ModuleNotFoundError as error:
        assert error.name == "torch"
        print(error)
"""


def test_only_training_needs_torch(run_script: Callable[..., str]) -> None:
    told = run_script(LAZY).splitlines()
    assert len(told) == 3
    assert all("needs torch, which is not here: pip install" in line for line in told)


def test_every_name_is_there() -> None:
    assert all(getattr(grass.evaluate, name).__name__ == name for name in grass.evaluate.__all__)
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        _ = grass.evaluate.nothing
