"""Multi-view contrastive learning (Koromilas et al., 2025): any number of views in one term an image."""

from __future__ import annotations

from functools import partial

import torch
from torch import nn
from typing_extensions import override

from manyviews.backbones import views_of, width_of
from manyviews.heads import projector
from manyviews.methods.method import Batch, Method, Step
from manyviews.objectives import MVDHEL, Objective
from manyviews.optim import Schedule, Training


class MultiView(Method):
    """V >= 2 views of each image under MV-DHEL, MV-InfoNCE, or any other objective that needs no second branch.

    Args:
        backbone: images to an Encoding, with an attribute `width`.
        objective: MVDHEL (default) or MVInfoNCE; PairwiseViews, AverageViews and PolyView are the baselines;
            HardContrastive, MEOW, AdaMEOW, PALM, SupReMix, SiMHand and GroupWhitened need nothing else either.
        projector_hidden: width of the projector's hidden layer; default that of the backbone.
        projector_out: width of the embedding.
        training: paper, CIFAR: SGD lr 1.0, momentum 0.9, weight decay 1e-6 at batch 256; 1 % (CIFAR) or 10 % of
            the run as warm-up, cosine.
    """

    def __init__(
        self,
        backbone: nn.Module,
        objective: Objective | None = None,
        projector_hidden: int | None = None,
        projector_out: int = 128,
        training: Training = Training(partial(torch.optim.SGD, lr=1.0, momentum=0.9, weight_decay=1e-6), Schedule()),
    ) -> None:
        hidden = projector_hidden or width_of(backbone)
        head = projector(width_of(backbone), hidden, projector_out, last="batch")
        super().__init__(backbone, head, objective or MVDHEL(), training)

    @override
    def step(self, batch: Batch) -> Step:
        h = self.encode(self.backbone, views_of(batch))
        z = self.project(h)
        return Step(self.objective(z, **self.context(batch)), features=h, projections=z)
