"""The streaming engine: model -> capture -> compress -> store -> score."""

from grass_rs.engine.attributor import Attributor
from grass_rs.engine.moments import SecondMoments, second_moments
from grass_rs.engine.plan import Plan

__all__ = ["Attributor", "Plan", "SecondMoments", "second_moments"]
