"""Training many copies of the demo's network at the same time, each on its own subset."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn
from torch.func import functional_call, stack_module_state, vmap
from tqdm import tqdm

from grass_rs.cli.demo.digits import build_network

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray


@dataclass(frozen=True)
class Recipe:
    """Stochastic gradient descent with momentum and a learning rate that falls as a cosine."""

    epochs: int = 40
    """Passes over the subset."""
    batch_size: int = 100
    """Examples a step."""
    learning_rate: float = 0.1
    """Step size at the start."""
    momentum: float = 0.9
    """Share of the last step that is kept."""
    weight_decay: float = 0.005
    """Pull of every parameter to zero."""


@dataclass(frozen=True)
class Ensemble:
    """Networks of one shape, their parameters stacked."""

    network: nn.Sequential
    """The shape; its own parameters are not used."""
    parameters: dict[str, Tensor]
    """Name -> (m, *shape)."""

    def logits(self, inputs: Tensor) -> Tensor:
        """Return the (m, n, 10) outputs of every network for (n, 64) inputs."""
        with torch.no_grad():
            logits: Tensor = vmap(lambda own: functional_call(self.network, own, (inputs,)))(
                self.parameters
            )
        return logits

    def losses(self, inputs: Tensor, labels: Tensor) -> Tensor:
        """Return the (m, n) cross-entropy losses of every network for every example."""
        log_p = self.logits(inputs).log_softmax(dim=-1)
        return -log_p[:, torch.arange(len(labels)), labels]

    def member(self, index: int) -> nn.Sequential:
        """Return one of the networks as a module of its own."""
        network = build_network()
        network.load_state_dict({name: p[index] for name, p in self.parameters.items()})
        return network


def train_together(
    inputs: Tensor,
    labels: Tensor,
    subsets: NDArray[np.bool_],
    recipe: Recipe,
    *,
    seed: int,
    description: str,
) -> Ensemble:
    """Train one network on each subset, all in the same batched steps.

    Each network has its own initialisation and its own order of its own examples, as if it were
    trained alone.

    Parameters
    ----------
    inputs, labels
        (n, 64) and (n,) training examples.
    subsets
        (m, n) bool, every row with the same number of members.
    recipe
        How to train.
    seed
        Seed of the initialisations and of the orders. Torch's global RNG is left as it was.
    description
        Label of the progress bar.

    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        networks = [build_network() for _ in subsets]
    generator = torch.Generator().manual_seed(seed)
    parameters, _ = stack_module_state(networks)
    members = torch.stack([torch.from_numpy(subset).nonzero()[:, 0] for subset in subsets])
    optimizer = torch.optim.SGD(
        parameters.values(),
        lr=recipe.learning_rate,
        momentum=recipe.momentum,
        weight_decay=recipe.weight_decay,
    )
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, recipe.epochs)

    def loss(own: dict[str, Tensor], batch: Tensor, targets: Tensor) -> Tensor:
        return nn.functional.cross_entropy(functional_call(networks[0], own, (batch,)), targets)

    for _ in tqdm(range(recipe.epochs), desc=description, unit="epoch", disable=None):
        order = members.gather(1, torch.rand(members.shape, generator=generator).argsort(dim=1))
        for batch in torch.split(order, recipe.batch_size, dim=1):
            optimizer.zero_grad()
            # The networks share no parameter, so the sum's gradient is every network's own.
            torch.autograd.backward(vmap(loss)(parameters, inputs[batch], labels[batch]).sum())
            optimizer.step()
        schedule.step()
    return Ensemble(networks[0], {name: p.detach() for name, p in parameters.items()})
