"""MV-InfoNCE and MV-DHEL (Koromilas et al., "A Principled Framework for Multi-View Contrastive Learning", 2025)."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from manyviews.distributed import Rows
from manyviews.objectives.ntxent import softplus
from manyviews.objectives.objective import Objective, positive
from manyviews.similarity import image_ids, log_negatives, log_sum, logsumexp, own_views, unit


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

    def loss(
        self,
        views: list[Tensor],
        rows: Rows,
        group: Tensor | None = None,
        present: Tensor | None = None,
    ) -> Tensor:
        """`group` (n,): images of equal group >= 0 are left out of each other's negatives (-1: unknown).

        `present` (n, V) bool: which views, such as modalities, a sample has. Samples with fewer than two are left out.
        """
        u = [unit(view) for view in views]
        own = log_own(u, self.temperature)
        if present is not None:
            there, own, counts = _pairs_there(own, present)
            negatives = _negatives_there(
                u, present, self.temperature, rows, group, "all" if self.same_view_negatives else "other"
            )
            negatives = negatives.masked_fill(~there.T, -math.inf)
            return rows.mean(torch.where(counts, self._term(negatives, own), 0), counts.to(own.dtype))
        negatives = (
            log_negatives(u, self.temperature, rows, group) if self.same_view_negatives else self._cross(u, rows, group)
        )
        return rows.mean(self._term(negatives, own))

    @staticmethod
    def _term(negatives: Tensor, own: Tensor) -> Tensor:
        """(n,): log(sum of all) - log(sum of own) as softplus, so that nothing is lost when the positives win."""
        return softplus(log_sum(negatives, 0) - own.flatten(0, 1).logsumexp(0))

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
    term in it. For V = 2 this is DHEL (Koromilas et al., ICML 2024). In a batch without any negative (one image, or
    one group) the log-sum-exps are left out and the alignment stays.

    Args:
        temperature: t > 0. Paper: 0.5 (CIFAR, ImageNet-100), 0.1 (ImageNet).
        ordered: False as in the authors' code, whose numerator sums unordered pairs (the log 2 above); True as in the
            paper's formula, without that constant. The gradients are the same.
    """

    def __init__(self, temperature: float = 0.5, ordered: bool = False) -> None:
        super().__init__()
        self.temperature = positive("temperature", temperature)
        self.ordered = ordered

    def loss(
        self,
        views: list[Tensor],
        rows: Rows,
        group: Tensor | None = None,
        present: Tensor | None = None,
    ) -> Tensor:
        """`group` (n,): images of equal group >= 0 are left out of each other's negatives (-1: unknown).

        `present` (n, V) bool: which views, such as modalities, a sample has. A view's uniformity is over the samples
        that have it; samples with fewer than two are left out.
        """
        u = [unit(view) for view in views]
        if present is not None:
            there, own, counts = _pairs_there(log_own(u, self.temperature), present)
            factors = _negatives_there(u, present, self.temperature, rows, group, "same")
            spread = torch.where(there.T & (factors > -FAR / 2), factors, 0).sum(0)
            value = spread - own.flatten(0, 1).logsumexp(0) + (0.0 if self.ordered else math.log(2))
            return rows.mean(torch.where(counts, value, 0), counts.to(value.dtype))
        uniformity = torch.cat([log_negatives([view], self.temperature, rows, group) for view in u])
        uniformity = torch.where(uniformity > -math.inf, uniformity, 0).sum(0)
        alignment = log_own(u, self.temperature).flatten(0, 1).logsumexp(0)
        return rows.mean(uniformity - alignment) + (0.0 if self.ordered else math.log(2))


def log_own(u: list[Tensor], temperature: float) -> Tensor:
    """(V, V, n): u_l,i . u_m,i / t among the views of each image, -inf where l = m."""
    own = own_views(u, temperature)
    return own.masked_fill(torch.eye(len(u), dtype=torch.bool, device=own.device)[:, :, None], -math.inf)


FAR = 1e4
"""Minus this is the similarity of an absent column: exp of it is 0."""


def _pairs_there(own: Tensor, present: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """`present`, `own` (V, V, n) without the pairs a sample lacks, and (n,) whether it has any pair at all.

    A sample without any keeps finite numbers, for its gradient's sake; it has weight 0.
    """
    counts = present.sum(1) >= 2
    there = present | ~counts[:, None]
    return there, own.masked_fill(~(there.T[:, None] & there.T[None]), -math.inf), counts


def _negatives_there(
    u: list[Tensor], present: Tensor, temperature: float, rows: Rows, group: Tensor | None, of: str
) -> Tensor:
    """(V, n): log-sum-exp of each anchor over the columns of other samples that are there.

    `of`: columns of the `same` view, of the `other` views, or of `all`. What is absent gets a further coordinate that
    puts it FAR away from everything.
    """
    ids = image_ids(rows, group, u[0].device)
    scaled = [torch.cat([view * temperature**-0.5, torch.ones_like(view[:, :1])], 1) for view in u]
    columns = [
        torch.cat([view * temperature**-0.5, torch.where(present[:, v], 0.0, -FAR)[:, None].to(view.dtype)], 1)
        for v, view in enumerate(u)
    ]
    sums = []
    for v, anchor in enumerate(scaled):
        chosen = {"same": columns[v : v + 1], "other": columns[:v] + columns[v + 1 :], "all": columns}[of]
        where = ids.repeat(len(chosen))
        sums.append(logsumexp(anchor, torch.cat(chosen), ids, where, rows, 1 / temperature))
    return torch.stack(sums)
