"""Blocks: which parameters go together, and which layers are captured by their factors."""

from __future__ import annotations

import copy
import pickle
import warnings

import pytest
import torch
from torch import nn

from grass_rs.capture import Block, LinearShape, find_blocks
from grass_rs.errors import SpecError, UnsupportedLayerError


def shape_of(model: nn.Module) -> dict[str, tuple[int, LinearShape | None]]:
    return {block.name: (block.size, block.factors) for block in find_blocks(model)}


def test_linear_layers_have_factors_and_others_have_not() -> None:
    model = nn.Sequential(nn.Linear(3, 4), nn.LayerNorm(4), nn.Linear(4, 2, bias=False), nn.ReLU())
    assert find_blocks(model) == [
        Block("0", ("0.weight", "0.bias"), 16, LinearShape(4, 4, bias=True)),
        Block("1", ("1.weight", "1.bias"), 8, None),
        Block("2", ("2.weight",), 8, LinearShape(4, 2, bias=False)),
    ]


def test_the_model_itself_is_the_block_without_a_name() -> None:
    model = nn.Module()
    model.scale, model.inner = nn.Parameter(torch.zeros(3)), nn.Linear(1, 1)
    assert [(b.name, b.parameters) for b in find_blocks(model)] == [
        ("", ("scale",)),
        ("inner", ("inner.weight", "inner.bias")),
    ]
    (block,) = find_blocks(nn.Linear(3, 2))
    assert block == Block("", ("weight", "bias"), 8, LinearShape(4, 2, bias=True))


def test_frozen_parameters_have_no_block() -> None:
    model = nn.Sequential(*(nn.Linear(3, 2) for _ in range(3)), nn.BatchNorm1d(2))
    model[0].bias.requires_grad_(requires_grad=False)
    model[1].weight.requires_grad_(requires_grad=False)
    model[2].requires_grad_(requires_grad=False)
    model[3].weight.requires_grad_(requires_grad=False)
    assert find_blocks(model) == [
        Block("0", ("0.weight",), 6, LinearShape(3, 2, bias=False)),
        Block("1", ("1.bias",), 2, None),
        Block("3", ("3.bias",), 2, None),
    ]


def test_a_shared_weight_belongs_to_the_first_that_names_it() -> None:
    model = nn.Sequential(nn.Linear(3, 3), nn.Linear(3, 3), nn.Linear(3, 3, bias=False))
    model[1].weight = model[2].weight = model[0].weight
    assert find_blocks(model) == [
        Block("0", ("0.weight", "0.bias"), 12, LinearShape(4, 3, bias=True)),
        Block("1", ("1.bias",), 3, None),
    ]


def test_a_module_under_two_names_is_one_block() -> None:
    layer = nn.Linear(3, 3)
    assert [block.name for block in find_blocks(nn.Sequential(layer, layer))] == ["0"]


@pytest.mark.parametrize("order", [("embed", "head"), ("head", "embed")])
def test_a_weight_that_an_embedding_shares_goes_the_general_way(order: tuple[str, str]) -> None:
    layers = {"embed": nn.Embedding(5, 3), "head": nn.Linear(3, 5)}
    layers["head"].weight = layers["embed"].weight
    model = nn.ModuleDict({name: layers[name] for name in order})
    blocks = find_blocks(model)
    assert all(block.factors is None for block in blocks)
    assert [(block.name, block.size) for block in blocks] == (
        [("embed", 15), ("head", 5)] if order[0] == "embed" else [("head", 20)]
    )


def test_a_bias_that_another_layer_adds_goes_the_general_way() -> None:
    model = nn.Sequential(nn.Linear(3, 3), nn.Linear(3, 3))
    model[1].bias = model[0].bias
    assert shape_of(model) == {"0": (12, None), "1": (9, LinearShape(3, 3, bias=False))}


def test_attention_goes_the_general_way() -> None:
    model = nn.TransformerEncoderLayer(4, 2, 6)
    found = shape_of(model)
    assert found["self_attn"] == (60, None)
    assert found["self_attn.out_proj"] == (20, None)
    assert found["linear1"] == (30, LinearShape(5, 6, bias=True))
    model.self_attn.out_proj = nn.Linear(4, 4)
    assert shape_of(model)["self_attn.out_proj"] == (20, None)


def test_subclasses_and_parametrised_layers_go_the_general_way() -> None:
    class Scaled(nn.Linear):
        pass

    model = nn.Sequential(Scaled(3, 2), nn.Linear(3, 2), nn.Linear(3, 2), nn.Linear(3, 2))
    nn.utils.parametrizations.weight_norm(model[1])
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)
        nn.utils.weight_norm(model[2])
    model[3].register_parameter("gain", nn.Parameter(torch.ones(2)))
    found = find_blocks(model)
    assert all(block.factors is None for block in found)
    assert [block.name for block in found] == ["0", "1", "1.parametrizations.weight", "2", "3"]
    assert found[3].parameters == ("2.bias", "2.weight_g", "2.weight_v")


def test_layers_are_chosen_by_name_or_pattern() -> None:
    model = nn.ModuleDict(
        {"a": nn.ModuleList([nn.Linear(2, 2), nn.LayerNorm(2)]), "b": nn.Linear(2, 2)}
    )

    def names(*layers: str) -> list[str]:
        return [block.name for block in find_blocks(model, layers)]

    assert names("b", "a.0") == ["a.0", "b"]
    assert names("a.*") == ["a.0", "a.1"]
    assert names("*") == ["a.0", "a.1", "b"]
    assert names("a.?", "a.0") == ["a.0", "a.1"]


def test_unknown_layers_are_refused_with_the_closest() -> None:
    model = nn.ModuleDict({"encoder": nn.Linear(2, 2), "decoder": nn.Linear(2, 2)})
    with pytest.raises(SpecError, match=r"got 'encodr': did you mean 'encoder'"):
        find_blocks(model, ["encodr"])
    with pytest.raises(SpecError, match=r"got 'x\*'"):
        find_blocks(model, ["encoder", "x*"])
    with pytest.raises(SpecError, match=r"got the string 'encoder': wrap it in \[\]"):
        find_blocks(model, "encoder")
    with pytest.raises(SpecError, match="at least one name or pattern, got none"):
        find_blocks(model, [])


def test_models_without_blocks_are_refused() -> None:
    for model in (nn.ReLU(), nn.Linear(2, 2).requires_grad_(requires_grad=False)):
        with pytest.raises(SpecError, match="no trainable parameters: set requires_grad"):
            find_blocks(model)
    with pytest.raises(SpecError, match=r"expects a torch\.nn\.Module, got function"):
        find_blocks(lambda x: x)  # type: ignore[arg-type]


@pytest.mark.filterwarnings("ignore:Initializing zero-element tensors")
def test_a_parameter_without_entries_has_no_block() -> None:
    model = nn.Sequential(nn.Linear(0, 3, bias=False), nn.Linear(3, 1))
    assert [block.name for block in find_blocks(model)] == ["1"]


@pytest.mark.filterwarnings("ignore:Lazy modules are a new feature")
@pytest.mark.filterwarnings("ignore:Initializing zero-element tensors")
def test_lazy_layers_are_refused_until_they_are_initialised() -> None:
    model = nn.Sequential(nn.LazyLinear(3), nn.Linear(3, 2))
    with pytest.raises(UnsupportedLayerError, match=r"'0'.*'0.weight' is not initialised yet: run"):
        find_blocks(model)
    assert [block.name for block in find_blocks(model, ["1"])] == ["1"]
    model(torch.zeros(1, 4))
    assert shape_of(model)["0"] == (15, LinearShape(5, 3, bias=True))


def test_complex_parameters_are_refused() -> None:
    model = nn.Sequential(nn.Linear(2, 2, dtype=torch.complex64), nn.Linear(2, 2))
    with pytest.raises(
        UnsupportedLayerError, match=r"layer '0': .* is complex \(torch.complex64\)"
    ):
        find_blocks(model)
    assert [block.name for block in find_blocks(model, ["1"])] == ["1"]


def test_blocks_are_plain_values() -> None:
    (block,) = find_blocks(nn.Linear(3, 2))
    assert pickle.loads(pickle.dumps(block)) == block  # noqa: S301 - its own bytes
    assert len({block, copy.deepcopy(block)}) == 1
