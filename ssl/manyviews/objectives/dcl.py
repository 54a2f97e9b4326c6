"""DCL and DCLW (Yeh et al., "Decoupled Contrastive Learning", ECCV 2022, eq. 4 to 6)."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from manyviews.distributed import Rows
from manyviews.objectives.objective import Objective, exactly_two, positive
from manyviews.similarity import log_negatives, unit


class DCL(Objective):
    r"""NT-Xent without the positive in its denominator, so an easy positive does not silence the negatives.

    .. math:: L_i^{(a)} = - w_i\, s(a_i, b_i)/t + \log \sum_{j \ne i} ( e^{s(a_i, b_j)/t} + e^{s(a_i, a_j)/t} )

    averaged over images and over both views as anchors. DCL: w = 1. DCLW (`sigma` set):
    :math:`w_i = 2 - N\, \mathrm{softmax}_i ( s(a_i, b_i)/\sigma )` over the global batch, detached, of mean 1.
    The loss may be negative. A batch without any negative (one image, or one group) gives 0 and no gradient.
    The authors published no code, and whether w takes a gradient is not known; lightly detaches it, as here.

    Args:
        temperature: t > 0. Paper: 0.1.
        sigma: None for DCL; > 0 for DCLW (paper: 0.5). sigma -> infinity is DCL.
    """

    def __init__(self, temperature: float = 0.1, sigma: float | None = None) -> None:
        super().__init__()
        self.temperature = positive("temperature", temperature)
        self.sigma = None if sigma is None else positive("sigma", sigma)

    def loss(self, views: list[Tensor], rows: Rows, group: Tensor | None = None) -> Tensor:
        """`group` (n,): images of equal group >= 0 are left out of each other's negatives (-1: unknown)."""
        a, b = map(unit, exactly_two(self, views))
        s = (a * b).sum(1)
        w = self._weights(s.detach(), rows)
        negatives = log_negatives([a, b], self.temperature, rows, group)
        each = torch.where(negatives > -math.inf, negatives - w * s / self.temperature, 0)
        return rows.mean(each.flatten())

    def _weights(self, s: Tensor, rows: Rows) -> Tensor:
        if self.sigma is None:
            return torch.ones_like(s)
        normaliser = torch.logsumexp(rows.gather(s) / self.sigma, 0)
        return 2 - rows.total * (s / self.sigma - normaliser).exp()
