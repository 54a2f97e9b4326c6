"""Cross-entropy with labels, of which some may be unknown."""

from __future__ import annotations

from typing import ClassVar

import torch.nn.functional as F
from torch import Tensor

from manyviews.distributed import Rows
from manyviews.objectives.objective import Objective, known


class CrossEntropy(Objective):
    """Mean over labelled samples of minus log softmax of the scores (n, C); samples of label -1 take no part."""

    batch_coupled: ClassVar[bool] = False
    fewest: ClassVar[int] = 1

    def loss(self, views: list[Tensor], rows: Rows, label: Tensor | None = None) -> Tensor:
        """`label`: (n,)."""
        (label,) = known(self, label=label)
        there = (label >= 0).to(views[0].dtype)
        each = F.cross_entropy(views[0], label.clamp(min=0), reduction="none")
        right = (views[0].argmax(1) == label).to(views[0].dtype)
        self.diagnostics = {"accuracy": rows.mean(right, weight=there).detach()}
        return rows.mean(each, weight=there)
