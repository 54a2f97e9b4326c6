"""SepCLR (Louiset et al., ICLR 2024): a common encoder and a salient one."""

from __future__ import annotations

import copy
from functools import partial

import torch
from torch import nn

from manyviews import objectives
from manyviews.backbones import Encoding, views_of, width_of
from manyviews.methods.method import Batch, Method, Step
from manyviews.optim import Schedule, Training


class SepCLR(Method):
    """Two encoders over the same views; the label says background (0) or target (1).

    Args:
        backbone: of the common code; the salient encoder starts as a copy of it.
        width: of each code. Authors: 32.
        temperature, salient, background, joint: see the objective.
        embedding: what evaluation sees: the features of the `common` or of the `salient` encoder, or `both`.
        training: authors: Adam 3e-4, batch 512, 250 epochs.
    """

    takes_chunks = False

    def __init__(
        self,
        backbone: nn.Module,
        width: int = 32,
        temperature: float = 0.5,
        salient: float = 1000.0,
        background: float = 1000.0,
        joint: float = 10.0,
        embedding: str = "both",
        training: Training = Training(partial(torch.optim.Adam, lr=3e-4), Schedule(scaling="none")),
    ) -> None:
        head = nn.Linear(width_of(backbone), width)
        super().__init__(backbone, head, objectives.SepCLR(temperature, salient, background, joint), training)
        if embedding not in ("common", "salient", "both"):
            raise ValueError(f"embedding must be common, salient or both, got {embedding!r}")
        self.embedding = embedding
        self.salient_backbone, self.salient_projector = copy.deepcopy(backbone), copy.deepcopy(head)

    def embed(self, batch: Batch) -> list[Encoding]:
        """Features of one encoder, or of both side by side."""
        codes = []
        for view in views_of(batch):
            parts = []
            if self.embedding != "salient":
                parts.append(Encoding.of(self.backbone(view)).pooled)
            if self.embedding != "common":
                parts.append(Encoding.of(self.salient_backbone(view)).pooled)
            codes.append(Encoding(torch.cat(parts, 1)))
        return codes

    def step(self, batch: Batch) -> Step:
        """The common and the salient codes of every view."""
        views = views_of(batch)
        h = self.encode(self.backbone, views)
        common = self.project(h)
        salient = self.of_each(
            self.salient_projector, [each.pooled for each in self.encode(self.salient_backbone, views)]
        )
        return Step(self.objective(common, salient=salient, **self.context(batch)), h, common)
