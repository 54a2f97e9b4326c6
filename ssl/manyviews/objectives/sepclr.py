"""SepCLR (Louiset et al., ICLR 2024): what all images share apart from what only the targets have."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from manyviews.distributed import Rows
from manyviews.objectives.objective import Objective, exactly_two, known
from manyviews.similarity import full_precision, unit


class SepCLR(Objective):
    r"""A common code c of background and target images, and a salient code s that is 0 for the background.

    With the kernel :math:`K(x, y) = e^{-|x - y|^2 / 2t}`, align the mean of :math:`|x - y|^2 / 2t`, unif the log mean
    of K over pairs, jem(c, s) the mean log mean of K(c_i, c_j) K(s_i, s_j), and s~ the salient code with background
    rows set to 0:

    .. math:: L = [\mathrm{align}(c) + \mathrm{unif}(c_1) + \mathrm{unif}(c_2)]
              + \beta_s [\mathrm{align}(s | \text{targets}) + \mathrm{unif}(\tilde s_1) + \mathrm{unif}(\tilde s_2)]
              + \beta_r\, \mathrm{align}(0, s | \text{background}) + \lambda\, \mathrm{jem}(c, \tilde s)

    c is of unit length, s is not. jem is minus the joint entropy: with the two uniformities it lowers what c and s
    say about each other.

    Args:
        temperature: t > 0.
        salient: beta_s. background: beta_r. joint: lambda. Authors' constants for images: 1000, 1000, 10.
    """

    fewest_images = 2

    def __init__(
        self, temperature: float = 0.5, salient: float = 1000.0, background: float = 1000.0, joint: float = 10.0
    ) -> None:
        super().__init__()
        self.temperature, self.salient, self.background, self.joint = temperature, salient, background, joint

    def loss(
        self,
        views: list[Tensor],
        rows: Rows,
        salient: Sequence[Tensor] | None = None,
        label: Tensor | None = None,
    ) -> Tensor:
        """`views`: c of two views; `salient`: s of the same; `label` (n,): 1 target, 0 background."""
        c = [unit(view) for view in exactly_two(self, views)]
        (label,) = known(self, label=label)
        if salient is None:
            raise ValueError("SepCLR needs salient=[...], the salient code of each view")
        s = [full_precision(view) for view in salient]
        target, background = (label == 1).to(c[0]), (label == 0).to(c[0])
        masked = [view * target[:, None] for view in s]
        everyone = torch.ones_like(target)
        common = self.align(c[0], c[1], everyone, rows) + sum(self.uniformity(z, rows) for z in c)
        apart = self.align(s[0], s[1], target, rows) + sum(self.uniformity(z, rows) for z in masked)
        silent = torch.stack([self.align(torch.zeros_like(z), z, background, rows) for z in s]).mean()
        joint = torch.stack([self.jem(a, b, rows) for a, b in zip(c, masked, strict=True)]).mean()
        self.diagnostics = {
            "common": common.detach(), "salient": apart.detach(), "background": silent.detach(), "joint": joint.detach()
        }  # fmt: skip
        return common + self.salient * apart + self.background * silent + self.joint * joint

    def align(self, x: Tensor, y: Tensor, weight: Tensor, rows: Rows) -> Tensor:
        """Mean of |x - y|^2 / 2t over the rows of weight 1; 0 if there is none."""
        return rows.mean((x - y).square().sum(1) / (2 * self.temperature), weight=weight)

    def uniformity(self, x: Tensor, rows: Rows) -> Tensor:
        """log mean of the kernel over pairs of different rows."""
        everyone = rows.gather_with_gradient(x)
        own = torch.arange(rows.total, device=x.device) == rows.index(x.device)[:, None]
        each = self._log_kernel(x, everyone).masked_fill(own, -math.inf).logsumexp(1)
        return rows.gather_with_gradient(each).logsumexp(0) - math.log(rows.total * (rows.total - 1))

    def jem(self, c: Tensor, s: Tensor, rows: Rows) -> Tensor:
        """Mean over i of the log mean over j, i included, of the product of the two kernels."""
        log_kernel = sum(self._log_kernel(x, rows.gather_with_gradient(x)) for x in (c, s))
        assert isinstance(log_kernel, Tensor)
        return rows.mean(log_kernel.logsumexp(1)) - math.log(rows.total)

    def _log_kernel(self, x: Tensor, y: Tensor) -> Tensor:
        squared = x.square().sum(1)[:, None] + y.square().sum(1) - 2 * x @ y.T
        return -squared.clamp_min(0) / (2 * self.temperature)
