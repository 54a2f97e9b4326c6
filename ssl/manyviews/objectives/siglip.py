"""SigLIP (Zhai et al., "Sigmoid Loss for Language Image Pre-Training", ICCV 2023)."""

from __future__ import annotations

from torch import Tensor

from manyviews.distributed import Rows
from manyviews.heads import LogitScale
from manyviews.objectives.clip import sums_of_equal
from manyviews.objectives.objective import Objective, exactly_two
from manyviews.similarity import image_ids, softplus_sums, unit


class SigLIP(Objective):
    r"""Every pair of image and text is a yes-or-no question of its own.

    .. math:: L = -\frac1N \sum_{i,j} \log \sigma\big( z_{ij} (s\, u_i \cdot w_j + \beta) \big),
              \quad z_{ij} = 1 \text{ if } i = j \text{ else } -1

    divided by N, not N^2. Texts travel round the ranks (a ring), so a rank holds those of one other at a time.

    Args:
        scale: s and beta; default s = 10 and beta = -10, learned and free, as in the authors' code. In small batches
            beta = -ln(N - 1) starts closer to the share of right pairs.
    """

    def __init__(self, scale: LogitScale | None = None) -> None:
        super().__init__()
        self.scale = scale or LogitScale(10.0, None, -10.0)
        if self.scale.bias is None:
            raise ValueError("SigLIP needs a bias: LogitScale(10, None, bias=-10)")

    def loss(self, views: list[Tensor], rows: Rows, group: Tensor | None = None) -> Tensor:
        """`group` (n,): pairs of equal group >= 0 are right ones too (-1: unknown, no such twin)."""
        a, b = exactly_two(self, views)
        assert self.scale.bias is not None
        s, beta = self.scale(), self.scale.bias[0]
        a, b = unit(a) * s, unit(b)
        everything = softplus_sums(a, b, beta, rows)
        # The texts of all ranks are only gathered where some pair has a twin.
        if group is None or not rows.sum((group >= 0).any().to(a.dtype)) > 0:
            right = (a * b).sum(1) + beta
        else:
            right = self._right(a, b, beta, group, rows)
        self.diagnostics = {"logit_scale": s.detach(), "logit_bias": beta.detach()}
        return rows.mean(everything - right)  # -log sigmoid(l) = softplus(l) - l, and -log sigmoid(-l) = softplus(l)

    @staticmethod
    def _right(a: Tensor, b: Tensor, beta: Tensor, group: Tensor, rows: Rows) -> Tensor:
        """(n,): the sum of the logits of each row's right pairs."""
        same = image_ids(rows, group, a.device)
        twins, number = sums_of_equal(rows.gather_with_gradient(b), rows.gather(same), same)
        return (a * twins).sum(1) + number * beta
