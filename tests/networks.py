"""Small models and their data, and per-example gradients by `torch.func` as the twin of capture."""

from __future__ import annotations

import warnings
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.utils.data import DataLoader, TensorDataset

if TYPE_CHECKING:
    from collections.abc import Callable


class EveryLayer(nn.Module):
    """Every kind of layer that capture knows: linear ones by their factors, and others."""

    def __init__(self) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.ones(3))
        self.embed = nn.Embedding(7, 6)
        self.conv = nn.Conv1d(6, 6, 3, padding=1)
        self.norm = nn.BatchNorm1d(6)
        self.mix = nn.Linear(6, 6)
        self.layer_norm = nn.LayerNorm(6)
        self.attention = nn.MultiheadAttention(6, 2, batch_first=True)
        self.no_bias = nn.Linear(6, 5, bias=False)
        self.frozen_bias = nn.Linear(5, 6)
        self.frozen_bias.bias.requires_grad_(requires_grad=False)
        self.weight_norm = nn.utils.parametrizations.weight_norm(nn.Linear(6, 4))
        self.group_norm = nn.GroupNorm(2, 4)
        self.head = nn.Linear(4, 3)

    def forward(self, tokens: Tensor) -> Tensor:
        hidden = self.embed(tokens)
        hidden = self.norm(self.conv(hidden.transpose(1, 2))).transpose(1, 2)
        hidden = self.layer_norm(self.mix(functional.gelu(self.mix(hidden))))
        hidden = hidden + self.attention(hidden, hidden, hidden, need_weights=False)[0]
        hidden = self.frozen_bias(torch.tanh(self.no_bias(hidden))).mean(1)
        return self.scale * self.head(self.group_norm(self.weight_norm(hidden)))


def every_layer(dtype: torch.dtype = torch.float32) -> tuple[EveryLayer, Tensor, Tensor]:
    """Return the model with statistics and weights away from their defaults, and data for it."""
    torch.manual_seed(0)
    model = EveryLayer()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
        model.norm.running_mean.normal_()
        model.norm.running_var.uniform_(0.5, 2)
    return model.to(dtype), torch.randint(0, 7, (9, 4)), torch.randint(0, 3, (9,))


def mlp(inputs: int = 6, hidden: int = 8, outputs: int = 3) -> nn.Sequential:
    torch.manual_seed(1)
    return nn.Sequential(nn.Linear(inputs, hidden), nn.Tanh(), nn.Linear(hidden, outputs))


def loader_of(*tensors: Tensor, batch_size: int = 4) -> DataLoader[tuple[Tensor, ...]]:
    return DataLoader(TensorDataset(*tensors), batch_size=batch_size)


def mlp_data(n: int = 20, inputs: int = 6, outputs: int = 3) -> tuple[Tensor, Tensor]:
    torch.manual_seed(2)
    return torch.randn(n, inputs), torch.randint(0, outputs, (n,))


def per_example_gradients(model: nn.Module, inputs: Tensor, targets: Tensor) -> dict[str, Tensor]:
    """Return the gradients (n, ...) of the cross-entropy of each example, by name of the parameter."""
    was_training = model.training
    model.eval()
    state = {name: p.detach() for name, p in model.named_parameters() if p.requires_grad}

    def loss(parameters: dict[str, Tensor], x: Tensor, y: Tensor) -> Tensor:
        logits = torch.func.functional_call(model, parameters, (x.unsqueeze(0),))
        return functional.cross_entropy(logits, y.unsqueeze(0))

    gradient: Callable[..., dict[str, Tensor]] = torch.func.grad(loss)
    torch.backends.mha.set_fastpath_enabled(False)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="There is a performance drop")
        gradients = torch.func.vmap(gradient, in_dims=(None, 0, 0))(state, inputs, targets)
    torch.backends.mha.set_fastpath_enabled(True)
    model.train(was_training)
    return gradients


def block_gradients(
    model: nn.Module, gradients: dict[str, Tensor], name: str, parameters: tuple[str, ...]
) -> Tensor:
    """Return the gradients (n, p) of a block, flattened as a plan does.

    A linear layer's is (out, in + 1) with the bias last; any other is one parameter after another.
    """
    parts = [gradients[parameter] for parameter in parameters]
    if type(model.get_submodule(name)) is nn.Linear and len(parts) == 2:
        return torch.cat([parts[0], parts[1].unsqueeze(2)], dim=2).flatten(1)
    return torch.cat([part.flatten(1) for part in parts], dim=1)
