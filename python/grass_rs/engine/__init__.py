"""The streaming engine: model -> capture -> compress -> store -> score."""

from grass_rs.engine.attributor import Attributor
from grass_rs.engine.moments import SecondMoments, second_moments
from grass_rs.engine.plan import Plan
from grass_rs.engine.selection import Selection, select, select_factor_masks, select_mask

__all__ = [
    "Attributor",
    "Plan",
    "SecondMoments",
    "Selection",
    "second_moments",
    "select",
    "select_factor_masks",
    "select_mask",
]
