"""The model and PyTorch's global state, held for capture and put back exactly as they were."""

from __future__ import annotations

import contextlib
import operator
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from grass_rs.errors import LossError, UnsupportedLayerError

if TYPE_CHECKING:
    from collections.abc import Iterator
    from contextlib import AbstractContextManager

    from torch.utils.hooks import RemovableHandle

__all__ = [
    "ModelState",
    "differentiable",
    "find_training_module",
    "refuse_batch_statistics",
    "without_autocast",
]


class ModelState:
    """What capture may change in a model, saved when built.

    Saved are every module's training flag, its attributes (one level into lists and dicts), copies
    of the buffers, and the states of PyTorch's random generators (CPU, and CUDA if in use).
    """

    def __init__(self, model: nn.Module) -> None:
        self._modules = list(model.modules())
        self._training = [module.training for module in self._modules]
        self._buffers = [(buffer, buffer._version, buffer.clone()) for buffer in model.buffers()]  # noqa: SLF001 - the only way to see a change in place
        self._attributes: list[dict[str, Any]] = []
        self._contents: list[tuple[list[Any] | dict[Any, Any], list[Any] | dict[Any, Any]]] = []
        self._cpu_rng = torch.get_rng_state()
        self._cuda_rng = _cuda_rng_states()

    def hold(self) -> None:
        """Put every module in evaluation mode and save the attributes, hooks included, as they are.

        Flags are set one by one: a model's own `train` or `eval` may do more than that.
        """
        for module in self._modules:
            module.training = False
        self._attributes = [dict(vars(module)) for module in self._modules]
        self._contents = [
            (value, value.copy())
            for attributes in self._attributes
            for value in attributes.values()
            if isinstance(value, (list, dict))
        ]

    def restore_attributes(self) -> None:
        """Undo what a call of the model changed in its attributes.

        Tensors that modules keep (a cache, the weights of recurrent layers in a list, the weight of
        old-style weight norm) would carry the graph of one call, or dead tensors of
        `torch.func.functional_call`, into the next.
        """
        for value, content in self._contents:
            if not value and not content:  # most of them, such as hooks
                continue
            if isinstance(value, list) and isinstance(content, list):
                if [id(item) for item in value] != [id(item) for item in content]:
                    value[:] = content
            elif (
                isinstance(value, dict) and isinstance(content, dict) and not _same(value, content)
            ):
                value.clear()
                value.update(content)
        for module, saved in zip(self._modules, self._attributes, strict=True):
            current = vars(module)
            if not _same(current, saved):
                for key in current.keys() - saved.keys():
                    del current[key]
                current.update(saved)

    def release(self) -> None:
        """Put everything back."""
        self.restore_attributes()
        for module, training in zip(self._modules, self._training, strict=True):
            module.training = training
        with torch.no_grad():
            for buffer, version, saved in self._buffers:
                if buffer._version != version:  # noqa: SLF001 - as in the constructor
                    buffer.copy_(saved)
        torch.set_rng_state(self._cpu_rng)
        if self._cuda_rng:
            torch.cuda.set_rng_state_all(self._cuda_rng)


def _cuda_rng_states() -> list[Tensor]:
    in_use = torch.cuda.is_initialized()  # type: ignore[no-untyped-call]
    return torch.cuda.get_rng_state_all() if in_use else []


def _same(left: dict[Any, Any], right: dict[Any, Any]) -> bool:
    """Whether two dicts hold the same objects under the same keys in the same order."""
    return list(left) == list(right) and all(map(operator.is_, left.values(), right.values()))


@contextlib.contextmanager
def differentiable(model: nn.Module) -> Iterator[None]:
    """Let autograd see every step of the model, whatever the caller's settings.

    Raises
    ------
    LossError
        In `torch.inference_mode`, where tensors never have gradients.

    """
    if torch.is_inference_mode_enabled():
        msg = (
            "capture needs gradients, but torch.inference_mode() is on: leave it, or use "
            "torch.no_grad(), under which capture works"
        )
        raise LossError(msg)
    with contextlib.ExitStack() as stack:
        stack.enter_context(torch.enable_grad())
        # Fused encoders look at their first layer alone to see whether anything needs a gradient.
        stack.callback(
            torch.backends.mha.set_fastpath_enabled, torch.backends.mha.get_fastpath_enabled()
        )
        torch.backends.mha.set_fastpath_enabled(False)
        # Up to PyTorch 2.9 the cache keeps weights that were cast under no_grad, cut from their
        # parameters.
        stack.callback(torch.set_autocast_cache_enabled, torch.is_autocast_cache_enabled())
        torch.set_autocast_cache_enabled(False)
        if any(isinstance(module, nn.RNNBase) for module in model.modules()):
            # cuDNN differentiates recurrent layers in training mode only.
            stack.enter_context(torch.backends.cudnn.flags(enabled=False))
        yield


def without_autocast(device: torch.device) -> AbstractContextManager[object]:
    """Compute as written, without the rounding that is meant for the model."""
    if torch.is_autocast_enabled(device.type):
        return torch.autocast(device.type, enabled=False)
    return contextlib.nullcontext()


def refuse_batch_statistics(model: nn.Module) -> list[RemovableHandle]:
    """Make batch norms that would use the statistics of the batch raise `UnsupportedLayerError`.

    Returns
    -------
    list of RemovableHandle
        The hooks, for the caller to remove.

    """

    def hook_of(name: str) -> Any:
        def refuse(module: _BatchNorm, _args: tuple[Tensor, ...]) -> None:
            if module.training:
                reason, remedy = "is in training mode", "do not call train() in the loss"
            elif module.running_mean is None:
                reason, remedy = "keeps no running statistics", "set track_running_stats=True"
            else:
                return
            msg = (
                f"layer {name!r} ({type(module).__name__}) {reason}, so it would normalise with the "
                f"statistics of the batch and tie its examples together: {remedy}, or use GroupNorm "
                f"or LayerNorm"
            )
            raise UnsupportedLayerError(msg)

        return refuse

    return [
        module.register_forward_pre_hook(hook_of(name))
        for name, module in model.named_modules()
        if isinstance(module, _BatchNorm)
    ]


def find_training_module(model: nn.Module) -> str | None:
    """Return the name of the first module in training mode, None if there is none."""
    return next((name for name, module in model.named_modules() if module.training), None)
