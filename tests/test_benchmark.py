"""`Benchmark`: its outcomes and models against plain training, its folder; what acts on scores."""

from __future__ import annotations

import copy
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import grass_rs as grass
from grass_rs.evaluate import Benchmark, Recipe, brittleness, estimate, tail_patch
from plain_training import train_alone

if TYPE_CHECKING:
    from pathlib import Path

N_TRAIN, N_QUERY, SUBSETS, MODELS = 40, 7, 6, 2
RECIPE = Recipe(epochs=4, batch_size=8, learning_rate=0.1)
GENERATOR = torch.Generator().manual_seed(3)
INPUTS = torch.randn(N_TRAIN + N_QUERY, 5, generator=GENERATOR)
LABELS = (INPUTS[:, 0] > 0).long() + (INPUTS[:, 1] > 0.5).long()
TRAIN = INPUTS[:N_TRAIN], LABELS[:N_TRAIN]
QUERIES = INPUTS[N_TRAIN:], LABELS[N_TRAIN:]
SCORES = np.random.default_rng(1).standard_normal((N_QUERY, N_TRAIN))


def build() -> nn.Module:
    return nn.Sequential(nn.Linear(5, 6), nn.Tanh(), nn.Linear(6, 3))


def losses_of(model: nn.Module, batch: Any) -> Tensor:
    return nn.functional.cross_entropy(model(batch[0]), batch[1], reduction="none")


def benchmark(folder: Path, **changed: Any) -> Benchmark:
    arguments: dict[str, Any] = {
        "build": build,
        "loss": "cross_entropy",
        "train": TRAIN,
        "queries": QUERIES,
        "recipe": RECIPE,
        "subsets": SUBSETS,
        "models": MODELS,
        "seed": 4,
        "progress": False,
        **changed,
    }
    return Benchmark(folder, **arguments)


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Benchmark:
    return benchmark(tmp_path_factory.mktemp("benchmark") / "b")


def test_outcomes_are_those_of_plain_training(made: Benchmark) -> None:
    assert made.subsets.shape == (SUBSETS, N_TRAIN)
    assert (made.subsets.sum(axis=1) == N_TRAIN // 2).all()
    assert len(np.unique(made.subsets, axis=0)) == SUBSETS
    assert made.outcomes.shape == (SUBSETS, N_QUERY)
    seed = int(np.random.SeedSequence(4).generate_state(4, np.uint64)[1])
    for index in range(SUBSETS):
        alone = train_alone(build, losses_of, TRAIN, made.subsets, RECIPE, seed=seed, index=index)
        with torch.no_grad():
            expected = -losses_of(alone, QUERIES)
        np.testing.assert_allclose(made.outcomes[index], expected, rtol=1e-4, atol=1e-5)


def test_checkpoints_are_the_models(made: Benchmark) -> None:
    seed = int(np.random.SeedSequence(4).generate_state(4, np.uint64)[2])
    everything = np.ones((MODELS, N_TRAIN), dtype=bool)
    assert len(made.checkpoints) == MODELS
    for index, path in enumerate(made.checkpoints):
        alone = train_alone(build, losses_of, TRAIN, everything, RECIPE, seed=seed, index=index)
        state = torch.load(path, weights_only=True)
        model = made.model(index)
        assert not model.training
        for name, values in alone.state_dict().items():
            torch.testing.assert_close(state[name], values, rtol=1e-4, atol=1e-5)
            assert torch.equal(model.state_dict()[name], state[name])
    with pytest.raises(grass.SpecError, match="index from 0 to 1, got 2"):
        made.model(2)


def test_loaders_keep_the_order(made: Benchmark) -> None:
    for loader, data in ((made.train_loader(16), TRAIN), (made.query_loader(), QUERIES)):
        parts = list(loader)
        for position, tensor in enumerate(data):
            assert torch.equal(torch.cat([part[position] for part in parts]), tensor)


def test_everything_is_trained_once(made: Benchmark, monkeypatch: pytest.MonkeyPatch) -> None:
    outcomes, checkpoints = made.outcomes, made.checkpoints
    before = {p: p.stat().st_mtime_ns for p in made.folder.rglob("*") if p.is_file()}
    assert {"outcomes.npy", "subsets.npy", "checkpoint-0.pt"} <= {path.name for path in before}

    def train_again(*_: object, **__: object) -> None:
        raise AssertionError

    monkeypatch.setattr("grass_rs.evaluate.benchmark.train_together", train_again)
    again = benchmark(made.folder)
    np.testing.assert_array_equal(again.outcomes, outcomes)
    np.testing.assert_array_equal(np.load(made.folder / "outcomes.npy"), outcomes)
    np.testing.assert_array_equal(np.load(made.folder / "subsets.npy"), again.subsets)
    assert again.checkpoints == checkpoints
    assert {path: path.stat().st_mtime_ns for path in before} == before


def test_lds_is_the_mean_over_queries(made: Benchmark) -> None:
    expected = estimate(grass.lds(SCORES, made.subsets, made.outcomes))
    assert made.lds(SCORES) == expected
    assert expected.n == N_QUERY
    scores = grass.Scores(
        SCORES.astype(np.float32), np.arange(N_TRAIN, dtype=np.uint64), "influence", 0.4
    )
    assert made.lds(scores).mean == pytest.approx(expected.mean, abs=0.05)
    # The outcomes that the benchmark holds rank the models perfectly.
    fitted = np.linalg.lstsq(made.subsets.astype(float), made.outcomes, rcond=None)[0].T
    assert made.lds(fitted).mean == pytest.approx(1)


def test_a_store_of_the_loaders_is_judged(made: Benchmark, tmp_path: Path) -> None:
    model = made.model()
    plan = grass.Plan.for_model(model, "mask", dim=1000, seed=0)
    attributor = grass.Attributor(model, made.loss, plan)
    store = attributor.cache(made.train_loader(), tmp_path / "s.grass", progress=False)
    scores = attributor.score(made.query_loader(), store, progress=False)
    found = made.lds(scores)
    assert found.low <= found.mean <= found.high


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"subsets": 5}, "subsets was 6 and is 5"),
        ({"fraction": 0.25}, "fraction was 0.5 and is 0.25"),
        ({"models": 3}, "models was 2 and is 3"),
        ({"seed": 5}, "seed was 4 and is 5"),
        ({"recipe": replace(RECIPE, momentum=0.8)}, r"recipe\.momentum was 0\.9 and is 0\.8"),
        ({"train": (INPUTS[:N_TRAIN] + 1, TRAIN[1])}, "train was"),
        ({"queries": (QUERIES[0], QUERIES[1].roll(1))}, "queries was"),
        ({"loss": losses_of}, "loss was 'cross_entropy' and is 'losses_of'"),
        ({"build": lambda: nn.Linear(5, 3)}, "model was"),
        ({"at_once": 2}, "at_once was 50 and is 2"),
    ],
)
def test_a_changed_argument_is_refused(
    made: Benchmark, changed: dict[str, Any], message: str
) -> None:
    with pytest.raises(grass.BenchmarkError, match=message) as caught:
        benchmark(made.folder, **changed)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("changed", "error", "message"),
    [
        ({"fraction": 0.0}, grass.SpecError, "not none and not all, got 0.0"),
        ({"fraction": 1}, grass.SpecError, "not none and not all, got 1"),
        ({"fraction": 0.001}, grass.SpecError, "not none and not all, got 0.001"),
        ({"fraction": 0.999}, grass.SpecError, "not none and not all, got 0.999"),
        ({"subsets": 1}, grass.SpecError, "subsets must be a whole number from 2"),
        ({"models": 0}, grass.SpecError, "models must be a whole number from 1"),
        ({"queries": (QUERIES[0], TRAIN[1])}, grass.DataError, "has 7 and batch.1. has 40"),
    ],
)
def test_wrong_input(
    tmp_path: Path, changed: dict[str, Any], error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=message):
        benchmark(tmp_path, **changed)
    assert list(tmp_path.iterdir()) == []


def test_scores_of_other_examples_are_refused(made: Benchmark) -> None:
    values = SCORES.astype(np.float32)
    other = grass.Scores(values, np.arange(1, N_TRAIN + 1, dtype=np.uint64), "influence", 0.4)
    with pytest.raises(grass.DataError, match="ids 0 to 39 in this order"):
        made.lds(other)
    with pytest.raises(grass.ShapeError, match=r"scores \(7, 39\)"):
        made.lds(SCORES[:, 1:])
    with pytest.raises(grass.DataError, match="score again without top_k"):
        made.lds(grass.Scores(values[:, :3], values[:, :3].astype(np.uint64), "influence", 0.4))


def test_constant_outcomes_are_no_mean(tmp_path: Path) -> None:
    def constant(model: nn.Module, batch: Any) -> Tensor:
        # Nothing is learnt, whatever the subset.
        return 0 * model(batch[0]).sum(dim=1) + 1

    recipe = replace(RECIPE, epochs=1)
    flat = benchmark(tmp_path, loss=constant, recipe=recipe)
    assert (flat.outcomes == -1).all()
    with pytest.raises(grass.DataError, match=r"at least 2 queries, got 0 of 7.*outcomes.*differ"):
        flat.lds(SCORES)


def test_scores_that_say_nothing_have_no_lds(made: Benchmark) -> None:
    with pytest.raises(grass.DataError, match="at least 2 queries, got 0 of 7"):
        made.lds(np.full((N_QUERY, N_TRAIN), 0.1))


# Removing the top k

GROUPS, MEMBERS = 6, 4


def flat_start() -> nn.Module:
    model = nn.Linear(GROUPS, 2)
    nn.init.zeros_(model.weight)
    nn.init.zeros_(model.bias)
    return model


def test_brittleness_finds_planted_support(tmp_path: Path) -> None:
    """A query of a group of class 0 is right only as long as its group is in the training set."""
    group = torch.arange(GROUPS).repeat_interleave(MEMBERS)
    inputs = nn.functional.one_hot(group, GROUPS).float()
    labels = (group >= 2).long()  # two groups of class 0, four of class 1
    queries = inputs[[0, MEMBERS]], labels[[0, MEMBERS]]
    recipe = Recipe(epochs=60, batch_size=8, learning_rate=0.3, weight_decay=0)
    planted = benchmark(
        tmp_path, build=flat_start, train=(inputs, labels), queries=queries, recipe=recipe
    )
    support = np.array([group == 0, group == 1]).astype(float)
    whole, part = brittleness(planted, support, [MEMBERS, 1])
    assert (whole.k, part.k) == (MEMBERS, 1)
    assert whole.flipped == 1
    assert part.flipped == 0
    assert whole.drop.mean > 1 > part.drop.mean > 0
    # Without the others, the class of the query is the more likely one.
    (opponents,) = brittleness(planted, -support, [MEMBERS])
    assert opponents.flipped == 0
    # Kept, and the mean of the models is what it was before.
    assert len(list(tmp_path.glob("removed-*"))) == 3
    kept = ~support.astype(bool)
    seed = int(np.random.SeedSequence(4).generate_state(4, np.uint64)[3])
    before = np.mean(
        [losses_of(planted.model(index), queries).detach().numpy() for index in range(MODELS)], 0
    )
    after = [
        losses_of(
            train_alone(
                flat_start, losses_of, (inputs, labels), kept, recipe, seed=seed, index=query
            ),
            queries,
        )[query].item()
        for query in range(2)
    ]
    assert whole.drop.mean == pytest.approx((after - before).mean(), rel=1e-3)


def test_brittleness_of_a_regression_flips_nothing(tmp_path: Path) -> None:
    def linear() -> nn.Module:
        return nn.Linear(5, 1)

    regression = benchmark(
        tmp_path,
        build=linear,
        loss="mse",
        train=(TRAIN[0], TRAIN[0][:, :1]),
        queries=(QUERIES[0], QUERIES[0][:, :1]),
        recipe=replace(RECIPE, epochs=1),
    )
    (found,) = brittleness(regression, SCORES, [3])
    assert found.flipped is None
    assert found.drop.n == N_QUERY


def test_brittleness_wrong_input(made: Benchmark) -> None:
    with pytest.raises(grass.ShapeError, match=r"expects scores \(7, 40\), got \(6, 40\)"):
        brittleness(made, SCORES[1:], [1])
    for k in (0, N_TRAIN):
        with pytest.raises(grass.SpecError, match="k must be a whole number from 1 to 39"):
            brittleness(made, SCORES, [k])


# One more step


def test_tail_patch_equals_a_step_of_sgd(made: Benchmark) -> None:
    model = made.model().train()
    before = copy.deepcopy(model.state_dict())
    found = tail_patch(model, "cross_entropy", QUERIES, TRAIN, SCORES, k=3, learning_rate=0.1)
    assert all(torch.equal(values, before[name]) for name, values in model.state_dict().items())
    assert model.training
    assert all(parameter.grad is None for parameter in model.parameters())
    for query in range(N_QUERY):
        patched = made.model()
        sgd = torch.optim.SGD(patched.parameters(), lr=0.1)
        own = QUERIES[0][query : query + 1], QUERIES[1][query : query + 1]
        first = losses_of(patched, own).item()
        best = np.argsort(-SCORES[query])[:3]
        losses_of(patched, (TRAIN[0][best], TRAIN[1][best])).mean().backward()
        sgd.step()
        assert found[query] == pytest.approx(first - losses_of(patched, own).item(), abs=1e-6)
    ids = np.argsort(-SCORES, axis=1)[:, :5].astype(np.uint64)
    top = grass.Scores(np.take_along_axis(SCORES, ids.astype(int), 1).astype("f4"), ids, "x", None)
    again = tail_patch(model, losses_of, QUERIES, TRAIN, top, k=3, learning_rate=0.1)
    np.testing.assert_allclose(again, found, atol=1e-7)


def test_tail_patch_of_the_query_itself_helps(made: Benchmark) -> None:
    both = tuple(torch.cat([q, t]) for q, t in zip(QUERIES, TRAIN, strict=True))
    own = np.eye(N_QUERY, N_QUERY + N_TRAIN)
    found = tail_patch(made.model(), losses_of, QUERIES, both, own, k=1, learning_rate=0.01)
    assert (found > 0).all()


@pytest.mark.parametrize(
    ("changed", "error", "message"),
    [
        ({"scores": SCORES[1:]}, grass.ShapeError, r"expects scores \(7, 40\), got \(6, 40\)"),
        ({"k": 41}, grass.SpecError, "k must be a whole number from 1 to 40"),
        ({"learning_rate": 0}, grass.SpecError, "learning_rate must be positive"),
        ({"loss": "nothing"}, grass.SpecError, "loss must be one of"),
        (
            {"loss": lambda m, b: losses_of(m, b).detach()},
            grass.LossError,
            "without gradient",
        ),
        (
            {"scores": grass.Scores(np.ones((7, 1), "f4"), np.array([[40]] * 7, "u8"), "x", None)},
            grass.DataError,
            "ids below 40",
        ),
    ],
)
def test_tail_patch_wrong_input(
    made: Benchmark, changed: dict[str, Any], error: type[Exception], message: str
) -> None:
    arguments: dict[str, Any] = {
        "model": made.model(),
        "loss": losses_of,
        "queries": QUERIES,
        "train": TRAIN,
        "scores": SCORES,
        "k": 1,
        "learning_rate": 0.1,
        **changed,
    }
    with pytest.raises(error, match=message):
        tail_patch(**arguments)
