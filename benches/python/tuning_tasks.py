"""Trained models with ground truth, on which choices of method and damping are judged."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import torch
from sklearn.datasets import load_diabetes, load_digits
from torch import Tensor, nn
from torch.nn import functional

from grass_rs.evaluate import Benchmark, Recipe

if TYPE_CHECKING:
    from pathlib import Path

LENGTH = 64  # characters of a document
WIDTH = 48  # of the transformer


class Transformer(nn.Module):
    """A causal transformer over characters: two blocks of one attention head."""

    def __init__(self, characters: int) -> None:
        super().__init__()
        self.characters = nn.Embedding(characters, WIDTH)
        self.places = nn.Parameter(0.02 * torch.randn(LENGTH, WIDTH), requires_grad=False)
        self.blocks = nn.ModuleList(_Block() for _ in range(2))
        self.norm = nn.LayerNorm(WIDTH)
        self.head = nn.Linear(WIDTH, characters)

    def forward(self, tokens: Tensor) -> Tensor:
        """Return logits (n, length, characters) of tokens (n, length)."""
        x = self.characters(tokens) + self.places
        for block in self.blocks:
            x = block(x)
        logits: Tensor = self.head(self.norm(x))
        return logits


class _Block(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.norm1, self.norm2 = nn.LayerNorm(WIDTH), nn.LayerNorm(WIDTH)
        self.parts, self.out = nn.Linear(WIDTH, 3 * WIDTH), nn.Linear(WIDTH, WIDTH)
        self.up, self.down = nn.Linear(WIDTH, 2 * WIDTH), nn.Linear(2 * WIDTH, WIDTH)

    def forward(self, x: Tensor) -> Tensor:
        query, key, value = self.parts(self.norm1(x)).chunk(3, dim=-1)
        logits = query @ key.transpose(-1, -2) / WIDTH**0.5
        future = torch.ones(LENGTH, LENGTH, dtype=torch.bool).triu(1)
        x = x + self.out(logits.masked_fill(future, -torch.inf).softmax(dim=-1) @ value)
        return x + self.down(functional.gelu(self.up(self.norm2(x))))


def _perceptron(inputs: int, hidden: tuple[int, int], outputs: int) -> nn.Sequential:
    first, second = hidden
    return nn.Sequential(
        nn.Linear(inputs, first),
        nn.ReLU(),
        nn.Linear(first, second),
        nn.ReLU(),
        nn.Linear(second, outputs),
    )


def _convolutional() -> nn.Sequential:
    return nn.Sequential(
        nn.Unflatten(1, (1, 8)),
        nn.Conv2d(1, 16, 3, padding=1),
        nn.BatchNorm2d(16),
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.Conv2d(16, 32, 3, padding=1),
        nn.BatchNorm2d(32),
        nn.ReLU(),
        nn.Flatten(),
        nn.Linear(512, 10),
    )


def digits(folder: Path) -> Benchmark:
    """Digits of scikit-learn and a perceptron 64-128-64-10: 1200 examples, 200 queries."""
    train, queries = _digits((64,))
    return Benchmark(
        folder / "digits",
        build=lambda: _perceptron(64, (128, 64), 10),
        loss="cross_entropy",
        train=train,
        queries=queries,
        recipe=Recipe(),
        models=1,
        progress=False,
    )


def convolution(folder: Path) -> Benchmark:
    """Digits again, and a small convolutional network with batch norm."""
    train, queries = _digits((8, 8))
    return Benchmark(
        folder / "convolution",
        build=_convolutional,
        loss="cross_entropy",
        train=train,
        queries=queries,
        recipe=Recipe(epochs=15, learning_rate=0.05),
        models=1,
        at_once=25,
        progress=False,
    )


def diabetes(folder: Path) -> Benchmark:
    """Regression of scikit-learn's diabetes data by a perceptron 10-64-32-1: 342 examples, 100 queries."""
    inputs, targets = load_diabetes(return_X_y=True)
    order = np.random.default_rng(0).permutation(len(targets))
    x = torch.from_numpy(inputs / inputs.std(axis=0))[order].float()
    y = torch.from_numpy((targets - targets.mean()) / targets.std())[order].float()[:, None]
    return Benchmark(
        folder / "diabetes",
        build=lambda: _perceptron(10, (64, 32), 1),
        loss="mse",
        train=(x[:342], y[:342]),
        queries=(x[342:], y[342:]),
        recipe=Recipe(epochs=40, batch_size=50, learning_rate=0.02),
        models=1,
        progress=False,
    )


def transformer(folder: Path) -> Benchmark:
    """Python's help topics, in pieces of 64 characters, and a small transformer: 600 pieces, 100 queries."""
    from pydoc_data.topics import topics  # noqa: PLC0415 - some megabytes

    text = "\n".join(topics[name] for name in sorted(topics))
    characters = sorted(set(text))
    places = {character: place for place, character in enumerate(characters)}
    numbers = torch.tensor([places[character] for character in text])
    pieces = numbers[: len(numbers) // LENGTH * LENGTH].reshape(-1, LENGTH)
    chosen = pieces[np.random.default_rng(0).permutation(len(pieces))[:700]]
    return Benchmark(
        folder / "transformer",
        build=lambda: Transformer(len(characters)),
        loss="causal_lm",
        train=(chosen[:600], chosen[:600]),
        queries=(chosen[600:], chosen[600:]),
        recipe=Recipe(
            epochs=20, batch_size=20, learning_rate=0.003, weight_decay=0.01, optimizer="adamw"
        ),
        models=1,
        at_once=10,
        progress=False,
    )


def _digits(shape: tuple[int, ...]) -> tuple[tuple[Tensor, Tensor], tuple[Tensor, Tensor]]:
    pixels, labels = load_digits(return_X_y=True)
    order = np.random.default_rng(0).permutation(len(labels))[:1400]
    inputs = torch.from_numpy(pixels / 16)[order].float().reshape(-1, *shape)
    targets = torch.from_numpy(labels)[order]
    return (inputs[:1200], targets[:1200]), (inputs[1200:], targets[1200:])


TASKS = {
    "digits": digits,
    "convolution": convolution,
    "diabetes": diabetes,
    "transformer": transformer,
}
