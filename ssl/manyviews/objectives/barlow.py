"""Barlow Twins (Zbontar et al., ICML 2021) and VICReg (Bardes et al., ICLR 2022): statistics over the batch."""

from __future__ import annotations

import torch
from torch import Tensor

from manyviews.distributed import Rows
from manyviews.objectives.objective import Objective, exactly_two


class BarlowTwins(Objective):
    r"""The cross-correlation of the two views' embeddings shall be the identity.

    .. math:: L = \sum_l (1 - C_{ll})^2 + \lambda \sum_{l \ne m} C_{lm}^2, \quad C = \hat a^T \hat b / N

    with columns standardised over the global batch (biased deviation). The gradient is the true one; the authors' code
    loses a factor of the number of ranks.

    Args:
        redundancy: lambda. Paper: 0.0051.
        eps: added to a column's variance, as BatchNorm does.
    """

    def __init__(self, redundancy: float = 0.0051, eps: float = 1e-5) -> None:
        super().__init__()
        self.redundancy, self.eps = redundancy, eps

    def loss(self, views: list[Tensor], rows: Rows) -> Tensor:
        """Two raw views (n, D): no normalisation of rows."""
        a, b = exactly_two(self, views)
        c = cross_correlation(a, b, rows, self.eps)
        on, off = _split((c - torch.eye(len(c), dtype=c.dtype, device=c.device)).square())
        self.diagnostics = {"on_diagonal": on.detach(), "off_diagonal": off.detach()}
        return on + self.redundancy * off


class VICReg(Objective):
    r"""Invariance of a pair, variance of every dimension kept above 1, covariances pushed to 0.

    .. math:: L = \lambda\, \mathrm{mean} (a - b)^2 + \frac{\mu}{2} \sum_{z} \mathrm{mean}_d\, [1 - \sqrt{\mathrm{Var}
              z_d + 10^{-4}}]_+ + \nu \sum_z \frac{1}{D} \sum_{l \ne m} \mathrm{Cov}(z)_{lm}^2

    over z in {a, b}, with unbiased statistics of the global batch.

    Args:
        invariance: lambda, paper 25. variance: mu, paper 25. covariance: nu, paper 1.
    """

    fewest_images = 2

    def __init__(self, invariance: float = 25.0, variance: float = 25.0, covariance: float = 1.0) -> None:
        super().__init__()
        self.invariance, self.variance, self.covariance = invariance, variance, covariance

    def loss(self, views: list[Tensor], rows: Rows) -> Tensor:
        """Two raw views (n, D): no normalisation of rows."""
        a, b = exactly_two(self, views)
        invariance = rows.mean((a - b).square().mean(1))
        spread, redundancy = a.new_zeros(()), a.new_zeros(())
        for z in (a, b):
            centred = z - mean(z, rows)
            covariance = rows.sum_with_gradient(centred.T @ centred) / (rows.total - 1)
            deviation = (covariance.diagonal() + 1e-4).sqrt()
            spread = spread + (1 - deviation).relu().mean() / 2
            redundancy = redundancy + _split(covariance.square())[1] / z.shape[1]
        self.diagnostics = {
            "invariance": invariance.detach(),
            "variance": spread.detach(),
            "covariance": redundancy.detach(),
        }
        return self.invariance * invariance + self.variance * spread + self.covariance * redundancy


def mean(z: Tensor, rows: Rows) -> Tensor:
    """(D,): mean of the rows of all ranks, with gradient."""
    return rows.sum_with_gradient(z.sum(0)) / rows.total


def cross_correlation(a: Tensor, b: Tensor, rows: Rows, eps: float) -> Tensor:
    """(D, D): a^T b / N of the columns standardised over the rows of all ranks."""
    standard = []
    for z in (a, b):
        centred = z - mean(z, rows)
        variance = rows.sum_with_gradient(centred.square().sum(0)) / rows.total
        standard.append(centred * torch.rsqrt(variance + eps))
    return rows.sum_with_gradient(standard[0].T @ standard[1]) / rows.total


def _split(matrix: Tensor) -> tuple[Tensor, Tensor]:
    """Sums on and off the diagonal."""
    on = matrix.diagonal().sum()
    off = matrix.masked_fill(torch.eye(len(matrix), dtype=torch.bool, device=matrix.device), 0).sum()
    return on, off
