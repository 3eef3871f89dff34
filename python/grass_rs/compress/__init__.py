"""Compressors: seeded linear maps R^p -> R^k."""

from grass_rs.compress.compressor import (
    Compressor,
    FactorCompressor,
    RowCompressor,
    compressor_from_bytes,
    compressor_from_spec,
    register_torch_ops,
)
from grass_rs.compress.factgrass import FactGraSS
from grass_rs.compress.gaussian import Gaussian
from grass_rs.compress.grass import GraSS
from grass_rs.compress.kfac_grass import KfacGraSS
from grass_rs.compress.logra import LoGra
from grass_rs.compress.mask import Mask, RandomMask
from grass_rs.compress.sjlt import SJLT
from grass_rs.compress.tile import TileSketch

__all__ = [
    "SJLT",
    "Compressor",
    "FactGraSS",
    "FactorCompressor",
    "Gaussian",
    "GraSS",
    "KfacGraSS",
    "LoGra",
    "Mask",
    "RandomMask",
    "RowCompressor",
    "TileSketch",
    "compressor_from_bytes",
    "compressor_from_spec",
    "register_torch_ops",
]
