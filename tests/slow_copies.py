"""What stands for a GPU in tests of transfers: copies that are made only when they are waited for."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import torch

if TYPE_CHECKING:
    from torch import Tensor


@dataclass
class SlowCopy:
    """A copy that was begun."""

    number: int
    tensor: Tensor
    memory: Tensor
    log: list[str]

    def synchronize(self) -> None:
        self.log.append(f"wait {self.number}")
        self.memory.copy_(self.tensor)


@dataclass
class SlowCopies:
    """The calls of `CudaCopies`, on the CPU: until a copy is waited for, its memory holds NaN, or False."""

    log: list[str] = field(default_factory=list)
    begun: int = 0

    def needed(self, _: Tensor) -> bool:
        return True

    def memory(self, tensor: Tensor) -> Tensor:
        poison = torch.nan if tensor.is_floating_point() else False
        return torch.full_like(tensor, poison)

    def begin(self, tensor: Tensor, memory: Tensor) -> SlowCopy:
        copy = SlowCopy(self.begun, tensor, memory, self.log)
        self.log.append(f"begin {self.begun}")
        self.begun += 1
        return copy
