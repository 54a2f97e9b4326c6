"""W-MSE (Ermolov et al., ICML 2021): whitened views of an image shall coincide."""

from __future__ import annotations

from functools import partial

import torch
from torch import nn
from typing_extensions import override

from manyviews import objectives
from manyviews.backbones import views_of, width_of
from manyviews.heads import projector
from manyviews.methods.method import Batch, Method, Step
from manyviews.optim import Schedule, Training


class WMSE(Method):
    """Two or more views, a narrow projector, whitening in sub-batches.

    Args:
        backbone: images to an Encoding, with an attribute `width`.
        size: rows that are whitened together, more than `projector_out`. partitions: how many ways to cut a batch.
        projector_hidden: width of the hidden layer. projector_out: of the embedding. Paper: 64, ImageNet 128.
        training: paper, CIFAR: Adam 3e-3, weight decay 1e-6; steps near the end; here cosine.
    """

    def __init__(
        self,
        backbone: nn.Module,
        size: int = 128,
        partitions: int = 1,
        projector_hidden: int = 1024,
        projector_out: int = 64,
        training: Training = Training(partial(torch.optim.Adam, lr=3e-3, weight_decay=1e-6), Schedule(scaling="none")),
    ) -> None:
        head = projector(width_of(backbone), projector_hidden, projector_out)
        super().__init__(backbone, head, objectives.WMSE(size, partitions), training)

    @override
    def step(self, batch: Batch) -> Step:
        h = self.encode(self.backbone, views_of(batch))
        z = self.project(h)
        return Step(self.objective(z, **self.context(batch)), features=h, projections=z)
