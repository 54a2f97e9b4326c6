"""PVC, poly-view contrastive learning (Shidani et al., ICLR 2024)."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

from manyviews.distributed import Rows
from manyviews.objectives.ntxent import softplus
from manyviews.objectives.objective import Objective, positive
from manyviews.similarity import log_negatives, own_views, unit


class PolyView(Objective):
    r"""Each view of an image picks each other view among all rows of all other images. V >= 2; V = 2 is NT-Xent.

    .. math:: \ell_{i\alpha\beta} = -\log \frac{e^{s(i\alpha, i\beta)/t}}
              {e^{s(i\alpha, i\beta)/t} + \sum_{j \ne i} \sum_\gamma e^{s(i\alpha, j\gamma)/t}}

    Geometric: the mean of :math:`\ell` over ordered pairs of views and images. Arithmetic: the mean over anchors of
    :math:`-\log \mathrm{mean}_\beta\, e^{-\ell_{i\alpha\beta}}`.

    Args:
        temperature: t > 0.
        kind: how an anchor's V - 1 targets are averaged.
    """

    def __init__(self, temperature: float = 0.5, kind: Literal["geometric", "arithmetic"] = "geometric") -> None:
        super().__init__()
        if kind not in ("geometric", "arithmetic"):
            raise ValueError(f"kind must be 'geometric' or 'arithmetic', got {kind!r}")
        self.temperature = positive("temperature", temperature)
        self.kind = kind

    def loss(self, views: list[Tensor], rows: Rows, group: Tensor | None = None) -> Tensor:
        """`group` (n,): images of equal group >= 0 are left out of each other's negatives (-1: unknown)."""
        u = [unit(view) for view in views]
        v, n = len(u), len(u[0])
        negatives = log_negatives(u, self.temperature, rows, group)
        pair = softplus(negatives[:, None] - own_views(u, self.temperature))  # (anchor view, target view, image)
        others = ~torch.eye(v, dtype=torch.bool, device=pair.device)
        pair = pair[others].view(v, v - 1, n)
        if self.kind == "geometric":
            return rows.mean(pair.mean(1).flatten())
        least = pair.amin(1, keepdim=True).detach()  # the shift and log1p keep the digits of pairs that are nearly won
        return rows.mean((least[:, 0] - torch.log1p(torch.expm1(least - pair).mean(1))).flatten())
