"""Capture: batches, layers and uses that are refused rather than captured wrongly."""

from __future__ import annotations

from collections import OrderedDict, UserDict
from collections.abc import Iterator, MutableMapping
from concurrent.futures import ThreadPoolExecutor
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.utils.checkpoint import checkpoint

from grass_rs.capture import Capture, count_examples, find_blocks
from grass_rs.capture.batch import select_examples
from grass_rs.errors import DataError, GrassError, SpecError, UnsupportedLayerError
from per_example_twin import RowSink, twin_rows

if TYPE_CHECKING:
    from collections.abc import Callable

N = 6


class Through(nn.Module):
    """A linear layer `a`, whose calls are up to a function, after a linear layer `b`."""

    def __init__(self, run: Callable[[nn.Linear, Tensor], Tensor]) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.run = run
        self.b = nn.Linear(4, 4)
        self.a = nn.Linear(4, 3)

    def forward(self, inputs: Tensor) -> Tensor:
        return self.run(self.a, self.b(inputs))


def squares(model: nn.Module, batch: Any) -> Tensor:
    outputs = model(batch)
    return (outputs + 0.1).square().reshape(len(outputs), -1).sum(1)


def run(model: nn.Module, *batches: Tensor) -> None:
    with Capture(model, squares, find_blocks(model)) as capture:
        for batch in batches:
            capture.run(batch, RowSink(len(batch)))


# Layers


def routed(a: nn.Linear, x: Tensor) -> Tensor:
    """Send tokens through the layer that the data choose."""
    chosen = x[..., 0] > 0
    out = x.new_zeros(*x.shape[:-1], 3)
    out[chosen] = a(x[chosen])
    return out


def mixed_along_the_batch(a: nn.Linear, x: Tensor) -> Tensor:
    return a(x.roll(1, 0)).roll(-1, 0)


def one_by_one(a: nn.Linear, x: Tensor) -> Tensor:
    return torch.stack([a(row) for row in x])


def without_examples(a: nn.Linear, x: Tensor) -> Tensor:
    return x[..., :3] * a(torch.linspace(0, 1, 4, dtype=x.dtype).expand(5, 4)).sum(0)


def two_layouts(a: nn.Linear, x: Tensor) -> Tensor:
    return a(x) + a(x.transpose(0, 1)).transpose(0, 1)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (routed, r"layer 'a' expects the examples on an axis of its output, got \(\d+, 3\) for 3"),
        (
            one_by_one,
            r"layer 'a' .* got \(5, 3\) for 3 .* for one: no axis grows with their number",
        ),
        (
            without_examples,
            r"layer 'a' .* got \(5, 3\) for 3 examples and \(5, 3\) for one: no axis",
        ),
        (two_layouts, r"layer 'a' expects the examples on an axis of its output"),
        (mixed_along_the_batch, r"layer 'a' expects one example's tokens apart from another's"),
        (
            lambda a, x: functional.linear(x, a.weight, a.bias),
            r"layer 'a': the gradient from its calls is not autograd's \(norm 0 instead of",
        ),
        (
            lambda a, x: a(x) + functional.linear(x.cos(), a.weight),
            r"layer 'a': the gradient from its calls is not autograd's .* with layers=",
        ),
        (
            lambda a, x: a(x) + a.bias,
            r"layer 'a': the gradient from its calls is not autograd's",
        ),
        (
            lambda a, x: checkpoint(a, x, use_reentrant=True),
            r"runs layers in reentrant checkpoints: switch checkpointing off, or set use_reentrant",
        ),
    ],
    ids=[
        "routed",
        "one by one",
        "without examples",
        "two layouts",
        "mixed along the batch",
        "functional only",
        "functional too",
        "bias used twice",
        "reentrant checkpoint",
    ],
)
def test_layers_that_would_be_captured_wrongly(
    call: Callable[[nn.Linear, Tensor], Tensor], message: str
) -> None:
    torch.manual_seed(1)
    batch = torch.randn(N, 5, 4)
    with pytest.raises(UnsupportedLayerError, match=message):
        run(Through(call), batch)


def test_an_input_changed_after_the_call_is_refused() -> None:
    class ChangedAfter(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a = nn.Linear(3, 2)

        def forward(self, inputs: Tensor) -> Tensor:
            outputs = self.a(inputs)
            inputs.mul_(2)
            return outputs + inputs[:, :2]

    with pytest.raises(UnsupportedLayerError, match="layer 'a': its input was changed in place"):
        run(ChangedAfter(), torch.randn(N, 3))


def test_a_folded_layer_without_gradient_is_refused_as_ambiguous() -> None:
    def call(a: nn.Linear, x: Tensor) -> Tensor:
        n, t, d = x.shape
        return x[..., :3] + 0 * a(x.reshape(n * t, d)).reshape(n, t, 3)

    with pytest.raises(UnsupportedLayerError, match=r"layer 'a' .*: more than one place fits"):
        run(Through(call), torch.randn(N, 5, 4))


def test_examples_that_move_to_another_axis_are_refused() -> None:
    def call(a: nn.Linear, x: Tensor) -> Tensor:
        return a(x) if x.shape[1] == 5 else a(x.transpose(0, 1)).transpose(0, 1)

    with pytest.raises(
        UnsupportedLayerError, match=r"'a' .* axis 0 .* got \(4, 6, 3\) for a batch"
    ):
        run(Through(call), torch.randn(N, 5, 4), torch.randn(N, 4, 4))


def test_a_layer_that_only_large_batches_call_is_refused() -> None:
    def call(a: nn.Linear, x: Tensor) -> Tensor:
        return a(x) if len(x) > 3 else functional.linear(x, a.weight, a.bias)

    with pytest.raises(UnsupportedLayerError, match="layer 'a'"):
        run(Through(call), torch.randn(N, 5, 4))


def test_a_layer_first_called_for_a_later_batch_is_found() -> None:
    def call(a: nn.Linear, x: Tensor) -> Tensor:
        return x[..., :3] if x.shape[1] == 5 else a(x.transpose(0, 1)).transpose(0, 1)

    model = Through(call).double()
    first, later = torch.randn(N, 5, 4).double(), torch.randn(N, N, 4).double()
    blocks = find_blocks(model)
    sink = RowSink(N)
    with Capture(model, squares, blocks) as capture:
        capture.run(first, RowSink(N))
        capture.run(later, sink)
    for name, rows in twin_rows(model, squares, later, N, blocks).items():
        assert torch.allclose(sink.rows[name], rows, rtol=1e-10)


@pytest.mark.filterwarnings("ignore:The PyTorch API of nested tensors")
def test_nested_tensors_are_refused() -> None:
    def call(a: nn.Linear, x: Tensor) -> Tensor:
        rows = torch.nested.as_nested_tensor(list(x))
        return a(rows).to_padded_tensor(0.0)

    with pytest.raises(UnsupportedLayerError, match=r"layer 'a' got a nested tensor.*: pad the"):
        run(Through(call), torch.randn(N, 5, 4))


def sorted_by_first(a: nn.Linear, x: Tensor) -> Tensor:
    order = x[:, 0].argsort()
    return a(x[order])[order.argsort()]


@pytest.mark.parametrize("seed", range(8))
def test_a_layer_that_sees_examples_in_another_order_is_refused(seed: int) -> None:
    """Also where the examples that are compared first happen to be in order."""
    torch.manual_seed(seed)
    model = nn.Sequential(nn.Linear(4, 4))
    model.forward = lambda x: sorted_by_first(model[0], x)
    shuffled = torch.randn(8, 4)
    ordered = shuffled[shuffled[:, 0].argsort()]
    run(model, ordered)
    with pytest.raises(GrassError, match=r"order of the batch|apart from another|depend on one"):
        run(model, ordered, shuffled)


# Uses


def test_a_model_is_captured_by_one_thread_at_a_time() -> None:
    model = nn.Linear(3, 2).train()
    with Capture(model, squares, find_blocks(model)):
        with ThreadPoolExecutor(1) as other, pytest.raises(GrassError, match="another thread"):
            other.submit(run, model, torch.zeros(N, 3)).result()
        assert not model.training
    assert model.training
    run(model, torch.zeros(N, 3))


def test_capture_is_used_open_and_once_at_a_time() -> None:
    model = nn.Linear(3, 2)
    capture = Capture(model, squares, find_blocks(model))
    with pytest.raises(GrassError, match="not open: call run inside `with capture:`"):
        capture.run(torch.zeros(N, 3), RowSink(N))
    with capture, pytest.raises(GrassError, match="being captured already"), capture:
        pass
    assert len(model._forward_hooks) == 0


def test_blocks_of_another_model_are_refused() -> None:
    blocks = find_blocks(nn.Sequential(nn.Linear(3, 2)))
    with pytest.raises(SpecError, match=r"block '0' expects .* '0\.weight', but the model has no"):
        Capture(nn.Linear(3, 2), squares, blocks)
    frozen = nn.Sequential(nn.Linear(3, 2)).requires_grad_(requires_grad=False)
    with pytest.raises(SpecError, match=r"parameter '0\.weight', but the model has it frozen"):
        Capture(frozen, squares, blocks)


# Batches


def test_count_examples_of_nested_batches() -> None:
    x = torch.zeros(4, 2)
    assert count_examples(x) == 4
    assert count_examples((x, [x, {"a": x}], "name", None, 3)) == 4
    assert count_examples(UserDict(a=x)) == 4


class Shared(MutableMapping[str, Tensor]):
    """A mapping whose shallow copy holds the same dict."""

    def __init__(self, data: dict[str, Tensor]) -> None:
        self.data = data

    def __getitem__(self, key: str) -> Tensor:
        return self.data[key]

    def __setitem__(self, key: str, value: Tensor) -> None:
        self.data[key] = value

    def __delitem__(self, key: str) -> None:
        del self.data[key]

    def __iter__(self) -> Iterator[str]:
        return iter(self.data)

    def __len__(self) -> int:
        return len(self.data)


def test_the_callers_batch_is_left_alone() -> None:
    model = nn.Linear(3, 2)
    batch = Shared({"x": torch.randn(N, 3)})
    held = batch["x"]
    with Capture(model, lambda m, b: squares(m, b["x"]), find_blocks(model)) as capture:
        capture.run(batch, RowSink(N))
    assert batch["x"] is held


@pytest.mark.parametrize(
    ("batch", "message"),
    [
        ((torch.zeros(4), {"y": torch.zeros(3)}), r"batch\[0\] has 4 and batch\[1\]\['y'\] has 3"),
        ((torch.zeros(4), torch.tensor(1.0)), r"batch\[1\] is a scalar: repeat it"),
        ((torch.zeros(0, 3),), r"at least one example, but batch\[0\] has none"),
        (([1, 2], "text"), r"got tuple without any: convert it in the loader's collate function"),
        (None, "got NoneType without any"),
    ],
)
def test_contradicting_batches_are_refused(batch: Any, message: str) -> None:
    with pytest.raises(DataError, match=message):
        count_examples(batch)
    model = nn.Linear(3, 2)
    with Capture(model, squares, find_blocks(model)) as capture, pytest.raises(DataError):
        capture.run(batch, RowSink(N))


def test_selected_examples_keep_their_containers_and_share_no_memory() -> None:
    x = torch.arange(8.0).reshape(4, 2)
    batch = (x, [x], OrderedDict(b=x, a=None), UserDict(c=x), MappingProxyType({"d": x}), "text")
    found = select_examples(batch, [2, 0])
    assert [type(part) for part in found] == [Tensor, list, OrderedDict, UserDict, dict, str]
    assert list(found[2]) == ["b", "a"]
    for part in (found[0], found[1][0], found[2]["b"], found[3]["c"], found[4]["d"]):
        assert part.tolist() == [[4, 5], [0, 1]]
    assert batch[3]["c"] is x
    select_examples(batch, slice(0, 2))[0].zero_()
    assert x[0, 1] == 1


def test_errors_of_the_loss_itself_come_through() -> None:
    model = nn.Linear(3, 2)
    with (
        Capture(model, lambda m, b: m(b["x"]["y"]), find_blocks(model)) as capture,
        pytest.raises(KeyError, match="y"),
    ):
        capture.run({"x": {"z": torch.zeros(N, 3)}}, RowSink(N))


def test_a_refused_batch_leaves_the_capture_usable() -> None:
    model = nn.Linear(3, 2)
    with Capture(model, squares, find_blocks(model)) as capture:
        with pytest.raises(DataError):
            capture.run(torch.randn(0, 3), RowSink(0))
        capture.run(torch.randn(N, 3), RowSink(N))
