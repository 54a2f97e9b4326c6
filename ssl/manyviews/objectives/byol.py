"""BYOL (Grill et al., NeurIPS 2020) and SimSiam (Chen and He, CVPR 2021): predict the other view, no negatives."""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar

import torch
from torch import Tensor

from manyviews.distributed import Rows
from manyviews.objectives.objective import Objective, paired
from manyviews.similarity import unit


class BYOL(Objective):
    r"""The squared distance of predictions and the momentum network's projections of the other view.

    .. math:: L = \mathrm{mean}_i \sum_v | \bar p_v - \bar z'_v |^2 = \mathrm{mean}_i \sum_v (2 - 2 \cos(p_v, z'_v))

    over unit vectors, summed over the pairs given: from 0 to 8 for the two directions.
    """

    batch_coupled: ClassVar[bool] = False
    fewest = 1

    def loss(self, views: list[Tensor], rows: Rows, targets: Sequence[Tensor] | None = None) -> Tensor:
        """`views`: predictions; `targets`: constants."""
        return (2 - 2 * self.cosines(views, targets, rows)).sum()

    def cosines(self, views: list[Tensor], targets: Sequence[Tensor] | None, rows: Rows) -> Tensor:
        """(pairs,): mean cosine of the predictions with their targets."""
        pairs = [(unit(p), unit(z.detach())) for p, z in paired(self, views, targets)]
        return torch.stack([rows.mean((p * z).sum(1)) for p, z in pairs])


class SimSiam(BYOL):
    r"""Minus the cosine of predictions and the same network's stopped projections of the other view.

    .. math:: L = -\frac{1}{2} \sum_v \mathrm{mean}_i \cos(p_v, \mathrm{sg}\, z_v)

    from -1 to 1; BYOL's loss on the same tensors is four times this, plus four.
    """

    def loss(self, views: list[Tensor], rows: Rows, targets: Sequence[Tensor] | None = None) -> Tensor:
        """`views`: predictions; `targets`: projections, constants here."""
        return -self.cosines(views, targets, rows).mean()
