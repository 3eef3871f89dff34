"""The weights that rows are made with: a model's own, or those of checkpoints, loaded in turn."""

from __future__ import annotations

import contextlib
import hashlib
from collections.abc import Mapping, Sequence
from os import PathLike, fspath
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from grass_rs.errors import SpecError

if TYPE_CHECKING:
    from collections.abc import Iterator

    State = Mapping[str, Tensor]


class Checkpoints:
    """States of one model.

    Parameters
    ----------
    model
        The model.
    states
        State dicts, or files of them (`torch.save`, or safetensors by the suffix), which are read
        when they are needed; None for the model as it is.

    Raises
    ------
    SpecError
        If there is none, or one cannot be read or does not fit the model.

    """

    def __init__(
        self, model: torch.nn.Module, states: Sequence[State | str | PathLike[str]] | None
    ) -> None:
        self._own: dict[str, Tensor] = {
            **dict(model.named_parameters(remove_duplicate=False)),
            **dict(model.named_buffers(remove_duplicate=False)),
        }
        self._model = model
        self._states = None if states is None else self._checked(states)
        self._loaded: int | None = None

    @property
    def suffixes(self) -> list[str]:
        """What the names of each checkpoint's columns end with: nothing for the model as it is."""
        if self._states is None:
            return [""]
        return [f"@{number}" for number in range(len(self._states))]

    @contextlib.contextmanager
    def held(self) -> Iterator[None]:
        """Put the model's own weights back at the end."""
        if self._states is None:
            yield
            return
        saved = {name: tensor.detach().clone() for name, tensor in self._own.items()}
        try:
            yield
        finally:
            self._copy(saved)
            self._loaded = None

    def load(self, number: int) -> None:
        """Put the weights of a checkpoint in the model, inside `held`."""
        if self._states is not None and self._loaded != number:
            self._loaded = None  # if copying fails half way
            self._copy(self._states[number])
            self._loaded = number

    def fingerprint(self) -> str:
        """Return the SHA-256 of the weights of all checkpoints, or of the model as it is."""
        if self._states is None:
            return fingerprint_of(self._model)
        digest = hashlib.sha256()
        with self.held():
            for number in range(len(self._states)):
                self.load(number)
                digest.update(fingerprint_of(self._model).encode())
        return digest.hexdigest()

    def _copy(self, state: State) -> None:
        with torch.no_grad():
            for name, tensor in self._own.items():
                if name in state:
                    tensor.copy_(state[name])

    def _checked(self, states: Any) -> list[State]:
        if isinstance(states, (str, bytes, Mapping)) or not isinstance(states, Sequence):
            raise SpecError(
                f"checkpoints expects a list of state dicts or paths, got {type(states).__name__}: put "
                f"them in a list"
            )
        if not states:
            raise SpecError("checkpoints expects at least one state dict or path, got none")
        return [self._fitting(number, state) for number, state in enumerate(states)]

    def _fitting(self, number: int, given: Any) -> State:
        where, state = f"checkpoint {number}", given
        if isinstance(given, (str, PathLike)):
            where, state = f"checkpoint {number} ({fspath(given)})", _read(fspath(given), number)
        if not isinstance(state, Mapping) or not all(
            isinstance(value, Tensor) for value in state.values()
        ):
            raise SpecError(
                f"{where}: expected a state dict of tensors, got {type(state).__name__}: pass "
                f"model.state_dict(), or the part of a training state that holds it"
            )
        # Buffers that are no part of a state dict are the model's own.
        wanted = self._model.state_dict(keep_vars=True)
        for name, tensor in wanted.items():
            if name not in state or state[name].shape != tensor.shape:
                got = tuple(state[name].shape) if name in state else "none"
                raise SpecError(
                    f"{where}: expected {name!r} of shape {tuple(tensor.shape)}, as the model has it, "
                    f"got {got}: pass checkpoints of this model"
                )
        unknown = next((name for name in state if name not in wanted), None)
        if unknown is not None:
            raise SpecError(
                f"{where}: expected the tensors of the model, got {unknown!r} besides: pass checkpoints "
                f"of this model"
            )
        return state


def fingerprint_of(model: torch.nn.Module) -> str:
    """Return the SHA-256 of a model's parameters and buffers: names, dtypes, shapes and bytes."""
    digest = hashlib.sha256()
    for name, tensor in [*model.named_parameters(), *model.named_buffers()]:
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}\n".encode())
        dense = tensor.detach().to_dense() if tensor.layout != torch.strided else tensor.detach()
        values = dense.cpu().contiguous().reshape(-1).view(torch.uint8)
        digest.update(values.numpy().tobytes())
    return digest.hexdigest()


def _read(path: str, number: int) -> Any:
    """Return the state dict in a file, its tensors mapped where the format allows."""
    try:
        if path.endswith(".safetensors"):
            from safetensors.torch import load_file  # noqa: PLC0415 - an extra

            return load_file(path)
        return torch.load(path, map_location="cpu", weights_only=True)
    except ModuleNotFoundError as error:
        raise SpecError(
            f"checkpoint {number}: {path} needs safetensors, which is not here: pip install safetensors"
        ) from error
    except Exception as error:  # readers of foreign bytes raise errors of their own
        reason = str(error).partition("\n")[0]
        raise SpecError(
            f"checkpoint {number}: expected a state dict that torch.save or safetensors wrote in {path}, "
            f"got {type(error).__name__} ({reason}): check the path"
        ) from error
