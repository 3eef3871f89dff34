"""Capture: the gradient of each example's loss, block by block, for one batch after another."""

from __future__ import annotations

import threading
import weakref
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from grass_rs.capture.backward import hand_over_gradients
from grass_rs.capture.batch import count_examples, replace_tensors, select_examples, tensors_of
from grass_rs.capture.blocks import Block, parameters_of
from grass_rs.capture.linear import Call, Factors, Layout, LinearCapture
from grass_rs.capture.loss import Loss, evaluate
from grass_rs.capture.model_state import (
    ModelState,
    differentiable,
    find_training_module,
    refuse_batch_statistics,
    without_autocast,
)
from grass_rs.capture.order import OrderCheck
from grass_rs.capture.per_example import PerExampleCapture
from grass_rs.capture.probe import Probe, choose_examples
from grass_rs.errors import GrassError, LossError, UnsupportedLayerError

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence
    from types import TracebackType

    from torch.utils.hooks import RemovableHandle
    from typing_extensions import Self

__all__ = ["Capture", "CapturedBatch", "Sink"]

_LOCK = threading.Lock()
_CAPTURED: weakref.WeakSet[nn.Module] = weakref.WeakSet()
"""Models that a capture is open on: two would record each other's calls."""

Sink = Callable[[Block, slice, "Factors | Tensor"], None]
"""Takes (block, examples, gradient) any number of times; what comes for one example adds up."""


@dataclass(frozen=True)
class CapturedBatch:
    """What a captured batch says about its examples, besides the gradients."""

    losses: Tensor
    """(n,) losses."""
    finite: Tensor
    """(n,) bool: whether the example's loss and all that was handed to the sink is finite."""


class Capture:
    """Per-example gradients of a model's blocks, handed to a sink.

    Linear layers give their factors, recorded by hooks in one forward and one backward pass over
    the batch that computes no weight gradient. The backward pass hands a layer's factors over when it
    comes to the layer, and lets go of them. Blocks of any other kind give the gradients themselves,
    by `torch.func` over single examples, in chunks of at most 64 MiB.

    Use it as a context manager. Inside, the model is in evaluation mode and has hooks; on leaving,
    also by an exception, modes, hooks, attributes, buffers and random generators are as they were.
    `.grad` and `requires_grad` are never touched.

    Before the first batch, and the first with two or more examples, is captured, at most three of
    its examples are compared with themselves alone, to find losses that tie examples together,
    layers that keep examples on another axis, and layers whose hooks do not see all: about ten
    forward and backward passes over those examples, and a second forward pass over the batch. The
    batches number 1, 2, 4, 8 and so on get a second backward pass, with a weight on each loss, that
    shows whether all rows are of the example that they are counted to.

    Parameters
    ----------
    model
        The model; it may be wherever and of whatever real dtype.
    loss
        (model, batch) -> per-example losses (n,); see `resolve_loss`.
    blocks
        What `find_blocks` found in the model.

    Raises
    ------
    SpecError
        If the model lacks a parameter of a block, or has it frozen.

    """

    def __init__(self, model: nn.Module, loss: Loss, blocks: Sequence[Block]) -> None:
        self._model = model
        self._loss = loss
        self._blocks = list(blocks)
        self._parameters = parameters_of(model, self._blocks)
        self._linear = LinearCapture(model, self._blocks)
        self._per_example = PerExampleCapture(
            model, loss, [block for block in blocks if block.factors is None], self._restore
        )
        self._state: ModelState | None = None
        self._handles: list[RemovableHandle] = []
        self._order = OrderCheck(self._linear.layouts)
        self._probed = 0

    def __enter__(self) -> Self:
        """Put the model in evaluation mode and attach the hooks.

        Raises
        ------
        GrassError
            If a capture of the model is open already, in this thread or another.

        """
        with _LOCK:
            if self._model in _CAPTURED:
                msg = (
                    "this model is being captured already, here or in another thread: leave that "
                    "capture first, or give each thread a copy of the model"
                )
                raise GrassError(msg)
            _CAPTURED.add(self._model)
        try:
            return self._open()
        except BaseException:
            _CAPTURED.discard(self._model)
            raise

    def _open(self) -> Self:
        self._state = ModelState(self._model)
        self._handles = [*refuse_batch_statistics(self._model), *self._linear.attach()]
        self._state.hold()
        return self

    def __exit__(
        self,
        _type: type[BaseException] | None,
        _error: BaseException | None,
        _traceback: TracebackType | None,
    ) -> None:
        """Put the model back as it was."""
        try:
            # Before the hooks go: they are among the attributes that were saved.
            if self._state is not None:
                self._state.release()
        finally:
            for handle in self._handles:
                handle.remove()
            self._state, self._handles = None, []
            _CAPTURED.discard(self._model)

    def run(self, batch: Any, sink: Sink) -> CapturedBatch:
        """Capture one batch.

        Parameters
        ----------
        batch
            Tensors with the examples on the first axis, in nested tuples, lists or mappings.
        sink
            Called with a block, the examples (a slice of 0..n), and their gradients: `Factors` for
            a linear layer, else a tensor (m, p). Contributions to one block and example add up.
            All tensors are detached and on the layer's device; factors share memory with the model's
            own tensors, so they are only to be read, and only before the sink returns. It computes
            without gradients and autocast. With layers on CUDA, it may be called in other threads
            than the caller's, one at a time, and is on the streams that were the caller's. What it
            raises comes through.

        Raises
        ------
        DataError
            If the batch's tensors disagree on the number of examples.
        LossError
            If the loss does not return n independent losses that gradients flow from.
        UnsupportedLayerError
            If a layer cannot be captured rightly.
        GrassError
            If the capture is not open.

        """
        if self._state is None:
            msg = "this Capture is not open: call run inside `with capture:`"
            raise GrassError(msg)
        n = count_examples(batch)
        with differentiable(self._model):
            losses, calls = self._forward(batch, n)
            if self._needs_probe(calls, n):
                whole = losses.detach()
                # Not two graphs at a time.
                del losses, calls
                self._probe(batch, whole)
                losses, calls = self._forward(batch, n)
            finite = losses.detach().isfinite()
            for largest in self._hand_over_factors(losses, calls, sink):
                finite &= largest.isfinite().to(finite.device)
            whole = losses.detach()
            del losses, calls
            for block, examples, gradient in self._per_example.gradients(batch, n):
                finite[examples] &= _largest(gradient).isfinite().to(finite.device)
                with torch.no_grad(), without_autocast(gradient.device):
                    sink(block, examples, gradient)
        return CapturedBatch(whole, finite)

    def _restore(self) -> None:
        if self._state is not None:
            self._state.restore_attributes()

    def _forward(self, batch: Any, n: int) -> tuple[Tensor, list[Call]]:
        # A copy, since the model may change its input in place.
        fresh = replace_tensors(batch, [tensor.clone() for tensor in tensors_of(batch)])
        with self._linear.recording() as calls:
            losses = evaluate(self._loss, self._model, fresh, n)
        training = find_training_module(self._model)
        if training is not None:
            msg = (
                f"loss expects the model to stay in evaluation mode, but {training or 'the model'!r} "
                f"is in training mode after it: do not call train() in the loss"
            )
            raise LossError(msg)
        self._restore()
        if not losses.requires_grad:
            msg = (
                "loss expects losses that gradients flow from, got a tensor without a graph: do not "
                "detach or use torch.no_grad() in the loss, and compute it with the given model"
            )
            raise LossError(msg)
        return losses, calls

    def _needs_probe(self, calls: Sequence[Call], n: int) -> bool:
        if self._probed < min(n, 2):
            return True
        return n > 1 and any(call.site.module not in self._linear.layouts for call in calls)

    def _probe(self, batch: Any, losses: Tensor) -> None:
        chosen = choose_examples(losses)
        probe = Probe(self._forward, batch, chosen, self._parameters)
        probe.check_losses(losses)
        probe.check_connected(self._blocks)
        probe.check_inputs()
        self._linear.layouts |= probe.find_layouts()
        conclusive = probe.check_factors(self._blocks, self._linear.layouts)
        self._check_per_example(probe, select_examples(batch, chosen))
        if conclusive and losses[chosen].isfinite().all():
            self._probed = len(chosen)

    def _check_per_example(self, probe: Probe, examples: Any) -> None:
        vectorised = self._per_example.vectorised
        block = self._find_difference(probe, examples)
        if block is not None and vectorised:
            # Off already where vmap failed on a later chunk than the first.
            if self._per_example.vectorised:
                self._per_example.use_loop(f"its gradients of block {block.name!r} differ")
            block = self._find_difference(probe, examples)
        if block is not None:
            msg = (
                f"loss expects independent examples, but the gradient of block {block.name!r} is "
                f"another for an example alone than in a batch of {len(probe.chosen)}: return losses "
                f"that depend on one example each, in the gradient too (no sum over the batch less "
                f"its detached value, no gradients scaled by batch frequencies, none at random)"
            )
            raise LossError(msg)

    def _find_difference(self, probe: Probe, examples: Any) -> Block | None:
        rows: dict[Block, list[Tensor]] = {}
        for block, _, gradient in self._per_example.gradients(examples, len(probe.chosen)):
            rows.setdefault(block, []).append(gradient)
        gradients = {block: torch.cat(parts) for block, parts in rows.items()}
        return probe.find_difference(gradients, self._blocks)

    def _hand_over_factors(self, losses: Tensor, calls: list[Call], sink: Sink) -> Iterable[Tensor]:
        """Return of each device the largest magnitudes (n,) in an example's factors."""
        n = len(losses)
        largest: dict[torch.device, Tensor] = {}

        def take(call: Call, gradient: Tensor) -> None:
            self._order.check(call, gradient)
            layout = self._linear.layouts.get(call.site.module)
            if layout is None and n > 1:
                msg = (
                    f"layer {call.site.name!r} was not called for the examples that were compared "
                    f"alone and in the batch, so it is unknown which of its rows are whose: leave it "
                    f"out with layers="
                )
                raise UnsupportedLayerError(msg)
            factors = call.factors(gradient, layout or Layout(0), n)
            found = torch.maximum(_largest(factors.inputs), _largest(factors.grad_outputs))
            before = largest.get(found.device)
            largest[found.device] = found if before is None else torch.maximum(before, found)
            sink(call.site.block, slice(0, n), factors)

        if calls:
            weights = self._order.weights(losses)
            if weights is not None:
                weighted = (weights * losses).sum()
                hand_over_gradients(weighted, [*calls], self._order.keep, retain_graph=True)
            hand_over_gradients(losses.sum(), calls, take)
        return largest.values()


def _largest(gradient: Tensor) -> Tensor:
    """Return the largest magnitudes (n,) in the rows of (n, ...): NaN where there is one."""
    if not gradient.numel():
        return gradient.new_zeros(len(gradient))
    axes = tuple(range(1, gradient.ndim))
    if gradient.is_cuda:
        # One pass over the memory, which on a CPU takes ten times as long as two.
        norms: Tensor = torch.linalg.vector_norm(gradient, ord=torch.inf, dim=axes)
        return norms
    return gradient.abs().amax(dim=axes)
