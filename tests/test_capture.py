"""Capture: rows equal to the plain twin's for every kind of layer, batch and context."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn import functional

import grass_rs.capture.per_example
from capture_models import (
    IMAGES,
    MODELS,
    WORDS,
    Caches,
    RootParameters,
    Through,
    Tied,
    convolutions,
    make_inputs,
    mlp,
    squares,
)
from grass_rs.capture import Capture, Factors, find_blocks, resolve_loss
from grass_rs.capture.capture import _largest
from per_example_twin import RowSink, assert_captured_rightly, captured_rows, twin_rows

if TYPE_CHECKING:
    from grass_rs.capture import Block

N = 6


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize(
    ("dtype", "tolerance"), [(torch.float64, 1e-10), (torch.float32, 1e-5)], ids=["f64", "f32"]
)
def test_rows_equal_the_twin(name: str, dtype: torch.dtype, tolerance: float) -> None:
    torch.manual_seed(0)
    build, shape = MODELS[name]
    inputs = make_inputs(shape, N, dtype)
    before = inputs.clone()
    model = build().to(dtype)
    blocks = assert_captured_rightly(model, squares, inputs, N, tolerance)
    assert sum(block.size for block in blocks) == sum(
        p.numel() for p in model.parameters() if p.requires_grad
    )
    assert torch.equal(inputs, before)


@pytest.mark.parametrize(
    ("name", "loop"),
    [
        ("convolutions", False),
        ("embedding", False),
        ("tied, embedding first", False),
        ("encoder, tokens first", False),
        ("parametrised", False),
        ("control flow", True),
        ("parameter behind a closure", True),
    ],
)
def test_the_loop_is_taken_only_where_vmap_fails(
    name: str, loop: bool, caplog: pytest.LogCaptureFixture
) -> None:
    build, shape = MODELS[name]
    model = build()
    with (
        caplog.at_level("INFO", logger="grass_rs"),
        Capture(model, squares, find_blocks(model)) as c,
    ):
        for _ in range(2):
            c.run(make_inputs(shape, N, torch.float32), RowSink(N))
    assert ["one by one" in message for message in caplog.messages] == [True] * loop


@pytest.mark.parametrize("name", ["mlp", "encoder, tokens first", "folded by tokens", "lstm"])
def test_batches_of_other_sizes(name: str) -> None:
    torch.manual_seed(0)
    build, shape = MODELS[name]
    model = build().double()
    blocks = find_blocks(model)
    capture = Capture(model, squares, blocks)
    for n in (1, 5, 6, 1, 2):
        batch = make_inputs(shape, n, torch.float64)
        rows, _ = captured_rows(capture, batch, n, blocks)
        for block, twin in twin_rows(model, squares, batch, n, blocks).items():
            assert torch.allclose(rows[block], twin, rtol=1e-10, atol=1e-12)


@settings(max_examples=10)
@given(
    shape=st.lists(st.integers(1, 4), min_size=1, max_size=4),
    n=st.integers(1, 5),
    width=st.integers(1, 3),
)
def test_any_number_of_leading_axes(shape: list[int], n: int, width: int) -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(shape[-1], width), nn.Tanh(), nn.Linear(width, 2)).double()
    batch = torch.randn(n, *shape, dtype=torch.float64)
    assert_captured_rightly(model, squares, batch, n, 1e-10)


class Pair(NamedTuple):
    inputs: dict[str, Tensor]
    targets: list[Tensor]


def test_nested_batches() -> None:
    torch.manual_seed(0)
    model = nn.Linear(3, 2).double()
    batch = Pair(
        {"a": torch.randn(4, 3).double(), "b": torch.randn(4, 3).double()},
        [torch.randn(4, 2).double()],
    )

    def loss(model: nn.Module, batch: Pair) -> Tensor:
        assert isinstance(batch, Pair)
        outputs = model(batch.inputs["a"] * batch.inputs["b"])
        return (outputs - batch.targets[0]).square().sum(1)

    assert_captured_rightly(model, loss, batch, 4, 1e-10)


@pytest.mark.parametrize("name", ["cross_entropy", "mse", "binary_cross_entropy"])
def test_named_losses(name: str) -> None:
    torch.manual_seed(0)
    model = convolutions().double()
    images = torch.randn(N, *IMAGES, dtype=torch.float64)
    targets = torch.randint(2, (N,)) if name == "cross_entropy" else torch.rand(N, 2).double()
    assert_captured_rightly(model, resolve_loss(name), (images, targets), N, 1e-10)


def test_causal_language_model() -> None:
    torch.manual_seed(0)
    model = Tied(head_first=False).double()
    tokens = torch.randint(WORDS, (N, 5))
    labels = tokens.masked_fill(tokens == 3, -100)
    assert_captured_rightly(model, resolve_loss("causal_lm"), (tokens, labels), N, 1e-10)


def test_loss_may_read_the_model() -> None:
    torch.manual_seed(0)
    model = RootParameters().double()

    def loss(model: RootParameters, batch: Tensor) -> Tensor:
        return squares(model, batch) + model.scale.square().sum() + batch[:, 0] * model.shift.sum()

    assert_captured_rightly(model, loss, torch.randn(N, 5).double(), N, 1e-10)


@pytest.mark.parametrize("bias", [True, False])
def test_factors_are_no_copies(bias: bool) -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(5, 7, bias=bias), nn.Tanh(), nn.Linear(7, 3, bias=bias))
    given: dict[str, list[int]] = {"0": [], "2": []}
    for name, places in given.items():
        model.get_submodule(name).register_forward_pre_hook(
            lambda _, args, places=places: places.append(args[0].data_ptr())
        )
    seen = []

    def sink(block: Block, _: slice, gradient: Factors | Tensor) -> None:
        assert isinstance(gradient, Factors)
        assert gradient.bias is bias
        # The forward pass that the factors are of is the last one.
        assert gradient.inputs.data_ptr() == given[block.name][-1]
        seen.append(block.name)

    with Capture(model, squares, find_blocks(model)) as capture:
        capture.run(torch.randn(N, 4, 5), sink)
    assert seen == ["2", "0"]


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize(("n", "tokens", "d_in"), [(3, 4, 5), (0, 4, 5), (3, 0, 5), (3, 4, 0)])
def test_gradients_of_factors_are_their_product(bias: bool, n: int, tokens: int, d_in: int) -> None:
    torch.manual_seed(0)
    inputs, grad_outputs = torch.randn(n, tokens, d_in).half(), torch.randn(n, tokens, 2).half()
    found = Factors(inputs, grad_outputs, bias).gradients(slice(1, n), torch.float64)
    if bias:
        inputs = torch.cat([inputs, inputs.new_ones(n, tokens, 1)], dim=2)
    expected = torch.einsum("nto,nti->noi", grad_outputs.double(), inputs.double()).flatten(1)[1:]
    torch.testing.assert_close(found, expected)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_autocast(dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(16, 12), nn.LayerNorm(12), nn.ReLU(), nn.Linear(12, 4))
    batch = (torch.randn(N, 16), torch.randint(4, (N,)))
    loss = resolve_loss("cross_entropy")
    blocks = find_blocks(model)
    kinds = set()

    class KindSink(RowSink):
        def __call__(self, block: Block, examples: slice, gradient: Factors | Tensor) -> None:
            if isinstance(gradient, Factors):
                kinds.add(gradient.inputs.dtype)
                inputs, grad_outputs = gradient.inputs.float(), gradient.grad_outputs.float()
                gradient = Factors(inputs, grad_outputs, gradient.bias)
            super().__call__(block, examples, gradient)

    sink = KindSink(N)
    with torch.autocast("cpu", dtype=dtype):
        # A cast of the weights that has no gradient, which autocast would otherwise use again.
        with torch.no_grad():
            model(batch[0])
        with Capture(model, loss, blocks) as capture:
            capture.run(batch, sink)
        twin = twin_rows(model, loss, batch, N, blocks)
    assert kinds == {dtype}
    for block in blocks:
        error = (sink.rows[block.name] - twin[block.name]).norm() / twin[block.name].norm()
        assert error < 2e-2, block.name


def test_model_in_bfloat16() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(16, 12), nn.LayerNorm(12), nn.ReLU(), nn.Linear(12, 4))
    model.to(torch.bfloat16)
    batch = (torch.randn(N, 16, dtype=torch.bfloat16), torch.randint(4, (N,)))
    loss, blocks = resolve_loss("cross_entropy"), find_blocks(model)
    rows, found = captured_rows(Capture(model, loss, blocks), batch, N, blocks)
    twin = twin_rows(model, loss, batch, N, blocks)
    assert found.losses.dtype == torch.float32
    for block in blocks:
        assert (rows[block.name] - twin[block.name]).norm() < 5e-2 * twin[block.name].norm()


def test_under_no_grad() -> None:
    torch.manual_seed(0)
    with torch.no_grad():
        model, batch = convolutions().double(), torch.randn(N, *IMAGES).double()
        blocks = find_blocks(model)
        rows, _ = captured_rows(Capture(model, squares, blocks), batch, N, blocks)
        assert not torch.is_grad_enabled()
    twin = twin_rows(model, squares, batch, N, blocks)
    assert all(torch.allclose(rows[name], twin[name], rtol=1e-10) for name in twin)


def test_dropout_is_off() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Dropout(0.9), nn.Linear(5, 3), nn.Dropout(0.9)).double()
    assert_captured_rightly(model, squares, torch.randn(N, 5).double(), N, 1e-10)


def test_only_chosen_layers() -> None:
    torch.manual_seed(0)
    model = convolutions().double()
    blocks = find_blocks(model, ["1", "10"])
    batch = torch.randn(N, *IMAGES).double()
    rows, _ = captured_rows(Capture(model, squares, blocks), batch, N, blocks)
    twin = twin_rows(model, squares, batch, N, blocks)
    assert set(rows) == {"1", "10"}
    assert all(torch.allclose(rows[name], twin[name], rtol=1e-10) for name in twin)


def test_chunks_are_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv1d(2, 3, 2), nn.Flatten(), nn.LayerNorm(9)).double()
    blocks = find_blocks(model)
    an_example = 8 * sum(block.size for block in blocks)
    monkeypatch.setattr(grass_rs.capture.per_example, "_CHUNK_BYTES", 2 * an_example + 7)
    seen: list[tuple[str, slice]] = []
    with Capture(model, squares, blocks) as capture:
        capture.run(
            torch.randn(5, 2, 4).double(), lambda block, rows, _: seen.append((block.name, rows))
        )
    chunks = [slice(0, 2), slice(2, 4), slice(4, 5)]
    assert sorted(seen, key=lambda s: (s[0], s[1].start)) == [
        (name, chunk) for name in ("0", "2") for chunk in chunks
    ]


def test_chunks_do_not_see_what_others_left_in_the_model(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO", logger="grass_rs")
    monkeypatch.setattr(grass_rs.capture.per_example, "_CHUNK_BYTES", 1)
    torch.manual_seed(0)
    model = Caches(branches=False).double()
    assert_captured_rightly(model, squares, torch.randn(N, 5).double(), N, 1e-10)
    assert caplog.messages == []


def test_weight_gradients_are_not_computed() -> None:
    model = nn.Sequential(nn.Linear(5, 4), nn.Tanh(), nn.Linear(4, 3))
    computed: list[Tensor] = []
    blocks = find_blocks(model)
    with Capture(model, squares, blocks) as capture:
        capture.run(torch.randn(N, 5), RowSink(N))
        for parameter in model.parameters():
            parameter.register_hook(computed.append)
        capture.run(torch.randn(N, 5), RowSink(N))
    assert computed == []


def test_non_finite_examples_are_marked() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(5, 4), nn.LayerNorm(4), nn.Linear(4, 3)).double()
    blocks = find_blocks(model)
    batch = torch.randn(N, 5).double()
    batch[2, 1], batch[4, 0] = torch.nan, torch.inf
    rows, found = captured_rows(Capture(model, squares, blocks), batch, N, blocks)
    assert found.finite.tolist() == [True, True, False, True, False, True]
    twin = twin_rows(model, squares, batch, N, blocks)
    for name in twin:
        assert torch.allclose(rows[name][found.finite], twin[name][found.finite], rtol=1e-9)


def test_non_finite_gradient_of_a_finite_loss_is_marked() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(2, 2, bias=False), nn.ReLU()).double()
    batch = torch.rand(N, 2).double()
    batch[1] = 0

    def loss(model: nn.Module, batch: Tensor) -> Tensor:
        return model[0](batch).square().sum(1).sqrt()

    _, found = captured_rows(Capture(model, loss, find_blocks(model)), batch, N, find_blocks(model))
    assert found.losses.isfinite().all()
    assert found.finite.tolist() == [True, False, True, True, True, True]


def test_non_finite_gradient_of_other_layers_is_marked() -> None:
    model = nn.Sequential(nn.Conv1d(2, 2, 1, bias=False), nn.Flatten()).double()
    batch = torch.rand(N, 2, 1).double()
    batch[4] = 0

    def loss(model: nn.Module, batch: Tensor) -> Tensor:
        return model(batch).square().sum(1).sqrt()

    _, found = captured_rows(Capture(model, loss, find_blocks(model)), batch, N, find_blocks(model))
    assert found.losses.isfinite().all()
    assert found.finite.tolist() == [True, True, True, True, False, True]


@pytest.mark.parametrize("rooted", ["a", "b"])
def test_one_layer_of_several_that_is_not_finite_marks_the_example(rooted: str) -> None:
    layers = {name: nn.Linear(4, 3, bias=False) for name in "ab"}
    model = Through(lambda m, x: torch.stack([m.a(x), m.b(x)]), **layers).double()
    batch = torch.rand(N, 4).double()
    batch[2] = 0

    def loss(model: nn.Module, batch: Tensor) -> Tensor:
        a, b = model(batch).square().sum(2)
        return a.sqrt() + b if rooted == "a" else a + b.sqrt()

    with Capture(model, loss, find_blocks(model)) as capture:
        found = capture.run(batch, RowSink(N))
    assert found.losses.isfinite().all()
    assert found.finite.tolist() == [True, True, False, True, True, True]


def test_an_input_that_is_not_finite_marks_the_example() -> None:
    """Its gradient is nothing times infinity, though the loss and the layer's output are no matter."""
    model = nn.Linear(4, 3).double()
    batch = torch.rand(N, 4).double()
    batch[1, 0] = torch.inf

    def loss(model: nn.Module, batch: Tensor) -> Tensor:
        outputs = model(batch)
        return torch.where(outputs.isfinite(), outputs, 0.0).sum(1)

    with Capture(model, loss, find_blocks(model)) as capture:
        found = capture.run(batch, RowSink(N))
    assert found.losses.isfinite().all()
    assert found.finite.tolist() == [True, False, True, True, True, True]


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.float16, torch.bfloat16])
@pytest.mark.parametrize("shape", [(5, 3, 4), (5, 0, 4), (0, 3, 4), (5, 12), (5, 1, 1)])
def test_the_largest_of_a_row_is_finite_where_all_of_it_is(
    shape: tuple[int, ...], dtype: torch.dtype
) -> None:
    torch.manual_seed(0)
    tensor = (1e4 * torch.randn(shape)).to(dtype)
    for i, value in enumerate((torch.nan, torch.inf, -torch.inf, torch.finfo(dtype).max)):
        tensor[i : i + 1, ..., -1:] = value
    for strided in (tensor, tensor.transpose(0, -1).contiguous().transpose(0, -1)):
        found = _largest(strided)
        assert found.shape == (len(strided),)
        assert torch.equal(found.isfinite(), strided.isfinite().flatten(1).all(dim=1))


def test_a_non_finite_example_is_no_sign_of_a_tie() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 4), nn.LayerNorm(4), nn.Linear(4, 3)).double()
    batch = torch.randn(2, 4).double()
    batch[0] = torch.inf
    _, found = captured_rows(Capture(model, squares, find_blocks(model)), batch, 2, [])
    assert found.finite.tolist() == [False, True]


def test_encoder_of_frozen_first_layer_with_padding() -> None:
    torch.manual_seed(0)
    layer = nn.TransformerEncoderLayer(4, 2, 6, batch_first=True)
    model = nn.TransformerEncoder(layer, 2).double()
    model.layers[0].requires_grad_(requires_grad=False)
    padding = torch.arange(5) >= torch.tensor([[5], [3], [2], [4], [5], [1]])

    def loss(model: nn.Module, batch: Any) -> Tensor:
        outputs = model(batch[0], src_key_padding_mask=batch[1])
        return outputs.masked_fill(batch[1][:, :, None], 0).pow(3).sum((1, 2))

    batch = (torch.randn(N, 5, 4).double(), padding)
    blocks = find_blocks(model)
    rows, _ = captured_rows(Capture(model, loss, blocks), batch, N, blocks)
    model.use_nested_tensor = False
    twin = twin_rows(model, loss, batch, N, blocks)
    assert all(torch.allclose(rows[name], twin[name], rtol=1e-10, atol=1e-12) for name in twin)


def test_losses_are_the_loss() -> None:
    torch.manual_seed(0)
    model, batch = mlp(), torch.randn(N, 5)
    _, found = captured_rows(Capture(model, squares, find_blocks(model)), batch, N, [])
    assert torch.equal(found.losses, squares(model.eval(), batch).detach())
    assert not found.losses.requires_grad


def test_functional_use_of_a_general_weight() -> None:
    """A weight that a module reads without calling its layer is seen where the layer is general."""
    torch.manual_seed(0)
    model = Through(
        lambda m, x: functional.conv1d(m.a(x), m.a.weight.transpose(0, 1)), a=nn.Conv1d(5, 3, 1)
    ).double()
    assert_captured_rightly(model, squares, torch.randn(N, 5, 4).double(), N, 1e-10)
