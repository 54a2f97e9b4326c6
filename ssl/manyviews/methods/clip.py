"""CLIP, SigLIP and ALIGN: two towers and a contrastive loss; with locked towers LiT."""

from __future__ import annotations

from functools import partial

import torch
from torch import nn
from typing_extensions import override

from manyviews import objectives
from manyviews.backbones import width_of
from manyviews.heads import LogitScale
from manyviews.methods.imagetext import OPEN_CLIP, ImageText
from manyviews.methods.method import Batch, Step
from manyviews.objectives.clip import Positives
from manyviews.optim import Schedule, Training


class CLIP(ImageText):
    """CLIP (Radford et al., ICML 2021), and LiT (Zhai et al., CVPR 2022) with `training.locked: [backbone]`.

    Args:
        backbone: image tower. text_backbone: text tower.
        dim: of the joint space.
        logit_scale: s; default 1/0.07, learned, kept in [1, 100].
        positives: what pairs of equal `group` are to each other: no negatives (`own`), or right answers (`group`).
        training: open_clip: AdamW, 5e-4, betas (0.9, 0.98), eps 1e-6, weight decay 0.2; 10,000 steps of
            warm-up, cosine.
    """

    def __init__(
        self,
        backbone: nn.Module,
        text_backbone: nn.Module,
        dim: int = 512,
        logit_scale: LogitScale | None = None,
        positives: Positives = "own",
        training: Training = OPEN_CLIP,
    ) -> None:
        super().__init__(
            backbone, text_backbone, objectives.CLIP(logit_scale, positives=positives), dim,
            training=training,
        )  # fmt: skip

    @override
    def step(self, batch: Batch) -> Step:
        images, texts = self.towers(batch)
        pair = [self.projector(images[0].pooled), self.text_projector(texts[0].pooled)]
        return Step(self.objective(pair, **self.context(batch)), features=images, projections=pair)


class ALIGN(ImageText):
    """ALIGN (Jia et al., ICML 2021): label smoothing; the image side has no projection.

    Args:
        backbone: image tower; its width is the joint space.
        text_backbone: text tower, projected linearly (with bias) to that width.
        smoothing: of the labels, over the global batch.
        logit_scale: s = 1 / t; the paper starts at t = 1. Kept in [1, 100].
        training: paper: LAMB, 1e-3, weight decay 1e-5; here as CLIP's.
        positives: as in CLIP.
    """

    def __init__(
        self,
        backbone: nn.Module,
        text_backbone: nn.Module,
        smoothing: float = 0.1,
        logit_scale: LogitScale | None = None,
        training: Training = OPEN_CLIP,
        positives: Positives = "own",
    ) -> None:
        width = width_of(backbone)
        super().__init__(
            backbone, text_backbone, objectives.CLIP(logit_scale or LogitScale(1.0), smoothing, positives), width,
            nn.Identity(), nn.Linear(width_of(text_backbone), width),
            training,
        )  # fmt: skip

    @override
    def step(self, batch: Batch) -> Step:
        images, texts = self.towers(batch)
        pair = [self.projector(images[0].pooled), self.text_projector(texts[0].pooled)]
        return Step(self.objective(pair, **self.context(batch)), features=images, projections=pair)


class SigLIP(ImageText):
    """SigLIP (Zhai et al., ICCV 2023): every pair a yes-or-no question, texts travelling round the ranks.

    Args:
        training: paper: AdamW with beta2 0.95, lr 1e-3, weight decay 1e-4; warm-up and cosine as in CLIP.
        backbone, text_backbone, dim: as in CLIP.
        logit_scale: s and bias; default 10 and -10, free.
    """

    def __init__(
        self,
        backbone: nn.Module,
        text_backbone: nn.Module,
        dim: int = 512,
        logit_scale: LogitScale | None = None,
        training: Training = Training(
            partial(torch.optim.AdamW, lr=1e-3, betas=(0.9, 0.95), weight_decay=1e-4),
            Schedule(warmup_steps=2000, scaling="none"),
        ),
    ) -> None:
        super().__init__(backbone, text_backbone, objectives.SigLIP(logit_scale), dim, training=training)

    @override
    def step(self, batch: Batch) -> Step:
        images, texts = self.towers(batch)
        pair = [self.projector(images[0].pooled), self.text_projector(texts[0].pooled)]
        return Step(self.objective(pair, **self.context(batch)), features=images, projections=pair)
