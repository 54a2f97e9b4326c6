"""The hard contrastive loss (Wang and Liu, "Understanding the Behaviour of Contrastive Loss", CVPR 2021)."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from manyviews.distributed import Rows
from manyviews.objectives.ntxent import softplus
from manyviews.objectives.objective import Objective, exactly_two, positive
from manyviews.similarity import image_ids, log_sum, unit


class HardContrastive(Objective):
    r"""NT-Xent against each anchor's most similar negatives only.

    .. math:: L_i = -\log \frac{e^{s(i, i^+)/t}}{e^{s(i, i^+)/t} + \sum_{n: s(i, n) \ge s_\alpha^{(i)}} e^{s(i, n)/t}}

    The threshold is the anchor's own quantile, and takes no gradient. With it, uniformity no longer needs a small
    temperature. Keeping all is NT-Xent.

    Args:
        temperature: t > 0.
        keep: share of the negatives that are kept, in (0, 1], at least one of them; or, as an integer, their number.
    """

    fewest_images = 2

    def __init__(self, temperature: float = 0.3, keep: float | int = 0.05) -> None:
        super().__init__()
        if not (keep >= 1 if isinstance(keep, int) else 0 < keep <= 1):
            raise ValueError(f"keep must be a share in (0, 1] or a number of negatives >= 1, got {keep}")
        self.temperature, self.keep = positive("temperature", temperature), keep

    def loss(self, views: list[Tensor], rows: Rows, group: Tensor | None = None) -> Tensor:
        """`group` (n,): images of equal group >= 0 are left out of each other's negatives (-1: unknown)."""
        a, b = map(unit, exactly_two(self, views))
        z, ids = torch.cat([a, b]), image_ids(rows, group, a.device).repeat(2)
        s = z @ rows.gather_with_gradient(z).T / self.temperature
        s = s.masked_fill(ids[:, None] == rows.gather(ids), -math.inf)
        all_of_them = 2 * rows.total - 2
        kept = min(self.keep, all_of_them) if isinstance(self.keep, int) else max(1, round(self.keep * all_of_them))
        negatives = s.topk(kept, dim=1).values
        positives = (a * b).sum(1).repeat(2) / self.temperature
        self.diagnostics["threshold"] = rows.mean(negatives.detach()[:, -1]) * self.temperature
        return rows.mean(softplus(log_sum(negatives, 1) - positives))
