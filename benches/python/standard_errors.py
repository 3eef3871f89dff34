"""How often the uncompressed score lies within two standard errors, for each compressor.

`python benches/python/standard_errors.py [--seeds 30] [--method graddot]` prints, for the gradients of
a digits classifier of three linear layers (970 to 9,312 parameters each, summed over layers) and for
each compressor and number of coordinates a layer: the share of scores of 20 queries and 60 training
examples whose uncompressed score is within two standard errors, with its standard error over seeds
of the plan, and the mean of the squared standard errors over that of the squared errors.
"""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING, Any

import numpy as np
from sklearn.datasets import load_digits

import grass_rs as grass
from grass_rs import _native
from grass_rs.store.sketch_variance import sketches_of

if TYPE_CHECKING:
    from collections.abc import Iterator

    Layer = tuple[np.ndarray, np.ndarray]

WIDTH, TRAINED, QUERIES, SHOWN = 96, 1000, 20, 60
FISHER_ROWS = 400
"""Training examples of the Fisher matrices."""


def digits_factors(epochs: int = 8) -> tuple[list[Layer], list[Layer]]:
    """Train the classifier and return, a layer, inputs and output gradients of training and queries."""
    rng = np.random.default_rng(0)
    x, y = load_digits(return_X_y=True)
    order = rng.permutation(len(x))
    x, y = x[order] / 16, y[order]
    sizes = [(WIDTH, 64), (WIDTH, WIDTH), (10, WIDTH)]
    weights = [rng.normal(0, (2 / fan) ** 0.5, (out, fan)) for out, fan in sizes]
    weights = [np.c_[weight, np.zeros(len(weight))] for weight in weights]

    def factors(inputs: np.ndarray, labels: np.ndarray) -> list[Layer]:
        a = [np.c_[inputs, np.ones(len(inputs))]]
        for weight in weights[:2]:
            a.append(np.c_[np.maximum(a[-1] @ weight.T, 0), np.ones(len(inputs))])
        logits = a[2] @ weights[2].T
        odds = np.exp(logits - logits.max(axis=1, keepdims=True))
        g = [odds / odds.sum(axis=1, keepdims=True)]
        g[0][np.arange(len(labels)), labels] -= 1
        for layer in (2, 1):
            g.insert(0, (g[0] @ weights[layer][:, :-1]) * (a[layer][:, :-1] > 0))
        return list(zip(a, g, strict=True))

    for _ in range(epochs):
        for i in range(0, TRAINED, 50):
            for weight, (a, g) in zip(weights, factors(x[i : i + 50], y[i : i + 50]), strict=True):
                np.subtract(weight, 0.2 * g.T @ a / len(a), out=weight)
    every = [
        (a.astype(np.float32)[:, None], g.astype(np.float32)[:, None]) for a, g in factors(x, y)
    ]
    held_out = slice(TRAINED, TRAINED + QUERIES)
    return [(a[:FISHER_ROWS], g[:FISHER_ROWS]) for a, g in every], [
        (a[held_out], g[held_out]) for a, g in every
    ]


def compressors(shape: tuple[int, int], k: int, seed: int) -> Iterator[tuple[str, Any]]:
    """Yield the compressors of a layer of (in, out) features to k coordinates."""
    p, rank = shape[0] * shape[1], int(k**0.5)
    yield "sjlt, cyclic", grass.SJLT(p, k, seed=seed)
    yield "sjlt, iid", grass.SJLT(p, k, seed=seed, kind="iid")
    yield "sjlt, nnz=4", grass.SJLT(p, k, seed=seed, nnz=4)
    if k <= 256:  # the dense ones take most of the time
        yield "gaussian", grass.Gaussian(p, k, seed=seed)
        yield "rademacher", grass.Gaussian(p, k, seed=seed, kind="rademacher")
    yield "tile", grass.TileSketch(*shape, k, seed=seed)
    yield "random mask", grass.RandomMask(p, k, seed=seed)
    yield "grass", grass.GraSS(p, k, seed=seed)
    yield "factgrass", grass.FactGraSS(*shape, k, seed=seed)
    yield "logra", grass.LoGra(*shape, rank, rank, seed=seed)


def flat(layer: Layer) -> np.ndarray:
    """Return the gradients of a layer, (n, out * in)."""
    inputs, outputs = layer
    return np.einsum("nto,nti->noi", outputs, inputs).reshape(len(inputs), -1)


def multipliers(queries: np.ndarray, rows: np.ndarray, method: str) -> np.ndarray:
    """Return what a layer's rows are multiplied by, in float64, through their inner products."""
    queries, rows = queries.astype(float), rows.astype(float)
    if method == "graddot":
        return queries
    n = len(rows)
    ridge = 0.4 * (rows**2).sum() / n**2
    inner = np.linalg.solve(rows @ rows.T / n + ridge * np.eye(n), rows @ queries.T)
    solved: np.ndarray = (queries - inner.T @ rows / n) / ridge
    return solved


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seeds", type=int, default=30)
    parser.add_argument("--method", choices=["graddot", "influence"], default="graddot")
    arguments = parser.parse_args()
    train, queries = digits_factors()
    shapes = [(a.shape[2], g.shape[2]) for a, g in train]
    exact = sum(
        multipliers(flat(q), flat(z), arguments.method) @ flat(z)[:SHOWN].T
        for q, z in zip(queries, train, strict=True)
    )
    print("| compressor | k | covered | se^2 / error^2 |\n|---|---|---|---|")
    for k in (64, 256, 1024):
        found: dict[str, list[tuple[float, float, float]]] = {}
        for seed in range(arguments.seeds):
            layers = [
                dict(compressors(shape, k, _native.derive(seed, str(layer))))
                if shape[0] * shape[1] > k
                else {}
                for layer, shape in enumerate(shapes)
            ]
            for name in layers[0]:
                scores, square = np.zeros((QUERIES, SHOWN)), np.zeros((QUERIES, SHOWN))
                for layer, q, z in zip(layers, queries, train, strict=True):
                    p = z[0].shape[2] * z[1].shape[2]
                    one = layer.get(name, grass.Mask(range(p), p))
                    by_factors = isinstance(one, grass.compress.FactorCompressor)
                    given, rows = (one(*of) if by_factors else one(flat(of)) for of in (q, z))
                    u, g = multipliers(given, rows, arguments.method), rows[:SHOWN].astype(float)
                    scores += u @ g.T
                    column = grass.Column("layer", 0, one.output_dim, one.spec)
                    square += sketches_of([column])[0].variance(u, g)
                error = np.square(scores - exact)
                found.setdefault(name, []).append(
                    (np.mean(error <= 4 * square), np.mean(square), np.mean(error))
                )
        for name, numbers in found.items():
            cover, square_mean, error_mean = np.mean(numbers, axis=0)
            spread = np.std([row[0] for row in numbers]) / len(numbers) ** 0.5
            print(f"| {name} | {k} | {cover:.3f} ± {spread:.3f} | {square_mean / error_mean:.2f} |")


if __name__ == "__main__":
    main()
