"""AMCL (Wang et al., ECCV 2024): several heads, a temperature a pair, over four hosts."""

from __future__ import annotations

from functools import partial

import torch
from torch import nn

from manyviews import objectives
from manyviews.backbones import width_of
from manyviews.heads import MultiHead, projector
from manyviews.methods.asymmetric import Asymmetric
from manyviews.optim import Schedule, Training


class AMCL(Asymmetric):
    """C projectors; the objective says the host.

    SimCLR: `objectives.AMCL()`. MoCo: `objectives.AMCL(queue_size=...)` and `momentum`. SimSiam:
    `objectives.AMCLSimSiam()`. Barlow Twins: `objectives.AMCLBarlow()`.

    Args:
        backbone: images to an Encoding, with an attribute `width`.
        objective: one of the three; default `objectives.AMCL()`.
        momentum: of the momentum encoder, for a MoCo host only. Authors: 0.99.
        projector_hidden: of each head; default that of the backbone. Each head's width is the objective's `dim`.
        projector_norm: BatchNorm in the heads; the authors' have none.
        training: authors, CIFAR at batch 512: SGD 0.06 (SimCLR), 0.08 (MoCo), 0.05 (SimSiam), 0.11 (Barlow), absolute,
            weight decay 5e-4; cosine.
    """

    views_together = False

    def __init__(
        self,
        backbone: nn.Module,
        objective: objectives.AMCL | objectives.AMCLSimSiam | objectives.AMCLBarlow | None = None,
        momentum: float | None = None,
        projector_hidden: int | None = None,
        projector_norm: bool = True,
        training: Training = Training(
            partial(torch.optim.SGD, lr=0.06, momentum=0.9, weight_decay=5e-4),
            Schedule(warmup_epochs=0, scaling="none"),
        ),
    ) -> None:
        objective = objective or objectives.AMCL()
        if (getattr(objective, "queue", None) is None) != (momentum is None):
            raise ValueError("AMCL over MoCo needs both: an objective with queue_size, and momentum (0.99)")
        width = width_of(backbone)
        hidden, dim = projector_hidden or width, objective.dim
        predictor = None
        if isinstance(objective, objectives.AMCLSimSiam):
            heads = [projector(dim, max(1, dim // 4), dim) for _ in range(objective.heads)]
            predictor = MultiHead(heads, split=True)
        heads = [projector(width, hidden, dim, norm=projector_norm) for _ in range(objective.heads)]
        super().__init__(backbone, MultiHead(heads), objective, training, predictor=predictor, momentum=momentum)
