"""Training many models of one shape at the same time, each on its own subset."""

from __future__ import annotations

import hashlib
import io
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.func import stack_module_state
from tqdm import tqdm

from grass_rs.capture import Loss, count_examples, resolve_loss
from grass_rs.errors import (
    DataError,
    LossError,
    NonFiniteError,
    ShapeError,
    SpecError,
    unknown_name,
    whole_number,
)
from grass_rs.evaluate.ensemble import Ensemble, LossOfModel, in_evaluation, over_models
from grass_rs.evaluate.folder import RunFolder
from grass_rs.evaluate.inputs import bool_array

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from os import PathLike

    from numpy.typing import ArrayLike, NDArray

__all__ = ["AT_ONCE", "Recipe", "digest_of", "run_settings", "to_bytes", "train_together"]

AT_ONCE = 50
"""Models trained together where nothing else is said."""

_OPTIMIZERS = ("adamw", "sgd")
_PROBED = 8  # training examples whose losses identify a model and a loss
_ADAM_SQUARES = 0.999  # share of the mean squared gradient that AdamW keeps


@dataclass(frozen=True)
class Recipe:
    """How to train a model: minibatches of its subset in random order, steps that fall as a cosine."""

    epochs: int = 40
    """Passes over the subset."""
    batch_size: int = 100
    """Examples a step; the last step of a pass takes what is left."""
    learning_rate: float = 0.1
    """Step size in the first pass; it falls to zero as a cosine, pass by pass."""
    momentum: float = 0.9
    """Share of the last step that is kept; of AdamW, of the mean gradient (beta 1)."""
    weight_decay: float = 0.005
    """Pull of every parameter to zero: added to the gradient, or by AdamW to the step."""
    optimizer: str = "sgd"
    """"sgd", with momentum, or "adamw"."""

    def __post_init__(self) -> None:
        """Check the values.

        Raises
        ------
        SpecError
            If one is out of range.

        """
        whole_number("epochs", self.epochs, least=1)
        whole_number("batch_size", self.batch_size, least=1)
        for name, most in (("learning_rate", np.inf), ("momentum", 1), ("weight_decay", np.inf)):
            value = getattr(self, name)
            if not 0 <= value < most:
                msg = f"{name} must be at least 0 and less than {most}, got {value!r}"
                raise SpecError(msg)
        if self.optimizer not in _OPTIMIZERS:
            raise SpecError(unknown_name("optimizer", self.optimizer, _OPTIMIZERS))

    def optimizer_of(self, parameters: list[Tensor]) -> torch.optim.Optimizer:
        """Return the optimizer; elementwise, so that stacked models do not touch each other."""
        if self.optimizer == "adamw":
            return torch.optim.AdamW(
                parameters,
                lr=self.learning_rate,
                betas=(self.momentum, _ADAM_SQUARES),
                weight_decay=self.weight_decay,
            )
        return torch.optim.SGD(
            parameters,
            lr=self.learning_rate,
            momentum=self.momentum,
            weight_decay=self.weight_decay,
        )


def train_together(
    build: Callable[[], nn.Module],
    loss: str | Loss,
    data: tuple[Tensor, ...],
    subsets: ArrayLike,
    recipe: Recipe,
    *,
    seed: int,
    folder: str | PathLike[str] | None = None,
    at_once: int = AT_ONCE,
    device: torch.device | str | None = None,
    progress: bool = True,
) -> Ensemble:
    """Train one model on each subset, many in the same batched steps (`torch.func.vmap`).

    Every model is as if it were trained alone, to the rounding of floats, whatever `at_once`: it
    has its own initialisation, its own order of its own examples, its own steps and, in batch norm,
    the statistics of its own batches. Only dropout draws its masks for the models of a group
    together, so there `at_once` matters as a seed does. A module other than batch norm that ties the
    examples of a batch together needs subsets of one size: smaller ones are filled up, with weight 0.

    Model i starts from the i-th call of `build` with torch's RNG seeded with `seed`. Its order in a
    pass is that of row i of a uniform (m, largest subset) matrix, drawn pass after pass from a
    generator of the same seed. Torch's global RNG is left as it was. Models are trained in the mode
    that `build` leaves them in; frozen parameters stay as they are.

    Parameters
    ----------
    build
        Returns an untrained model, initialised by torch's global RNG on the CPU; or a pretrained one.
    loss
        (model, batch) -> losses (n,), for batches (*tensors of `data`), or a name as for
        `Attributor`. Steps follow the mean over the batch.
    data
        Training tensors, each (n, ...).
    subsets
        (m, n) bool: which examples each model is trained on, at least one.
    recipe
        How to train.
    seed
        Seed of the initialisations, the orders and dropout.
    folder
        Where finished groups of models are kept: the same call goes on where it stopped. None
        keeps nothing.
    at_once
        Most models trained together; memory is that of so many models and batches. With 1, vmap is
        not used, and any model can be trained.
    device
        Where to train, and where the result lies. None = where the data lie.
    progress
        Whether to show a progress bar, on a terminal.

    Returns
    -------
    Ensemble
        The m models.

    Raises
    ------
    ShapeError
        If `subsets` is not (m, n).
    UnsupportedArrayError
        If `subsets` is not bool.
    DataError
        If the tensors are not of one length, or a subset is empty.
    SpecError
        If a number is out of range, the loss has no such name, models differ in shape, or vmap does
        not take the model.
    LossError
        If the loss does not return one differentiable number an example.
    NonFiniteError
        If training diverges.
    BenchmarkError
        If `folder` cannot be read or written, or holds another run.

    """
    members = bool_array("train_together", "subsets", subsets, "trained on it").copy("C")
    _check_subsets(members, count_examples(data))
    seed, at_once = whole_number("seed", seed), whole_number("at_once", at_once, least=1)
    function = resolve_loss(loss)
    device = data[0].device if device is None else torch.device(device)
    kept = None
    if folder is not None:
        settings = {"subsets": digest_of((torch.from_numpy(members),)), "at_once": at_once}
        settings |= run_settings(build, loss, data, recipe, seed=seed)
        kept = RunFolder(folder, settings)
    data = tuple(tensor.to(device) for tensor in data)
    run = _Run(build, function, data, members, recipe, seed, at_once)
    groups = run.groups()
    trained: list[dict[str, dict[str, Tensor]]] = []
    disable = None if progress else True  # None: only on a terminal
    with tqdm(
        total=len(groups) * recipe.epochs,
        desc=f"train {len(members)} model" + "s" * (len(members) > 1),
        unit="epoch",
        disable=disable,
    ) as bar:
        for number, group in enumerate(groups):
            name = f"models-{number:05}.pt"
            stored = kept.read(name) if kept else None
            if stored is None:
                states = run.train(group, bar.update)
                if kept:
                    kept.write(name, to_bytes(states))
            else:
                states = from_bytes(stored)
                bar.update(recipe.epochs)
            trained.append(states)
    place = torch.from_numpy(np.concatenate(groups).argsort())

    def side_by_side(part: str) -> dict[str, Tensor]:
        return {
            key: torch.cat([states[part][key] for states in trained])[place].to(device)
            for key in trained[0][part]
        }

    return Ensemble(build, function, side_by_side("parameters"), side_by_side("buffers"), at_once)


@dataclass(frozen=True)
class _Run:
    """What the models of one call share."""

    build: Callable[[], nn.Module]
    loss: Loss
    data: tuple[Tensor, ...]
    members: NDArray[np.bool_]
    recipe: Recipe
    seed: int
    at_once: int

    @property
    def sizes(self) -> NDArray[np.int64]:
        """(m,) examples of each model."""
        sizes: NDArray[np.int64] = self.members.sum(axis=1, dtype=np.int64)
        return sizes

    def groups(self) -> list[NDArray[np.int64]]:
        """Return which models are trained together, ascending in each group.

        Models of a group take the same number of steps a pass. Where batch norm ties the examples
        of a batch together, their batches have the same size, as examples of weight zero would
        count in its statistics.
        """
        with torch.random.fork_rng(devices=[]):
            by_size = any(
                isinstance(module, nn.modules.batchnorm._BatchNorm)  # noqa: SLF001 - has no public name
                for module in self.build().modules()
            )
        keys = self.sizes if by_size else -(-self.sizes // self.recipe.batch_size)
        found = []
        for key in np.unique(keys):
            same = np.flatnonzero(keys == key)
            found += [same[i : i + self.at_once] for i in range(0, len(same), self.at_once)]
        return found

    def train(
        self, group: NDArray[np.int64], done: Callable[[], object]
    ) -> dict[str, dict[str, Tensor]]:
        """Return the trained parameters and buffers of a group, stacked, on the CPU."""
        device = self.data[0].device
        cuda = [device] if device.type == "cuda" else []
        with torch.random.fork_rng(devices=cuda):
            networks = self._untrained(group)
            parameters, buffers = _stacked(networks, device)
            trained = [p for p in parameters.values() if p.requires_grad]
            if not trained:
                msg = "train_together expects a model with parameters to train, got none"
                raise SpecError(msg)
            optimizer = self.recipe.optimizer_of(trained)
            schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, self.recipe.epochs)
            loss = LossOfModel(networks[0].to(device), self.loss)
            # For dropout: another stream than the one that `build` drew from.
            torch.manual_seed(self.seed ^ (int(group[0]) + 1))

            def mean_loss(state: dict[str, Tensor], index: Tensor, real: Tensor) -> Tensor:
                losses = loss.with_state(state, tuple(tensor[index] for tensor in self.data))
                return (losses * real).sum() / real.sum()

            for batches in self._passes(group):
                for index, real in batches:
                    optimizer.zero_grad()
                    totals = over_models(
                        mean_loss,
                        parameters | buffers,
                        index.to(device),
                        real.to(device),
                        at_once=self.at_once,
                    )
                    if not totals.requires_grad:
                        msg = (
                            "loss expects to depend on the parameters, got losses without gradient"
                        )
                        raise LossError(msg)
                    # The models share no parameter, so the sum's gradient is every model's own.
                    torch.autograd.backward(totals.sum())
                    optimizer.step()
                schedule.step()
                done()
        states = {
            "parameters": {name: p.detach().cpu() for name, p in parameters.items()},
            "buffers": {name: buffer.cpu() for name, buffer in buffers.items()},
        }
        _check_finite(states, group)
        return states

    def _untrained(self, group: NDArray[np.int64]) -> list[nn.Module]:
        torch.manual_seed(self.seed)
        chosen, networks = set(group.tolist()), []
        # Models of other groups are built too: each starts where the one before left the RNG.
        for index in range(int(group[-1]) + 1):
            network = self.build()
            if index in chosen:
                networks.append(network)
        return networks

    def _passes(self, group: NDArray[np.int64]) -> Iterator[Iterator[tuple[Tensor, Tensor]]]:
        """Yield the batches of each pass: each model's examples (g, b), and which are real (g, b)."""
        sizes = torch.from_numpy(self.sizes[group])
        longest = int(self.sizes.max())
        padded = torch.zeros(len(group), longest, dtype=torch.int64)
        for row, model in enumerate(group):
            padded[row, : sizes[row]] = torch.from_numpy(np.flatnonzero(self.members[model]))
            padded[row, sizes[row] :] = padded[row, 0]
        real = torch.arange(longest) < sizes[:, None]
        width = int(sizes.max())
        step = self.recipe.batch_size
        generator = torch.Generator().manual_seed(self.seed)
        for _ in range(self.recipe.epochs):
            keys = torch.rand((len(self.members), longest), generator=generator)[group]
            ranks = keys.masked_fill(~real, torch.inf).argsort(dim=1)
            order = padded.gather(1, ranks)[:, :width]
            yield zip(
                torch.split(order, step, 1), torch.split(real[:, :width], step, 1), strict=True
            )


def run_settings(
    build: Callable[[], nn.Module],
    loss: str | Loss,
    data: tuple[Tensor, ...],
    recipe: Recipe,
    *,
    seed: int,
) -> dict[str, Any]:
    """Return what training depends on, but for the subsets, as `RunFolder` takes it.

    Code has no fingerprint: a model and a loss are known by the model's structure, its
    initialisation, and the losses of the first training examples.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = build()
    with torch.no_grad(), in_evaluation(model):
        state = hashlib.sha256(repr(model).encode())
        for name, tensor in [*model.named_parameters(), *model.named_buffers()]:
            _add_tensor(state, name, tensor)
        first = tuple(tensor[:_PROBED] for tensor in data)
        losses = LossOfModel(model.to(data[0].device), resolve_loss(loss))(first)
    return {
        "seed": seed,
        **{f"recipe.{name}": value for name, value in asdict(recipe).items()},
        "data": digest_of(data),
        "loss": _name_of(loss),
        "model": state.hexdigest(),
        "losses of the first examples": losses.double().tolist(),
    }


def digest_of(tensors: tuple[Tensor, ...]) -> str:
    """Return the SHA-256 of tensors: dtypes, shapes and bytes."""
    digest = hashlib.sha256()
    for position, tensor in enumerate(tensors):
        _add_tensor(digest, str(position), tensor)
    return digest.hexdigest()


def to_bytes(state: Any) -> bytes:
    """Return what `torch.save` writes."""
    file = io.BytesIO()
    torch.save(state, file)
    return file.getvalue()


def from_bytes(data: bytes) -> Any:
    """Return what `to_bytes` took."""
    return torch.load(io.BytesIO(data), map_location="cpu", weights_only=True)


def _name_of(loss: str | Loss) -> str:
    if isinstance(loss, str):
        return loss
    return str(getattr(loss, "__qualname__", type(loss).__name__))


def _check_subsets(members: NDArray[np.bool_], n: int) -> None:
    if members.ndim != 2 or members.shape[1] != n or not len(members):
        msg = (
            f"train_together expects subsets (m, {n}) of {n} examples, a row a model, got "
            f"{members.shape}"
        )
        raise ShapeError(msg)
    empty = ~members.any(axis=1)
    if empty.any():
        msg = (
            f"train_together expects at least one example a model, but subset "
            f"{int(empty.argmax())} has none: leave it out"
        )
        raise DataError(msg)


def _stacked(
    networks: list[nn.Module], device: torch.device
) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    try:
        parameters, buffers = stack_module_state(networks)
    except RuntimeError as error:
        msg = f"build expects to return models of one shape and mode, but {error}"
        raise SpecError(msg) from error
    leaves = {
        name: p.detach().to(device).requires_grad_(p.requires_grad)
        for name, p in parameters.items()
    }
    return leaves, {name: buffer.detach().to(device) for name, buffer in buffers.items()}


def _check_finite(states: dict[str, dict[str, Tensor]], group: NDArray[np.int64]) -> None:
    for tensor in states["parameters"].values():
        finite = tensor.isfinite().reshape(len(group), -1).all(dim=1)
        if not finite.all():
            model = group[int((~finite).int().argmax())]
            msg = (
                f"train_together expects training to converge, but model {model} has parameters "
                f"that are not finite: lower the learning rate"
            )
            raise NonFiniteError(msg)


def _add_tensor(digest: Any, name: str, tensor: Tensor) -> None:
    digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}\n".encode())
    values = tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8)
    digest.update(values.numpy().tobytes())
