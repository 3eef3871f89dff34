"""Capture leaves the model and PyTorch's global state exactly as they were."""

from __future__ import annotations

import warnings
from typing import TYPE_CHECKING, Any

import pytest
import torch
from torch import Tensor, nn

from grass_rs.capture import Capture, find_blocks
from grass_rs.errors import LossError
from per_example_twin import RowSink

if TYPE_CHECKING:
    from collections.abc import Callable

    from grass_rs.capture import Block, Factors

N = 4


class Remembers(nn.Module):
    """A layer that changes all it can when called."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(6, 6)
        self.register_buffer("calls", torch.zeros(()))
        self.register_buffer("last", torch.zeros(1))
        self.count = 0
        self.shapes: list[torch.Size] = []
        self.known: dict[str, int] = {"before": 1}

    def forward(self, inputs: Tensor) -> Tensor:
        self.calls += 1
        self.last = torch.ones(2)
        self.count += 1
        self.shapes.append(inputs.shape)
        self.known["after"] = self.count
        self.new = torch.rand(1)
        return self.layer(inputs)


class Everything(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.convolution = nn.Sequential(nn.Conv1d(3, 3, 1), nn.BatchNorm1d(3), nn.Dropout(0.5))
        self.recurrent = nn.LSTM(5, 6, batch_first=True, dropout=0.5, num_layers=2)
        self.remembers = Remembers()
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", FutureWarning)
            self.normed = nn.utils.weight_norm(nn.Linear(6, 4))
        self.spectral = nn.utils.parametrizations.spectral_norm(nn.Linear(4, 2))
        self.convolution[0].weight.requires_grad_(requires_grad=False)
        self.spectral.bias.grad = torch.ones(2)
        self.convolution.eval()
        self.convolution[2].train()
        self.remembers.layer.register_forward_hook(lambda *_: None)
        self.remembers.layer.register_forward_pre_hook(lambda *_: None)

    def forward(self, inputs: Tensor) -> Tensor:
        hidden = self.remembers(self.recurrent(self.convolution(inputs))[0])
        return self.spectral(torch.tanh(self.normed(hidden)))


def squares(model: nn.Module, batch: Tensor) -> Tensor:
    return model(batch).square().sum((1, 2))


def state(model: nn.Module) -> list[Any]:
    """Return all that can be seen of a model and of PyTorch's settings, with objects by identity."""
    seen: list[Any] = []
    for name, module in model.named_modules():
        for key, value in vars(module).items():
            seen.append((name, key, id(value)))
            if isinstance(value, dict):
                seen.append([(k, id(v)) for k, v in value.items()])
            elif isinstance(value, list):
                seen.append([id(v) for v in value])
        seen.append(module.training)
    for name, parameter in model.named_parameters():
        gradient = None if parameter.grad is None else (id(parameter.grad), parameter.grad.tolist())
        seen.append((name, parameter.requires_grad, parameter._version, gradient))
        seen.append((parameter.tolist(), len(parameter._backward_hooks or {})))
    seen += [(name, id(buffer), buffer.tolist()) for name, buffer in model.named_buffers()]
    seen += [
        torch.get_rng_state().tolist(),
        torch.is_grad_enabled(),
        torch.is_autocast_cache_enabled(),
        torch.backends.mha.get_fastpath_enabled(),
        torch.backends.cudnn.enabled,
        torch.backends.cudnn.benchmark,
        torch.backends.cudnn.allow_tf32,
    ]
    return seen


def build() -> tuple[nn.Module, Tensor]:
    torch.manual_seed(0)
    return Everything(), torch.randn(N, 3, 5)


def test_the_twin_sees_changes() -> None:
    model, batch = build()
    before = state(model)
    assert state(model) == before
    model(batch)
    assert state(model) != before


def test_nothing_is_left_behind() -> None:
    model, batch = build()
    before = state(model)
    want = None
    for _ in range(2):
        with Capture(model, squares, find_blocks(model)) as capture:
            assert not any(module.training for module in model.modules())
            found = capture.run(batch, RowSink(N))
            torch.rand(1)
        assert state(model) == before
        assert want is None or torch.equal(found.losses, want)
        want = found.losses
    # The model still runs and trains.
    model(batch).sum().backward()


def run_twice(model: nn.Module, loss: Callable[..., Tensor], batch: Tensor) -> None:
    with Capture(model, loss, find_blocks(model)) as capture:
        capture.run(batch, RowSink(N))
        capture.run(batch, RowSink(N))


def fails_at(call: int) -> Callable[[nn.Module, Tensor], Tensor]:
    calls = 0

    def loss(model: nn.Module, batch: Tensor) -> Tensor:
        nonlocal calls
        losses = squares(model, batch)
        calls += 1
        if calls == call:
            model.train()
            raise KeyError(call)
        return losses

    return loss


@pytest.mark.parametrize("call", [1, 2, 5, 6])
def test_nothing_is_left_behind_by_an_error_in_the_loss(call: int) -> None:
    model, batch = build()
    before = state(model)
    with pytest.raises((KeyError, LossError)):
        run_twice(model, fails_at(call), batch)
    assert state(model) == before


@pytest.mark.parametrize("kind", ["factors", "rows"])
def test_nothing_is_left_behind_by_an_error_in_the_sink(kind: str) -> None:
    model, batch = build()
    before = state(model)

    def sink(_: Block, __: slice, gradient: Factors | Tensor) -> None:
        if isinstance(gradient, Tensor) == (kind == "rows"):
            raise KeyboardInterrupt

    with (
        pytest.raises(KeyboardInterrupt),
        Capture(model, squares, find_blocks(model)) as capture,
    ):
        capture.run(batch, sink)
    assert state(model) == before


def test_nothing_is_left_behind_by_a_refusal() -> None:
    model, batch = build()
    before = state(model)
    with (
        pytest.raises(LossError),
        Capture(model, lambda m, b: squares(m, b).mean(), find_blocks(model)) as capture,
    ):
        capture.run(batch, RowSink(N))
    assert state(model) == before


def test_calls_do_not_add_up_within_a_capture() -> None:
    """What a call leaves in the model does not enter the next batch."""
    model, batch = build()
    sinks = [RowSink(N), RowSink(N)]
    with Capture(model, squares, find_blocks(model)) as capture:
        for sink in sinks:
            capture.run(batch, sink)
    for name, rows in sinks[0].rows.items():
        assert torch.equal(sinks[1].rows[name], rows)


def test_train_methods_of_the_model_are_not_called() -> None:
    class Merging(nn.Linear):
        def train(self, mode: bool = True) -> Merging:
            self.weight.data.zero_()
            return super().train(mode)

    model = nn.Sequential(Merging(3, 2))
    weight = model[0].weight.clone()
    with Capture(model, lambda m, b: m(b).sum(1), find_blocks(model)) as capture:
        capture.run(torch.randn(N, 3), RowSink(N))
    assert torch.equal(model[0].weight, weight)
    assert model[0].training


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
def test_cuda_generators_are_put_back() -> None:
    torch.manual_seed(0)
    torch.rand(1, device="cuda")
    before = torch.cuda.get_rng_state()
    model = nn.Linear(3, 2, device="cuda")
    with Capture(model, lambda m, b: m(b).sum(1), find_blocks(model)) as capture:
        capture.run(torch.randn(N, 3, device="cuda"), RowSink(N))
        torch.rand(1, device="cuda")
    assert torch.equal(torch.cuda.get_rng_state(), before)
