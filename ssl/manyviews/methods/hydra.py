"""Hydra, now SimLAP (Wu et al., 2024): arbitrary pairs of classes, alone or beside MoCo v3. It needs labels."""

from __future__ import annotations

from functools import partial

import torch
from torch import nn
from typing_extensions import override

from manyviews import objectives
from manyviews.backbones import views_of, width_of
from manyviews.heads import projector
from manyviews.methods.asymmetric import Asymmetric
from manyviews.methods.method import Batch, Method, Step
from manyviews.optim import LARS, Schedule, Training


class Hydra(Method):
    """Both views, one network, every class pair a positive in its own subspace.

    Args:
        backbone: images to an Encoding, with an attribute `width`.
        objective: the embedding is as wide as its `dim`.
        projector_hidden: width of the hidden layer.
        training: authors, CIFAR: Adam 1e-3, weight decay 5e-4; 2 epochs of warm-up, 50 epochs.
    """

    def __init__(
        self,
        backbone: nn.Module,
        objective: objectives.Hydra,
        projector_hidden: int = 2048,
        training: Training = Training(
            partial(torch.optim.Adam, lr=1e-3, weight_decay=5e-4), Schedule(warmup_epochs=2, scaling="none")
        ),
    ) -> None:
        head = projector(width_of(backbone), projector_hidden, objective.dim, last="layer")
        super().__init__(backbone, head, objective, training)

    @override
    def step(self, batch: Batch) -> Step:
        h = self.encode(self.backbone, views_of(batch))
        z = self.project(h)
        return Step(self.objective(z, **self.context(batch)), features=h, projections=z)


class HydraMoCo(Asymmetric):
    """MoCo v3's instance loss with Hydra's beside it, on the same predictions and keys.

    Args:
        backbone: images to an Encoding, with an attribute `width`.
        objective: instance and pair loss with their weights.
        momentum: at the start; 1 at the end.
        projector_hidden: width of the hidden layers.
        training: MoCo v3's: LARS 0.6 or 0.3 per 256 images; 10 epochs of warm-up, cosine.
    """

    views_together = False

    def __init__(
        self,
        backbone: nn.Module,
        objective: objectives.HydraMoCo,
        momentum: float = 0.996,
        projector_hidden: int = 4096,
        training: Training = Training(partial(LARS, lr=0.6, weight_decay=1e-6), Schedule()),
    ) -> None:
        dim: int = objective.hydra.dim
        super().__init__(
            backbone,
            projector(width_of(backbone), projector_hidden, dim, 3, last="batch"),
            objective,
            training,
            predictor=projector(dim, projector_hidden, dim, last="layer"),
            momentum=momentum,
            final_momentum=1.0,
        )

    @override
    def step(self, batch: Batch) -> Step:
        views = views_of(batch)
        h = self.encode(self.backbone, views)
        z = self.project(h)
        p, targets = self.predict(z), self.taught(views)
        return Step(self.objective(p, targets=targets[::-1], **self.context(batch)), h, z)
