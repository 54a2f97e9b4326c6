"""Decoupled contrastive learning (Yeh et al., ECCV 2022): SimCLR with the decoupled loss."""

from __future__ import annotations

from functools import partial

from torch import nn
from typing_extensions import override

from manyviews import objectives
from manyviews.backbones import views_of, width_of
from manyviews.heads import projector
from manyviews.methods.method import Batch, Method, Step
from manyviews.optim import LARS, Schedule, Training


class DCL(Method):
    """Two views, SimCLR's projector, DCL or DCLW. Made for small batches.

    Args:
        backbone: images to an Encoding, with an attribute `width`.
        temperature: t of the loss; 0.1 in the paper.
        sigma: None for DCL; of the weights of DCLW, 0.5 in the paper.
        projector_hidden: width of the projector's hidden layer; default that of the backbone.
        projector_out: width of the embedding.
        training: paper: LARS, 0.075 sqrt(B), which is 1.2 at 256 with `scaling: sqrt`, weight decay 1e-6.
    """

    def __init__(
        self,
        backbone: nn.Module,
        temperature: float = 0.1,
        sigma: float | None = None,
        projector_hidden: int | None = None,
        projector_out: int = 128,
        training: Training = Training(partial(LARS, lr=1.2, weight_decay=1e-6), Schedule(scaling="sqrt")),
    ) -> None:
        head = projector(width_of(backbone), projector_hidden or width_of(backbone), projector_out)
        super().__init__(backbone, head, objectives.DCL(temperature, sigma), training)

    @override
    def step(self, batch: Batch) -> Step:
        h = self.encode(self.backbone, views_of(batch))
        z = self.project(h)
        return Step(self.objective(z, **self.context(batch)), features=h, projections=z)
