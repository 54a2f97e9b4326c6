"""MV-InfoNCE and MV-DHEL (Koromilas et al., "A Principled Framework for Multi-View Contrastive Learning", 2025)."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from manyviews.distributed import Rows
from manyviews.objectives.objective import Objective, positive
from manyviews.similarity import image_ids, log_negatives, logsumexp, own_views, unit


class MVInfoNCE(Objective):
    r"""One term an image that weighs all V(V-1) interactions of its views jointly. V >= 2.

    .. math:: L = \frac1N \sum_i \Big[ \log \sum_l \sum_{(j,m) \ne (i,l)} e^{U_{il} \cdot U_{jm}/t} - a_i \Big],
              \quad a_i = \log \sum_{l \ne l'} e^{U_{il} \cdot U_{il'}/t}

    over ordered pairs of views; positives are in the denominator, only the anchor itself is not.

    Args:
        temperature: t > 0. Paper: 0.5 (CIFAR, ImageNet-100), 0.1 (ImageNet).
        same_view_negatives: True as in the authors' code; False as in the paper's formula, whose inner sum runs over
            the views m != l only.
    """

    def __init__(self, temperature: float = 0.5, same_view_negatives: bool = True) -> None:
        super().__init__()
        self.temperature = positive("temperature", temperature)
        self.same_view_negatives = same_view_negatives

    def loss(self, views: list[Tensor], rows: Rows, group: Tensor | None = None, **_: Any) -> Tensor:
        """`group` (n,): images of equal group >= 0 are left out of each other's negatives (-1: unknown)."""
        u = [unit(view) for view in views]
        own = log_own(u, self.temperature)
        negatives = (
            log_negatives(u, self.temperature, rows, group) if self.same_view_negatives else self._cross(u, rows, group)
        )
        denominator = torch.logaddexp(negatives, torch.logsumexp(own, 1)).logsumexp(0)
        return rows.mean(denominator - own.flatten(0, 1).logsumexp(0))

    def _cross(self, u: list[Tensor], rows: Rows, group: Tensor | None) -> Tensor:
        """(V, n): the negatives of each anchor in the other views only."""
        ids = image_ids(rows, group, u[0].device)
        scaled, others = [view * self.temperature**-0.5 for view in u], len(u) - 1
        return torch.stack(
            [
                logsumexp(
                    anchor, torch.cat(scaled[:v] + scaled[v + 1 :]), ids, ids.repeat(others), rows, 1 / self.temperature
                )
                for v, anchor in enumerate(scaled)
            ]
        )


class MVDHEL(Objective):
    r"""Alignment across views, uniformity within each view, decoupled. V >= 2; cost N^2 V.

    .. math:: L = \frac1N \sum_i \Big[ \sum_l \log \sum_{j \ne i} e^{U_{il} \cdot U_{jl}/t} - a_i + \log 2 \Big]

    with a_i as in `MVInfoNCE`: one log-sum-exp per view over that view's other images, no positive and no cross-view
    term in it. For V = 2 this is DHEL (Koromilas et al., ICML 2024).

    Args:
        temperature: t > 0. Paper: 0.5 (CIFAR, ImageNet-100), 0.1 (ImageNet).
        ordered: False as in the authors' code, whose numerator sums unordered pairs (the log 2 above); True as in the
            paper's formula, without that constant. The gradients are the same.
    """

    def __init__(self, temperature: float = 0.5, ordered: bool = False) -> None:
        super().__init__()
        self.temperature = positive("temperature", temperature)
        self.ordered = ordered

    def loss(self, views: list[Tensor], rows: Rows, group: Tensor | None = None, **_: Any) -> Tensor:
        """`group` (n,): images of equal group >= 0 are left out of each other's negatives (-1: unknown)."""
        u = [unit(view) for view in views]
        uniformity = torch.cat([log_negatives([view], self.temperature, rows, group) for view in u]).sum(0)
        alignment = log_own(u, self.temperature).flatten(0, 1).logsumexp(0)
        return rows.mean(uniformity - alignment) + (0.0 if self.ordered else math.log(2))


def log_own(u: list[Tensor], temperature: float) -> Tensor:
    """(V, V, n): u_l,i . u_m,i / t among the views of each image, -inf where l = m."""
    own = own_views(u, temperature)
    return own.masked_fill(torch.eye(len(u), dtype=torch.bool, device=own.device)[:, :, None], -math.inf)
