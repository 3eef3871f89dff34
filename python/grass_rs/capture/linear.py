"""Linear layers: their inputs and output gradients, recorded by forward hooks.

The gradient of one example's loss with respect to a linear layer's weight is the sum over tokens of
output gradient times input (arXiv 2505.18976), so the two factors are all there is to keep, and the
weight gradients of autograd are never computed.
"""

from __future__ import annotations

import contextlib
import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.autograd.graph import GradientEdge, get_gradient_edge

from grass_rs.capture.blocks import LinearSite, linear_sites
from grass_rs.errors import UnsupportedLayerError

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from torch.utils.hooks import RemovableHandle

    from grass_rs.capture.blocks import Block

__all__ = ["Call", "Factors", "Layout", "LinearCapture"]


@dataclass(frozen=True)
class Factors:
    """Factors of the gradients of some examples with respect to a linear layer's parameters.

    Example i's gradient is `einsum("to,ti->oi", grad_outputs[i], inputs[i])`, flattened row-major,
    where `bias` says that `inputs` has one more column.
    """

    inputs: Tensor
    """(n, t, in_features), or (n, t, in_features - 1) with `bias`; no copy of what the layer was given
    unless it was cast, or the call has no part in the block's bias (its last column is zeros then)."""
    grad_outputs: Tensor
    """(n, t, out_features), of the same dtype."""
    bias: bool
    """Whether a last input column follows that `inputs` does not hold, the bias's ones."""

    def gradients(self, examples: slice, dtype: torch.dtype) -> Tensor:
        """Return the gradients of some examples themselves.

        Parameters
        ----------
        examples
            Which of the n.
        dtype
            Type to compute in.

        Returns
        -------
        torch.Tensor
            (m, out_features * in_features) of this dtype.

        """
        inputs = self.inputs[examples].to(dtype)
        grad_outputs = self.grad_outputs[examples].to(dtype)
        d_in, d_out = inputs.shape[2], grad_outputs.shape[2]
        gradients = grad_outputs.new_empty(len(inputs), d_out, d_in + self.bias)
        torch.bmm(grad_outputs.transpose(1, 2), inputs, out=gradients[:, :, :d_in])
        if self.bias:
            gradients[:, :, d_in] = grad_outputs.sum(dim=1)
        return gradients.flatten(1)


@dataclass(frozen=True)
class Layout:
    """Where a layer's input and output, (..., features), have the examples."""

    axis: int
    """The axis that holds the examples."""
    folded: bool = False
    """Whether the axis holds tokens too: several entries an example."""
    examples_first: bool = True
    """Of a folded axis: whether all entries of one example stand side by side."""

    def fits(self, shape: Sequence[int], n: int) -> bool:
        """Whether a tensor of this shape can hold n examples so."""
        if self.axis >= len(shape) - 1:
            return False
        length = shape[self.axis]
        return length % n == 0 if self.folded else length == n

    def to_examples(self, tensor: Tensor, n: int) -> Tensor:
        """Rearrange (..., features) to (n, t, features)."""
        shape = tensor.shape
        tokens = math.prod(shape[:-1]) // n
        if n > 1:
            entries = shape[self.axis] // n
            split = (n, entries) if self.examples_first else (entries, n)
            example_axis = self.axis if self.examples_first else self.axis + 1
            apart = tensor.reshape(*shape[: self.axis], *split, *shape[self.axis + 1 :])
            tensor = apart.movedim(example_axis, 0)
        return tensor.reshape(n, tokens, shape[-1])


@dataclass(frozen=True, eq=False)
class Call:
    """One call of a linear layer in a forward pass."""

    site: LinearSite
    """The layer."""
    inputs: Tensor
    """The layer's input (..., in), detached."""
    version: int
    """Version of the input when it was recorded."""
    shape: torch.Size
    """Shape (..., out) of the output."""
    edge: GradientEdge
    """Where the output's gradient arrives, also when the output is later changed in place."""

    def factors(self, grad_output: Tensor, layout: Layout, n: int) -> Factors:
        """Return the factors of this call.

        Parameters
        ----------
        grad_output
            Gradient (..., out) of the output.
        layout
            Where the layer has its examples.
        n
            Number of examples.

        Raises
        ------
        UnsupportedLayerError
            If the layout does not fit n examples.

        """
        if n > 1 and not layout.fits(self.shape, n):
            msg = (
                f"layer {self.site.name!r} expects the examples on axis {layout.axis} of its "
                f"output, where the first batch had them, got {tuple(self.shape)} for a batch of {n} "
                f"examples: leave the layer out with layers="
            )
            raise UnsupportedLayerError(msg)
        factors = self.site.block.factors
        # Under autocast the layer multiplies in the output's dtype.
        inputs = layout.to_examples(self.inputs, n).to(grad_output.dtype)
        if factors is not None and factors.bias and not self.site.bias:
            inputs = torch.cat([inputs, inputs.new_zeros((*inputs.shape[:2], 1))], dim=2)
        return Factors(inputs, layout.to_examples(grad_output, n), self.site.bias)


class LinearCapture:
    """Hooks on the linear layers of some blocks, and where each has its examples."""

    def __init__(self, model: nn.Module, blocks: Sequence[Block]) -> None:
        self._sites = linear_sites(model, blocks)
        self._calls: list[Call] | None = None
        self.layouts: dict[nn.Linear, Layout] = {}

    def attach(self) -> list[RemovableHandle]:
        """Register the hooks and return them, for the caller to remove."""
        # First of all hooks, so that the output is still the layer's own.
        return [
            site.module.register_forward_hook(self._hook_of(site), with_kwargs=True, prepend=True)
            for site in self._sites
        ]

    @contextlib.contextmanager
    def recording(self) -> Iterator[list[Call]]:
        """Record the calls inside the context; outside, the hooks do nothing.

        Raises
        ------
        UnsupportedLayerError
            If a layer's input was changed in place after its call.

        """
        calls: list[Call] = []
        self._calls = calls
        try:
            yield calls
        finally:
            self._calls = None
        for call in calls:
            if call.inputs._version != call.version:  # noqa: SLF001 - as autograd compares
                msg = (
                    f"layer {call.site.name!r}: its input was changed in place after the call, so "
                    f"the gradient of its weight is lost: use the out-of-place operation"
                )
                raise UnsupportedLayerError(msg)

    def _hook_of(self, site: LinearSite) -> Any:
        def record(
            _module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Tensor
        ) -> Tensor:
            # An output without a gradient (under no_grad) adds nothing, as in autograd.
            if self._calls is None or not output.requires_grad:
                return output
            inputs = args[0] if args else kwargs["input"]
            if output.is_nested:
                msg = (
                    f"layer {site.name!r} got a nested tensor, whose rows are not one example each: "
                    f"pad the examples instead"
                )
                raise UnsupportedLayerError(msg)
            if output._is_view():  # noqa: SLF001 - no public way to ask
                # So it is for three axes in older PyTorch, and a change in place takes the edge of a view
                # out of the graph. Nobody else has the tensor that is viewed.
                output = torch.ops.aten._unsafe_view(output, output.shape)  # noqa: SLF001
            self._calls.append(
                Call(
                    site=site,
                    inputs=inputs.detach(),
                    version=inputs._version,  # noqa: SLF001 - what autograd itself compares
                    shape=output.shape,
                    edge=get_gradient_edge(output),
                )
            )
            return output

        return record
