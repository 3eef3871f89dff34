"""Models of one shape, trained together: their parameters and buffers stacked."""

from __future__ import annotations

import warnings
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.func import functional_call, vmap

from grass_rs.capture import Loss, count_examples
from grass_rs.capture.loss import evaluate
from grass_rs.errors import SpecError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

__all__ = ["Ensemble", "LossOfModel", "in_evaluation", "over_models"]


class LossOfModel(nn.Module):
    """A module whose call is the loss, so that its parameters can be replaced for one call."""

    def __init__(self, model: nn.Module, loss: Loss) -> None:
        super().__init__()
        self.model = model
        self._loss = loss

    def forward(self, batch: tuple[Tensor, ...]) -> Tensor:
        """Return the losses (n,) of a batch."""
        return evaluate(self._loss, self.model, batch, count_examples(batch))

    def with_state(self, state: dict[str, Tensor], batch: tuple[Tensor, ...]) -> Tensor:
        """Return the losses (n,) with other parameters and buffers, named as the model's."""
        named = {f"model.{name}": tensor for name, tensor in state.items()}
        losses: Tensor = functional_call(self, named, (batch,))
        return losses


@dataclass(frozen=True)
class Ensemble:
    """m models of one shape, as `train_together` returns them; evaluated in evaluation mode."""

    build: Callable[[], nn.Module]
    """Makes a model of the shape; its own parameters are not used."""
    loss: Loss
    """(model, batch) -> losses (n,)."""
    parameters: dict[str, Tensor]
    """Name -> (m, *shape)."""
    buffers: dict[str, Tensor]
    """Name -> (m, *shape), such as the running statistics of batch norm."""
    at_once: int
    """Most models that are evaluated together: memory is that of so many times the batch."""

    def __len__(self) -> int:
        return len(next(iter(self.parameters.values())))

    def losses(self, batch: tuple[Tensor, ...]) -> Tensor:
        """Return the losses (m, n) of every model for a batch of n examples, on the models' device.

        Raises
        ------
        LossError
            If the loss does not return one number an example.
        DataError
            If the tensors of the batch do not have the same number of examples.

        """
        count_examples(batch)
        batch = tuple(tensor.to(self._device) for tensor in batch)
        skeleton = self._skeleton()
        loss = LossOfModel(skeleton, self.loss)

        def call(state: dict[str, Tensor]) -> Tensor:
            return loss.with_state(state, batch)

        return self._evaluate(skeleton, call)

    def outputs(self, inputs: Tensor) -> Tensor:
        """Return the outputs (m, n, ...) of every model for inputs (n, ...), on the models' device."""
        inputs = inputs.to(self._device)
        skeleton = self._skeleton()

        def call(state: dict[str, Tensor]) -> Tensor:
            outputs: Tensor = functional_call(skeleton, state, (inputs,))
            return outputs

        return self._evaluate(skeleton, call)

    def member(self, index: int) -> nn.Module:
        """Return model `index` as a module of its own, in evaluation mode.

        Raises
        ------
        SpecError
            If there is no such model.

        """
        if not 0 <= index < len(self):
            msg = f"member expects a model from 0 to {len(self) - 1}, got {index}"
            raise SpecError(msg)
        model = self._skeleton()
        with torch.no_grad():
            for name, parameter in model.named_parameters():
                parameter.copy_(self.parameters[name][index])
            for name, buffer in model.named_buffers():
                buffer.copy_(self.buffers[name][index])
        return model.eval()

    def state_dict(self, index: int) -> dict[str, Any]:
        """Return the state dict of model `index`, as `member(index).state_dict()`."""
        return dict(self.member(index).state_dict())

    @property
    def _device(self) -> torch.device:
        return next(iter(self.parameters.values())).device

    def _skeleton(self) -> nn.Module:
        with torch.random.fork_rng(devices=[]):
            return self.build().to(self._device)

    def _evaluate(self, skeleton: nn.Module, call: Callable[[dict[str, Tensor]], Tensor]) -> Tensor:
        # A copy, as a model may write to its buffers even in evaluation mode.
        state = self.parameters | {name: buffer.clone() for name, buffer in self.buffers.items()}
        with torch.no_grad(), in_evaluation(skeleton):
            return over_models(call, state, at_once=self.at_once)


@contextmanager
def in_evaluation(model: nn.Module) -> Iterator[None]:
    """Put every module of a model in evaluation mode, and back in the mode that it had."""
    modes = [(module, module.training) for module in model.modules()]
    for module, _ in modes:
        module.training = False
    try:
        yield
    finally:
        for module, training in modes:
            module.training = training


def over_models(call: Callable[..., Tensor], *arguments: Any, at_once: int) -> Tensor:
    """Return the results of `call` for each of m models, stacked.

    Parameters
    ----------
    call
        Takes the arguments of one model.
    arguments
        Tensors, or dicts of tensors, with the models on the first axis.
    at_once
        Most models in one `torch.func.vmap`; with 1 the models are called one after another,
        without vmap, so that any model can be.

    Raises
    ------
    SpecError
        If vmap does not take the model.

    """
    if at_once == 1:
        first = arguments[0]
        models = len(next(iter(first.values())) if isinstance(first, dict) else first)
        return torch.stack([call(*(_of_model(a, i) for a in arguments)) for i in range(models)])
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="There is a performance drop")
        try:
            stacked: Tensor = vmap(call, randomness="different", chunk_size=at_once)(*arguments)
        except RuntimeError as error:
            if "vmap" not in str(error):
                raise
            reason = str(error).strip().partition("\n")[0]
            msg = f"torch.func.vmap cannot run this model ({reason}): pass at_once=1"
            raise SpecError(msg) from error
    return stacked


def _of_model(argument: Any, index: int) -> Any:
    if isinstance(argument, dict):
        return {name: tensor[index] for name, tensor in argument.items()}
    return argument[index]
