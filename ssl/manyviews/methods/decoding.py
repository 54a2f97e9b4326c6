"""Signals against features of their pair: the CLIP loss of brain decoding (Defossez et al., Nature MI 2023)."""

from __future__ import annotations

from functools import partial

import torch
from torch import nn
from typing_extensions import override

from manyviews import objectives
from manyviews.backbones import views_of, width_of
from manyviews.heads import LogitScale
from manyviews.methods.method import Batch, Count, Method, Step
from manyviews.optim import Schedule, Training


class Decoding(Method):
    """An encoder whose estimate picks the constant features of its own sample among those of the batch.

    The targets are a field of the data (`data.fields: [NAME]`), such as features of a frozen speech or text model. Only
    they are brought to length 1; the estimate's length is its inverse temperature. One direction.

    Args:
        backbone: signals to an Encoding, with an attribute `width`.
        target: name of the field. dim: of the targets, all axes together.
        training: paper: Adam 3e-4.
    """

    takes_views: Count = (1, 1)

    def __init__(
        self,
        backbone: nn.Module,
        target: str,
        dim: int,
        training: Training = Training(partial(torch.optim.Adam, lr=3e-4), Schedule(warmup_steps=0, scaling="none")),
    ) -> None:
        scale = LogitScale(1.0, None, learned=False)
        super().__init__(
            backbone, nn.Linear(width_of(backbone), dim), objectives.CLIP(scale, directions="first", normalise=False),
            training,
        )  # fmt: skip
        self.target = target

    @override
    def check_batch(self, batch: Batch) -> None:
        super().check_batch(batch)
        if self.target not in batch:
            raise ValueError(f"Decoding needs {self.target!r} of every sample: set data.fields to [{self.target}]")

    def step(self, batch: Batch) -> Step:
        """The estimate of the signal, which is the first view, against the targets of the global batch."""
        h = self.encode(self.backbone, views_of(batch))
        estimate = self.project(h)[0]
        pair = [estimate, batch[self.target].flatten(1).to(estimate.dtype)]
        loss = self.objective(pair, **self.context(batch))
        return Step(loss, h, pair, {"estimate_length": estimate.detach().norm(dim=1).mean()})
