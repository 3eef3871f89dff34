"""Per-example losses: the named presets, and the check of what a loss returns."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from grass_rs.errors import LossError, SpecError, unknown_name

__all__ = ["Loss", "evaluate", "resolve_loss"]

Loss = Callable[[nn.Module, Any], Tensor]
"""A function (model, batch) -> per-example losses (n,)."""


def resolve_loss(loss: str | Loss) -> Loss:
    """Return the loss of a name, or the callable itself.

    The presets take batches (inputs, targets) and call `model(inputs)`, or `model(**inputs)` where
    the inputs are a mapping; the outputs are a tensor or have it as `.logits`.

    - "cross_entropy": logits (n, classes, ...), targets (n, ...); summed over all but the example.
    - "margin": logits (n, classes), targets (n,); -log(p / (1 - p)) with the probability p of the
      target's class: minus the model output of TRAK (arXiv 2303.14186, section 3.1).
    - "mse": squared errors, targets shaped as the outputs; summed over outputs.
    - "binary_cross_entropy": logits and targets of one shape; summed over outputs.
    - "causal_lm": token ids (n, t), labels (n, t) aligned with them (shifted here), -100 ignored;
      summed over tokens.

    Raises
    ------
    SpecError
        If there is no preset of this name, or the loss is neither a name nor callable.

    """
    if isinstance(loss, str):
        if loss in _PRESETS:
            return _PRESETS[loss]
        raise SpecError(f"{unknown_name('loss', loss, _PRESETS)}; or pass a function")
    _check_callable(loss)
    return loss


def evaluate(loss: Loss, model: nn.Module, batch: Any, n: int) -> Tensor:
    """Return the losses (n,) of a batch, checked for what a loss must return.

    Raises
    ------
    LossError
        If the loss returns anything but n floating-point numbers.

    """
    losses: Any = loss(model, batch)
    want = f"loss expects to return one number an example, a float tensor of shape ({n},)"
    if not isinstance(losses, Tensor):
        msg = f"{want}, got {type(losses).__name__}: return the tensor of per-example losses"
        raise LossError(msg)
    if not losses.is_floating_point():
        msg = f"{want}, got dtype {losses.dtype}: return real losses that gradients flow through"
        raise LossError(msg)
    if losses.ndim == 0:
        msg = (
            f"{want}, got a scalar: do not average or sum over the batch (reduction='none'), then "
            f"sum over all axes but the first"
        )
        raise LossError(msg)
    if losses.shape != (n,):
        msg = f"{want}, got {tuple(losses.shape)}: sum over all axes but the first, the example's"
        raise LossError(msg)
    checked: Tensor = losses
    return checked


def _check_callable(loss: object) -> None:
    if not callable(loss):
        msg = (
            f"loss expects a name or a callable (model, batch) -> losses (n,), got "
            f"{type(loss).__name__}: pass a function"
        )
        raise SpecError(msg)


def _cross_entropy(model: nn.Module, batch: Any) -> Tensor:
    logits, targets = _outputs_and_targets("cross_entropy", model, batch)
    by_class = logits.ndim >= 2 and targets.shape == logits.shape[:1] + logits.shape[2:]
    if not by_class and not (targets.is_floating_point() and targets.shape == logits.shape):
        msg = (
            f"cross_entropy expects logits (n, classes, ...) and targets (n, ...), got "
            f"{tuple(logits.shape)} and {tuple(targets.shape)}: move the classes to the second axis"
        )
        raise LossError(msg)
    return _per_example(
        functional.cross_entropy(_at_least_float(logits), targets, reduction="none")
    )


def _margin(model: nn.Module, batch: Any) -> Tensor:
    logits, targets = _outputs_and_targets("margin", model, batch)
    if logits.ndim != 2 or logits.shape[1] < 2 or targets.shape != logits.shape[:1]:
        msg = (
            f"margin expects logits (n, classes) of at least two classes and targets (n,), got "
            f"{tuple(logits.shape)} and {tuple(targets.shape)}: pass one class an example"
        )
        raise LossError(msg)
    if targets.is_floating_point():
        msg = f"margin expects targets that are numbers of classes, got {targets.dtype}: pass int64"
        raise LossError(msg)
    wide = _at_least_float(logits)
    right = wide.gather(1, targets[:, None])
    others = wide.scatter(1, targets[:, None], -torch.inf)
    return others.logsumexp(dim=1) - right[:, 0]


def _mse(model: nn.Module, batch: Any) -> Tensor:
    outputs, targets = _outputs_and_targets("mse", model, batch)
    _same_shape("mse", outputs, targets)
    outputs = _at_least_float(outputs)
    return _per_example(functional.mse_loss(outputs, targets.to(outputs.dtype), reduction="none"))


def _binary_cross_entropy(model: nn.Module, batch: Any) -> Tensor:
    logits, targets = _outputs_and_targets("binary_cross_entropy", model, batch)
    _same_shape("binary_cross_entropy", logits, targets)
    logits = _at_least_float(logits)
    return _per_example(
        functional.binary_cross_entropy_with_logits(
            logits, targets.to(logits.dtype), reduction="none"
        )
    )


def _causal_lm(model: nn.Module, batch: Any) -> Tensor:
    logits, labels = _outputs_and_targets("causal_lm", model, batch)
    if logits.ndim != 3 or labels.shape != logits.shape[:2]:
        msg = (
            f"causal_lm expects logits (n, t, vocabulary) and labels (n, t), got "
            f"{tuple(logits.shape)} and {tuple(labels.shape)}: align the labels with the inputs (they "
            f"are shifted inside the loss)"
        )
        raise LossError(msg)
    scores = _at_least_float(logits[:, :-1]).transpose(1, 2)
    return _per_example(
        functional.cross_entropy(scores, labels[:, 1:], ignore_index=-100, reduction="none")
    )


_PRESETS: dict[str, Loss] = {
    "cross_entropy": _cross_entropy,
    "margin": _margin,
    "mse": _mse,
    "binary_cross_entropy": _binary_cross_entropy,
    "causal_lm": _causal_lm,
}


def _outputs_and_targets(name: str, model: nn.Module, batch: Any) -> tuple[Tensor, Tensor]:
    if not isinstance(batch, (tuple, list)) or len(batch) != 2 or not isinstance(batch[1], Tensor):
        msg = (
            f"{name} expects batches (inputs, targets), got {type(batch).__name__}: make the loader "
            f"return pairs, or pass your own loss (model, batch) -> losses (n,)"
        )
        raise LossError(msg)
    inputs, targets = batch
    outputs = model(**inputs) if isinstance(inputs, Mapping) else model(inputs)
    logits = outputs if isinstance(outputs, Tensor) else getattr(outputs, "logits", None)
    if not isinstance(logits, Tensor):
        msg = (
            f"{name} expects the model to return a tensor, or an object with it as .logits, got "
            f"{type(outputs).__name__}: pass your own loss (model, batch) -> losses (n,)"
        )
        raise LossError(msg)
    return logits, targets


def _same_shape(name: str, outputs: Tensor, targets: Tensor) -> None:
    # Broadcasting (n, 1) against (n,) would tie every example to every other.
    if outputs.shape != targets.shape:
        msg = (
            f"{name} expects outputs and targets of one shape, got {tuple(outputs.shape)} and "
            f"{tuple(targets.shape)}: reshape the targets to the outputs"
        )
        raise LossError(msg)


def _at_least_float(outputs: Tensor) -> Tensor:
    return outputs.to(torch.promote_types(outputs.dtype, torch.float32))


def _per_example(losses: Tensor) -> Tensor:
    return losses.reshape(losses.shape[0], -1).sum(1)
