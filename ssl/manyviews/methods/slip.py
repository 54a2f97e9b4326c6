"""SLIP (Mu et al., ECCV 2022): CLIP and, on two views of the images, NT-Xent."""

from __future__ import annotations

from functools import partial

import torch
from torch import nn
from typing_extensions import override

from manyviews import objectives
from manyviews.backbones import width_of
from manyviews.heads import LogitScale, projector
from manyviews.methods.imagetext import ImageText
from manyviews.methods.method import Batch, Count, Step
from manyviews.objectives.clip import Positives
from manyviews.optim import Schedule, Training


class SLIP(ImageText):
    """CLIP on view 0 of the image and the caption, SimCLR on views 1 and 2 of the image.

    Args:
        backbone: image tower. text_backbone: text tower.
        dim: of the joint space.
        weight: of SimCLR's loss. temperature: of it.
        projector_hidden: width of its projector's hidden layers; paper 4096. projector_out: paper 256.
        training: paper: AdamW 3e-3, weight decay 0.1, at batch 4096; one epoch of warm-up, cosine to 1e-5, 25 epochs.
        logit_scale: as in CLIP.
        positives: as in CLIP.
    """

    takes_views: Count = (3, 3)

    def __init__(
        self,
        backbone: nn.Module,
        text_backbone: nn.Module,
        dim: int = 512,
        weight: float = 1.0,
        temperature: float = 0.1,
        projector_hidden: int = 4096,
        projector_out: int = 256,
        logit_scale: LogitScale | None = None,
        training: Training = Training(
            partial(torch.optim.AdamW, lr=3e-3, betas=(0.9, 0.98), weight_decay=0.1),
            Schedule(warmup_epochs=1, final=1 / 300, scaling="none"),
        ),
        positives: Positives = "own",
    ) -> None:
        super().__init__(
            backbone, text_backbone, objectives.SLIP(logit_scale, weight, temperature, positives), dim,
            training=training,
        )  # fmt: skip
        width = width_of(backbone)
        self.image_projector = projector(width, projector_hidden, projector_out, 3)

    @override
    def step(self, batch: Batch) -> Step:
        images, texts = self.towers(batch)
        pair = [self.projector(images[0].pooled), self.text_projector(texts[0].pooled)]
        strong = [self.image_projector(view.pooled) for view in images[1:]]
        return Step(self.objective(pair, strong=strong, **self.context(batch)), images, pair)
