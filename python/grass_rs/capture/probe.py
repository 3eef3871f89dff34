"""The checks of a first batch, made on a few of its examples before anything is captured.

Per-example gradients exist only where no example's loss depends on another example, and they are the
sums over a layer's tokens only where it is known which tokens are whose. Both are found out here by
comparing examples in a batch with the same examples alone.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from grass_rs.capture.batch import replace_tensors, select_examples, tensors_of
from grass_rs.capture.linear import Call, Layout
from grass_rs.errors import GrassError, LossError, UnsupportedLayerError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence

    from grass_rs.capture.blocks import Block

__all__ = ["Probe", "choose_examples"]

_EXAMPLES = 3
_REFERENCE_BYTES = 2**30
"""Most bytes of whole parameter gradients held at a time, beyond those of one block."""
_TOLERANCES = {torch.float64: 1e-7, torch.float32: 5e-3}
_LOW_PRECISION_TOLERANCE = 5e-2
_GRADIENT_SLACK = 4
"""How many tolerances gradients of examples alone and together may differ by.

For deep transformers in bfloat16, one is nearly used up by rounding.
"""


def choose_examples(losses: Tensor) -> list[int]:
    """Return at most three examples to probe: those of the largest finite losses, in order.

    Small losses say little: of a well-trained model's, rounding may be all there is.
    """
    size = torch.where(losses.isfinite(), losses.abs(), -1.0)
    found: list[int] = size.topk(min(_EXAMPLES, len(losses))).indices.tolist()
    return sorted(found)


class Probe:
    """A few examples together and each alone, and what the gradient of each one's loss reaches.

    Building it costs a forward pass and m backward passes over m examples together, and m forward
    passes over one example each.

    Parameters
    ----------
    forward
        (batch, n) -> losses and calls of linear layers.
    batch
        A batch with the examples.
    chosen
        Which m examples of the batch.
    parameters
        All captured parameters by name.

    Raises
    ------
    LossError
        If the loss fails on a batch of one example.
    UnsupportedLayerError
        If reentrant checkpointing hides layers from autograd.

    """

    def __init__(
        self,
        forward: Callable[[Any, int], tuple[Tensor, list[Call]]],
        batch: Any,
        chosen: Sequence[int],
        parameters: Mapping[str, nn.Parameter],
    ) -> None:
        self.chosen = list(chosen)
        self._parameters = parameters
        self._alone = [
            _run_alone(forward, select_examples(batch, [i])) for i in chosen if len(chosen) > 1
        ]
        leaves = tensors_of(select_examples(batch, chosen))
        self._floats = [leaf.requires_grad_() for leaf in leaves if leaf.is_floating_point()]
        # Copies, since the model may change its input in place.
        together = replace_tensors(batch, [leaf.clone() for leaf in leaves])
        self._losses, self._calls = forward(together, len(chosen))
        self._outputs: list[tuple[Tensor | None, ...]] = []
        self._inputs: list[tuple[Tensor | None, ...]] = []
        for i in range(len(chosen)):
            found = self._gradients(i, [*(call.edge for call in self._calls), *self._floats])
            self._outputs.append(found[: len(self._calls)])
            self._inputs.append(found[len(self._calls) :])
        self._tolerance = self._find_tolerance()

    def check_losses(self, losses: Tensor) -> None:
        """Check that examples have the same loss in the whole batch, in the probe, and alone.

        Raises
        ------
        LossError
            If one has not.

        """
        n = len(losses)
        self._compare_losses(losses[self.chosen], f"in the batch of {n}")
        if self._alone:
            alone = torch.stack([loss for loss, _ in self._alone])
            self._compare_losses(alone, "alone")
            self._refuse_mean(alone)

    def check_connected(self, blocks: Sequence[Block]) -> None:
        """Check that the losses depend on a captured parameter.

        Raises
        ------
        LossError
            If they depend on none.

        """
        for group in self._groups(blocks):
            parameters = [self._parameters[name] for block in group for name in block.parameters]
            for i in range(len(self.chosen)):
                if any(gradient is not None for gradient in self._gradients(i, parameters)):
                    return
        msg = (
            "loss expects to depend on the captured parameters, but no gradient reaches one: compute "
            "it with the given model, not with another or a copy"
        )
        raise LossError(msg)

    def check_inputs(self) -> None:
        """Check that the gradient of an example's loss reaches no other example's input.

        Raises
        ------
        LossError
            If it does.

        """
        for i, gradients in enumerate(self._inputs):
            for gradient in gradients:
                reached = None if gradient is None else _other_rows(gradient, i)
                if reached is not None:
                    msg = (
                        f"loss expects independent examples, but the gradient of example "
                        f"{self.chosen[i]}'s loss reaches example {self.chosen[reached]}: return "
                        f"losses that depend on one example each (no batch statistics, no in-batch "
                        f"negatives, no attention across the batch)"
                    )
                    raise LossError(msg)

    def find_layouts(self) -> dict[nn.Linear, Layout]:
        """Return where each called linear layer has its examples.

        An axis holds the examples if its length grows with their number, and if the gradient of
        each one's loss reaches only that example's part of the layer's output.

        Raises
        ------
        UnsupportedLayerError
            If no place, or more than one, fits a layer.
        LossError
            If in every layer the gradient of one example's loss reaches others.

        """
        if not self._alone:
            return {}
        layouts: dict[nn.Linear, Layout] = {}
        mixing: list[GrassError] = []
        modules = dict.fromkeys(call.site.module for call in self._calls)
        for module in modules:
            indices = [j for j, call in enumerate(self._calls) if call.site.module is module]
            by_shape = self._layouts_by_shape(module, indices)
            unmixed = [layout for layout in by_shape if not self._mixes(layout, indices)]
            if by_shape and not unmixed:
                mixing.append(self._mixing_error(indices[0]))
            else:
                layouts[module] = self._choose(unmixed, indices[0])
        if mixing:
            if len(mixing) == len(modules) and not self._has_input_gradients():
                msg = (
                    f"loss expects independent examples, but in every linear layer the gradient of "
                    f"one example's loss reaches other examples (first: {mixing[0]}): return losses "
                    f"that depend on one example each"
                )
                raise LossError(msg)
            raise mixing[0]
        return layouts

    def check_factors(self, blocks: Iterable[Block], layouts: Mapping[nn.Linear, Layout]) -> bool:
        """Check that the factors give the gradients that autograd gives.

        Returns
        -------
        bool
            Whether all gradients were finite, so that they could be compared.

        Raises
        ------
        UnsupportedLayerError
            If they differ.

        """
        conclusive = True
        for block, i, reference in self._references([b for b in blocks if b.factors is not None]):
            found, scale = self._from_factors(block, i, layouts, reference)
            if not (found.isfinite().all() and reference.isfinite().all()):
                conclusive = False
            elif (found - reference).norm() > self._tolerance * scale:
                msg = (
                    f"layer {block.name!r}: the gradient from its calls is not autograd's (norm "
                    f"{float(found.norm()):.3g} instead of {float(reference.norm()):.3g}): its weight "
                    f"is used without calling the layer, or its calls do not run as recorded "
                    f"(torch.compile, a backward pass of its own); leave it out with layers="
                )
                raise UnsupportedLayerError(msg)
        return conclusive

    def find_difference(
        self, gradients: Mapping[Block, Tensor], blocks: Sequence[Block]
    ) -> Block | None:
        """Return the first block whose gradients (m, p) are not those that autograd gives, if any.

        Some blocks' gradients cancel to mere rounding, of a scale before a normalisation for one:
        what is nothing next to the gradients of all blocks (with factors too) is no difference.
        """
        if not gradients:
            return None
        differences, sizes = dict.fromkeys(gradients, 0.0), dict.fromkeys(blocks, 0.0)
        for block, i, reference in self._references(blocks):
            found = gradients[block][i].to(reference.dtype) if block in gradients else reference
            if found.isfinite().all() and reference.isfinite().all():
                sizes[block] += float(reference.square().sum())
                if block in gradients:
                    differences[block] += float((found - reference).square().sum())
        relative = (_GRADIENT_SLACK * self._tolerance) ** 2
        rounding = self._tolerance**4 * sum(sizes.values())
        for block, difference in differences.items():
            if difference > relative * sizes[block] + rounding:
                return block
        return None

    def _gradients(self, i: int, targets: Sequence[Any]) -> tuple[Tensor | None, ...]:
        if not targets or not self._losses.requires_grad:
            return (None,) * len(targets)
        try:
            return torch.autograd.grad(
                self._losses[i], targets, retain_graph=True, allow_unused=True
            )
        except RuntimeError as error:
            if "checkpoint" not in str(error):
                raise
            msg = (
                "capture needs autograd to see every layer, but the model runs layers in reentrant "
                "checkpoints: switch checkpointing off, or set use_reentrant=False"
            )
            raise UnsupportedLayerError(msg) from error

    def _find_tolerance(self) -> float:
        dtypes = {self._losses.dtype}
        for parameter in self._parameters.values():
            device = parameter.device.type
            autocast = torch.is_autocast_enabled(device)
            dtypes.add(torch.get_autocast_dtype(device) if autocast else parameter.dtype)
        return max(_TOLERANCES.get(dtype, _LOW_PRECISION_TOLERANCE) for dtype in dtypes)

    def _compare_losses(self, others: Tensor, where: str) -> None:
        losses = self._losses.detach()
        finite = losses.isfinite() & others.isfinite()
        largest = losses[finite].abs().max() if finite.any() else losses.new_zeros(())
        # The last term is the rounding of outputs of some tens.
        allowed = self._tolerance * (largest + 16 * torch.finfo(losses.dtype).eps)
        differ = (losses - others).abs() > allowed
        differ &= losses.isfinite() | others.isfinite()
        differ |= losses.isfinite() != others.isfinite()
        if differ.any():
            i = int(differ.nonzero()[0])
            msg = (
                f"loss expects the same value for an example whatever else is in the batch, but "
                f"example {self.chosen[i]} has {float(losses[i]):.6g} in a batch of {len(losses)} and "
                f"{float(others[i]):.6g} {where}: return plain per-example losses (no division by "
                f"the batch size, no batch statistics, no in-batch negatives, no random numbers)"
            )
            raise LossError(msg)

    def _refuse_mean(self, alone: Tensor) -> None:
        """Refuse losses divided by the batch size, also where they are as small as rounding."""
        losses, m = self._losses.detach(), len(alone)
        close = (m * losses - alone).abs() <= self._tolerance * alone.abs()
        if m > 1 and bool((close & (alone != 0) & alone.isfinite()).all()):
            msg = (
                f"loss expects the same value for an example whatever else is in the batch, but all are "
                f"divided by the batch size: example {self.chosen[0]} has {float(losses[0]):.6g} in a "
                f"batch of {m} and {float(alone[0]):.6g} alone: do not average"
            )
            raise LossError(msg)

    def _layouts_by_shape(self, module: nn.Linear, indices: Sequence[int]) -> list[Layout]:
        alone = [
            [call.shape for call in calls if call.site.module is module] for _, calls in self._alone
        ]
        comparable = all(len(shapes) == len(indices) for shapes in alone)
        per_call = [
            _layouts_of_shape(
                self._calls[j].shape,
                [shapes[position] for shapes in alone] if comparable else None,
                len(self.chosen),
            )
            for position, j in enumerate(indices)
        ]
        return [layout for layout in per_call[0] if all(layout in found for found in per_call)]

    def _mixes(self, layout: Layout, indices: Sequence[int]) -> bool:
        for i, gradients in enumerate(self._outputs):
            for j in indices:
                gradient = gradients[j]
                if gradient is not None:
                    rows = layout.to_examples(gradient, len(self.chosen))
                    if _other_rows(rows, i) is not None:
                        return True
        return False

    def _mixing_error(self, j: int) -> UnsupportedLayerError:
        call = self._calls[j]
        return UnsupportedLayerError(
            f"layer {call.site.name!r} expects one example's tokens apart from another's, but the "
            f"gradient of one example's loss reaches several along every axis of its output "
            f"{tuple(call.shape)} that could hold {len(self.chosen)} examples: leave it out with "
            f"layers="
        )

    def _choose(self, layouts: Sequence[Layout], j: int) -> Layout:
        unfolded = [layout for layout in layouts if not layout.folded]
        fitting = unfolded or layouts
        if len(fitting) == 1:
            return fitting[0]
        call = self._calls[j]
        alone = [c.shape for _, calls in self._alone for c in calls if c.site is call.site]
        reason = "more than one place fits" if fitting else "no axis grows with their number"
        shape = f"{tuple(call.shape)} for {len(self.chosen)} examples"
        msg = (
            f"layer {call.site.name!r} expects the examples on an axis of its output, got {shape} "
            f"and {tuple(alone[0]) if alone else 'no call'} for one: {reason}; keep the examples on "
            f"the first axis, or leave the layer out with layers="
        )
        raise UnsupportedLayerError(msg)

    def _has_input_gradients(self) -> bool:
        return any(gradient is not None for found in self._inputs for gradient in found)

    def _references(self, blocks: Sequence[Block]) -> Iterator[tuple[Block, int, Tensor]]:
        """Yield every block's gradient (p,) of every example, by autograd, in bounded memory."""
        for group in self._groups(blocks):
            names = [name for block in group for name in block.parameters]
            for i in range(len(self.chosen)):
                gradients = self._gradients(i, [self._parameters[name] for name in names])
                by_name = dict(zip(names, gradients, strict=True))
                for block in group:
                    yield block, i, self._reference(block, by_name)

    def _groups(self, blocks: Sequence[Block]) -> Iterator[list[Block]]:
        group: list[Block] = []
        held = 0
        for block in blocks:
            size = sum(self._parameters[name].nbytes for name in block.parameters)
            if group and held + size > _REFERENCE_BYTES:
                yield group
                group, held = [], 0
            group.append(block)
            held += size
        if group:
            yield group

    def _reference(self, block: Block, gradients: Mapping[str, Tensor | None]) -> Tensor:
        parts = []
        for name in block.parameters:
            gradient = gradients[name]
            if gradient is None:
                gradient = torch.zeros_like(self._parameters[name])
            dense = gradient.to_dense() if gradient.is_sparse else gradient
            parts.append(dense.to(torch.promote_types(dense.dtype, torch.float32)))
        if block.factors is not None and len(parts) == 2:
            return torch.cat([parts[0], parts[1].unsqueeze(1)], dim=1).flatten()
        return torch.cat([part.flatten() for part in parts])

    def _from_factors(
        self, block: Block, i: int, layouts: Mapping[nn.Linear, Layout], reference: Tensor
    ) -> tuple[Tensor, float]:
        """Return the gradient (p,) from the factors, and the sum of the lengths of its terms."""
        found, scale = torch.zeros_like(reference), 0.0
        n = len(self.chosen)
        for call, gradient in zip(self._calls, self._outputs[i], strict=True):
            if call.site.block is block and gradient is not None:
                layout = layouts.get(call.site.module, Layout(0))
                factors = call.factors(gradient, layout, n)
                found += factors.gradients(slice(i, i + 1), reference.dtype)[0]
                inputs = factors.inputs[i].to(reference.dtype)
                grad_outputs = factors.grad_outputs[i].to(reference.dtype)
                lengths = (inputs.square().sum(dim=1) + factors.bias).sqrt()
                scale += float((lengths * grad_outputs.norm(dim=1)).sum())
        return found, scale


def _run_alone(
    forward: Callable[[Any, int], tuple[Tensor, list[Call]]], batch: Any
) -> tuple[Tensor, list[Call]]:
    try:
        losses, calls = forward(batch, 1)
    except GrassError:
        raise
    except Exception as error:
        msg = (
            f"loss expects any number of examples, but fails on a batch of one of them "
            f"({type(error).__name__}: {error}): make loss and model take batches of one"
        )
        raise LossError(msg) from error
    return losses[0].detach(), calls


def _layouts_of_shape(
    shape: torch.Size, alone: Sequence[torch.Size] | None, m: int
) -> list[Layout]:
    """Return the layouts that (..., features) can have with m examples, given its shape with one."""
    layouts = []
    for axis in range(len(shape) - 1):
        entries, rest = divmod(shape[axis], m)
        if alone is None:
            grows = entries == 1
        else:
            grows = all(len(one) == len(shape) and one[axis] == entries for one in alone)
        if rest or not entries or not grows:
            continue
        if entries == 1:
            layouts.append(Layout(axis))
        else:
            layouts += [Layout(axis, folded=True, examples_first=first) for first in (True, False)]
    return layouts


def _other_rows(gradient: Tensor, i: int) -> int | None:
    """Return the first row but i that a gradient reaches; a NaN is no evidence (0 times infinity)."""
    dense = gradient.to_dense() if gradient.is_sparse else gradient
    rows = dense.reshape(len(dense), -1)
    reached = (rows.nan_to_num(0.0, 0.0, 0.0) != 0).any(dim=1)
    reached[i] = False
    return int(reached.nonzero()[0]) if reached.any() else None
