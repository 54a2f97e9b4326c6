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
from manyviews.optim import Schedule, Training


class SupCon(Method):
    """SimCLR with all images of a class as positives; data.label says which label.

    Args:
        backbone: images to an Encoding, with an attribute `width`.
        temperature: t. Paper: 0.1. base_temperature: see the objective.
        projector_hidden: width of the hidden layer; default that of the backbone. projector_out: of the embedding.
        training: solo-learn, CIFAR: SGD 0.4 per 256 images, weight decay 1e-5 (authors: 0.5 at batch 1024, 1e-4); in
            the code of the authors all parameters decay.
    """

    def __init__(
        self,
        backbone: nn.Module,
        temperature: float = 0.1,
        base_temperature: float | None = None,
        projector_hidden: int | None = None,
        projector_out: int = 128,
        training: Training = Training(
            partial(torch.optim.SGD, lr=0.4, momentum=0.9, weight_decay=1e-5), Schedule(decay_all=True)
        ),
    ) -> None:
        head = projector(width_of(backbone), projector_hidden or width_of(backbone), projector_out)
        objective = objectives.SupCon(temperature, base_temperature)
        super().__init__(backbone, head, objective, training)

    @override
    def step(self, batch: Batch) -> Step:
        h = self.encode(self.backbone, views_of(batch))
        z = self.project(h)
        return Step(self.objective(z, **self.context(batch)), features=h, projections=z)
