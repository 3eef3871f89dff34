"""The whole way: captured and compressed rows, caching, scoring, and what is refused."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import torch
from torch import nn
from torch.utils.data import (
    BatchSampler,
    DataLoader,
    RandomSampler,
    SubsetRandomSampler,
    TensorDataset,
    WeightedRandomSampler,
)

import grass_rs as grass
from networks import (
    block_gradients,
    every_layer,
    loader_of,
    mlp,
    mlp_data,
    per_example_gradients,
)

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from numpy.typing import NDArray

METHODS = ["factgrass", "logra", "tile", "grass", "sjlt", "mask", "gaussian"]


def _expected_rows(
    plan: grass.Plan, model: nn.Module, inputs: torch.Tensor, targets: torch.Tensor
) -> NDArray[np.float64]:
    inputs = inputs.double() if inputs.is_floating_point() else inputs
    gradients = per_example_gradients(model.double(), inputs, targets)
    columns = [
        block_gradients(model, gradients, block.name, block.parameters).numpy()
        @ plan[block.name].to_dense().T
        for block in plan.blocks
    ]
    return np.concatenate(columns, axis=1)


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("dim", [8, 10**6])
def test_rows_are_the_compressed_gradients_of_every_kind_of_layer(method: str, dim: int) -> None:
    # In float64, so that the model's own rounding does not hide an error of capture.
    model, inputs, targets = every_layer(torch.float64)
    plan = grass.Plan.for_model(model, method, dim=dim, seed=1)
    rows = grass.Attributor(model, "cross_entropy", plan).compress(
        loader_of(inputs, targets), progress=False
    )
    expected = _expected_rows(plan, model, inputs, targets)
    assert rows.shape == expected.shape == (9, plan.width)
    for column in plan.columns:
        part = slice(column.offset, column.offset + column.width)
        error = np.abs(rows[:, part] - expected[:, part]).max()
        assert error <= 1e-5 * np.abs(expected[:, part]).max(), column.name


def test_the_batch_size_changes_rounding_alone() -> None:
    model, inputs, targets = every_layer(torch.float64)
    attributor = grass.Attributor(model, "cross_entropy", grass.Plan.for_model(model, dim=8))
    whole = attributor.compress(loader_of(inputs, targets, batch_size=9), progress=False)
    for batch_size in (1, 2, 5):
        rows = attributor.compress(
            loader_of(inputs, targets, batch_size=batch_size), progress=False
        )
        np.testing.assert_allclose(rows, whole, atol=1e-6 * np.abs(whole).max())


def _influence(
    train: NDArray[np.float64], queries: NDArray[np.float64], plan: grass.Plan, damping: float
) -> NDArray[np.float64]:
    scores = np.zeros((len(queries), len(train)))
    for column in plan.columns:
        part = slice(column.offset, column.offset + column.width)
        g, q = train[:, part], queries[:, part]
        fisher = g.T @ g / len(g)
        ridge = damping * np.trace(fisher) / len(g)
        scores += q @ np.linalg.solve(fisher + ridge * np.eye(len(fisher)), g.T)
    return scores


@pytest.mark.parametrize("damping", [0.4, 0.01])
@pytest.mark.parametrize(("dim", "batch_size", "threads"), [(6, 3, 1), (6, 20, 2), (40, 7, 3)])
def test_influence_is_the_dense_formula(
    tmp_path: Path, damping: float, dim: int, batch_size: int, threads: int
) -> None:
    model = mlp()
    inputs, targets = mlp_data(30)
    queries = mlp_data(34)[0][30:], mlp_data(34)[1][30:]
    plan = grass.Plan.for_model(model, dim=dim, seed=2)
    attributor = grass.Attributor(model, "cross_entropy", plan)
    before = grass.num_threads()
    grass.set_num_threads(threads)
    try:
        store = attributor.cache(
            loader_of(inputs, targets, batch_size=batch_size), tmp_path / "s", progress=False
        )
        scores = attributor.score(loader_of(*queries), store, damping=damping, progress=False)
    finally:
        grass.set_num_threads(before)
    expected = _influence(
        _expected_rows(plan, model, inputs, targets),
        _expected_rows(plan, model, *queries),
        plan,
        damping,
    )
    np.testing.assert_allclose(scores.values, expected, atol=1e-4 * np.abs(expected).max())
    assert scores.ids.tolist() == list(range(30))


@pytest.mark.usefixtures("rows_arrive")
def test_graddot_and_gradcos_are_products_and_cosines_of_rows(tmp_path: Path) -> None:
    model = mlp()
    inputs, targets = mlp_data(12)
    attributor = grass.Attributor(model, "cross_entropy", grass.Plan.for_model(model, dim=9))
    store = attributor.cache(loader_of(inputs, targets), tmp_path / "s", progress=False)
    rows = attributor.compress(loader_of(inputs, targets), progress=False).astype(float)
    dot = attributor.score(loader_of(inputs, targets), store, "graddot", progress=False)
    cos = attributor.score(loader_of(inputs, targets), store, "gradcos", progress=False)
    norms = np.linalg.norm(rows, axis=1)
    np.testing.assert_allclose(dot.values, rows @ rows.T, atol=1e-5 * (norms**2).max())
    np.testing.assert_allclose(cos.values, rows @ rows.T / np.outer(norms, norms), atol=1e-5)
    assert dot.damping is None


def test_long_steps_show_a_bar_unless_told_not_to(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    model = mlp()
    attributor = grass.Attributor(model, "cross_entropy", grass.Plan.for_model(model, dim=9))
    loader = loader_of(*mlp_data(12))
    store = attributor.cache(loader, tmp_path / "s")
    attributor.score(loader, store)
    bars = capsys.readouterr()
    assert bars.out == ""
    for words in ("cache: 100%", "queries: 100%", "3/3", "score s: 100%"):
        assert words in bars.err
    attributor.cache(loader, tmp_path / "quiet", progress=False)
    attributor.score(loader, store, progress=False)
    assert capsys.readouterr().err == ""


def test_several_dampings_and_a_file_are_those_of_the_store(tmp_path: Path) -> None:
    model = mlp()
    attributor = grass.Attributor(model, "cross_entropy", grass.Plan.for_model(model, dim=9))
    loader = loader_of(*mlp_data(12))
    store = attributor.cache(loader, tmp_path / "s", progress=False)
    rows = attributor.compress(loader, progress=False)
    swept = attributor.score(loader, store, damping=[0.1, 1.0], progress=False)
    for scores, expected in zip(swept, store.score(rows, damping=[0.1, 1.0]), strict=True):
        assert scores.damping == expected.damping
        np.testing.assert_array_equal(scores.values, expected.values)
    scores = attributor.score(loader, store, out=tmp_path / "scores.npy", progress=False)
    np.testing.assert_array_equal(np.load(tmp_path / "scores.npy"), scores.values)
    np.testing.assert_array_equal(scores.values, store.score(rows).values)


def test_removing_a_helpful_example_raises_the_loss_of_the_query() -> None:
    """The sign: positive = training on it lowers the query's loss, in one gradient step."""
    model = mlp()
    inputs, targets = mlp_data(6)
    plan = grass.Plan.for_model(model, dim=10**6)
    rows = grass.Attributor(model, "cross_entropy", plan).compress(
        loader_of(inputs, targets), progress=False
    )
    query, train = 0, 3
    score = float(rows[query] @ rows[train])
    loss = nn.functional.cross_entropy
    before = loss(model(inputs[:1]), targets[:1]).item()
    loss(model(inputs[3:4]), targets[3:4]).backward()
    step = 1e-3
    with torch.no_grad():
        torch._foreach_sub_([*model.parameters()], [step * p.grad for p in model.parameters()])
    after = loss(model(inputs[:1]), targets[:1]).item()
    assert (before - after) / step == pytest.approx(score, rel=0.02, abs=1e-3)


@pytest.mark.usefixtures("rows_arrive")
def test_a_later_error_does_not_hide_an_example_that_is_not_finite(tmp_path: Path) -> None:
    model = mlp()
    inputs, targets = mlp_data(20)
    inputs[5] = torch.nan
    batches = [(inputs[i : i + 4], targets[i : i + 4]) for i in (0, 4)]

    def loader() -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
        yield from batches
        raise OSError

    attributor = grass.Attributor(model, "cross_entropy", grass.Plan.for_model(model, dim=8))
    with pytest.raises(grass.NonFiniteError, match="example 5"):
        attributor.cache(loader(), tmp_path / "s", progress=False)
    assert grass.open_store(tmp_path / "s").ids.tolist() == [0, 1, 2, 3]


class TestRefused:
    @pytest.fixture
    def model(self) -> nn.Module:
        return mlp()

    def _cache(self, model: nn.Module, loader: Any, path: Path, **options: Any) -> grass.Store:
        plan = grass.Plan.for_model(model, dim=8)
        attributor = grass.Attributor(model, "cross_entropy", plan)
        return attributor.cache(loader, path, progress=False, **options)

    @pytest.mark.usefixtures("rows_arrive")
    def test_nonfinite_gradients_name_the_example_and_keep_the_rest(
        self, model: nn.Module, tmp_path: Path
    ) -> None:
        inputs, targets = mlp_data(20)
        inputs[13] = torch.nan
        with pytest.raises(grass.NonFiniteError, match="example 13"):
            self._cache(model, loader_of(inputs, targets), tmp_path / "s")
        assert grass.open_store(tmp_path / "s").ids.tolist() == list(range(12))

    @pytest.mark.usefixtures("rows_arrive")
    def test_nonfinite_examples_are_skipped_and_recorded(
        self, model: nn.Module, tmp_path: Path
    ) -> None:
        inputs, targets = mlp_data(20)
        inputs[13], inputs[2] = torch.nan, torch.inf
        loader = loader_of(inputs, targets)
        store = self._cache(model, loader, tmp_path / "s", on_nonfinite="skip")
        kept = [i for i in range(20) if i not in {2, 13}]
        assert store.ids.tolist() == kept
        assert list(store.skipped_ids) == [2, 13]
        clean = self._cache(model, loader_of(*mlp_data(20)), tmp_path / "clean")
        np.testing.assert_allclose(store[:], clean[kept], rtol=1e-5, atol=1e-6)
        again = self._cache(model, loader, tmp_path / "s", on_nonfinite="skip")
        assert len(again) == 18

    @pytest.mark.usefixtures("rows_arrive")
    @pytest.mark.parametrize("dtype", ["float32", "int8"])
    def test_products_that_float32_does_not_hold_are_not_finite(
        self, tmp_path: Path, dtype: str
    ) -> None:
        model = nn.Linear(4, 3)
        inputs = torch.ones(8, 4)
        inputs[2] = 1e25

        def loss(model: nn.Module, batch: list[torch.Tensor]) -> torch.Tensor:
            (x,) = batch
            outputs = model(x)
            # Losses and factors are finite.
            return ((outputs - outputs.detach()) * torch.where(x > 1e20, 1e20, 1.0)[:, :1]).sum(1)

        attributor = grass.Attributor(model, loss, grass.Plan.for_model(model, dim=8))
        loader = loader_of(inputs, batch_size=8)
        with pytest.raises(grass.NonFiniteError, match="example 2"):
            attributor.cache(loader, tmp_path / "s", progress=False)
        store = attributor.cache(loader, tmp_path / "s", dtype, on_nonfinite="skip", progress=False)
        assert list(store.skipped_ids) == [2]
        assert np.isfinite(store[:]).all()

    @pytest.mark.usefixtures("rows_arrive")
    def test_a_failure_before_the_first_rows_leaves_no_store(
        self, model: nn.Module, tmp_path: Path
    ) -> None:
        for loader in ([], 5, [[torch.zeros(4, 2), torch.zeros(4)]]):
            with pytest.raises((grass.GrassError, TypeError, RuntimeError)):
                self._cache(model, loader, tmp_path / "s")
            assert not (tmp_path / "s").exists()

    def test_other_objects_in_place_of_ours(self, model: nn.Module, tmp_path: Path) -> None:
        plan = grass.Plan.for_model(model, dim=8)
        with pytest.raises(grass.SpecError, match=r"make it with Plan\.for_model"):
            grass.Attributor(model, "mse", "factgrass")
        with pytest.raises(grass.SpecError, match=r"open it with grass_rs\.open_store"):
            grass.Attributor(model, "mse", plan).score([], str(tmp_path))
        with pytest.raises(grass.DataError, match="ids expects a function"):
            self._cache(model, loader_of(*mlp_data()), tmp_path / "s", ids=[1, 2])

    def test_sparse_buffers_are_part_of_the_fingerprint(self, tmp_path: Path) -> None:
        model = nn.Sequential(nn.Linear(6, 3))
        model.register_buffer("adjacent", torch.eye(4).to_sparse())
        self._cache(model, loader_of(*mlp_data()), tmp_path / "s")
        model.adjacent = 2 * torch.eye(4).to_sparse()
        with pytest.raises(grass.StoreMismatchError, match="model"):
            self._cache(model, loader_of(*mlp_data()), tmp_path / "s")

    def test_an_unknown_policy_is_named(self, model: nn.Module, tmp_path: Path) -> None:
        with pytest.raises(grass.SpecError, match="did you mean 'skip'"):
            self._cache(model, loader_of(*mlp_data()), tmp_path / "s", on_nonfinite="skipp")

    def test_a_shuffled_loader_needs_ids(self, model: nn.Module, tmp_path: Path) -> None:
        loader = DataLoader(TensorDataset(*mlp_data()), batch_size=4, shuffle=True)
        with pytest.raises(grass.DataError, match="shuffle=False"):
            self._cache(model, loader, tmp_path / "s")

    def test_every_sampler_that_shuffles_needs_ids(self, model: nn.Module, tmp_path: Path) -> None:
        data = TensorDataset(*mlp_data())
        shuffling = (
            RandomSampler(data),
            SubsetRandomSampler(range(20)),
            WeightedRandomSampler([1] * 20, 20),
        )
        for sampler in shuffling:
            batches = BatchSampler(sampler, 4, drop_last=False)
            for loader in (
                DataLoader(data, sampler=sampler),
                DataLoader(data, batch_sampler=batches),
            ):
                with pytest.raises(grass.DataError, match="shuffle=False"):
                    self._cache(model, loader, tmp_path / "s")

    @pytest.mark.usefixtures("rows_arrive")
    def test_the_random_generator_is_left_alone(self, model: nn.Module, tmp_path: Path) -> None:
        loader = loader_of(*mlp_data())
        plan = grass.Plan.for_model(model, dim=8)
        attributor = grass.Attributor(model, "cross_entropy", plan)
        before = torch.get_rng_state()
        for _ in range(2):  # made, then found finished
            attributor.cache(loader, tmp_path / "s", progress=False)
            assert torch.equal(torch.get_rng_state(), before)

    def test_repeated_ids(self, model: nn.Module, tmp_path: Path) -> None:
        with pytest.raises(grass.DataError, match="got 0 twice"):
            self._cache(
                model,
                loader_of(*mlp_data()),
                tmp_path / "s",
                ids=lambda batch: np.arange(len(batch[0])),
            )

    @pytest.mark.parametrize("bad", [[-1, 0, 1, 2], [0.0, 1.0, 2.0, 3.0], [0, 1], 3])
    def test_ids_that_are_none(self, model: nn.Module, tmp_path: Path, bad: Any) -> None:
        with pytest.raises(grass.DataError, match="ids expects"):
            self._cache(model, loader_of(*mlp_data()), tmp_path / "s", ids=lambda _: bad)

    def test_an_empty_loader(self, model: nn.Module, tmp_path: Path) -> None:
        with pytest.raises(grass.DataError, match="one without a batch"):
            self._cache(model, [], tmp_path / "s")

    def test_a_loader_that_yields_more_or_fewer_the_second_time(
        self, model: nn.Module, tmp_path: Path
    ) -> None:
        inputs, targets = mlp_data(20)
        self._cache(model, loader_of(inputs, targets), tmp_path / "s")
        with pytest.raises(grass.DataError, match="got 16 examples without id 16"):
            self._cache(model, loader_of(inputs[:16], targets[:16]), tmp_path / "s")
        more = loader_of(*mlp_data(24))
        with pytest.raises(grass.DataError, match="got id 20 besides"):
            self._cache(model, more, tmp_path / "s")
        assert len(grass.open_store(tmp_path / "s")) == 20

    @pytest.mark.usefixtures("rows_arrive")
    def test_a_loader_that_yields_fewer_when_resuming(
        self, model: nn.Module, tmp_path: Path
    ) -> None:
        inputs, targets = mlp_data(20)
        broken = inputs.clone()
        broken[18] = torch.nan
        with pytest.raises(grass.NonFiniteError):
            self._cache(model, loader_of(broken, targets), tmp_path / "s")
        with pytest.raises(grass.DataError, match="got 8 examples without id 8"):
            self._cache(model, loader_of(inputs[:8], targets[:8]), tmp_path / "s")
        store = self._cache(model, loader_of(inputs, targets), tmp_path / "s")
        assert store.complete
        assert len(store) == 20

    def test_another_plan_seed_dtype_or_model(self, model: nn.Module, tmp_path: Path) -> None:
        loader = loader_of(*mlp_data())
        store = self._cache(model, loader, tmp_path / "s")
        other = grass.Plan.for_model(model, dim=8, seed=1)
        attributor = grass.Attributor(model, "cross_entropy", other)
        with pytest.raises(grass.StoreMismatchError, match=r'"0".*seed'):
            attributor.cache(loader, tmp_path / "s", progress=False)
        with pytest.raises(grass.StoreMismatchError, match=r'"0".*seed'):
            attributor.score(loader, store, progress=False)
        with pytest.raises(grass.StoreMismatchError, match="float16"):
            self._cache(model, loader, tmp_path / "s", dtype="float16")
        with torch.no_grad():
            model[0].bias[0] += 1
        with pytest.raises(grass.StoreMismatchError, match="model"):
            self._cache(model, loader, tmp_path / "s")

    def test_a_plan_of_another_model(self, model: nn.Module) -> None:
        plan = grass.Plan.for_model(model)
        with pytest.raises(grass.SpecError, match=r"make the plan with Plan\.for_model"):
            grass.Attributor(mlp(hidden=9), "cross_entropy", plan)

    def test_not_resuming_refuses_what_is_there(self, model: nn.Module, tmp_path: Path) -> None:
        loader = loader_of(*mlp_data())
        self._cache(model, loader, tmp_path / "s")
        with pytest.raises(grass.StoreExistsError):
            self._cache(model, loader, tmp_path / "s", resume=False)

    @pytest.mark.usefixtures("rows_arrive")
    def test_queries_that_are_not_finite(self, model: nn.Module, tmp_path: Path) -> None:
        inputs, targets = mlp_data()
        plan = grass.Plan.for_model(model, dim=8)
        attributor = grass.Attributor(model, "cross_entropy", plan)
        store = attributor.cache(loader_of(inputs, targets), tmp_path / "s", progress=False)
        inputs[5] = torch.nan
        with pytest.raises(grass.NonFiniteError, match="example 5"):
            attributor.score(loader_of(inputs, targets), store, progress=False)
