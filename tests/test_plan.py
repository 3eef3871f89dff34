"""Plans: blocks, compressors, columns and fingerprints."""

from __future__ import annotations

import numpy as np
import pytest

import grass_rs as grass
from grass_rs.capture import find_blocks
from networks import every_layer, mlp

METHODS = {
    "factgrass": grass.FactGraSS,
    "logra": grass.LoGra,
    "tile": grass.TileSketch,
    "grass": grass.GraSS,
    "sjlt": grass.SJLT,
    "mask": grass.RandomMask,
    "gaussian": grass.Gaussian,
}


@pytest.mark.parametrize("method", METHODS)
def test_every_method_compresses_linear_layers_its_way_and_keeps_small_blocks_whole(
    method: str,
) -> None:
    plan = grass.Plan.for_model(mlp(), method, dim=30)
    assert list(plan) == ["0", "2"]
    assert type(plan["0"]) is METHODS[method]
    assert plan["0"].input_dim == 8 * 7
    assert plan["0"].output_dim == 30
    assert plan["2"] == grass.Mask(range(27), 27)


def test_other_layers_are_compressed_by_grass_where_the_method_is_factorised() -> None:
    model, _, _ = every_layer()
    plan = grass.Plan.for_model(model, "factgrass", dim=8, seed=3)
    assert isinstance(plan["conv"], grass.GraSS)
    assert isinstance(plan["mix"], grass.FactGraSS)
    assert plan["mix"].in_features == 7
    assert plan["no_bias"].in_features == 6
    assert plan["frozen_bias"].in_features == 5
    assert plan[""] == grass.Mask(range(3), 3)


def test_a_layers_structure_depends_on_the_seed_and_its_name_alone() -> None:
    model = mlp()
    whole = grass.Plan.for_model(model, "sjlt", dim=16, seed=5)
    alone = grass.Plan.for_model(model, "sjlt", dim=16, seed=5, layers=["2"])
    other = grass.Plan.for_model(model, "sjlt", dim=16, seed=6)
    assert alone["2"] == whole["2"]
    assert other["2"] != whole["2"]
    # derive(5, "2"), by hashlib.
    assert whole["2"].spec["seed"] == _derive(5, "2")


def _derive(seed: int, label: str) -> int:
    from reference import derive

    return derive(seed, label)


def test_columns_lie_side_by_side() -> None:
    model, _, _ = every_layer()
    plan = grass.Plan.for_model(model, dim=8)
    ends = np.cumsum([column.width for column in plan.columns])
    assert [column.offset for column in plan.columns] == [0, *ends[:-1]]
    assert plan.width == ends[-1]
    assert [column.name for column in plan.columns] == list(plan)
    assert all(column.spec == plan[column.name].spec for column in plan.columns)


def test_fingerprints_tell_plans_apart() -> None:
    model = mlp()
    plan = grass.Plan.for_model(model, dim=16, seed=1)
    assert plan.fingerprint == grass.Plan.for_model(model, dim=16, seed=1).fingerprint
    others = [
        grass.Plan.for_model(model, dim=16, seed=2),
        grass.Plan.for_model(model, dim=17, seed=1),
        grass.Plan.for_model(model, "sjlt", dim=16, seed=1),
        grass.Plan.for_model(model, dim=16, seed=1, layers=["0"]),
    ]
    assert len({plan.fingerprint, *(other.fingerprint for other in others)}) == 5


def test_whole_numbers_may_be_numpys() -> None:
    plan = grass.Plan.for_model(mlp(), dim=np.int64(8), seed=np.uint64(3))
    assert plan.fingerprint == grass.Plan.for_model(mlp(), dim=8, seed=3).fingerprint


def test_bad_arguments_are_named() -> None:
    model = mlp()
    with pytest.raises(grass.SpecError, match="did you mean 'factgrass'"):
        grass.Plan.for_model(model, "factgras")
    with pytest.raises(grass.SpecError, match="dim must be a whole number from 1"):
        grass.Plan.for_model(model, dim=0)
    with pytest.raises(grass.SpecError, match="seed must be a whole number from 0"):
        grass.Plan.for_model(model, seed=-1)
    with pytest.raises(grass.SpecError, match="dim must be a whole number"):
        grass.Plan.for_model(model, dim=True)
    with pytest.raises(grass.SpecError, match="method must be one of"):
        grass.Plan.for_model(model, ["factgrass"])
    with pytest.raises(grass.SpecError, match="'O'"):
        grass.Plan.for_model(model, layers=["O"])
    with pytest.raises(grass.SpecError, match="block must be one of '0', '2', got '1'"):
        grass.Plan.for_model(model)["1"]


def test_a_compressor_must_fit_its_block() -> None:
    first, second = find_blocks(mlp())
    fits = grass.SJLT(27, 4, seed=0)
    with pytest.raises(grass.SpecError, match="block '0' expects a compressor of 56 coordinates"):
        grass.Plan({first: fits, second: fits})
    with pytest.raises(grass.SpecError, match="expects a compressor of 7 inputs and 8 outputs"):
        grass.Plan({first: grass.FactGraSS(8, 7, 4, seed=0)})
    with pytest.raises(grass.SpecError, match="at least one block"):
        grass.Plan({})
