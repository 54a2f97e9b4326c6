"""The multi-view baselines that reduce V views to two-view losses: PWE and AVG (Koromilas et al., 2025, section 3)."""

from __future__ import annotations

from itertools import combinations

import torch
from torch import Tensor

from manyviews.distributed import Rows
from manyviews.objectives.ntxent import softplus
from manyviews.objectives.objective import Objective, positive
from manyviews.similarity import log_negatives, unit


class PairwiseViews(Objective):
    """PWE: the mean of NT-Xent over the V(V-1)/2 pairs of views. V >= 2; V = 2 is NT-Xent.

    Args:
        temperature: t > 0.
    """

    def __init__(self, temperature: float = 0.5) -> None:
        super().__init__()
        self.temperature = positive("temperature", temperature)

    def loss(self, views: list[Tensor], rows: Rows, group: Tensor | None = None) -> Tensor:
        """`group` (n,): images of equal group >= 0 are left out of each other's negatives (-1: unknown)."""
        pairs = list(combinations([unit(view) for view in views], 2))
        return torch.stack([pair_loss(a, b, self.temperature, rows, group) for a, b in pairs]).mean()


class AverageViews(Objective):
    """AVG: the mean over views of NT-Xent between a view and the mean of the other V - 1 unit views.

    The mean is not brought back to unit length, as in the authors' code.

    Args:
        temperature: t > 0.
    """

    def __init__(self, temperature: float = 0.5) -> None:
        super().__init__()
        self.temperature = positive("temperature", temperature)

    def loss(self, views: list[Tensor], rows: Rows, group: Tensor | None = None) -> Tensor:
        """`group` (n,): images of equal group >= 0 are left out of each other's negatives (-1: unknown)."""
        u = [unit(view) for view in views]
        total = torch.stack(u).sum(0)
        losses = [pair_loss(view, (total - view) / (len(u) - 1), self.temperature, rows, group) for view in u]
        return torch.stack(losses).mean()


def pair_loss(a: Tensor, b: Tensor, temperature: float, rows: Rows, group: Tensor | None) -> Tensor:
    """NT-Xent of rows that are already normalised (of length at most 1)."""
    positives = (a * b).sum(1) / temperature
    return rows.mean(softplus(log_negatives([a, b], temperature, rows, group) - positives).flatten())
