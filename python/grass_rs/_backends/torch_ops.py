"""Compressors as torch operators, for what torch traces: `torch.compile`, export, `torch.func`.

Eager calls do not come here: the dispatcher costs more than a small call.

- `grass_rs::compress_rows(Tensor x, str spec) -> Tensor`
- `grass_rs::compress_factors(Tensor inputs, Tensor grad_outputs, str spec, bool bias) -> Tensor`

`spec` is a compressor's spec in JSON. It is all that a structure is, so a graph that holds it means the same in
another process: an exported program runs where no compressor was ever built, and a cached artefact never needs one
that is gone. A fingerprint would be shorter than the spec of a mask with explicit indices, but would need a registry
that only this process has. Reading the spec costs once a process; after that its text is looked up, which only for
tens of thousands of explicit indices takes longer than the operator's own dispatch.
"""

from __future__ import annotations

import math
from functools import cache
from typing import Any

import torch
from torch import Tensor

from grass_rs import _native
from grass_rs._backends import cpu, shapes, torch_device
from grass_rs._backends.dispatch import NESTED, backend_of, backend_of_both
from grass_rs.errors import ShapeError

_ROWS, _FACTORS = "grass_rs::compress_rows", "grass_rs::compress_factors"


@cache
def _structure(spec: str) -> _native.Compressor:
    return _native.Compressor.from_spec(spec)


@torch.library.custom_op(_ROWS, mutates_args=(), schema="(Tensor x, str spec) -> Tensor")
def _compress_rows(x: Tensor, spec: str) -> Tensor:
    result: Tensor = backend_of(_ROWS, x).compress_rows(_structure(spec), _ROWS, x, None)
    return result


@_compress_rows.register_fake
def _(x: Tensor, spec: str) -> Tensor:
    torch_device.check_inputs(_ROWS, x)
    return x.new_empty(_row_shape(x.shape, spec), dtype=torch.float32)


def _vmap_rows(info: Any, in_dims: tuple[int, None], x: Tensor, spec: str) -> tuple[Tensor, int]:
    batch = x.movedim(in_dims[0], 0)
    shape = _row_shape(batch.shape[1:], spec)
    result = _compress_rows(batch.reshape(math.prod(batch.shape[:-1]), batch.shape[-1]), spec)
    return result.view(info.batch_size, *shape), 0


def _row_shape(shape: torch.Size, spec: str) -> tuple[int, ...]:
    native = _structure(spec)
    if native.features is not None:
        raise ShapeError(f"{_ROWS} expects the spec of whole gradients, got {spec}: pass factors")
    return shapes.row_output_shape(_ROWS, shape, native.input_dim, native.output_dim)


@torch.library.custom_op(
    _FACTORS,
    mutates_args=(),
    schema="(Tensor inputs, Tensor grad_outputs, str spec, bool bias) -> Tensor",
)
def _compress_factors(inputs: Tensor, grad_outputs: Tensor, spec: str, bias: bool) -> Tensor:
    backend = backend_of_both(_FACTORS, inputs, grad_outputs)
    result: Tensor = backend.compress_factors(
        _structure(spec), _FACTORS, inputs, grad_outputs, bias, None
    )
    return result


@_compress_factors.register_fake
def _(inputs: Tensor, grad_outputs: Tensor, spec: str, bias: bool) -> Tensor:
    torch_device.check_inputs(_FACTORS, inputs, grad_outputs)
    shape = _factor_shape(inputs.shape, grad_outputs.shape, spec, bias)
    return inputs.new_empty(shape, dtype=torch.float32)


def _vmap_factors(  # noqa: PLR0917 - torch's way to call it
    info: Any,
    in_dims: tuple[int | None, ...],
    inputs: Tensor,
    grad_outputs: Tensor,
    spec: str,
    bias: bool,
) -> tuple[Tensor, int]:
    left, right = (
        factor.expand(info.batch_size, *factor.shape) if dim is None else factor.movedim(dim, 0)
        for factor, dim in zip((inputs, grad_outputs), in_dims[:2], strict=True)
    )
    n, k = _factor_shape(left.shape[1:], right.shape[1:], spec, bias)
    rows = (factor.reshape(info.batch_size * n, *factor.shape[2:]) for factor in (left, right))
    return _compress_factors(*rows, spec, bias).view(info.batch_size, n, k), 0


def _factor_shape(
    shape_in: torch.Size, shape_out: torch.Size, spec: str, bias: bool
) -> tuple[int, int]:
    native = _structure(spec)
    features, k = native.features, native.output_dim
    return shapes.factor_output_shape(_FACTORS, shape_in, shape_out, features, bias, k)


if hasattr(torch.library, "register_vmap"):  # from torch 2.5; before, vmap calls once an example
    torch.library.register_vmap(_ROWS, _vmap_rows)
    torch.library.register_vmap(_FACTORS, _vmap_factors)


def compress_rows(spec: str, name: str, x: Any, out: Any) -> Any:
    """Compress gradients by the operator.

    Parameters
    ----------
    spec
        The compressor's, in JSON.
    name
        The compressor's, for messages.
    x
        (n, p) or (p,).
    out
        None, or a contiguous float32 tensor of the result's shape.

    Returns
    -------
    torch.Tensor
        (n, k) or (k,) float32, detached from x's graph as in an eager call.

    Raises
    ------
    UnsupportedArrayError, ShapeError
        As an eager call does; while torch compiles it reports them in an error of its own.

    """
    if x.is_nested:
        raise cpu.unsupported(name, NESTED)
    result = torch.ops.grass_rs.compress_rows.default(x.detach(), spec)
    return torch_device.write(name, result, out)


def compress_factors(  # noqa: PLR0917 - called alike on every backend
    spec: str, name: str, inputs: Any, grad_outputs: Any, bias: bool, out: Any
) -> Any:
    """Compress a layer's factors by the operator.

    Parameters
    ----------
    spec
        The compressor's, in JSON.
    name
        The compressor's, for messages.
    inputs, grad_outputs
        (n, t, in_features) and (n, t, out_features), or both without t.
    bias
        Whether `inputs` lacks the column of ones that is the layer's last input.
    out
        None, or a contiguous float32 tensor (n, k).

    Returns
    -------
    torch.Tensor
        (n, k) float32, detached from the factors' graph as in an eager call.

    Raises
    ------
    UnsupportedArrayError, ShapeError
        As an eager call does; while torch compiles it reports them in an error of its own.

    """
    for factor in (inputs, grad_outputs):
        if not isinstance(factor, torch.Tensor):
            kind = (
                f"{type(factor).__qualname__} beside a traced tensor: pass torch.from_numpy of it"
            )
            raise cpu.unsupported(name, kind)
        if factor.is_nested:
            raise cpu.unsupported(name, NESTED)
    result = torch.ops.grass_rs.compress_factors.default(
        inputs.detach(), grad_outputs.detach(), spec, bias
    )
    return torch_device.write(name, result, out)
