"""Which training data made my model say this? Attribution with GraSS and FactGraSS (arXiv 2505.18976)."""

from grass_rs._native import build_info, num_threads, set_num_threads
from grass_rs.compress import (
    SJLT,
    Compressor,
    FactGraSS,
    Gaussian,
    GraSS,
    KfacGraSS,
    LoGra,
    Mask,
    RandomMask,
    TileSketch,
    compressor_from_bytes,
    compressor_from_spec,
    register_torch_ops,
)
from grass_rs.errors import (
    BenchmarkError,
    CorruptStoreError,
    DataError,
    DeviceError,
    GrassError,
    LossError,
    NonFiniteError,
    ScoresFileError,
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
from grass_rs.evaluate import Tuning, lds, tune
from grass_rs.store import (
    Store,
    StoreWriter,
    create_store,
    export_store,
    merge_stores,
    open_store,
)
from grass_rs.types import Column, Scores

__version__: str = build_info()["version"]

__all__ = [
    "SJLT",
    "Attributor",
    "BenchmarkError",
    "Column",
    "Compressor",
    "CorruptStoreError",
    "DataError",
    "DeviceError",
    "FactGraSS",
    "Gaussian",
    "GraSS",
    "GrassError",
    "KfacGraSS",
    "LoGra",
    "LossError",
    "Mask",
    "NonFiniteError",
    "Plan",
    "RandomMask",
    "Scores",
    "ScoresFileError",
    "SecondMoments",
    "Selection",
    "ShapeError",
    "SpecError",
    "Store",
    "StoreError",
    "StoreExistsError",
    "StoreLockedError",
    "StoreMismatchError",
    "StoreNotFoundError",
    "StorePermissionError",
    "StoreWriter",
    "TileSketch",
    "Tuning",
    "UnsupportedArrayError",
    "UnsupportedLayerError",
    "build_info",
    "compressor_from_bytes",
    "compressor_from_spec",
    "create_store",
    "export_store",
    "lds",
    "merge_stores",
    "num_threads",
    "open_store",
    "register_torch_ops",
    "second_moments",
    "select",
    "select_factor_masks",
    "select_mask",
    "set_num_threads",
    "tune",
]

_LAZY = (
    "Attributor",
    "Plan",
    "SecondMoments",
    "Selection",
    "second_moments",
    "select",
    "select_factor_masks",
    "select_mask",
)
"""Names that need torch: imported at first use."""


def __getattr__(name: str) -> object:
    if name not in _LAZY:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    try:
        from grass_rs import engine  # noqa: PLC0415 - loads torch
    except ModuleNotFoundError as error:
        if error.name != "torch":
            raise
        msg = f"grass_rs.{name} needs torch, which is not here: pip install 'grass_rs[torch]'"
        raise ModuleNotFoundError(msg, name="torch") from error
    return getattr(engine, name)
