"""Blocks of any kind of module: the gradient of each example's loss, one example at a time.

Every example is a batch of its own, so nothing about the module needs to be known. `torch.func.vmap`
computes a chunk of examples at once; a model that it does not take is captured by a plain loop.
"""

from __future__ import annotations

import logging
import warnings
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.func import functional_call, grad, vmap

from grass_rs.capture.batch import replace_tensors, select_examples, tensors_of
from grass_rs.capture.blocks import parameters_of
from grass_rs.capture.loss import Loss, evaluate

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence

    from grass_rs.capture.blocks import Block

__all__ = ["PerExampleCapture"]

_CHUNK_BYTES = 64 * 2**20
"""Most bytes of per-example gradients held at a time, beyond the first example's."""

_log = logging.getLogger(__name__)


class _LossOfModel(nn.Module):
    """A module whose call is the loss, so that its parameters can be replaced for one call.

    The loss gets the model itself, which therefore may use any of its attributes.
    """

    def __init__(self, model: nn.Module, loss: Loss) -> None:
        super().__init__()
        self.model = model
        self._loss = loss

    def forward(self, batch: Any) -> Tensor:
        return evaluate(self._loss, self.model, batch, 1)[0]


class PerExampleCapture:
    """Gradients of blocks without factors.

    Parameters
    ----------
    model, loss
        The model, and the loss (model, batch) -> (n,).
    blocks
        The blocks, all without factors.
    restore
        Called after every call of the model, to undo what it left there.

    """

    def __init__(
        self,
        model: nn.Module,
        loss: Loss,
        blocks: Sequence[Block],
        restore: Callable[[], None],
    ) -> None:
        self._blocks = blocks
        self._parameters = parameters_of(model, blocks)
        self._bytes = sum(p.numel() * p.element_size() for p in self._parameters.values())
        self._loss_of_model = _LossOfModel(model, loss)
        self._restore = restore
        self.vectorised = True

    def gradients(self, batch: Any, n: int) -> Iterator[tuple[Block, slice, Tensor]]:
        """Yield the gradients (m, p) of each block for chunk after chunk of m examples."""
        if not self._blocks:
            return
        step = max(1, _CHUNK_BYTES // max(1, self._bytes))
        for start in range(0, n, step):
            examples = slice(start, min(n, start + step))
            m = examples.stop - start
            found = self._chunk(select_examples(batch, examples), m)
            for block in self._blocks:
                rows = [found[name].reshape(m, -1) for name in block.parameters]
                yield block, examples, rows[0] if len(rows) == 1 else torch.cat(rows, dim=1)

    def use_loop(self, reason: object) -> None:
        """Take the plain loop from now on."""
        _log.info("per-example gradients one by one, as vmap does not take the model: %s", reason)
        self.vectorised = False

    def _chunk(self, batch: Any, m: int) -> Mapping[str, Tensor]:
        if self.vectorised:
            try:
                return self._by_vmap(batch)
            except Exception as error:  # noqa: BLE001 - whatever vmap refuses, the loop decides
                self.use_loop(error)
        return self._by_loop(batch, m)

    def _by_vmap(self, batch: Any) -> Mapping[str, Tensor]:
        def loss(parameters: dict[str, Tensor], *tensors: Tensor) -> Tensor:
            one = replace_tensors(batch, (tensor.unsqueeze(0) for tensor in tensors))
            named = {f"model.{name}": tensor for name, tensor in parameters.items()}
            result: Tensor = functional_call(self._loss_of_model, named, (one,))
            return result

        tensors = tensors_of(batch)
        detached = {name: tensor.detach() for name, tensor in self._parameters.items()}
        per_example = vmap(grad(loss), in_dims=(None, *[0] * len(tensors)))
        try:
            # Outside of `grad` nothing is differentiated: all other parameters are constants.
            with torch.no_grad(), warnings.catch_warnings():
                warnings.filterwarnings("ignore", message="There is a performance drop")
                found: Mapping[str, Tensor] = per_example(detached, *tensors)
        finally:
            self._restore()
        return found

    def _by_loop(self, batch: Any, m: int) -> Mapping[str, Tensor]:
        found = {
            name: tensor.new_zeros((m, *tensor.shape)) for name, tensor in self._parameters.items()
        }
        for i in range(m):
            loss = self._loss_of_model(select_examples(batch, slice(i, i + 1)))
            self._restore()
            if not loss.requires_grad:
                continue
            gradients = torch.autograd.grad(
                loss, list(self._parameters.values()), allow_unused=True
            )
            for name, gradient in zip(self._parameters, gradients, strict=True):
                if gradient is not None:
                    found[name][i] = gradient.to_dense() if gradient.is_sparse else gradient
        return found
