"""Compressors written in plain torch operations, for tensors on any device.

The structures are the same words as everywhere, drawn on the device; sums differ from the native core's by rounding.
Nothing is added by atomics, so a result has the same bits on every run. Coordinates are taken in pieces: temporary
memory is some 64 MiB, or a few times one example's input and output where that is more. The iid SJLT waits for the
device, to learn how many coordinates share a bucket.
"""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any
from weakref import WeakKeyDictionary

from grass_rs._backends.pure_torch.factors import FactGraSS, Factor, LoGra, Tile
from grass_rs._backends.pure_torch.gaussian import Gaussian
from grass_rs._backends.pure_torch.mask import GraSS, Mask
from grass_rs._backends.pure_torch.sjlt import SJLT
from grass_rs._backends.shapes import check_device_outputs

if TYPE_CHECKING:
    from torch import Tensor

    from grass_rs import _native


def compress_rows(native: _native.Compressor, x: Tensor) -> Tensor:
    """Compress gradients.

    Parameters
    ----------
    native
        The structure, of a compressor of whole gradients.
    x
        (n, p) of float64, float32, float16 or bfloat16, with any strides.

    Returns
    -------
    torch.Tensor
        (n, k) float32 on the same device, detached.

    Raises
    ------
    SpecError
        If the compressor has 2^31 outputs or more.

    """
    compressed: Tensor = _structure(native)(x.detach())
    return compressed


def compress_factors(
    native: _native.Compressor, inputs: Tensor, grad_outputs: Tensor, bias: bool
) -> Tensor:
    """Compress the gradients of a linear layer, given by their factors.

    Parameters
    ----------
    native
        The structure, of a factorised compressor.
    inputs
        (n, t, in_features), or (n, t, in_features - 1) with `bias`; dtypes as in `compress_rows`.
    grad_outputs
        (n, t, out_features), on the same device.
    bias
        Whether `inputs` lacks the column of ones that is the layer's last input.

    Returns
    -------
    torch.Tensor
        (n, k) float32 on the same device, detached.

    Raises
    ------
    SpecError
        If the compressor has 2^31 outputs or more.

    """
    left, right = Factor(inputs.detach(), ones=bias), Factor(grad_outputs.detach())
    compressed: Tensor = _structure(native)(left, right)
    return compressed


_TYPES: dict[str, Any] = {
    "gaussian": Gaussian,
    "sjlt": SJLT,
    "grass": GraSS,
    "logra": LoGra,
    "factgrass": FactGraSS,
    "tile": Tile,
}


_structures: WeakKeyDictionary[_native.Compressor, Any] = WeakKeyDictionary()
"""What was made for a compressor, as long as it lives."""


def _structure(native: _native.Compressor) -> Any:
    structure = _structures.get(native)
    if structure is None:
        structure = _structures[native] = _make(native)
    return structure


def _make(native: _native.Compressor) -> Any:
    spec = json.loads(native.spec)
    check_device_outputs(spec["type"], native.output_dim)
    if spec["type"] in {"mask", "random_mask"}:
        return Mask(**spec)
    return _TYPES[spec.pop("type")](**spec)
