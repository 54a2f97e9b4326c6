"""BECLR's DyCE (Poulakakis-Daktylidis and Jamali-Rad, ICLR 2024): batches enlarged from a clustered memory."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from manyviews.distributed import Rows
from manyviews.memory import Queue, sums_by
from manyviews.objectives.objective import Objective, paired, positive
from manyviews.objectives.swav import sinkhorn
from manyviews.similarity import log_negatives, unit


class BECLR(Objective):
    r"""Predictions match the teacher's projection, and those of its neighbours in their cluster; a spread term.

    .. math:: L = -\mathrm{mean} \cos(p, \mathrm{sg}\, z)
              + \lambda \log \mathrm{mean}_{i \ne j}\, e^{s_i \cdot s_j/\tau}

    Once `from_epoch` is reached the first mean also runs over each teacher embedding's `neighbours`, the nearest
    entries of the memory's cluster it falls into: each prediction meets 1 + k targets. Averaged over the pairs given.
    The spread term is on the student's projections s, before the predictor, of all views together; i and j are rows of
    different images. The authors then add neighbours here as well, of the student's predictions and projections, from
    two more memories; they are constants, and left out.

    The memory holds unit embeddings in clusters: the teacher's batch is assigned to the prototypes by Sinkhorn, moves
    them by their momentum, and replaces the oldest entries.

    Args:
        dim: D of the embeddings. memory: entries. clusters: K. neighbours: k.
        spread: lambda. spread_temperature: tau. momentum: of the prototypes.
        epsilon, iterations: of Sinkhorn. from_epoch: first epoch with neighbours. Paper: 60 of 400.
    """

    fewest = 1
    fewest_images = 2
    prototypes: Tensor
    cluster: Tensor

    def __init__(
        self,
        dim: int = 512,
        memory: int = 8192,
        clusters: int = 200,
        neighbours: int = 5,
        spread: float = 0.1,
        spread_temperature: float = 2.0,
        momentum: float = 0.9,
        epsilon: float = 0.05,
        iterations: int = 3,
        from_epoch: int = 60,
    ) -> None:
        super().__init__()
        self.memory, self.neighbours, self.from_epoch = Queue(memory, dim), neighbours, from_epoch
        self.spread, self.spread_temperature = spread, positive("spread_temperature", spread_temperature)
        self.momentum, self.epsilon, self.iterations = momentum, epsilon, iterations
        self.register_buffer("prototypes", F.normalize(torch.randn(clusters, dim), dim=1))
        self.register_buffer("cluster", torch.full((memory,), -1))

    def loss(
        self,
        views: list[Tensor],
        rows: Rows,
        targets: Sequence[Tensor] | None = None,
        projections: Sequence[Tensor] | None = None,
        epoch: int | None = None,
    ) -> Tensor:
        """`views`: the student's predictions; `targets`: the teacher's projections of the other views.

        `projections`: the student's, which the spread term pushes apart; default: its predictions.
        """
        pairs = [(unit(p), unit(z.detach())) for p, z in paired(self, views, targets)]
        enlarged = (epoch is None or epoch >= self.from_epoch) and bool(self.memory.filled() == 1)
        losses = []
        for p, z in pairs:
            matched = (p * z).sum(1, keepdim=True)
            if enlarged and self.neighbours:
                near, there = self.nearest(z)
                matched = torch.cat([matched, torch.einsum("nd,nkd->nk", p, near)], 1)
                counts = torch.cat([torch.ones_like(matched[:, :1]), there.to(p)], 1)
            else:
                counts = torch.ones_like(matched)
            losses.append(-rows.mean(matched, weight=counts))
        self._insert(torch.stack([z for _, z in pairs], 1).flatten(0, 1), rows)
        used = self.cluster[self.cluster >= 0].bincount(minlength=len(self.prototypes)) > 0
        self.diagnostics = {"memory_filled": self.memory.filled(), "clusters_used": used.float().mean()}
        student = [p for p, _ in pairs] if projections is None else [unit(s) for s in projections]
        return torch.stack(losses).mean() + self.spread * self._spread(student, rows)

    @torch.no_grad()
    def nearest(self, z: Tensor) -> tuple[Tensor, Tensor]:
        """(n, k, D): the entries nearest to each row in the cluster it falls into; (n, k) whether there are so many."""
        items = self.memory.items.to(z)
        mine = (z @ self.prototypes.to(z).T).argmax(1)
        s = (z @ items.T).masked_fill(mine[:, None] != self.cluster, -math.inf)
        best, places = s.topk(min(self.neighbours, len(items)), dim=1)
        return items[places], best > -math.inf

    def _spread(self, views: list[Tensor], rows: Rows) -> Tensor:
        each = log_negatives(views, self.spread_temperature, rows).flatten()
        count = len(views)
        pairs = count * rows.total * count * (rows.total - 1)
        return rows.gather_with_gradient(each).logsumexp(0) - math.log(pairs)

    @torch.no_grad()
    def _insert(self, z: Tensor, rows: Rows) -> None:
        everyone, prototypes = rows.gather(z), self.prototypes.to(z)
        q = sinkhorn(everyone @ prototypes.T, self.epsilon, self.iterations)
        mine = q.argmax(1)
        sums, counts = sums_by(everyone, mine, len(prototypes))
        moved = self.momentum * prototypes + (1 - self.momentum) * sums / counts.clamp(min=1)[:, None].to(z)
        self.prototypes.copy_(torch.where((counts > 0)[:, None], F.normalize(moved, dim=1), prototypes))
        places = self.memory.push(z, rows)
        self.cluster[places] = mine[-len(places) :]
