"""Blocks of a model: which of its trainable parameters are captured together, and how."""

from __future__ import annotations

from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import TYPE_CHECKING

from torch import nn
from torch.nn.parameter import UninitializedParameter

from grass_rs.errors import SpecError, UnsupportedLayerError, unknown_name

if TYPE_CHECKING:
    from collections.abc import Sequence

__all__ = ["Block", "LinearShape", "LinearSite", "find_blocks", "linear_sites", "parameters_of"]


@dataclass(frozen=True)
class LinearShape:
    """Shape of the gradient of a block that is captured by its factors."""

    in_features: int
    """Width of the layer's input, the column of ones for the bias included."""
    out_features: int
    """Width of the layer's output."""
    bias: bool
    """Whether the last input column is the column of ones."""


@dataclass(frozen=True)
class Block:
    """Parameters of one module, captured and compressed together."""

    name: str
    """Qualified name of the module; "" is the model itself."""
    parameters: tuple[str, ...]
    """Qualified names of the parameters; the gradient is flattened in this order."""
    size: int
    """Number of parameters p."""
    factors: LinearShape | None
    """Shape of the factors of a linear layer; None for any other module."""


@dataclass(frozen=True)
class LinearSite:
    """A linear layer that uses the weight of a block."""

    block: Block
    """The block."""
    name: str
    """Qualified name of the layer."""
    module: nn.Linear
    """The layer itself."""
    bias: bool
    """Whether the layer's bias is the block's own."""


@dataclass(frozen=True)
class _Use:
    """One name under which a module knows a parameter."""

    owner: str
    module: nn.Module
    key: str
    in_attention: bool

    @property
    def name(self) -> str:
        return f"{self.owner}.{self.key}" if self.owner else self.key


_Uses = dict[nn.Parameter, list[_Use]]


def find_blocks(model: nn.Module, layers: Sequence[str] | None = None) -> list[Block]:
    """Cut the trainable parameters of a model into blocks, in the order of `named_modules`.

    A linear layer is one block of its factors: gradient (out, in), or (out, in + 1) with the bias
    as a last column of ones. Any other module with parameters of its own is one block of
    `named_parameters(recurse=False)`, flattened in order. A shared parameter belongs to the first
    module that names it. Frozen parameters have no block: a linear layer with a frozen bias has no
    column of ones, and one whose weight is frozen, parametrised, or shared with anything but
    linear layers goes the general way.

    Parameters
    ----------
    model
        The model.
    layers
        Names of blocks or shell patterns (`"encoder.*"`); None takes all blocks.

    Returns
    -------
    list of Block
        At least one.

    Raises
    ------
    SpecError
        If a name or pattern fits no block, or there is no block at all.
    UnsupportedLayerError
        If a chosen block has complex or not yet initialised parameters.

    """
    _check_arguments(model, layers)
    uses = _find_uses(model)
    owned: dict[str, list[tuple[_Use, nn.Parameter]]] = {}
    for parameter, users in uses.items():
        if parameter.requires_grad and (
            isinstance(parameter, UninitializedParameter) or parameter.numel()
        ):
            owned.setdefault(users[0].owner, []).append((users[0], parameter))
    names = _select(list(owned), layers)
    return [_block(name, owned[name], uses) for name in names]


def linear_sites(model: nn.Module, blocks: Sequence[Block]) -> list[LinearSite]:
    """Return the linear layers whose calls make up the gradients of the blocks with factors.

    Parameters
    ----------
    model
        The model that the blocks were found in.
    blocks
        Blocks of any kind.

    """
    by_name = {users[0].name: users for users in _find_uses(model).values()}
    sites = []
    for block in blocks:
        if block.factors is None:
            continue
        users = by_name[block.parameters[0]]
        bias = users[0].module.bias if block.factors.bias else None
        sites += [
            LinearSite(block, use.owner, use.module, bias is not None and use.module.bias is bias)
            for use in users
            if isinstance(use.module, nn.Linear)
        ]
    return sites


def parameters_of(model: nn.Module, blocks: Sequence[Block]) -> dict[str, nn.Parameter]:
    """Return the parameters of the blocks by name.

    Raises
    ------
    SpecError
        If the model lacks one, or has it frozen.

    """
    known = dict(model.named_parameters())
    parameters = {}
    for block in blocks:
        for name in block.parameters:
            parameter = known.get(name)
            if parameter is None or not parameter.requires_grad:
                state = "has no such parameter" if parameter is None else "has it frozen"
                msg = (
                    f"block {block.name!r} expects the trainable parameter {name!r}, but the model "
                    f"{state}: find the blocks of this very model again"
                )
                raise SpecError(msg)
            parameters[name] = parameter
    return parameters


def _check_arguments(model: object, layers: object) -> None:
    if not isinstance(model, nn.Module):
        msg = (
            f"capture expects a torch.nn.Module, got {type(model).__name__}: pass the model itself"
        )
        raise SpecError(msg)
    if isinstance(layers, str):
        msg = (
            f"layers expects a list of names or patterns, got the string {layers!r}: wrap it in []"
        )
        raise SpecError(msg)


def _find_uses(model: nn.Module) -> _Uses:
    uses: _Uses = {}
    in_attention: set[nn.Module] = set()
    for owner, module in model.named_modules():
        if isinstance(module, nn.MultiheadAttention):
            in_attention.update(module.children())
        for key, parameter in module.named_parameters(recurse=False, remove_duplicate=False):
            use = _Use(owner, module, key, module in in_attention)
            uses.setdefault(parameter, []).append(use)
    return uses


def _select(names: list[str], layers: Sequence[str] | None) -> list[str]:
    if not names:
        msg = (
            "the model has no trainable parameters: set requires_grad on those that are to be "
            "attributed to"
        )
        raise SpecError(msg)
    if layers is None:
        return names
    chosen: set[str] = set()
    for pattern in layers:
        found = [name for name in names if name == pattern or fnmatchcase(name, pattern)]
        if not found:
            hint = "a pattern such as 'encoder.*' takes every block inside a module"
            raise SpecError(f"{unknown_name('layers: a block', pattern, names)} ({hint})")
        chosen.update(found)
    if not chosen:
        msg = (
            "layers expects at least one name or pattern, got none: leave it out to take all blocks"
        )
        raise SpecError(msg)
    return [name for name in names if name in chosen]


def _block(name: str, owned: list[tuple[_Use, nn.Parameter]], uses: _Uses) -> Block:
    for use, parameter in owned:
        if isinstance(parameter, UninitializedParameter):
            msg = (
                f"layer {name!r}: parameter {use.name!r} is not initialised yet: run one batch "
                f"through the model first"
            )
            raise UnsupportedLayerError(msg)
        if parameter.is_complex():
            msg = (
                f"layer {name!r}: parameter {use.name!r} is complex ({parameter.dtype}): only real "
                f"parameters have blocks; leave the layer out with layers=, or store real and "
                f"imaginary parts as two parameters"
            )
            raise UnsupportedLayerError(msg)
    return Block(
        name=name,
        parameters=tuple(use.name for use, _ in owned),
        size=sum(parameter.numel() for _, parameter in owned),
        factors=_linear_shape(owned, uses),
    )


def _linear_shape(owned: list[tuple[_Use, nn.Parameter]], uses: _Uses) -> LinearShape | None:
    """Return the shape of the factors if hooks see every use of the block's parameters."""
    parameters = {use.key: parameter for use, parameter in owned}
    weight, bias = parameters.get("weight"), parameters.get("bias")
    if weight is None or not all(_is_plain_linear(use) for use in uses[weight]):
        return None
    modules = {use.module for use in uses[weight]}
    # A bias that some other layer adds has a gradient that no hook on these layers sees.
    if bias is not None and any(u.key != "bias" or u.module not in modules for u in uses[bias]):
        return None
    out_features, in_features = weight.shape
    return LinearShape(in_features + (bias is not None), out_features, bias is not None)


def _is_plain_linear(use: _Use) -> bool:
    # Attention reads the weight of its output projection without calling the layer.
    if type(use.module) is not nn.Linear or use.key != "weight" or use.in_attention:
        return False
    keys = {key for key, _ in use.module.named_parameters(recurse=False, remove_duplicate=False)}
    return keys <= {"weight", "bias"}
