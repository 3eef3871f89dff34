"""Which training data made my model say this? Attribution with GraSS and FactGraSS (arXiv 2505.18976)."""

from grass_rs._native import build_info, num_threads, set_num_threads
from grass_rs.compress import (
    SJLT,
    Compressor,
    FactGraSS,
    Gaussian,
    GraSS,
    LoGra,
    Mask,
    RandomMask,
    compressor_from_bytes,
    compressor_from_spec,
)
from grass_rs.errors import (
    CorruptStoreError,
    DataError,
    GrassError,
    LossError,
    NonFiniteError,
    ShapeError,
    SpecError,
    StoreError,
    StoreExistsError,
    StoreLockedError,
    StoreMismatchError,
    StoreNotFoundError,
    StorePermissionError,
    UnsupportedArrayError,
    UnsupportedLayerError,
)
from grass_rs.lds import lds
from grass_rs.types import Column, Scores

__version__: str = build_info()["version"]
