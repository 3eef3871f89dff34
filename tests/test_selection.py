"""Selective masks: what they find, what they refuse, and the rows of plans made with them."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import torch
from torch import nn

import grass_rs as grass
from grass_rs.engine import ranking, selection
from networks import every_layer, loader_of, mlp, mlp_data
from per_example_twin import twin_rows

if TYPE_CHECKING:
    from pathlib import Path

WAYS = ("correlation", "second_moment", "leverage")


def planted(n: int = 96, p: int = 60, kept: int = 8) -> tuple[torch.Tensor, list[int]]:
    """Return gradients (n, p) that are noise but for some coordinates, and those."""
    generator = torch.Generator().manual_seed(4)
    rows = 0.02 * torch.randn(n, p, generator=generator)
    places = torch.randperm(p, generator=generator)[:kept].sort().values
    rows[:, places] += torch.randn(n, kept, generator=generator)
    return rows, places.tolist()


def planted_factors() -> tuple[torch.Tensor, torch.Tensor, list[int], list[int]]:
    generator = torch.Generator().manual_seed(5)
    inputs = 0.05 * torch.randn(64, 3, 20, generator=generator)
    grads = 0.05 * torch.randn(64, 3, 16, generator=generator)
    inputs[:, :, [2, 7, 11]] += torch.randn(64, 3, 3, generator=generator)
    grads[:, :, [0, 9]] += torch.randn(64, 3, 2, generator=generator)
    return inputs, grads, [2, 7, 11], [0, 9]


@pytest.mark.parametrize("by", WAYS)
def test_planted_coordinates_are_found(by: str) -> None:
    rows, places = planted()
    count = len(places) if by != "correlation" else 12
    mask = grass.select_mask(rows, count, seed=1, by=by)
    assert type(mask) is grass.Mask
    assert (mask.input_dim, mask.output_dim) == (60, count)
    assert set(places) <= set(mask.indices.tolist())
    assert grass.select_mask(rows.double().numpy(), count, seed=1, by=by) == mask


@pytest.mark.parametrize("by", WAYS)
def test_planted_features_are_found(by: str) -> None:
    inputs, grads, kept_in, kept_out = planted_factors()
    counts = (3, 2) if by != "correlation" else (5, 4)
    masks = grass.select_factor_masks(inputs, grads, *counts, seed=1, by=by)
    for mask, kept in zip(masks, (kept_in, kept_out), strict=True):
        assert set(kept) <= set(mask.indices.tolist())


def test_correlation_is_with_the_given_queries() -> None:
    rows = torch.randn(96, 40, generator=torch.Generator().manual_seed(0))
    queries = torch.zeros(12, 40)
    queries[:, 5:9] = torch.randn(12, 4, generator=torch.Generator().manual_seed(1))
    # Other coordinates have no part in any inner product.
    mask = grass.select_mask(rows, 8, seed=0, queries=queries)
    assert {5, 6, 7, 8} <= set(mask.indices.tolist())


def test_training_raises_the_correlation_over_random_masks() -> None:
    generator = torch.Generator().manual_seed(2)
    rows = torch.randn(120, 300, generator=generator) * torch.rand(300, generator=generator) ** 2
    held_out = torch.arange(120) % 4 == 0

    def correlation(mask: Any) -> float:
        kept = mask.indices.astype(np.int64)
        left, right = rows[held_out], rows[~held_out]
        return float(ranking.mean_correlation(left[:, kept] @ right[:, kept].T, left @ right.T))

    chosen = grass.select_mask(rows, 60, seed=0)
    random = [correlation(grass.RandomMask(300, 60, seed=seed)) for seed in range(20)]
    assert correlation(chosen) > max(random)


def test_mean_correlation_equals_numpys() -> None:
    left, right = torch.randn(2, 5, 9, generator=torch.Generator().manual_seed(0)).double()
    expected = np.mean([np.corrcoef(a, b)[0, 1] for a, b in zip(left, right, strict=True)])
    assert float(ranking.mean_correlation(left, right)) == pytest.approx(expected, abs=1e-12)
    left[2] = 3
    parts = [np.corrcoef(left[i], right[i])[0, 1] for i in (0, 1, 3, 4)]
    assert float(ranking.mean_correlation(left, right)) == pytest.approx(sum(parts) / 5, abs=1e-12)


@pytest.mark.parametrize("shape", [(7, 12), (30, 12), (12, 12)])
def test_leverage_is_the_diagonal_of_its_formula(
    shape: tuple[int, int], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ranking, "_CHUNK", 24)  # several chunks
    rows = torch.randn(shape, generator=torch.Generator().manual_seed(3))
    n = 9
    fisher = (rows.T @ rows).double() / n
    ridge = 0.4 * fisher.trace() / n
    expected = (fisher @ torch.linalg.inv(fisher + ridge * torch.eye(12))).diagonal()
    torch.testing.assert_close(
        ranking.ridge_leverage(rows, n).double(), expected, rtol=1e-4, atol=1e-6
    )


def test_leverage_shares_what_coordinates_repeat() -> None:
    rows = torch.randn(40, 6, generator=torch.Generator().manual_seed(0))
    repeated = torch.cat([2 * rows[:, :1].repeat(1, 8), rows], dim=1)
    moment = grass.select_mask(repeated, 5, seed=0, by="second_moment").indices
    leverage = grass.select_mask(repeated, 5, seed=0, by="leverage").indices
    assert set(moment.tolist()) <= set(range(9))
    assert set(leverage.tolist()) == {9, 10, 11, 12, 13}


@pytest.mark.parametrize("by", WAYS)
def test_one_seed_gives_one_mask_and_leaves_torchs_generator(by: str) -> None:
    rows = torch.randn(300, 200, generator=torch.Generator().manual_seed(0))
    torch.manual_seed(1)
    before = torch.get_rng_state()
    with torch.no_grad():
        first = grass.select_mask(rows, 30, seed=2**64 - 1, by=by)
    torch.manual_seed(1)
    assert grass.select_mask(rows, 30, seed=2**64 - 1, by=by) == first
    assert torch.equal(torch.get_rng_state(), before)
    assert (grass.select_mask(rows, 30, seed=5, by=by) == first) == (by != "correlation")


def test_scale_does_not_matter() -> None:
    rows, places = planted()
    for scale in (1e-18, 1e15):
        for by in WAYS:
            mask = grass.select_mask(rows * scale, 12, seed=1, by=by)
            assert set(places) <= set(mask.indices.tolist())


def test_tokens_without_a_gradient_do_not_count() -> None:
    inputs, grads, _, _ = planted_factors()
    grads[:, 2] = 0
    inputs[:, 2] = 1e6
    for by in WAYS:
        assert grass.select_factor_masks(
            inputs, grads, 3, 2, seed=0, by=by
        ) == grass.select_factor_masks(inputs[:, :2], grads[:, :2], 3, 2, seed=0, by=by)


def test_gradients_of_zeros_have_a_mask() -> None:
    for by in WAYS:
        mask = grass.select_mask(torch.zeros(12, 9), 4, seed=0, by=by)
        assert mask.output_dim == 4
        masks = grass.select_factor_masks(
            torch.zeros(12, 2, 9), torch.zeros(12, 2, 5), 4, 2, seed=0, by=by
        )
        assert [mask.output_dim for mask in masks] == [4, 2]


def test_examples_without_a_gradient_are_no_queries() -> None:
    inputs, grads, kept_in, _ = planted_factors()
    every_fourth = torch.arange(64) % 4 == 0
    grads[every_fourth] = 0
    left = ~every_fourth
    assert grass.select_factor_masks(inputs, grads, 5, 4, seed=1) == grass.select_factor_masks(
        inputs[left], grads[left], 5, 4, seed=1
    )
    alone = torch.zeros(64, 3, 16)
    alone[3] = grads[3]
    masks = grass.select_factor_masks(inputs, alone, 5, 4, seed=1)
    assert [mask.output_dim for mask in masks] == [5, 4]
    assert set(kept_in) <= set(grass.select_factor_masks(inputs, grads, 6, 4, seed=1)[0].indices)


# Plans


def selected(model: nn.Module, *data: torch.Tensor, **changes: Any) -> grass.Selection:
    return grass.select(
        model, "cross_entropy", loader_of(*data, batch_size=5), progress=False, **changes
    )


@pytest.mark.parametrize("by", WAYS)
@pytest.mark.parametrize("method", ["mask", "grass", "factgrass"])
def test_rows_of_a_plan_are_the_masked_gradients(method: str, by: str, tmp_path: Path) -> None:
    model, tokens, targets = every_layer()
    chosen = selected(model, tokens, targets, by=by)
    plan = grass.Plan.for_model(model, method, 8, selection=chosen)
    store = grass.Attributor(model, "cross_entropy", plan).cache(
        loader_of(tokens, targets), tmp_path / "rows.grass", progress=False
    )
    gradients = twin_rows(
        model,
        lambda model, batch: nn.functional.cross_entropy(
            model(batch[0]), batch[1], reduction="none"
        ),
        (tokens, targets),
        9,
        plan.blocks,
    )
    made = set()
    for block, column in zip(plan.blocks, plan.columns, strict=True):
        compressor, whole = plan[block.name], gradients[block.name]
        made.add(type(compressor))
        found = store[:][:, column.offset : column.offset + column.width]
        expected = whole.numpy() @ compressor.to_dense().T
        if isinstance(compressor, grass.Mask):
            expected = whole.numpy()[:, compressor.indices]
        if by == "second_moment" and not isinstance(compressor, grass.FactGraSS):
            kept = compressor.spec.get("mask", compressor.spec)["indices"]
            moments = (whole**2).sum(dim=0)
            assert moments[kept].sum() == pytest.approx(
                float(moments.topk(len(kept)).values.sum()), rel=1e-4
            )
        np.testing.assert_allclose(found, expected, rtol=1e-3, atol=1e-5)
    assert (
        made
        == {
            "mask": {grass.Mask},
            "grass": {grass.Mask, grass.GraSS},
            "factgrass": {grass.Mask, grass.GraSS, grass.FactGraSS},
        }[method]
    )


def test_features_of_a_plan_are_those_of_the_factors() -> None:
    model, (inputs, targets) = mlp(), mlp_data()
    plan = grass.Plan.for_model(
        model, "factgrass", 4, selection=selected(model, inputs, targets, by="second_moment")
    )
    gradients = twin_rows(
        model,
        lambda model, batch: nn.functional.cross_entropy(
            model(batch[0]), batch[1], reduction="none"
        ),
        (inputs, targets),
        20,
        plan.blocks,
    )
    squares = (gradients["0"].reshape(20, 8, 7) ** 2).sum(dim=0)
    spec = plan["0"].spec
    for side, axis in (("in", 0), ("out", 1)):
        expected = squares.sum(dim=axis).topk(4).indices.sort().values.tolist()
        assert spec[f"mask_{side}"]["indices"] == expected


def test_plans_are_the_same_for_one_seed_and_any_batches() -> None:
    model, (inputs, targets) = mlp(), mlp_data()
    first = grass.Plan.for_model(model, "grass", 4, selection=selected(model, inputs, targets))
    again = grass.select(
        model, "cross_entropy", loader_of(inputs, targets, batch_size=5), progress=False
    )
    assert again.examples == 20
    assert grass.Plan.for_model(model, "grass", 4, selection=again).fingerprint == first.fingerprint
    by_moment = [
        grass.Plan.for_model(
            model,
            "factgrass",
            4,
            selection=grass.select(
                model,
                "cross_entropy",
                loader_of(inputs, targets, batch_size=size),
                by="second_moment",
                progress=False,
            ),
        ).fingerprint
        for size in (3, 20)
    ]
    assert by_moment[0] == by_moment[1]
    random = grass.Plan.for_model(model, "grass", 4)
    assert random.fingerprint != first.fingerprint


ROWS = torch.randn(12, 6, generator=torch.Generator().manual_seed(0))
NAN = torch.full((12, 6), torch.nan)


@pytest.mark.parametrize(
    ("gradients", "changes", "error", "message"),
    [
        (ROWS, {"by": "correlations"}, grass.SpecError, "did you mean 'correlation'"),
        (ROWS, {"by": None}, grass.SpecError, "by must be one of"),
        (ROWS, {"output_dim": 7}, grass.SpecError, "output_dim must be a whole number from 1 to 6"),
        (ROWS, {"output_dim": 0}, grass.SpecError, "output_dim must be"),
        (ROWS, {"seed": -1}, grass.SpecError, "seed must be"),
        (ROWS[0], {}, grass.ShapeError, r"gradients \(n, p\), got \(6,\)"),
        (ROWS[:, :0], {}, grass.ShapeError, r"gradients \(n, p\), got \(12, 0\)"),
        (ROWS.tolist(), {}, grass.UnsupportedArrayError, "got list"),
        (ROWS.int(), {}, grass.UnsupportedArrayError, r"got Tensor of torch\.int32"),
        (ROWS.numpy().astype(str), {}, grass.UnsupportedArrayError, "got ndarray of <U"),
        (np.ma.masked_array(ROWS.numpy()), {}, grass.UnsupportedArrayError, "masked array"),
        (NAN, {}, grass.NonFiniteError, "finite gradients in float32"),
        (np.full((12, 6), 1e300), {}, grass.NonFiniteError, "finite gradients in float32"),
        (ROWS[:7], {}, grass.DataError, "at least 8 examples, got 7"),
        (ROWS[:2], {"queries": ROWS}, grass.DataError, "at least 3 examples, got 2"),
        (ROWS[:0], {"by": "leverage"}, grass.DataError, "at least 1 examples, got 0"),
        (ROWS, {"queries": ROWS[:, :5]}, grass.ShapeError, r"queries \(q, 6\)"),
        (ROWS, {"queries": ROWS[:0]}, grass.ShapeError, "at least one, got"),
        (ROWS, {"queries": NAN}, grass.NonFiniteError, "finite queries"),
        (ROWS, {"queries": ROWS, "by": "leverage"}, grass.SpecError, "correlation' alone"),
    ],
)
def test_bad_gradients_are_refused(
    gradients: Any, changes: dict[str, Any], error: type[Exception], message: str
) -> None:
    arguments = {"output_dim": 3, "seed": 0, **changes}
    with pytest.raises(error, match=message) as raised:
        grass.select_mask(gradients, arguments.pop("output_dim"), **arguments)
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize(
    ("changes", "error", "message"),
    [
        ({"mask_in": 21}, grass.SpecError, "mask_in must be a whole number from 1 to 20"),
        ({"mask_out": 0}, grass.SpecError, "mask_out must be a whole number from 1 to 16"),
        ({"grad_outputs": torch.zeros(64, 2, 16)}, grass.ShapeError, "of the same n and t"),
        ({"inputs": torch.zeros(64, 20)}, grass.ShapeError, r"inputs \(n, t, d_in\)"),
        ({"by": "random"}, grass.SpecError, "by must be one of"),
        ({"seed": 2**64}, grass.SpecError, "seed must be"),
        (
            {"inputs": torch.zeros(3, 3, 20), "grad_outputs": torch.zeros(3, 3, 16)},
            grass.DataError,
            "at least 8 examples, got 3",
        ),
    ],
)
def test_bad_factors_are_refused(
    changes: dict[str, Any], error: type[Exception], message: str
) -> None:
    inputs, grads, _, _ = planted_factors()
    given: dict[str, Any] = {"inputs": inputs, "grad_outputs": grads, "mask_in": 3, "mask_out": 2}
    with pytest.raises(error, match=message):
        grass.select_factor_masks(**{**given, "seed": 0, **changes})


def test_bad_samples_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    model, (inputs, targets) = mlp(), mlp_data()
    with pytest.raises(grass.SpecError, match="by must be one of"):
        selected(model, inputs, targets, by="size")
    with pytest.raises(grass.DataError, match="select expects at least 8 examples, got 7"):
        selected(model, inputs[:7], targets[:7])
    with pytest.raises(grass.DataError, match="loader with examples"):
        selected(model, inputs[:0], targets[:0])
    bad = inputs.clone()
    bad[6] = torch.nan
    with pytest.raises(grass.NonFiniteError, match="in the batch of example 5"):
        selected(model, bad, targets)
    chosen = selected(model, inputs, targets)
    monkeypatch.setattr(selection, "_SAMPLE_BYTES", 1500)
    with pytest.raises(grass.DataError, match=r"at most 1500 bytes, got \d+ with 20 ex"):
        selected(model, inputs, targets)
    # Whole gradients of the first layer: 20 x 56 numbers.
    with pytest.raises(grass.DataError, match="block '0' to take at most 1500 bytes, got 4480"):
        grass.Plan.for_model(model, "mask", 30, selection=chosen)
    grass.Plan.for_model(model, "factgrass", 4, selection=chosen)


def test_bad_plans_are_refused() -> None:
    model, (inputs, targets) = mlp(), mlp_data()
    chosen = selected(model, inputs, targets, layers=["0"])
    for method in ("sjlt", "gaussian", "logra", "tile"):
        with pytest.raises(grass.SpecError, match="with a method of masks"):
            grass.Plan.for_model(model, method, 4, selection=chosen)
    with pytest.raises(grass.SpecError, match="block of the selection must be one of '0', got '2'"):
        grass.Plan.for_model(model, "mask", 4, selection=chosen)
    with pytest.raises(grass.SpecError, match="expects a selection of 64 parameters"):
        grass.Plan.for_model(mlp(inputs=7), "mask", 4, selection=chosen)
