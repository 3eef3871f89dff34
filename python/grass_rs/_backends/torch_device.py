"""Torch tensors on a device that has no kernels of ours: plain torch operations compress them."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch

from grass_rs._backends import cpu, pure_torch, shapes
from grass_rs.errors import ShapeError, UnsupportedArrayError

if TYPE_CHECKING:
    from torch import Tensor

    from grass_rs import _native

_DTYPES = (torch.float64, torch.float32, torch.float16, torch.bfloat16)


def check_inputs(name: str, *tensors: Tensor) -> None:
    """Check what no device takes, whatever the compressor.

    Raises
    ------
    UnsupportedArrayError
        For a layout that is not strided, a dtype that is no float of 16 to 64 bits, tensors on several devices, or a
        device without 64-bit floats.

    """
    for tensor in tensors:
        if tensor.layout != torch.strided:
            raise cpu.unsupported(name, f"a {tensor.layout} tensor: pass .to_dense() of it")
        if tensor.dtype not in _DTYPES:
            raise cpu.unsupported(name, f"a tensor of {tensor.dtype}: convert it with .float()")
        if tensor.device != tensors[0].device:
            places = " and ".join(str(tensor.device) for tensor in tensors)
            msg = f"{name} expects tensors on one device, got them on {places}: move one with .to"
            raise UnsupportedArrayError(msg)
        if tensor.device.type == "mps":
            raise cpu.unsupported(
                name, "a tensor on mps, which has no float64: copy it to the CPU first"
            )


def write(name: str, result: Tensor, out: Any) -> Any:
    """Copy a result to `out`, or return the result if that is None.

    Raises
    ------
    UnsupportedArrayError
        If `out` is no float32 tensor on the result's device, or part of an autograd graph.
    ShapeError
        If it has not the result's shape, or is not contiguous.

    """
    if out is None:
        return result
    what, fits = f"{name}: out", False
    if not isinstance(out, torch.Tensor):
        kind = f"{type(out).__module__}.{type(out).__qualname__}"
    else:
        kind = f"one of {out.dtype} on {out.device}, requires_grad={out.requires_grad}"
        fits = out.dtype == torch.float32 and out.device == result.device and not out.requires_grad
    if not fits:
        msg = (
            f"{what} expects a float32 tensor on {result.device} of no autograd graph, got {kind}: "
            f"allocate it with torch.empty"
        )
        raise UnsupportedArrayError(msg)
    if out.shape != result.shape or not out.is_contiguous():
        msg = (
            f"{what} expects a contiguous tensor of shape {tuple(result.shape)}, got shape "
            f"{tuple(out.shape)}, contiguous={out.is_contiguous()}: allocate it with torch.empty"
        )
        raise ShapeError(msg)
    return out.copy_(result)


def compress_rows(native: _native.Compressor, name: str, x: Tensor, out: Any) -> Any:
    """Compress gradients (n, p) or (p,) to (n, k) or (k,) float32.

    Raises
    ------
    UnsupportedArrayError
        For another layout, dtype or device.
    ShapeError
        If x has not the width p, or `out` not the result's shape.

    """
    check_inputs(name, x)
    shape = shapes.row_output_shape(name, x.shape, native.input_dim, native.output_dim)
    rows = x if x.ndim == 2 else x[None]
    return write(name, pure_torch.compress_rows(native, rows).view(shape), out)


def compress_factors(  # noqa: PLR0917 - called alike on every backend
    native: _native.Compressor,
    name: str,
    inputs: Tensor,
    grad_outputs: Tensor,
    bias: bool,
    out: Any,
) -> Any:
    """Compress a layer's factors (n, t, in), (n, t, out), or both without t, to (n, k) float32.

    Raises
    ------
    UnsupportedArrayError
        For another layout, dtype or device.
    ShapeError
        If the shapes do not fit the layer or each other, or `out` has not the result's shape.

    """
    check_inputs(name, inputs, grad_outputs)
    shapes.factor_output_shape(
        name, inputs.shape, grad_outputs.shape, native.features, bias, native.output_dim
    )
    if inputs.ndim == 2:
        inputs, grad_outputs = inputs[:, None], grad_outputs[:, None]
    return write(name, pure_torch.compress_factors(native, inputs, grad_outputs, bias), out)
