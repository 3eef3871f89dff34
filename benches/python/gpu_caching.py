"""What caching adds to a pass of a language model: random weights, all linear layers, 1024 tokens, rows to a store."""

from __future__ import annotations

import tempfile
import time
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional

import gpu_goals as goals
import grass_rs as grass
from rows import Row

if TYPE_CHECKING:
    from collections.abc import Iterator

    from gpu_timing import Timer

FIRST, LAST = 16, 31
"""Batches timed. Capture checks more on batches 1, 2, 4, 8, 16 and 32, counted from 1."""
_PASSES = 5
"""Bare passes enqueued together, as those of the batches are."""
_DIM = 4096


class Size(NamedTuple):
    """Sizes of a decoder."""

    layers: int
    width: int
    heads: int
    key_heads: int
    hidden: int
    vocabulary: int
    gated: bool
    batch: int
    tokens: int = 1024

    def smaller(self, scale: int) -> Size:
        """Return a decoder about `scale` times smaller."""
        if scale == 1:
            return self
        return Size(
            1, 64, 4, 2 if self.gated else 4, 128, 100, self.gated, batch=2, tokens=1024 // scale
        )


SIZES = dict(
    zip(
        goals.MODELS,
        (
            Size(12, 768, 12, 12, 3072, 50257, gated=False, batch=8),
            Size(32, 4096, 32, 8, 14336, 128256, gated=True, batch=4),
        ),
        strict=True,
    )
)


class Block(nn.Module):
    """Attention and a feed-forward part, each with a norm before and a sum after it."""

    def __init__(self, size: Size) -> None:
        super().__init__()
        head = size.width // size.heads
        self._split = size.heads * head, size.key_heads * head
        self._head = head
        bias = not size.gated  # as GPT-2 has them and Llama has not
        self.norm = nn.LayerNorm(size.width, elementwise_affine=False)
        self.query = nn.Linear(size.width, self._split[0], bias=bias)
        self.key = nn.Linear(size.width, self._split[1], bias=bias)
        self.value = nn.Linear(size.width, self._split[1], bias=bias)
        self.project = nn.Linear(size.width, size.width, bias=bias)
        self.up = nn.Linear(size.width, size.hidden, bias=bias)
        self.gate = nn.Linear(size.width, size.hidden, bias=False) if size.gated else None
        self.down = nn.Linear(size.hidden, size.width, bias=bias)

    def forward(self, x: Tensor) -> Tensor:
        """Return (n, t, width) of (n, t, width)."""
        normed = self.norm(x)
        query, key, value = (
            layer(normed).unflatten(2, (-1, self._head)).transpose(1, 2)
            for layer in (self.query, self.key, self.value)
        )
        repeat = query.shape[1] // key.shape[1]
        key, value = key.repeat_interleave(repeat, 1), value.repeat_interleave(repeat, 1)
        seen = functional.scaled_dot_product_attention(query, key, value, is_causal=True)
        x = x + self.project(seen.transpose(1, 2).flatten(2))
        normed = self.norm(x)
        hidden = self.up(normed)
        hidden = (
            functional.gelu(hidden)
            if self.gate is None
            else functional.silu(self.gate(normed)) * hidden
        )
        return x + self.down(hidden)


class Decoder(nn.Module):
    """A decoder whose parameters are its linear layers, and an embedding that is not trained."""

    def __init__(self, size: Size) -> None:
        super().__init__()
        self.embed = nn.Embedding(size.vocabulary, size.width).requires_grad_(requires_grad=False)
        self.blocks = nn.ModuleList(Block(size) for _ in range(size.layers))
        self.norm = nn.LayerNorm(size.width, elementwise_affine=False)
        self.head = nn.Linear(size.width, size.vocabulary, bias=False)

    def forward(self, tokens: Tensor) -> Tensor:
        """Return logits (n, t, vocabulary) of tokens (n, t)."""
        return self.logits(self.embed(tokens))

    def logits(self, x: Tensor) -> Tensor:
        """Return logits of embedded tokens (n, t, width)."""
        for block in self.blocks:
            x = block(x)
        logits: Tensor = self.head(self.norm(x))
        return logits


def losses(model: Decoder, batch: list[Tensor]) -> Tensor:
    """Return the summed loss of each sequence's next tokens, (n,)."""
    (tokens,) = batch
    return _losses(model(tokens), tokens)


def _losses(logits: Tensor, tokens: Tensor) -> Tensor:
    found = functional.cross_entropy(logits[:, :-1].mT, tokens[:, 1:], reduction="none")
    return found.float().sum(dim=1)


def measure(timer: Timer, scale: int = 1) -> Iterator[Row]:
    """Measure both models, `scale` times smaller than named."""
    for name, size in SIZES.items():
        yield from _model(timer, name, size.smaller(scale))


def _model(timer: Timer, name: str, size: Size) -> Iterator[Row]:
    torch.manual_seed(0)
    with torch.device(timer.device):
        model = Decoder(size).to(torch.bfloat16)
        tokens = torch.randint(0, size.vocabulary, (size.batch, size.tokens))
    (bare,) = timer.passes(lambda: [_bare(model, tokens) for _ in range(_PASSES)])
    for method in ("factgrass", "tile"):
        plan = grass.Plan.for_model(model, method, dim=_DIM)
        attributor = grass.Attributor(model, losses, plan)
        batches = _Batches(timer.device, tokens)
        with tempfile.TemporaryDirectory() as folder:
            attributor.cache(batches, Path(folder) / "rows.grass", progress=False)
        yield Row(goals.caching(method, name), batches.seconds, goals.BARE, bare / _PASSES)


def _bare(model: Decoder, tokens: Tensor) -> None:
    parameters = [parameter for parameter in model.parameters() if parameter.requires_grad]
    for parameter in parameters:
        parameter.requires_grad_(requires_grad=False)
    embedded = model.embed(tokens).requires_grad_()
    torch.autograd.grad(_losses(model.logits(embedded), tokens).sum(), embedded)
    for parameter in parameters:
        parameter.requires_grad_()


class _Batches:
    """The same batch again and again, with the clock read where the first and last of those timed begin."""

    def __init__(self, device: torch.device, tokens: Tensor) -> None:
        self._device = device
        self._tokens = tokens
        self.seconds = float("nan")
        """Of one batch between."""

    def __iter__(self) -> Iterator[list[Tensor]]:
        begin = 0.0
        for number in range(LAST + 1):
            if number in {FIRST, LAST} and self._device.type == "cuda":
                torch.cuda.synchronize()
            if number == FIRST:
                begin = time.perf_counter()
            if number == LAST:
                self.seconds = (time.perf_counter() - begin) / (LAST - FIRST)
            yield [self._tokens]
