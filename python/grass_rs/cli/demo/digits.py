"""The demo's data and network."""

from __future__ import annotations

from collections import OrderedDict
from dataclasses import dataclass

import numpy as np
import torch
from sklearn.datasets import load_digits
from torch import Tensor, nn

from grass_rs.errors import DataError

_INK = 16  # grey levels of scikit-learn's digits above white


@dataclass(frozen=True)
class Digits:
    """Handwritten digits, split into a training set and held-out queries."""

    train_inputs: Tensor
    """(n_train, 64) float32 from 0 (paper) to 1 (ink)."""
    train_labels: Tensor
    """(n_train,) int64 from 0 to 9."""
    query_inputs: Tensor
    """(n_query, 64) float32."""
    query_labels: Tensor
    """(n_query,) int64."""


def split_digits(train_size: int, query_size: int, *, seed: int) -> Digits:
    """Split a shuffle of scikit-learn's 1,797 digits (8 x 8 pixels, ten classes).

    Raises
    ------
    DataError
        If there are not that many digits.

    """
    pixels, labels = load_digits(return_X_y=True)
    if train_size + query_size > len(labels):
        msg = (
            f"the demo expects at most {len(labels)} digits, got train_size {train_size} + "
            f"query_size {query_size}: use fewer"
        )
        raise DataError(msg)
    order = np.random.default_rng(seed).permutation(len(labels))
    train, query = order[:train_size], order[train_size : train_size + query_size]
    inputs = torch.from_numpy(pixels / _INK).float()
    targets = torch.from_numpy(labels)
    return Digits(inputs[train], targets[train], inputs[query], targets[query])


def digit_image(inputs: Tensor) -> np.ndarray[tuple[int, int], np.dtype[np.uint8]]:
    """Return the (64,) input of one digit as an (8, 8) picture, dark ink on white paper."""
    return (255 * (1 - inputs)).round().to(torch.uint8).reshape(8, 8).numpy()


def build_network() -> nn.Sequential:
    """Return an untrained MLP 64-128-64-10: 17,226 parameters, initialised by torch's RNG."""
    layers: dict[str, nn.Module] = {
        "hidden1": nn.Linear(64, 128),
        "relu1": nn.ReLU(),
        "hidden2": nn.Linear(128, 64),
        "relu2": nn.ReLU(),
        "output": nn.Linear(64, 10),
    }
    return nn.Sequential(OrderedDict(layers))
