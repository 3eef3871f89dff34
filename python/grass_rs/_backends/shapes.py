"""What shape a call's result has: the checks that backends share, on plain numbers."""

from __future__ import annotations

from typing import TYPE_CHECKING

from grass_rs.errors import ShapeError, SpecError

if TYPE_CHECKING:
    from collections.abc import Sequence

_MOST_DEVICE_OUTPUTS = 2**31 - 1
"""Kernels count outputs in 32 bits, and draw a number below it from one word."""


def check_device_outputs(name: str, output_dim: int) -> None:
    """Refuse a compressor with more outputs than a device counts.

    Raises
    ------
    SpecError
        If `output_dim` is 2^31 or more; `name` is the compressor's, for the message.

    """
    if output_dim > _MOST_DEVICE_OUTPUTS:
        msg = (
            f"{name} on a device expects output_dim <= {_MOST_DEVICE_OUTPUTS}, got {output_dim}: "
            f"compress on the CPU, or choose a smaller output_dim"
        )
        raise SpecError(msg)


def row_output_shape(
    name: str, shape: Sequence[int], input_dim: int, output_dim: int
) -> tuple[int, ...]:
    """Return the shape of what a compressor makes of gradients: (n, k), or (k,) of (p,).

    Raises
    ------
    ShapeError
        If `shape` is neither (n, p) nor (p,); `name` is the compressor's, for the message.

    """
    if not 1 <= len(shape) <= 2 or shape[-1] != input_dim:
        msg = (
            f"{name} expects (n, {input_dim}) or ({input_dim},), got {tuple(shape)}: "
            f"the last axis must equal input_dim={input_dim}"
        )
        raise ShapeError(msg)
    return (*shape[:-1], output_dim)


def factor_output_shape(  # noqa: PLR0917 - two arrays and what the layer says of them
    name: str,
    shape_in: Sequence[int],
    shape_out: Sequence[int],
    features: tuple[int, int] | None,
    bias: bool,
    output_dim: int,
) -> tuple[int, int]:
    """Return the shape of what a factorised compressor makes of a layer's factors: (n, k).

    Parameters
    ----------
    name
        The compressor's, for the message.
    shape_in, shape_out
        Of the layer's input and output gradient, (n, t, features) or (n, features).
    features
        Width of the layer's input, with the column of ones that `bias` implies, and of its output;
        None for a compressor of whole gradients.
    bias
        Whether `shape_in` lacks that column.
    output_dim
        Coordinates of the output, k.

    Raises
    ------
    ShapeError
        If the shapes do not fit the layer or each other.

    """
    if features is None:
        raise ShapeError(f"{name} expects one array of gradients, got two factors: multiply them")
    d_in, d_out = features
    fits = 2 <= len(shape_in) <= 3 and shape_in[:-1] == shape_out[:-1]
    if not fits or shape_in[-1] != d_in - bias or shape_out[-1] != d_out:
        msg = (
            f"{name} expects inputs (n, t, {d_in}), or (n, t, {d_in - 1}) with bias=True, and grad_outputs "
            f"(n, t, {d_out}), or both without t, got {tuple(shape_in)} and {tuple(shape_out)} with bias={bias}: "
            f"a layer with a bias has a last input of ones"
        )
        raise ShapeError(msg)
    return shape_in[0], output_dim
