"""What every objective shares: the call, the checks, full precision."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from inspect import signature
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from manyviews.distributed import LOCAL, Gather
from manyviews.heads import LogitScale
from manyviews.names import meant
from manyviews.similarity import full_precision


class Objective(nn.Module, ABC):
    """Compares the views of a batch: `loss = objective(views, gather=..., **context)`.

    Called with V tensors (n, D), or one (V, n, D): un-normalised, un-gathered embeddings of n images in V views, any
    float type. Returns the scalar loss of the global batch, the same on every rank, its gradient exact under DDP.
    Detached readings of the call lie in `diagnostics`. It works in any PyTorch loop; `gather` is only needed where
    ranks share a batch (`manyviews.distributed.current()`).

    A subclass writes its equation in `loss`, which receives float32 (or float64) views with autocast off, and the
    rows of the global batch. Of the context it names what it needs:

    - `targets`: as many tensors as views; targets[v] is what views[v] shall match, and a constant to it;
    - `index` (n,): the sample's id in its data set; `label` (n,), -1 unknown; `group` (n,): images of equal group >= 0
      are not each other's negatives;
    - `present` (n, V) bool: which views a sample has; an objective that does not name it refuses it;
    - `epoch`: of the run.
    """

    batch_coupled: ClassVar[bool] = True
    """Whether the loss of one image depends on the others of its batch, so that batches must not be accumulated."""

    fewest: ClassVar[int] = 2
    """Views that it takes at least."""

    fewest_images: ClassVar[int] = 1
    """Images that the global batch must hold at least: 2 where a variance or a mean over pairs of images is taken."""

    def __init__(self) -> None:
        super().__init__()
        self.diagnostics: dict[str, Tensor] = {}

    def forward(self, views: Sequence[Tensor] | Tensor, *, gather: Gather = LOCAL, **context: Any) -> Tensor:
        """The loss of `views`; `context` is what the paper needs besides (see the subclass).

        Raises:
            TypeError: for a name in `context` that the objective does not take.
            ValueError: for views, or what stands beside them, that it cannot compare.
        """
        views = list(views)
        self._check(views)
        takes = self.takes()
        for name in context:
            if name not in takes:
                raise self._unknown(name, takes)
        self.diagnostics = {}
        rows = gather(len(views[0]))
        if rows.total < self.fewest_images:
            raise ValueError(
                f"{type(self).__name__} compares images of a batch: got {rows.total}, expected {self.fewest_images} or "
                "more on all ranks together"
            )
        with torch.autocast(views[0].device.type, enabled=False):
            return self.loss(in_full(views), rows, **in_full(context))

    @abstractmethod
    def loss(self, *views_and_rows: Any, **context: Any) -> Tensor:
        """The equation, `loss(views, rows, ...)`, with a name for everything of the context that it takes.

        `views`: V tensors (n, D); `rows`: the global batch this rank's n images belong to. All floats are float32 or
        float64.
        """

    def takes(self) -> set[str]:
        """The names of the context that the loss takes; a wrapper adds those of the objective that it wraps."""
        return {
            name
            for name, parameter in signature(self.loss).parameters.items()
            if name not in ("views", "rows") and parameter.kind is not parameter.VAR_KEYWORD
        }

    def _unknown(self, name: str, takes: set[str]) -> Exception:
        who = type(self).__name__
        if name == "present":
            return ValueError(
                f"{who} wants all views of every sample: use MVInfoNCE or MVDHEL for samples that lack some "
                "(data.missing)"
            )
        if not takes:
            return TypeError(f"{who} takes the views only, no {name!r}")
        return TypeError(f"{who} takes no {name!r}" + meant(name, takes))

    @torch.no_grad()
    def constrain(self) -> None:
        """To be called after each step of the optimiser: brings parameters back to where they belong.

        Its own and those of objectives inside it.
        """
        for part in self.modules():
            if isinstance(part, LogitScale):
                part.clamp()
            elif isinstance(part, Objective):
                part._constrain_own()

    def _constrain_own(self) -> None:
        """What a subclass does to parameters of its own."""

    def _check(self, views: list[Tensor]) -> None:
        name, shapes = type(self).__name__, [tuple(view.shape) for view in views]
        if len(views) < self.fewest:
            raise ValueError(f"{name} compares views: got {len(views)}, expected {self.fewest} or more tensors (n, D)")
        if any(len(shape) != 2 or shape != shapes[0] for shape in shapes):
            raise ValueError(f"{name}: views must all be (n, D) with the same n and D, got {shapes}")


def in_full(value: Any) -> Any:
    """A tensor in float32 or better, and so all floating tensors of a list, tuple or dict; anything else as it is."""
    if isinstance(value, Tensor):
        return full_precision(value) if value.is_floating_point() else value
    if isinstance(value, dict):
        return {name: in_full(each) for name, each in value.items()}
    if isinstance(value, list | tuple):
        parts = [in_full(each) for each in value]
        return type(value)(*parts) if hasattr(value, "_fields") else type(value)(parts)
    return value


def exactly_two(objective: Objective, views: list[Tensor]) -> tuple[Tensor, Tensor]:
    """The two views of a two-view objective, or an error that names the way out."""
    if len(views) != 2:
        raise ValueError(
            f"{type(objective).__name__} is defined for 2 views, got {len(views)}: "
            "use MVInfoNCE, MVDHEL, PairwiseViews, AverageViews or PolyView for more"
        )
    return views[0], views[1]


def paired(objective: Objective, views: list[Tensor], targets: Sequence[Tensor] | None) -> list[tuple[Tensor, Tensor]]:
    """(view, target) for each view: what an objective with a second, constant side compares, in full precision."""
    name, shapes = type(objective).__name__, [tuple(view.shape) for view in views]
    if targets is None:
        raise ValueError(
            f"{name} needs targets=[...], one (n, D) tensor a view: targets[v] is what views[v] shall match"
        )
    found = [tuple(target.shape) for target in targets]
    if found != shapes:
        raise ValueError(f"{name}: targets must have the shapes of the views, {shapes}, got {found}")
    return list(zip(views, targets, strict=True))


def known(objective: Objective, **tensors: Tensor | None) -> list[Tensor]:
    """The tensors of a context that an objective cannot do without, or an error that names what is missing."""
    missing = [name for name, tensor in tensors.items() if tensor is None]
    if missing:
        raise ValueError(
            f"{type(objective).__name__} needs {' and '.join(missing)} of every image: pass {missing[0]}=... "
            f"(in a recipe, data with {'a label field' if 'label' in missing else missing[0]})"
        )
    return [tensor for tensor in tensors.values() if tensor is not None]


def positive(name: str, value: float) -> float:
    """`value` if it is a positive number; temperatures are checked once, at construction."""
    if not value > 0:
        raise ValueError(f"{name} must be > 0, got {value}")
    return value


def choice(name: str, value: str, allowed: Sequence[str]) -> str:
    """`value` if it is one of the allowed words."""
    if value not in allowed:
        raise ValueError(f"{name} must be one of {', '.join(map(repr, allowed))}, got {value!r}")
    return value
