"""NT-Xent, the loss of SimCLR (Chen et al., ICML 2020, eq. 1)."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor

from manyviews.distributed import Rows
from manyviews.objectives.objective import Objective, exactly_two, positive
from manyviews.similarity import log_negatives, unit


class NTXent(Objective):
    r"""Pick an image's other view among all other views of the batch.

    .. math:: L = \frac{1}{2N} \sum_r -\log \frac{e^{s(r, r^+)/t}}{\sum_{k \ne r} e^{s(r, k)/t}}

    over the 2N rows r of both views, s the cosine and r+ the other view of r's image. The positive is in the
    denominator. With n_r the log-sum-exp over the 2N - 2 negatives, a row's term is softplus(n_r - s(r, r+)/t),
    which is how it is computed: nothing is lost when a positive wins by far.

    The mean over anchors is the paper's; the authors' code returns the sum over the two views, twice this value.

    Args:
        temperature: t > 0. Paper: 0.1 on ImageNet, 0.5 on CIFAR.
    """

    def __init__(self, temperature: float = 0.1) -> None:
        super().__init__()
        self.temperature = positive("temperature", temperature)

    def loss(self, views: list[Tensor], rows: Rows, group: Tensor | None = None) -> Tensor:
        """`group` (n,): images of equal group >= 0 are left out of each other's negatives (-1: unknown)."""
        z1, z2 = map(unit, exactly_two(self, views))
        positives = (z1 * z2).sum(1) / self.temperature
        negatives = log_negatives([z1, z2], self.temperature, rows, group)
        return rows.mean(softplus(negatives - positives).flatten())


def softplus(x: Tensor) -> Tensor:
    """log(1 + e^x) to full precision: torch switches to x at 20 by default, an error of 2e-9."""
    return F.softplus(x, threshold=50)
