"""SupCon (Khosla et al., NeurIPS 2020): labels say what is positive."""

from __future__ import annotations

from functools import partial

import torch
from torch import nn
from typing_extensions import override

from manyviews import objectives
from manyviews.backbones import views_of, width_of
from manyviews.heads import projector
from manyviews.methods.method import Batch, Method, Step
from manyviews.optim import OptimizerFactory, Schedule


class SupCon(Method):
    """SimCLR with all images of a class as positives; data.label says which label.

    Args:
        backbone: images to an Encoding, with an attribute `width`.
        temperature: t. Paper: 0.1. base_temperature: see the objective.
        projector_hidden: width of the hidden layer; default that of the backbone. projector_out: of the embedding.
        optimizer: solo-learn, CIFAR: SGD 0.4 per 256 images, weight decay 1e-5 (authors: 0.5 at batch 1024, 1e-4).
        schedule: warm-up, cosine, scaling rule; in the code of the authors all parameters decay.
        grad_cache: images the backbone sees at a time; 0: all. Exact.
        views_together: as in Method.
    """

    def __init__(
        self,
        backbone: nn.Module,
        temperature: float = 0.1,
        base_temperature: float | None = None,
        projector_hidden: int | None = None,
        projector_out: int = 128,
        optimizer: OptimizerFactory = partial(torch.optim.SGD, lr=0.4, momentum=0.9, weight_decay=1e-5),
        schedule: Schedule = Schedule(decay_all=True),
        grad_cache: int = 0,
        views_together: bool = True,
    ) -> None:
        head = projector(width_of(backbone), projector_hidden or width_of(backbone), projector_out)
        objective = objectives.SupCon(temperature, base_temperature)
        super().__init__(backbone, head, objective, optimizer, schedule, grad_cache, views_together)

    @override
    def step(self, batch: Batch) -> Step:
        h = self.encode(self.backbone, views_of(batch))
        z = self.project(h)
        return Step(self.objective(z, **self.context(batch)), features=h, projections=z)
