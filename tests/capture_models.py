"""Tiny models, one for every kind of layer and every way to use one that capture must get right."""

from __future__ import annotations

import warnings
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

if TYPE_CHECKING:
    from collections.abc import Callable

WORDS = 11


class Through(nn.Module):
    """A model made of layers and a function of them."""

    def __init__(self, run: Callable[[Any, Tensor], Tensor], **layers: nn.Module) -> None:
        super().__init__()
        self.run = run
        for name, layer in layers.items():
            self.add_module(name, layer)

    def forward(self, inputs: Tensor) -> Tensor:
        return self.run(self, inputs)


def squares(model: nn.Module, batch: Any) -> Tensor:
    """Return half the squared outputs: a loss whose gradient differs in every output."""
    outputs = model(batch)
    return (outputs + 0.1).square().reshape(len(outputs), -1).sum(1) / 2


def mlp() -> nn.Module:
    return nn.Sequential(nn.Linear(5, 7), nn.ReLU(inplace=True), nn.Linear(7, 3, bias=False))


def called_twice() -> nn.Module:
    layer = nn.Linear(5, 5)
    return nn.Sequential(layer, nn.Tanh(), layer, nn.Linear(5, 2))


def shared_weight() -> nn.Module:
    model = nn.Sequential(nn.Linear(5, 5), nn.Tanh(), nn.Linear(5, 5), nn.Linear(5, 5, bias=False))
    model[2].weight = model[0].weight
    model[3].weight = model[0].weight
    return model


def shared_bias() -> nn.Module:
    model = nn.Sequential(nn.Linear(5, 5), nn.Tanh(), nn.Linear(5, 5))
    model[2].bias = model[0].bias
    return model


def shared_weight_of_frozen_bias() -> nn.Module:
    model = shared_weight()
    model[0].bias.requires_grad_(requires_grad=False)
    return model


def frozen(*names: str) -> Callable[[], nn.Module]:
    def build() -> nn.Module:
        model = nn.Sequential(nn.Linear(5, 7), nn.Tanh(), nn.Linear(7, 6), nn.Linear(6, 3))
        for name in names:
            model.get_parameter(name).requires_grad_(requires_grad=False)
        return model

    return build


def keyword_input() -> nn.Module:
    return Through(
        lambda m, x: m.b(input=torch.tanh(m.a(input=x))), a=nn.Linear(5, 4), b=mlp_head(4)
    )


def mlp_head(width: int) -> nn.Linear:
    return nn.Linear(width, 2)


def output_changed_in_place() -> nn.Module:
    return Through(lambda m, x: m.b(m.a(x).mul_(2).sin_()), a=nn.Linear(5, 4), b=nn.Linear(4, 2))


def input_changed_in_place() -> nn.Module:
    return Through(lambda m, x: m.a(x.mul_(2)), a=nn.Linear(5, 4))


def nested() -> nn.Module:
    blocks = nn.ModuleList(
        nn.ModuleDict({"up": nn.Linear(5, 6), "down": nn.Linear(6, 5)}) for _ in "ab"
    )

    def run(model: Any, x: Tensor) -> Tensor:
        for block in model.blocks:
            x = x + block["down"](torch.relu(block["up"](x)))
        return x

    return Through(run, blocks=blocks)


def unused_layer() -> nn.Module:
    return Through(lambda m, x: m.a(x), a=nn.Linear(5, 4), b=nn.Linear(4, 2), c=nn.LayerNorm(4))


def output_not_in_the_loss() -> nn.Module:
    def run(model: Any, x: Tensor) -> Tensor:
        model.b(x)
        with torch.no_grad():
            constant = model.b(x)
        return model.a(x) + constant.sum(-1, keepdim=True)

    return Through(run, a=nn.Linear(5, 4), b=nn.Linear(5, 2))


class RootParameters(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.randn(5))
        self.shift = nn.Parameter(torch.randn(5, 1))
        self.factor = nn.Parameter(torch.tensor(0.7))
        self.head = nn.Linear(5, 3)

    def forward(self, inputs: Tensor) -> Tensor:
        return self.head(inputs * self.scale + self.shift[:, 0]) * self.factor


def convolutions() -> nn.Module:
    model = nn.Sequential(
        nn.Conv2d(2, 4, 3),
        nn.BatchNorm2d(4),
        nn.ReLU(inplace=True),
        nn.GroupNorm(2, 4),
        nn.ConvTranspose2d(4, 3, 2),
        nn.PReLU(3),
        nn.InstanceNorm2d(3, affine=True),
        nn.Dropout(0.5),
        nn.Flatten(),
        nn.LayerNorm(48),
        nn.Linear(48, 2),
    )
    model[1].running_mean.normal_()
    model[1].running_var.uniform_(0.5, 2)
    return model


def convolution_1d() -> nn.Module:
    return nn.Sequential(
        nn.Conv1d(5, 3, 2), nn.Tanh(), nn.Conv1d(3, 2, 2, bias=False), nn.Flatten()
    )


def embedding(**options: Any) -> Callable[[], nn.Module]:
    return lambda: nn.Sequential(nn.Embedding(WORDS, 4, **options), nn.Linear(4, WORDS))


def embedding_bag() -> nn.Module:
    return nn.Sequential(nn.EmbeddingBag(WORDS, 4, mode="sum"), nn.Linear(4, WORDS))


class Tied(nn.Module):
    """A language model with tied embeddings; the first named owns the weight."""

    def __init__(self, head_first: bool) -> None:
        super().__init__()
        layers = {"embed": nn.Embedding(WORDS, 4), "head": nn.Linear(4, WORDS)}
        for name in sorted(layers, reverse=head_first):
            self.add_module(name, layers[name])
        self.body = nn.Linear(4, 4)
        self.head.weight = self.embed.weight

    def forward(self, inputs: Tensor) -> Tensor:
        return self.head(torch.tanh(self.body(self.embed(inputs))))


def attention() -> nn.Module:
    return Through(
        lambda m, x: m.b(m.a(x, x, x)[0]),
        a=nn.MultiheadAttention(4, 2, batch_first=True),
        b=nn.Linear(4, 2),
    )


class Encoder(nn.Module):
    def __init__(self, *, batch_first: bool) -> None:
        super().__init__()
        self.batch_first = batch_first
        self.layer = nn.TransformerEncoderLayer(4, 2, 6, batch_first=batch_first)
        self.head = nn.Linear(4, 3)

    def forward(self, inputs: Tensor) -> Tensor:
        if self.batch_first:
            return self.head(self.layer(inputs))
        return self.head(self.layer(inputs.transpose(0, 1))).transpose(0, 1)


def encoder(batch_first: bool) -> Callable[[], nn.Module]:
    return lambda: Encoder(batch_first=batch_first)


def encoder_of_frozen_attention() -> nn.Module:
    model = Encoder(batch_first=True)
    for name, parameter in model.named_parameters():
        parameter.requires_grad_("head" in name or "norm1" in name)
    return model


def recurrent(kind: type[nn.RNNBase]) -> Callable[[], nn.Module]:
    return lambda: Through(
        lambda m, x: m.b(m.a(x)[0]), a=kind(4, 3, num_layers=2, batch_first=True), b=nn.Linear(3, 2)
    )


def unrolled_cell() -> nn.Module:
    def run(model: Any, x: Tensor) -> Tensor:
        state = x.new_zeros(len(x), 3)
        for t in range(x.shape[1]):
            state = torch.tanh(model.a(x[:, t]) + model.b(state))
        return state

    return Through(run, a=nn.Linear(4, 3), b=nn.Linear(3, 3, bias=False))


def bilinear() -> nn.Module:
    return Through(lambda m, x: m.a(x, x.cos()), a=nn.Bilinear(5, 5, 3))


def parametrised() -> nn.Module:
    model = mlp()
    nn.utils.parametrizations.weight_norm(model[0])
    nn.utils.parametrizations.spectral_norm(model[2])
    return model


def old_weight_norm() -> nn.Module:
    model = mlp()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)
        nn.utils.weight_norm(model[0])
    return model


def folded(order: str) -> Callable[[], nn.Module]:
    """Return a model whose layer sees (n * t, d), example by example or token by token."""

    def run(model: Any, x: Tensor) -> Tensor:
        n, t, d = x.shape
        if order == "examples":
            return model.a(x.reshape(n * t, d)).reshape(n, t, -1)
        return model.a(x.transpose(0, 1).reshape(t * n, d)).reshape(t, n, -1).transpose(0, 1)

    return lambda: Through(run, a=nn.Linear(4, 3))


def windows() -> nn.Module:
    """Return a model whose layer sees windows of examples: (n * 2, t / 2, d)."""

    def run(model: Any, x: Tensor) -> Tensor:
        n, t, d = x.shape
        return model.a(x.reshape(n * 2, t // 2, d)).reshape(n, t, -1).cumsum(1)

    return Through(run, a=nn.Linear(4, 3))


def examples_last() -> nn.Module:
    return Through(lambda m, x: m.a(x.movedim(0, 2)).movedim(2, 0), a=nn.Linear(4, 3))


def checkpointed() -> nn.Module:
    def run(model: Any, x: Tensor) -> Tensor:
        return model.b(checkpoint(model.a, x, use_reentrant=False))

    return Through(run, a=mlp(), b=nn.PReLU(3))


class Caches(nn.Module):
    """A model that keeps what it computed from a parameter for its next calls."""

    def __init__(self, *, branches: bool) -> None:
        super().__init__()
        self.branches = branches
        self.scale = nn.Parameter(torch.randn(5))
        self.head = nn.Linear(5, 2)
        self.cached: Tensor | None = None

    def forward(self, inputs: Tensor) -> Tensor:
        if self.cached is None:
            self.cached = self.scale.exp()
        if self.branches and inputs[0, 0] > 0:
            return self.head(inputs * self.cached)
        return self.head(self.cached * inputs)


def control_flow() -> nn.Module:
    """Return a model that `vmap` refuses."""

    def run(model: Any, x: Tensor) -> Tensor:
        outputs = [model.a(row) if row.sum() > 0 else -model.a(row) for row in x]
        return model.b(torch.stack(outputs))

    return Through(run, a=nn.LayerNorm(5), b=nn.Linear(5, 2))


def parameter_behind_a_closure() -> nn.Module:
    """Return a model that reads a parameter past its modules, where a functional call misses it."""
    scale = nn.LayerNorm(5)
    weight = scale.weight
    return Through(lambda m, x: m.b(m.a(x) * weight), a=scale, b=nn.Linear(5, 2))


def user_hooks() -> nn.Module:
    model = mlp()
    model[0].register_forward_pre_hook(lambda _, args: (args[0] + 1,))
    model[0].register_forward_hook(lambda _, __, output: output * 2)
    model[2].register_full_backward_hook(lambda _, __, ___: None)
    return model


VECTORS, TOKENS, GRIDS, IMAGES, WORDS_2D = (5,), (6, 4), (2, 3, 4), (2, 5, 5), None
MODELS: dict[str, tuple[Callable[[], nn.Module], tuple[int, ...] | None]] = {
    "mlp": (mlp, VECTORS),
    "linear on tokens": (
        lambda: nn.Sequential(nn.Linear(4, 3), nn.Tanh(), nn.Linear(3, 2)),
        TOKENS,
    ),
    "linear on grids": (lambda: nn.Sequential(nn.Linear(4, 3), nn.Tanh(), nn.Linear(3, 2)), GRIDS),
    "called twice": (called_twice, VECTORS),
    "shared weight": (shared_weight, VECTORS),
    "shared bias": (shared_bias, VECTORS),
    "shared weight of frozen bias": (shared_weight_of_frozen_bias, VECTORS),
    "frozen weight": (frozen("2.weight"), VECTORS),
    "frozen bias": (frozen("2.bias"), VECTORS),
    "frozen layers": (frozen("0.weight", "0.bias", "3.weight", "3.bias"), VECTORS),
    "keyword input": (keyword_input, VECTORS),
    "output changed in place": (output_changed_in_place, VECTORS),
    "output changed in place, tokens": (
        lambda: Through(lambda m, x: m.a(x).sin_(), a=nn.Linear(4, 3)),
        TOKENS,
    ),
    "input changed in place": (input_changed_in_place, VECTORS),
    "nested": (nested, VECTORS),
    "unused layer": (unused_layer, VECTORS),
    "output not in the loss": (output_not_in_the_loss, VECTORS),
    "parameters of the root": (RootParameters, VECTORS),
    "convolutions": (convolutions, IMAGES),
    "convolution 1d": (convolution_1d, (5, 4)),
    "embedding": (embedding(), WORDS_2D),
    "embedding with padding": (embedding(padding_idx=0), WORDS_2D),
    "sparse embedding": (embedding(sparse=True), WORDS_2D),
    "embedding bag": (embedding_bag, WORDS_2D),
    "tied, embedding first": (lambda: Tied(head_first=False), WORDS_2D),
    "tied, head first": (lambda: Tied(head_first=True), WORDS_2D),
    "attention": (attention, TOKENS),
    "encoder": (encoder(batch_first=True), TOKENS),
    "encoder, tokens first": (encoder(batch_first=False), TOKENS),
    "encoder, tokens first, another length": (encoder(batch_first=False), (3, 4)),
    "encoder of frozen attention": (encoder_of_frozen_attention, TOKENS),
    "lstm": (recurrent(nn.LSTM), TOKENS),
    "gru": (recurrent(nn.GRU), TOKENS),
    "unrolled cell": (unrolled_cell, TOKENS),
    "bilinear": (bilinear, VECTORS),
    "parametrised": (parametrised, VECTORS),
    "old weight norm": (old_weight_norm, VECTORS),
    "folded by examples": (folded("examples"), TOKENS),
    "folded by tokens": (folded("tokens"), TOKENS),
    "windows": (windows, TOKENS),
    "examples last": (examples_last, GRIDS),
    "checkpointed": (checkpointed, VECTORS),
    "cache": (lambda: Caches(branches=False), VECTORS),
    "cache and control flow": (lambda: Caches(branches=True), VECTORS),
    "control flow": (control_flow, VECTORS),
    "parameter behind a closure": (parameter_behind_a_closure, VECTORS),
    "hooks of the user's": (user_hooks, VECTORS),
}


def make_inputs(shape: tuple[int, ...] | None, n: int, dtype: torch.dtype) -> Tensor:
    return torch.randint(WORDS, (n, 6)) if shape is None else torch.randn(n, *shape, dtype=dtype)
