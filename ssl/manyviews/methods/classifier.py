"""A classifier on a pretrained backbone: fine-tuning of all of it, or a linear or deeper head on a frozen one."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from manyviews import distributed
from manyviews.backbones import Encoding
from manyviews.methods.method import Batch, Method
from manyviews.objectives import Objective
from manyviews.optim import OptimizerFactory, Schedule


class CrossEntropy(Objective):
    """Mean over labelled samples of minus log softmax of the scores (n, C); samples of label -1 take no part."""

    batch_coupled: ClassVar[bool] = False
    fewest: ClassVar[int] = 1

    def loss(self, views: list[Tensor], rows: distributed.Rows, label: Tensor, **_: Any) -> Tensor:  # type: ignore[override]
        """`label`: (n,)."""
        known = (label >= 0).to(views[0].dtype)
        each = F.cross_entropy(views[0], label.clamp(min=0), reduction="none")
        right = (views[0].argmax(1) == label).to(views[0].dtype)
        self.diagnostics = {"accuracy": rows.mean(right, weight=known).detach()}
        return rows.mean(each, weight=known)


class Classifier(Method):
    """Supervised training on the label field; with `head_only` the backbone stays as it is, in eval mode.

    Its accuracy on val is `manyviews.evaluation.Accuracy`.

    Args:
        backbone: such as `manyviews.backbones.Exported`.
        classes: how many labels.
        hidden: widths of the head's hidden layers (BatchNorm, ReLU, dropout); none: a linear head. Point-MAE's
            fine-tuning has [256, 256].
        dropout: in the head.
        head_only: train the head only.
        optimizer: Point-MAE: AdamW 5e-4, weight decay 0.05. schedule: 10 epochs of warm-up, cosine.
    """

    def __init__(
        self,
        backbone: nn.Module,
        classes: int,
        hidden: Sequence[int] = (),
        dropout: float = 0.5,
        head_only: bool = False,
        optimizer: OptimizerFactory = partial(torch.optim.AdamW, lr=5e-4, weight_decay=0.05),
        schedule: Schedule = Schedule(scaling="none"),
    ) -> None:
        width, layers = int(backbone.width), []  # type: ignore[arg-type]
        for wide in hidden:
            layers += [nn.Linear(width, wide), nn.BatchNorm1d(wide), nn.ReLU(), nn.Dropout(dropout)]
            width = wide
        super().__init__(
            backbone, nn.Sequential(*layers, nn.Linear(width, classes)), CrossEntropy(), optimizer, schedule
        )
        self.classes, self.head_only = classes, head_only
        backbone.requires_grad_(not head_only)
        self.train()

    def train(self, mode: bool = True) -> Classifier:
        """Training mode for what is trained."""
        super().train(mode)
        if self.head_only:
            self.backbone.eval()
        return self

    def training_step(self, batch: Batch, batch_idx: int) -> dict[str, Tensor]:
        """The loss of the first view; monitoring sees its features and scores."""
        found = super().training_step({**batch, **self._first(batch)}, batch_idx)
        scores = found["projections"][0]
        return {**found, "projections": torch.stack([scores, scores])}

    @staticmethod
    def _first(batch: Batch) -> Batch:
        return {name: batch[name][:1] for name in ("image", "points", "video") if name in batch}

    def class_scores(self, features: Encoding) -> Tensor:
        """(B, C) of the backbone's features."""
        scores: Tensor = self.projector(features.pooled)
        return scores
