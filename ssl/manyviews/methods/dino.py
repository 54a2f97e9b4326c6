"""DINO (Caron et al., "Emerging Properties in Self-Supervised Vision Transformers", ICCV 2021)."""

from __future__ import annotations

import math
from functools import partial

import torch
from torch import nn
from typing_extensions import override

from manyviews import objectives
from manyviews.backbones import views_of, width_of
from manyviews.heads import PrototypeHead
from manyviews.methods.asymmetric import Asymmetric
from manyviews.methods.method import Batch, Count, Step
from manyviews.optim import Schedule, Training

RECIPE = Training(
    partial(torch.optim.AdamW, lr=5e-4, weight_decay=0.04),
    Schedule(warmup_epochs=10, final=1e-3),
    frozen={"projector.prototypes": 1},
    final_weight_decay=0.4,
    clip=3.0,
)


class DINO(Asymmetric):
    """A student predicts, from any crop, how a slow average of itself, which is evaluated, sees another, large crop.

    Args:
        backbone: images of any size to an Encoding; a ViT with stochastic depth 0.1, which the teacher does without.
        objective: default DINO with 65,536 prototypes; the head has as many.
        large: how many of the views, the first ones, the teacher sees.
        hidden, bottleneck, gain: of the head, see `manyviews.heads.PrototypeHead`.
        momentum: of the teacher at the start; 1 at the end. Paper: 0.996; 0.9995 for batches of 256.
        training: paper: AdamW 5e-4 per 256 images, weight decay 0.04 to 0.4 (timm's positions and class token do not
            decay, those of the authors do); 10 epochs of warm-up, cosine to a thousandth; gradients of each tensor up
            to 3; prototypes without a step in the first epoch.
    """

    evaluated = "teacher.backbone"
    takes_views: Count = (2, math.inf)

    def __init__(
        self,
        backbone: nn.Module,
        objective: objectives.DINO | None = None,
        large: int = 2,
        hidden: int = 2048,
        bottleneck: int = 256,
        gain: bool = False,
        momentum: float = 0.996,
        training: Training = RECIPE,
    ) -> None:
        if large < 1:
            raise ValueError(f"large: the teacher sees 1 crop or more, got {large}")
        objective = objective or objectives.DINO()
        head = PrototypeHead(width_of(backbone), len(objective.centre), hidden, bottleneck, gain)
        super().__init__(backbone, head, objective, training, momentum=momentum, final_momentum=1.0)
        self.large, self.takes_views = large, (max(2, large), math.inf)

    @override
    def step(self, batch: Batch) -> Step:
        crops = views_of(batch)
        h = self.encode(self.backbone, crops)
        student, teacher = self.project(h), self.taught(crops[: self.large])
        loss = self.objective(student, targets=teacher, **self.context(batch))
        return Step(loss, h, [view.pooled for view in h[: self.large]])
