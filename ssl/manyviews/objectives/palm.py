"""PALM (Lu et al., ICLR 2024): several prototypes a class, for features that tell what is out of distribution."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from manyviews.distributed import Rows
from manyviews.objectives.objective import Objective, known, positive
from manyviews.objectives.swav import log_sinkhorn
from manyviews.similarity import log_sum, unit


class PALM(Objective):
    r"""Samples go softly to prototypes of their class, which follow them; prototypes are contrasted between classes.

    One step: a balanced assignment Q to all prototypes (Sinkhorn) moves each prototype towards its own class's
    samples, :math:`\mu \leftarrow \overline{m \mu + (1 - m) \sum_i w_{ip} z_i}`; with Q of the moved prototypes,

    .. math:: L_{mle} = -\mathrm{mean}_i \big[ \sum_p w'_{ip}\, s_{ip}/t - \log \sum_p e^{s_{ip}/t} \big], \quad
              L = L_{mle} + L_{pc}

    with w' the assignment among the sample's own class's prototypes and L_pc SupCon among prototypes, whose gradient
    reaches the samples through the step by 1 - m. Class of prototype p: p modulo the number of classes.

    Args:
        classes: C. dim: D of the embeddings. per_class: prototypes of each class. Paper: 6.
        momentum: m. Paper: 0.999, default of the code's class 0.99.
        nearest: of a sample's own prototypes, how many it goes to; 0: all. Paper: 5.
        temperature: t of L_mle. prototype_temperature: of L_pc. epsilon, iterations: of Sinkhorn.
    """

    fewest = 1
    prototypes: Tensor

    def __init__(
        self,
        classes: int,
        dim: int = 128,
        per_class: int = 6,
        momentum: float = 0.999,
        nearest: int = 5,
        temperature: float = 0.1,
        prototype_temperature: float = 0.5,
        epsilon: float = 0.05,
        iterations: int = 3,
    ) -> None:
        super().__init__()
        self.classes, self.momentum, self.nearest = classes, momentum, nearest
        self.temperature, self.epsilon, self.iterations = positive("temperature", temperature), epsilon, iterations
        self.prototype_temperature = positive("prototype_temperature", prototype_temperature)
        self.register_buffer("prototypes", F.normalize(torch.randn(classes * per_class, dim), dim=1))

    def loss(self, views: list[Tensor], rows: Rows, label: Tensor | None = None) -> Tensor:
        """`label` (n,): others than 0 to C - 1 take no part."""
        (label,) = known(self, label=label)
        v, z = len(views), torch.cat([unit(view) for view in views])
        y = rows.gather(label.repeat(v))
        everyone, mu = rows.gather_with_gradient(z), self.prototypes.to(z)
        weight = self._own(everyone.detach(), mu, y)
        moved = self.momentum * mu + (1 - self.momentum) * (_columns(weight).T @ everyone)
        moved = F.normalize(moved, dim=1)
        still = moved.detach()
        again = self._assign(everyone.detach(), still).masked_fill(weight == 0, -math.inf).softmax(1).nan_to_num(0)
        mine = again[v * rows.offset : v * (rows.offset + rows.n)]
        s = z @ still.T / self.temperature
        mle = rows.mean(s.logsumexp(1) - (mine * s).sum(1), weight=mine.sum(1).round())
        contrast = self.between_prototypes(moved)
        self.prototypes.copy_(still)
        usage = again.mean(0)
        self.diagnostics = {
            "mle": mle.detach(),
            "prototype_contrast": contrast.detach(),
            "prototypes_used": torch.exp(-torch.special.xlogy(usage, usage).sum()) / len(usage),
        }
        return mle + contrast

    @torch.no_grad()
    def _assign(self, z: Tensor, prototypes: Tensor) -> Tensor:
        """(N, P): logarithm of the balanced assignment."""
        return log_sinkhorn(z @ prototypes.T, self.epsilon, self.iterations)

    @torch.no_grad()
    def _own(self, z: Tensor, prototypes: Tensor, y: Tensor) -> Tensor:
        """(N, P): each row's assignment to its own class's prototypes, the nearest few of them, of sum 1."""
        log_q = self._assign(z, prototypes)
        own = torch.arange(len(prototypes), device=z.device) % self.classes == y[:, None]
        log_q = log_q.masked_fill(~own, -math.inf)
        if 0 < self.nearest < len(prototypes) // self.classes:
            least = log_q.topk(self.nearest, dim=1).values[:, -1:]
            log_q = log_q.masked_fill(log_q < least, -math.inf)
        return log_q.softmax(1).nan_to_num(0)

    def between_prototypes(self, mu: Tensor) -> Tensor:
        """SupCon over unit prototypes (P, D)."""
        s = mu @ mu.T / self.prototype_temperature
        own = torch.eye(len(mu), dtype=torch.bool, device=mu.device)
        kind = torch.arange(len(mu), device=mu.device) % self.classes
        same = (kind[:, None] == kind) & ~own
        log_p = s - log_sum(s.masked_fill(own, -math.inf), 1)[:, None]
        return -(log_p.masked_fill(~same, 0).sum(1) / same.sum(1).clamp(min=1)).mean()


def _columns(q: Tensor) -> Tensor:
    return q / q.sum(0, keepdim=True).clamp_min(1e-12)
