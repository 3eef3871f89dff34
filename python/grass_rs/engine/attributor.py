"""The attributor: caches compressed gradients of training examples and scores queries against them."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from functools import partial
from itertools import islice
from typing import TYPE_CHECKING, Any, overload

import numpy as np
import torch

from grass_rs.capture import Capture, find_blocks, resolve_loss
from grass_rs.engine.checkpoints import Checkpoints
from grass_rs.engine.examples import Examples
from grass_rs.engine.plan import Plan
from grass_rs.engine.rows import DeviceRows, RowLayout
from grass_rs.engine.transfer import Transfer
from grass_rs.errors import NonFiniteError, SpecError, StoreNotFoundError, unknown_name
from grass_rs.store import (
    Store,
    check_same_columns,
    check_same_fingerprints,
    create_store,
    open_store,
)
from grass_rs.types import Column

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Iterable, Mapping
    from os import PathLike

    from numpy.typing import NDArray

    from grass_rs.capture import Loss
    from grass_rs.store.score import Dampings
    from grass_rs.types import Scores

_NONFINITE = ("raise", "skip")
_TRAK_WEIGHT = {"type": "trak_weight"}


@dataclass(frozen=True)
class _Batch:
    """The compressed examples of one batch."""

    ids: NDArray[np.uint64]
    rows: NDArray[np.float32]
    finite: NDArray[np.bool_]

    def refuse_nonfinite(self, remedy: str) -> None:
        if not self.finite.all():
            raise NonFiniteError(
                f"expected finite losses and gradients, got a NaN or an infinity for example "
                f"{self.ids[~self.finite][0]} ({int((~self.finite).sum())} in its batch): {remedy}"
            )


class Attributor:
    """Caches the compressed gradients of training examples, and scores them for queries.

    Parameters
    ----------
    model
        A trained PyTorch model. It is left exactly as it was found.
    loss
        (model, batch) -> per-example losses (n,), or one of "cross_entropy", "mse" (summed over
        outputs), "binary_cross_entropy", "causal_lm" (summed over tokens), which take batches
        (inputs, targets). The loss of an example must not depend on the rest of its batch.
    plan
        What is captured and how it is compressed; or, with `checkpoints`, a list with the plan of
        each, all of the same blocks.
    checkpoints
        State dicts of the model, or files of them (`torch.save`, safetensors): a row then has the
        gradients at every checkpoint side by side, in columns NAME@0, NAME@1, and so on. They are
        loaded into the model in turn for every batch, and its own weights put back at the end.

    Raises
    ------
    SpecError
        If the loss is unknown, a plan was made for another model, or a checkpoint does not fit it.

    """

    def __init__(
        self,
        model: torch.nn.Module,
        loss: str | Loss,
        plan: Plan | Sequence[Plan],
        *,
        checkpoints: Sequence[Mapping[str, torch.Tensor] | str | PathLike[str]] | None = None,
    ) -> None:
        self._loss = resolve_loss(loss)
        self._checkpoints = Checkpoints(model, checkpoints)
        self._plans = _one_each(plan, len(self._checkpoints.suffixes))
        found = {block.name: block for block in find_blocks(model)}
        for block in self._plans[0].blocks:
            if found.get(block.name) != block:
                raise SpecError(
                    f"Attributor: the plan's block {block.name!r} has parameters {block.parameters}, the "
                    f"model has {found.get(block.name)}: make the plan with Plan.for_model of this model"
                )
        self._model = model
        self._weighted = loss == "margin"

    @property
    def columns(self) -> tuple[Column, ...]:
        """Columns of a row: those of the plan, of every checkpoint.

        With the loss "margin" each checkpoint has one more, "(weight)", of width 1: TRAK's
        Q = 1 - p, one less the probability of the example's class.
        """
        columns: list[Column] = []
        for plan, suffix in zip(self._plans, self._checkpoints.suffixes, strict=True):
            offset = columns[-1].offset + columns[-1].width if columns else 0
            columns += [
                replace(column, name=column.name + suffix, offset=offset + column.offset)
                for column in plan.columns
            ]
            if self._weighted:
                columns.append(Column(f"(weight){suffix}", offset + plan.width, 1, _TRAK_WEIGHT))
        return tuple(columns)

    def cache(
        self,
        loader: Iterable[Any],
        path: str | PathLike[str],
        dtype: str = "float32",
        *,
        ids: Callable[[Any], Any] | None = None,
        resume: bool = True,
        progress: bool = True,
        on_nonfinite: str = "raise",
        commit_bytes: int = 64 * 2**20,
        commit_seconds: float = 30.0,
    ) -> Store:
        """Write the compressed gradient of every training example to a store.

        An interrupted call, by `kill -9` too, is finished by the same call again: committed
        examples are skipped, and the store is equal byte for byte to an uninterrupted one. A store
        that is finished already is checked against the loader's ids and returned. Rows of a model on
        a GPU are written while the next batches are computed, at most two of them.

        Parameters
        ----------
        loader
            Batches whose tensors have the examples on the first axis, in the same order each time.
        path
            Folder of the store.
        dtype
            Type of the stored numbers: "float32", "float16", "bfloat16" or "int8".
        ids
            batch -> (n,) whole numbers from 0, no two alike in the loader; None numbers the
            examples in the loader's order.
        resume
            Whether to go on with a store that is there; False refuses it.
        progress
            Whether to show a progress bar.
        on_nonfinite
            What to do about an example whose loss or gradient has a NaN or an infinity: "raise", or
            "skip" it and list its id in the store's `skipped_ids`.
        commit_bytes, commit_seconds
            Rows are made safe against a crash when this many bytes, or seconds, have gathered.

        Raises
        ------
        DataError
            If the loader yields nothing, repeats an id, or yields other examples than the store holds.
        NonFiniteError
            If a gradient is not finite; what was cached before stays.
        LossError, UnsupportedLayerError
            If per-example gradients cannot be captured rightly.
        StoreMismatchError
            If the store there was made with another plan, seed, dtype or model.
        StoreError
            If the store cannot be written; what was committed stays.

        """
        if on_nonfinite not in _NONFINITE:
            raise SpecError(unknown_name("on_nonfinite", on_nonfinite, _NONFINITE))
        examples = Examples(loader, ids, progress=progress, description="cache")
        create = partial(
            create_store,
            path,
            self.columns,
            dtype,
            fingerprints=self._fingerprints(),
            resume=resume,
            commit_bytes=commit_bytes,
            commit_seconds=commit_seconds,
        )
        with ExitStack() as stack:
            begun = _open_if_there(path)
            # A new store is made when its first rows are there, so that a failure before leaves none.
            writer = None if begun is None else stack.enter_context(create())
            if begun is not None and begun.complete:
                examples.check_all_stored(begun.ids, begun.skipped_ids)
                return begun
            committed = set() if writer is None else set(writer.committed_ids.tolist())
            skipped: list[int] = []

            def append(batch: _Batch) -> None:
                nonlocal writer
                if on_nonfinite == "raise":
                    batch.refuse_nonfinite("mend it, or cache with on_nonfinite='skip'")
                writer = writer or stack.enter_context(create())
                missing = np.array([example not in committed for example in batch.ids.tolist()])
                kept = missing & batch.finite
                skipped.extend(batch.ids[missing & ~kept].tolist())
                writer.append(batch.rows[kept], batch.ids[kept])

            self._compress(examples, append, committed)
            examples.check_contains(committed)
            writer = writer or stack.enter_context(create())
            return writer.finish(skipped)

    @overload
    def score(
        self,
        query_loader: Iterable[Any],
        store: Store,
        method: str = ...,
        damping: float | None = ...,
        *,
        columns: str | Iterable[str] | None = ...,
        learning_rates: Iterable[float] | None = ...,
        fisher: str = ...,
        top_k: int | None = ...,
        out: str | PathLike[str] | None = ...,
        progress: bool = ...,
    ) -> Scores: ...

    @overload
    def score(
        self,
        query_loader: Iterable[Any],
        store: Store,
        method: str = ...,
        damping: Dampings = ...,
        *,
        columns: str | Iterable[str] | None = ...,
        learning_rates: Iterable[float] | None = ...,
        fisher: str = ...,
        top_k: int | None = ...,
        out: None = ...,
        progress: bool = ...,
    ) -> list[Scores]: ...

    def score(
        self,
        query_loader: Iterable[Any],
        store: Store,
        method: str = "influence",
        damping: float | Dampings | None = None,
        *,
        columns: str | Iterable[str] | None = None,
        learning_rates: Iterable[float] | None = None,
        fisher: str = "layer",
        top_k: int | None = None,
        out: str | PathLike[str] | None = None,
        progress: bool = True,
    ) -> Scores | list[Scores]:
        """Score every training example of a store for every query.

        Parameters
        ----------
        query_loader
            Batches of queries, like the loader of `cache`.
        store
            What `cache` returned, made with this plan and model.
        method
            "influence": g_query^T (F + lambda I)^-1 g_train, with the empirical Fisher
            F = (1/n) sum g g^T of each layer; "graddot": g_query^T g_train; "gradcos": the cosine of
            whole rows; "tracin": the sum over checkpoints of learning rate times graddot; "trak":
            influence times the mean of Q = 1 - p of the training example, which the loss "margin"
            stores. Over several checkpoints all but `tracin` and `gradcos` are means.
        damping
            Ridge lambda of a layer in units of tr(F) / n; None for 0.4, or 1.0 with fisher="row"; a
            sequence of numbers gives a list of scores, one each.
        columns, learning_rates, fisher
            Which columns count, the learning rates of `tracin`, and whether F has a block a layer or
            one for all, as for `Store.score`.
        top_k
            Keep only the best k training examples of each query.
        out
            A file "NAME.npy" for all scores, as for `Store.score`.
        progress
            Whether to show progress bars, of queries and then of stored rows.

        Returns
        -------
        Scores or list of Scores
            Values (n_query, n_train) float32; positive = training on it lowers the query's loss.

        Raises
        ------
        DataError
            If the loader yields nothing.
        NonFiniteError
            If a query's gradient is not finite.
        StoreMismatchError
            If the store was made with another plan, seed or model.
        StoreError
            If the store is unfinished, empty or damaged.
        ScoresFileError
            If `out` cannot be written, or another call began it.

        """
        if not isinstance(store, Store):
            raise SpecError(
                f"score expects a Store, got {store!r}: open it with grass_rs.open_store"
            )
        check_same_columns(store.path, store.columns, self.columns)
        check_same_fingerprints(store.path, store.fingerprints, self._fingerprints())
        queries = self.compress(query_loader, progress=progress)
        return store.score(
            queries,
            method,
            damping,
            top_k,
            columns=columns,
            learning_rates=learning_rates,
            fisher=fisher,
            out=out,
            progress=progress,
        )

    def compress(self, loader: Iterable[Any], *, progress: bool = True) -> NDArray[np.float32]:
        """Return the compressed gradients of all examples of a loader, in its order.

        Returns
        -------
        numpy.ndarray
            (n, width) float32, the attributor's columns side by side.

        Raises
        ------
        DataError
            If the loader yields nothing.
        NonFiniteError
            If a gradient is not finite.

        """
        parts: list[NDArray[np.float32]] = []

        def keep(batch: _Batch) -> None:
            batch.refuse_nonfinite("mend the example or leave it out")
            # Not to keep the memory of all batches pinned.
            parts.append(batch.rows.copy())

        self._compress(Examples(loader, None, progress=progress, description="queries"), keep)
        return np.concatenate(parts)

    def _compress(
        self,
        examples: Examples,
        take: Callable[[_Batch], None],
        committed: Collection[int] = (),
    ) -> None:
        """Hand the rows of batch after batch to `take`, which may read them until it returns.

        Left out are batches of committed examples alone; others are whole, so that their rows have
        the bits they would have had.
        """
        layouts = [RowLayout(self._model, plan) for plan in self._plans]

        def arrived(arrays: list[NDArray[Any]], ids: NDArray[np.uint64]) -> None:
            *parts, finite = arrays
            rows = self._side_by_side(layouts, parts)
            # Finite factors may have a product that float32 does not hold.
            take(_Batch(ids, rows, finite & np.isfinite(rows).all(axis=1)))

        with (
            self._checkpoints.held(),
            Capture(self._model, self._loss, self._plans[0].blocks) as capture,
            Transfer(arrived) as to_host,
        ):
            for batch, ids in examples:
                if all(example in committed for example in ids.tolist()):
                    continue
                parts: list[torch.Tensor] = []
                finite: list[torch.Tensor] = []
                for number, layout in enumerate(layouts):
                    self._checkpoints.load(number)
                    rows = DeviceRows(layout, len(ids))
                    captured = capture.run(batch, rows.add)
                    parts += rows.parts
                    if self._weighted:
                        parts.append(_trak_weights(captured.losses))
                    finite.append(captured.finite)
                to_host.send([*parts, torch.stack(finite).all(dim=0)], ids)

    def _side_by_side(
        self, layouts: Sequence[RowLayout], parts: Sequence[NDArray[Any]]
    ) -> NDArray[np.float32]:
        """Return rows from the parts of all checkpoints, each followed by its weights."""
        groups, left = [], iter(parts)
        for layout in layouts:
            groups.append(layout.side_by_side(list(islice(left, len(layout.widths)))))
            groups += islice(left, int(self._weighted))
        return groups[0] if len(groups) == 1 else np.concatenate(groups, axis=1)

    def _fingerprints(self) -> dict[str, str]:
        plans = [plan.fingerprint for plan in self._plans]
        whole = plans[0] if len(plans) == 1 else hashlib.sha256("".join(plans).encode()).hexdigest()
        return {"plan": whole, "model": self._checkpoints.fingerprint()}


def _open_if_there(path: str | PathLike[str]) -> Store | None:
    try:
        return open_store(path)
    except StoreNotFoundError:
        return None


def _one_each(plan: Plan | Sequence[Plan], count: int) -> list[Plan]:
    """Return the plan of each of `count` checkpoints."""
    plans = [plan] * count if isinstance(plan, Plan) else plan
    if not isinstance(plans, Sequence) or not all(isinstance(each, Plan) for each in plans):
        raise SpecError(f"Attributor expects a Plan, got {plan!r}: make it with Plan.for_model")
    if len(plans) != count or any(each.blocks != plans[0].blocks for each in plans):
        raise SpecError(
            f"Attributor expects one Plan, or one for each of {count} checkpoints, all of the same "
            f"blocks, got {len(plans)} plans of {[len(each) for each in plans]} blocks: make them with "
            f"the same layers="
        )
    return list(plans)


def _trak_weights(margin_losses: torch.Tensor) -> torch.Tensor:
    """Return 1 - p (n, 1) float32 of the losses -log(p / (1 - p))."""
    return margin_losses.detach().float().sigmoid()[:, None]
