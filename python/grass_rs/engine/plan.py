"""Plans: which layers are captured, and the compressor of each."""

from __future__ import annotations

import hashlib
import json
import math
from typing import TYPE_CHECKING

from grass_rs import _native
from grass_rs.capture import Block, LinearShape, find_blocks
from grass_rs.compress import (
    SJLT,
    FactGraSS,
    FactorCompressor,
    Gaussian,
    GraSS,
    KfacGraSS,
    LoGra,
    Mask,
    RandomMask,
    RowCompressor,
    TileSketch,
)
from grass_rs.errors import SpecError, unknown_name, whole_number
from grass_rs.types import Column

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence

    from torch import nn

    from grass_rs.engine.moments import SecondMoments
    from grass_rs.engine.selection import Selection

_ROW_METHODS: dict[str, Callable[[int, int, int], RowCompressor]] = {
    "grass": lambda p, dim, seed: GraSS(p, dim, seed=seed),
    "sjlt": lambda p, dim, seed: SJLT(p, dim, seed=seed),
    "mask": lambda p, dim, seed: RandomMask(p, dim, seed=seed),
    "gaussian": lambda p, dim, seed: Gaussian(p, dim, seed=seed),
}


def _factgrass(shape: LinearShape, dim: int, seed: int) -> FactorCompressor:
    return FactGraSS(shape.in_features, shape.out_features, dim, seed=seed)


def _logra(shape: LinearShape, dim: int, seed: int) -> FactorCompressor:
    rank_out = min(math.isqrt(dim), shape.out_features)
    rank_in = min(dim // rank_out, shape.in_features)
    return LoGra(shape.in_features, shape.out_features, rank_in, rank_out, seed=seed)


def _tile(shape: LinearShape, dim: int, seed: int) -> FactorCompressor:
    return TileSketch(shape.in_features, shape.out_features, dim, seed=seed)


_FACTOR_METHODS: dict[str, Callable[[LinearShape, int, int], FactorCompressor]] = {
    "factgrass": _factgrass,
    "logra": _logra,
    "tile": _tile,
}


_SELECTIVE = ("mask", "grass", "factgrass")
"""Methods with masks, which a selection can choose."""


def _selective(
    block: Block, method: str, dim: int, seed: int, selection: Selection
) -> RowCompressor | FactorCompressor:
    if method == "mask":
        return selection.mask(block, dim)
    if method == "factgrass" and block.factors is not None:
        widths = block.factors.in_features, block.factors.out_features
        mask_in, mask_out = selection.factor_masks(
            block, *(min(_rank(dim), width) for width in widths)
        )
        return FactGraSS(*widths, dim, seed=seed, mask_in=mask_in, mask_out=mask_out)
    mask = selection.mask(block, min(4 * dim, block.size))
    return GraSS(block.size, dim, seed=seed, mask=mask)


def _rank(dim: int) -> int:
    """Return the features kept a side, whose products are 4 k at least."""
    return math.isqrt(4 * dim - 1) + 1


_RHO_IN, _RHO_OUT = 0.1, 1.0
"""Ridges of the whitening: too little of it on the output's gradient is the danger."""


def _kfac_grass(
    name: str, shape: LinearShape, dim: int, seed: int, moments: SecondMoments
) -> KfacGraSS:
    inputs, outputs = moments[name]
    widths = len(inputs.values), len(outputs.values)
    if widths != (shape.in_features, shape.out_features):
        raise SpecError(
            f"Plan: block {name!r} expects second moments of {shape.in_features} inputs and "
            f"{shape.out_features} outputs, got {widths[0]} and {widths[1]}: gather them of this model"
        )
    basis_in = inputs.whitened(_rank(dim), _RHO_IN)
    basis_out = outputs.whitened(_rank(dim), _RHO_OUT)
    kept = min(dim, len(basis_in) * len(basis_out))
    return KfacGraSS(*widths, kept, basis_in=basis_in, basis_out=basis_out, seed=seed)


class Plan:
    """Which layers of a model are captured, and the compressor of each.

    Parameters
    ----------
    compressors
        The compressor of each block, in the order of a row's columns.

    Raises
    ------
    SpecError
        If there is no block, or a compressor does not take the gradient of its block.

    """

    def __init__(self, compressors: Mapping[Block, RowCompressor | FactorCompressor]) -> None:
        if not compressors:
            raise SpecError("Plan expects at least one block, got none: see Plan.for_model")
        for block, compressor in compressors.items():
            _check_fit(block, compressor)
        self._compressors = {block.name: value for block, value in compressors.items()}
        self.blocks: tuple[Block, ...] = tuple(compressors)
        """The blocks, in the order of a row's columns."""

    @classmethod
    def for_model(
        cls,
        model: nn.Module,
        method: str = "factgrass",
        dim: int = 512,
        *,
        layers: Sequence[str] | None = None,
        seed: int = 0,
        moments: SecondMoments | None = None,
        selection: Selection | None = None,
    ) -> Plan:
        """Compress every block of a model to `dim` coordinates.

        A linear layer is one block, its bias a last input column of ones; any other module with
        parameters of its own is one block. Blocks of at most `dim` parameters are kept whole. The
        seed of a block is derived from `seed` and its name alone.

        Parameters
        ----------
        model
            The model.
        method
            "factgrass", "logra", "tile" (a TileSketch) or "kfac_grass", which take linear layers by
            their factors and any other block by "grass"; or "grass", "sjlt", "mask" or "gaussian" for all blocks.
            "logra" projects output gradients to isqrt(dim) directions and inputs to
            dim // isqrt(dim), at most the widths.
        dim
            Coordinates a block, k.
        layers
            Names of blocks or shell patterns to capture; None captures all.
        seed
            Unsigned 64-bit seed.
        moments
            For "kfac_grass": what `second_moments` gathered of the model's linear layers. Whitened
            columns need more damping: 6 to 13 was best on two perceptrons, 0.4 to 3 on two other
            models (docs/tuning.md).
        selection
            For "mask", "grass" and "factgrass": what `select` gathered of these blocks. Masks then
            keep the coordinates, or features, that it chooses, unscaled; None keeps random ones.

        Raises
        ------
        SpecError
            If the method is unknown, `dim` or `seed` is out of range, a name fits no block, or
            `moments` or `selection` is missing, not for this method, or of another model.
        DataError
            If the gradients that a selection needs would take more than 1 GiB.
        UnsupportedLayerError
            If a chosen block cannot be captured.

        """
        methods = _ROW_METHODS.keys() | _FACTOR_METHODS.keys() | {"kfac_grass"}
        if not isinstance(method, str) or method not in methods:
            raise SpecError(unknown_name("method", method, methods))
        dim = whole_number("Plan: dim", dim, 1, 2**62)
        seed = whole_number("Plan: seed", seed)
        if (method == "kfac_grass") != (moments is not None):
            raise SpecError(
                f"Plan expects moments= with method 'kfac_grass' and with no other, got method {method!r} "
                f"and moments={'None' if moments is None else 'SecondMoments'}: see second_moments"
            )
        if selection is not None and method not in _SELECTIVE:
            raise SpecError(
                f"Plan expects selection= with a method of masks, {', '.join(map(repr, _SELECTIVE))}, got it "
                f"with {method!r}: leave it out"
            )
        return cls(
            {
                block: _choose(block, method, dim, _native.derive(seed, block.name), moments)
                if selection is None or block.size <= dim
                else _selective(block, method, dim, _native.derive(seed, block.name), selection)
                for block in find_blocks(model, layers)
            }
        )

    def __getitem__(self, layer: str) -> RowCompressor | FactorCompressor:
        """Return the compressor of a block.

        Raises
        ------
        SpecError
            If there is no block of this name.

        """
        if layer not in self._compressors:
            raise SpecError(unknown_name("block", layer, self._compressors))
        return self._compressors[layer]

    def __iter__(self) -> Iterator[str]:
        return iter(self._compressors)

    def __len__(self) -> int:
        return len(self._compressors)

    @property
    def columns(self) -> tuple[Column, ...]:
        """The blocks side by side, as they lie in a row."""
        columns, offset = [], 0
        for name, compressor in self._compressors.items():
            columns.append(Column(name, offset, compressor.output_dim, compressor.spec))
            offset += compressor.output_dim
        return tuple(columns)

    @property
    def width(self) -> int:
        """Coordinates a row."""
        return sum(compressor.output_dim for compressor in self._compressors.values())

    @property
    def fingerprint(self) -> str:
        """SHA-256 of the blocks' names, parameters and specs, in hexadecimal."""
        content = [[block.name, block.parameters, self[block.name].spec] for block in self.blocks]
        text = json.dumps(content, sort_keys=True, separators=(",", ":"))
        return hashlib.sha256(text.encode("ascii")).hexdigest()

    def __repr__(self) -> str:
        lines = [f"  {name or '(model)'}: {self[name]!r}" for name in self]
        return "\n".join([f"Plan of {len(self)} blocks, {self.width} coordinates a row", *lines])


def _choose(
    block: Block, method: str, dim: int, seed: int, moments: SecondMoments | None
) -> RowCompressor | FactorCompressor:
    if moments is not None and block.factors is not None:
        # Small layers too: whitened coordinates that are all kept are not the plain ones.
        return _kfac_grass(block.name, block.factors, dim, seed, moments)
    if block.size <= dim:
        return Mask(range(block.size), block.size)
    if block.factors is not None and method in _FACTOR_METHODS:
        return _FACTOR_METHODS[method](block.factors, dim, seed)
    return _ROW_METHODS.get(method, _ROW_METHODS["grass"])(block.size, dim, seed)


def _check_fit(block: Block, compressor: RowCompressor | FactorCompressor) -> None:
    shape = block.factors
    expected = f"a compressor of {block.size} coordinates"
    fits = compressor.input_dim == block.size
    if isinstance(compressor, FactorCompressor):
        if shape is None:
            expected, fits = "a compressor of whole gradients, as it is no linear layer", False
        else:
            expected = (
                f"a compressor of {shape.in_features} inputs and {shape.out_features} outputs"
            )
            features = (compressor.in_features, compressor.out_features)
            fits = features == (shape.in_features, shape.out_features)
    if not fits:
        raise SpecError(f"Plan: block {block.name!r} expects {expected}, got {compressor!r}")
