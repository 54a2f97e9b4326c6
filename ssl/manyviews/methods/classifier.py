"""A classifier on a pretrained backbone: fine-tuning of all of it, or a linear or deeper head on a frozen one."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

import torch
from torch import Tensor, nn

from manyviews import objectives
from manyviews.backbones import Encoding, views_of, width_of
from manyviews.methods.method import Batch, Count, Method, Step
from manyviews.optim import Schedule, Training


class Classifier(Method):
    """Supervised training on the label field; of the head alone with `training.locked: [backbone]`.

    Its accuracy on val is `manyviews.evaluation.Accuracy`.

    Args:
        backbone: such as `manyviews.backbones.Exported`.
        classes: how many labels.
        hidden: widths of the head's hidden layers (BatchNorm, ReLU, dropout); none: a linear head. [256, 256] as in
            Point-MAE's fine-tuning, which however reads a new class token and the maximum.
        dropout: in the head.
        training: Point-MAE: AdamW 5e-4, weight decay 0.05; 10 epochs of warm-up, cosine.
    """

    takes_chunks = False
    takes_views: Count = (1, 1)

    def __init__(
        self,
        backbone: nn.Module,
        classes: int,
        hidden: Sequence[int] = (),
        dropout: float = 0.5,
        training: Training = Training(partial(torch.optim.AdamW, lr=5e-4, weight_decay=0.05), Schedule(scaling="none")),
    ) -> None:
        width, layers = width_of(backbone), []
        for wide in hidden:
            layers += [nn.Linear(width, wide), nn.BatchNorm1d(wide), nn.ReLU(), nn.Dropout(dropout)]
            width = wide
        super().__init__(
            backbone, nn.Sequential(*layers, nn.Linear(width, classes)), objectives.CrossEntropy(), training
        )
        self.classes = classes

    def on_fit_start(self) -> None:
        """Refuses labels that the head has no score for."""
        super().on_fit_start()
        names = getattr(getattr(self.trainer, "datamodule", None), "classes", [])
        if len(names) > self.classes:
            raise ValueError(f"model.classes is {self.classes}, but the label field has {len(names)} classes")

    def step(self, batch: Batch) -> Step:
        """The loss of the first view; monitoring sees its features and scores."""
        h = self.encode(self.backbone, views_of(batch))
        scores = self.project(h)
        return Step(self.objective(scores, **self.context(batch)), h, scores * 2)

    def class_scores(self, features: Encoding) -> Tensor:
        """(B, C) of the backbone's features."""
        scores: Tensor = self.projector(features.pooled)
        return scores
