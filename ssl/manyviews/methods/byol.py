"""BYOL (Grill et al., NeurIPS 2020) and SimSiam (Chen and He, CVPR 2021): no negatives."""

from __future__ import annotations

from functools import partial
from typing import Literal

import torch
from torch import nn
from typing_extensions import override

from manyviews import objectives
from manyviews.backbones import views_of, width_of
from manyviews.heads import projector
from manyviews.methods.asymmetric import Asymmetric
from manyviews.methods.method import Batch, Step
from manyviews.optim import LARS, Schedule, Training


class BYOL(Asymmetric):
    """Predict the momentum encoder's projection of the other view.

    Args:
        backbone: images to an Encoding, with an attribute `width`.
        momentum: at the start; 1 at the end. Paper: 0.97, 0.99, 0.99, 0.996 for 40, 100, 300, 1000 epochs.
        projector_hidden: of projector and predictor. projector_out: of the embedding.
        training: paper: LARS, 0.2 per 256 images and weight decay 1.5e-6 for 1000 epochs; 0.45, 1e-6 for 100; 10 epochs
            of warm-up, cosine.
    """

    views_together = False

    def __init__(
        self,
        backbone: nn.Module,
        momentum: float = 0.99,
        projector_hidden: int = 4096,
        projector_out: int = 256,
        training: Training = Training(partial(LARS, lr=0.45, weight_decay=1e-6), Schedule()),
    ) -> None:
        super().__init__(
            backbone,
            projector(width_of(backbone), projector_hidden, projector_out, last_bias=False),
            objectives.BYOL(),
            training,
            predictor=projector(projector_out, projector_hidden, projector_out, last_bias=False),
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


class SimSiam(Asymmetric):
    """Predict one's own projection of the other view; the stop-gradient and the predictor keep it from collapsing.

    Args:
        backbone: images to an Encoding, with an attribute `width`.
        projector_layers: 3 on ImageNet, 2 on CIFAR.
        projector_hidden: of the projector, also its output. predictor_hidden: a quarter of it in the paper.
        training: paper: SGD 0.05 per 256 images, weight decay 1e-4 (CIFAR: 0.03, 5e-4). The predictor's rate stays
            constant; cosine without a warm-up; all parameters decay.
    """

    unscheduled = ("predictor",)
    views_together = False

    def __init__(
        self,
        backbone: nn.Module,
        projector_layers: Literal[2, 3] = 3,
        projector_hidden: int = 2048,
        predictor_hidden: int = 512,
        training: Training = Training(
            partial(torch.optim.SGD, lr=0.05, momentum=0.9, weight_decay=1e-4),
            Schedule(warmup_epochs=0, decay_all=True),
        ),
    ) -> None:
        hidden = projector_hidden
        super().__init__(
            backbone,
            projector(width_of(backbone), hidden, hidden, projector_layers, last="standard"),
            objectives.SimSiam(),
            training,
            predictor=projector(hidden, predictor_hidden, hidden),
        )

    @override
    def step(self, batch: Batch) -> Step:
        h = self.encode(self.backbone, views_of(batch))
        z = self.project(h)
        targets = [view.detach() for view in z]
        return Step(self.objective(self.predict(z), targets=targets[::-1], **self.context(batch)), h, z)
