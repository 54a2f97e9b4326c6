"""NNCLR (Dwibedi et al., "With a Little Help from My Friends", ICCV 2021)."""

from __future__ import annotations

from functools import partial

from torch import nn
from typing_extensions import override

from manyviews import objectives
from manyviews.backbones import views_of, width_of
from manyviews.heads import projector
from manyviews.methods.asymmetric import Asymmetric
from manyviews.methods.method import Batch, Step
from manyviews.optim import LARS, Schedule, Training


class NNCLR(Asymmetric):
    """The positive is the nearest neighbour of the other view in a support set of past embeddings.

    Args:
        backbone: images to an Encoding, with an attribute `width`.
        temperature: t. Paper: 0.1. support: past embeddings. Paper: 98304.
        decoupled: DCL's form, as the DCL paper combines them.
        projector_hidden: of the projector. predictor_hidden: of the predictor. projector_out: of the embedding.
        training: paper: LARS 0.3 per 256 images, weight decay 1e-6; 10 epochs of warm-up, cosine, 1000 epochs.
    """

    def __init__(
        self,
        backbone: nn.Module,
        temperature: float = 0.1,
        support: int = 65536,
        decoupled: bool = False,
        projector_hidden: int = 2048,
        predictor_hidden: int = 4096,
        projector_out: int = 256,
        training: Training = Training(partial(LARS, lr=0.3, weight_decay=1e-6), Schedule()),
    ) -> None:
        super().__init__(
            backbone,
            projector(width_of(backbone), projector_hidden, projector_out, 3, last="batch"),
            objectives.NNCLR(temperature, support, projector_out, decoupled),
            training,
            predictor=projector(projector_out, predictor_hidden, projector_out),
        )

    @override
    def step(self, batch: Batch) -> Step:
        h = self.encode(self.backbone, views_of(batch))
        z = self.project(h)
        targets = [view.detach() for view in z]
        return Step(self.objective(self.predict(z), targets=targets[::-1], **self.context(batch)), h, z)
