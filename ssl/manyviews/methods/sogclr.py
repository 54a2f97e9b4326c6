"""SogCLR (Yuan et al., ICML 2022) and iSogCLR (Qiu et al., ICML 2023): small batches, the whole set's denominator."""

from __future__ import annotations

from functools import partial

from torch import nn
from typing_extensions import override

from manyviews import objectives
from manyviews.backbones import views_of, width_of
from manyviews.heads import projector
from manyviews.methods.method import Batch, Method, Step
from manyviews.optim import LARS, Schedule, Training


class SogCLR(Method):
    """SimCLR with a running estimate of each sample's denominator.

    Args:
        backbone: images to an Encoding, with an attribute `width`.
        samples: size of the training set.
        temperature: t. gamma: weight of the new estimate.
        projector_hidden: width of the hidden layer; default that of the backbone. projector_out: of the embedding.
        training: paper: LARS, 0.075 sqrt(B), which is 1.2 at 256 with `scaling: sqrt`, weight decay 1e-6; 10 epochs of
            warm-up, cosine.
    """

    views_together = False

    def __init__(
        self,
        backbone: nn.Module,
        samples: int,
        temperature: float = 0.1,
        gamma: float = 0.9,
        projector_hidden: int | None = None,
        projector_out: int = 128,
        training: Training = Training(partial(LARS, lr=1.2, weight_decay=1e-6), Schedule(scaling="sqrt")),
    ) -> None:
        hidden = projector_hidden or width_of(backbone)
        head = projector(width_of(backbone), hidden, projector_out, last="standard")
        objective = objectives.SogCLR(samples, temperature, gamma)
        super().__init__(backbone, head, objective, training)

    @override
    def step(self, batch: Batch) -> Step:
        h = self.encode(self.backbone, views_of(batch))
        z = self.project(h)
        return Step(self.objective(z, **self.context(batch)), features=h, projections=z)


class ISogCLR(Method):
    """SogCLR with a temperature a sample.

    Args:
        backbone: images to an Encoding, with an attribute `width`.
        samples: size of the training set.
        temperature: of every sample at the start.
        gamma, rho, low, high, rate, momentum: see the objective.
        projector_hidden: width of the hidden layer; default that of the backbone. projector_out: of the embedding.
        training: paper, CIFAR at batch 128: LARS, lr 0.8 absolute, weight decay 5e-4; 10 epochs of warm-up,
            cosine; LARS and decay act on all parameters.
    """

    def __init__(
        self,
        backbone: nn.Module,
        samples: int,
        temperature: float = 0.1,
        gamma: float = 0.8,
        rho: float = 0.4,
        low: float = 0.05,
        high: float = 1.0,
        rate: float = 0.03,
        momentum: float = 0.5,
        projector_hidden: int | None = None,
        projector_out: int = 128,
        training: Training = Training(
            partial(LARS, lr=0.8, weight_decay=5e-4), Schedule(scaling="none", decay_all=True)
        ),
    ) -> None:
        hidden = projector_hidden or width_of(backbone)
        head = projector(width_of(backbone), hidden, projector_out, last="standard")
        objective = objectives.ISogCLR(samples, temperature, gamma, rho, low, high, rate, momentum)
        super().__init__(backbone, head, objective, training)

    @override
    def step(self, batch: Batch) -> Step:
        h = self.encode(self.backbone, views_of(batch))
        z = self.project(h)
        return Step(self.objective(z, **self.context(batch)), features=h, projections=z)
