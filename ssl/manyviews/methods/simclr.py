"""SimCLR (Chen et al., "A Simple Framework for Contrastive Learning of Visual Representations", ICML 2020)."""

from __future__ import annotations

from functools import partial

from torch import nn
from typing_extensions import override

from manyviews.backbones import views_of, width_of
from manyviews.heads import projector
from manyviews.methods.method import Batch, Method, Step
from manyviews.objectives import NTXent
from manyviews.optim import LARS, Schedule, Training


class SimCLR(Method):
    """Two views, a projector, NT-Xent.

    Args:
        backbone: images to an Encoding, with an attribute `width`.
        temperature: t of NT-Xent; 0.1 on ImageNet, 0.5 on CIFAR in the paper.
        projector_hidden: width of the projector's hidden layer; default that of the backbone.
        projector_out: width of the embedding; 128 in the paper.
        training: paper: LARS, lr 0.3 per 256 images (or 0.075 sqrt(B) for small batches), weight decay 1e-6; 10 epochs
            of warm-up, cosine.
    """

    def __init__(
        self,
        backbone: nn.Module,
        temperature: float = 0.1,
        projector_hidden: int | None = None,
        projector_out: int = 128,
        training: Training = Training(partial(LARS, lr=0.3, weight_decay=1e-6), Schedule()),
    ) -> None:
        head = projector(width_of(backbone), projector_hidden or width_of(backbone), projector_out)
        super().__init__(backbone, head, NTXent(temperature), training)

    @override
    def step(self, batch: Batch) -> Step:
        h = self.encode(self.backbone, views_of(batch))
        z = self.project(h)
        return Step(self.objective(z, **self.context(batch)), features=h, projections=z)
