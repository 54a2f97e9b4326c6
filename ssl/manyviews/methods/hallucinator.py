"""Hallucinator-style extra positives over SimCLR, MoCo or SimSiam (after Wu et al., ICCV 2023)."""

from __future__ import annotations

from functools import partial

from torch import nn

from manyviews import objectives
from manyviews.heads import projector
from manyviews.methods.asymmetric import Asymmetric
from manyviews.optim import LARS, OptimizerFactory, Schedule


class Hallucinator(Asymmetric):
    """The objective names the host, and its `dim` is the width of the embedding.

    SimCLR: `objectives.Hallucinator(NTXent())`. MoCo: `Hallucinator(InfoNCE(queue_size=...))` and `momentum`.
    SimSiam: `Hallucinator(SimSiam())`, which gets a predictor.

    Args:
        backbone: images to an Encoding, with an attribute `width`.
        objective: default over NT-Xent.
        momentum: of the momentum encoder, for a MoCo host only.
        projector_hidden: width of the hidden layer; default that of the backbone.
        optimizer, schedule: those of the host.
        grad_cache: images the backbone sees at a time; 0: all. Exact.
    """

    def __init__(
        self,
        backbone: nn.Module,
        objective: objectives.Hallucinator | None = None,
        momentum: float | None = None,
        projector_hidden: int | None = None,
        optimizer: OptimizerFactory = partial(LARS, lr=0.3, weight_decay=1e-6),
        schedule: Schedule = Schedule(),
        grad_cache: int = 0,
    ) -> None:
        objective = objective or objectives.Hallucinator(objectives.NTXent())
        if isinstance(objective.host, objectives.InfoNCE) != (momentum is not None):
            raise ValueError("Hallucinator over MoCo needs both: InfoNCE as the host, and momentum (0.999)")
        dim = objective.dim
        hidden: int = projector_hidden or backbone.width  # type: ignore[assignment]
        predicts = isinstance(objective.host, objectives.BYOL)
        head = projector(backbone.width, hidden, dim, last="standard" if predicts else "linear")  # type: ignore[arg-type]
        super().__init__(
            backbone, head, objective, optimizer, schedule, grad_cache, momentum=momentum,
            predictor=projector(dim, max(1, dim // 4), dim) if predicts else None,
        )  # fmt: skip
