"""Barlow Twins (Zbontar et al., ICML 2021) and VICReg (Bardes et al., ICLR 2022)."""

from __future__ import annotations

from functools import partial

from torch import nn
from typing_extensions import override

from manyviews import objectives
from manyviews.backbones import views_of, width_of
from manyviews.heads import projector
from manyviews.methods.method import Batch, Method, Step
from manyviews.optim import LARS, Schedule, Training


class BarlowTwins(Method):
    """Two views whose cross-correlation shall be the identity.

    Args:
        backbone: images to an Encoding, with an attribute `width`.
        redundancy: lambda.
        projector_width: of all three layers. Paper: 8192.
        training: paper: LARS 0.2 per 256 images, biases and norms at 0.0048, weight decay 1e-6; 10 epochs of warm-up,
            cosine to a thousandth, 1000 epochs.
    """

    views_together = False

    def __init__(
        self,
        backbone: nn.Module,
        redundancy: float = 0.0051,
        projector_width: int = 8192,
        training: Training = Training(
            partial(LARS, lr=0.2, weight_decay=1e-6, plain_rate=0.024), Schedule(final=0.001)
        ),
    ) -> None:
        head = projector(width_of(backbone), projector_width, projector_width, layers=3, last_bias=False)
        super().__init__(backbone, head, objectives.BarlowTwins(redundancy), training)

    @override
    def step(self, batch: Batch) -> Step:
        h = self.encode(self.backbone, views_of(batch))
        z = self.project(h)
        return Step(self.objective(z, **self.context(batch)), features=h, projections=z)


class VICReg(Method):
    """Variance, invariance, covariance.

    Args:
        backbone: images to an Encoding, with an attribute `width`.
        invariance, variance, covariance: weights of the three terms.
        projector_width: of all three layers. Paper: 8192.
        training: paper: LARS 0.2 per 256 images, weight decay 1e-6; 10 epochs of warm-up, cosine to a thousandth, 1000
            epochs.
    """

    views_together = False

    def __init__(
        self,
        backbone: nn.Module,
        invariance: float = 25.0,
        variance: float = 25.0,
        covariance: float = 1.0,
        projector_width: int = 8192,
        training: Training = Training(partial(LARS, lr=0.2, weight_decay=1e-6), Schedule(final=0.001)),
    ) -> None:
        head = projector(width_of(backbone), projector_width, projector_width, layers=3, last_bias=False)
        objective = objectives.VICReg(invariance, variance, covariance)
        super().__init__(backbone, head, objective, training)

    @override
    def step(self, batch: Batch) -> Step:
        h = self.encode(self.backbone, views_of(batch))
        z = self.project(h)
        return Step(self.objective(z, **self.context(batch)), features=h, projections=z)
