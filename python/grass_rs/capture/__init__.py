"""Capture: per-example gradients of a PyTorch model, block by block."""

from grass_rs.capture.batch import count_examples
from grass_rs.capture.blocks import Block, LinearShape, find_blocks
from grass_rs.capture.capture import Capture, CapturedBatch, Sink
from grass_rs.capture.linear import Factors
from grass_rs.capture.loss import Loss, resolve_loss

__all__ = [
    "Block",
    "Capture",
    "CapturedBatch",
    "Factors",
    "LinearShape",
    "Loss",
    "Sink",
    "count_examples",
    "find_blocks",
    "resolve_loss",
]
