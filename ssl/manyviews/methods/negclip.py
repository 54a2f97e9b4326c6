"""NegCLIP (Yuksekgonul et al., ICLR 2023), MCIP (Schall et al., SISAP 2024), and CLIP over more than two views."""

from __future__ import annotations

import math
from functools import partial
from typing import ClassVar

import torch
from torch import nn
from typing_extensions import override

from manyviews import objectives
from manyviews.methods.clip import CLIP
from manyviews.methods.imagetext import OPEN_CLIP, ImageText
from manyviews.methods.method import Batch, Count, Step
from manyviews.objectives import Objective
from manyviews.optim import Schedule, Training


class NegCLIP(CLIP):
    """CLIP whose images also choose against hard captions: the same words, wrongly put together.

    Hard captions come with the data (`data.text` with `hard: 1`); hard images are neighbours that stand in one batch
    (`data.cells`, made by `manyviews mine`). Arguments as CLIP's. The paper tunes a pretrained CLIP with lr 1e-6.
    """

    hard_captions: ClassVar[bool] = True

    @override
    def check_batch(self, batch: Batch) -> None:
        super().check_batch(batch)
        if "hard_text" not in batch:
            raise ValueError("NegCLIP needs hard captions: samples with hard_captions, and data.text with hard: 1")

    @override
    def step(self, batch: Batch) -> Step:
        hard = [batch["hard_text"][:, k] for k in range(batch["hard_text"].shape[1])]
        images, texts = self.towers({**batch, "text": [*batch["text"], *hard]})
        plain = len(batch["text"])
        pair = [self.projector(images[0].pooled), self.text_projector(texts[0].pooled)]
        extra = torch.stack([self.text_projector(text.pooled) for text in texts[plain:]], 1)
        context = {**self.context(batch), "extra": extra, "extra_present": batch["hard_present"]}
        return Step(self.objective(pair, **context), images, pair)


class MCIP(ImageText):
    """An image tower tuned for retrieval, its place in the joint space held by captions. The text side is locked.

    The captions of a sample are its text views; views beyond the number of captions repeat them. With
    `objective.caption_weight` 0 it is the first stage of the two-stage recipe; the second, which aligns the text tower
    anew, is `CLIP` with `training.locked: [backbone, projector]`.

    Args:
        backbone: image tower, pretrained. text_backbone: text tower, pretrained.
        classes: how many labels.
        dim: of the joint space.
        scale, margin, caption_margin, caption_weight: see `manyviews.objectives.MCIP`.
        training: as in CLIP; for pretrained towers lr 1e-5.
    """

    takes_texts: Count = (1, math.inf)

    locked = ("text_backbone", "text_projector")

    def __init__(
        self,
        backbone: nn.Module,
        text_backbone: nn.Module,
        classes: int,
        dim: int = 512,
        scale: float = 30.0,
        margin: float = 0.3,
        caption_margin: float = 0.3,
        caption_weight: float = 1.0,
        training: Training = Training(
            partial(torch.optim.AdamW, lr=1e-5, weight_decay=0.05), Schedule(warmup_steps=500, scaling="none")
        ),
    ) -> None:
        objective = objectives.MCIP(dim, classes, scale, margin, caption_margin, caption_weight)
        super().__init__(backbone, text_backbone, objective, dim, training=training)

    @override
    def step(self, batch: Batch) -> Step:
        images, texts = self.towers(batch)
        image = self.projector(images[0].pooled)
        captions = torch.stack([self.text_projector(text.pooled) for text in texts], 1)
        context = {**self.context(batch), "captions": captions}
        return Step(self.objective([image], **context), images, [image, captions[:, 0]])


class MultiModal(ImageText):
    """More than two views in one joint space: several natural views of the image and the caption, or more modalities.

    Every image view goes through the image tower, every text view through the text tower; `batch["present"]` (n, V)
    says which views a sample has.

    Args:
        backbone: image tower. text_backbone: text tower.
        objective: over V views: `MVInfoNCE`, `MVDHEL` or `PairwiseCLIP`. Default MVInfoNCE at temperature 0.1.
        dim: of the joint space.
        training: as in CLIP.
    """

    takes_views: Count = (1, math.inf)
    takes_texts: Count = (1, math.inf)

    def __init__(
        self,
        backbone: nn.Module,
        text_backbone: nn.Module,
        objective: Objective | None = None,
        dim: int = 512,
        training: Training = OPEN_CLIP,
    ) -> None:
        super().__init__(
            backbone, text_backbone, objective or objectives.MVInfoNCE(0.1, same_view_negatives=False), dim,
            training=training,
        )  # fmt: skip

    @override
    def step(self, batch: Batch) -> Step:
        images, texts = self.towers(batch)
        views = [self.projector(image.pooled) for image in images]
        views += [self.text_projector(text.pooled) for text in texts]
        return Step(self.objective(views, **self.context(batch)), images, [views[0], views[len(images)]])
