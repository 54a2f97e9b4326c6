"""SwAV (Caron et al., NeurIPS 2020): predict a view's balanced cluster assignment from another view."""

from __future__ import annotations

import math
from itertools import product
from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from manyviews.distributed import Rows
from manyviews.memory import Queue
from manyviews.objectives.objective import Objective, positive
from manyviews.similarity import unit


class SwAV(Objective):
    r"""The assignment Q of a large crop, balanced over the batch by Sinkhorn, is the target of every other crop.

    .. math:: L = \mathrm{mean}_{a, v \ne a}\, \mathrm{mean}_i -\sum_k Q^a_{ik} \log \mathrm{softmax}(z^v_i W^T / t)_k

    with unit z and unit prototypes W. Q takes no gradient. As in the code of the authors W is brought to length 1
    beside the graph: its gradient is that of W itself, with the part along each prototype, which counts in the trust
    ratio of LARS. (solo-learn's, through a weight norm, has not that part.)

    Args:
        dim: D of the embeddings.
        prototypes: K. Paper: 3000.
        temperature: t > 0.
        epsilon: of Sinkhorn; smaller is harder.
        iterations: of Sinkhorn.
        large: how many of the views, the first ones, are assigned; the others are small crops.
        queue_size: past embeddings, a large crop each, that take part in Sinkhorn; needed when the batch is smaller
            than the number of prototypes. 0: none.
        queue_from: first epoch in which the queue is used.
        frozen_epochs: epochs at the start in which prototypes stay as they are.
    """

    def __init__(
        self,
        dim: int = 128,
        prototypes: int = 3000,
        temperature: float = 0.1,
        epsilon: float = 0.05,
        iterations: int = 3,
        large: int = 2,
        queue_size: int = 0,
        queue_from: int = 15,
        frozen_epochs: int = 1,
    ) -> None:
        super().__init__()
        self.temperature, self.epsilon = positive("temperature", temperature), positive("epsilon", epsilon)
        self.iterations, self.large = iterations, large
        self.queue_from, self.frozen_epochs = queue_from, frozen_epochs
        self.prototypes = nn.Parameter(F.normalize(torch.randn(prototypes, dim), dim=1))
        self.queues = nn.ModuleList(Queue(queue_size, dim) for _ in range(large if queue_size else 0))

    def loss(self, views: list[Tensor], rows: Rows, epoch: int | None = None) -> Tensor:
        """`epoch`: of the run; None: queue and prototypes are in use at once."""
        z = [unit(view) for view in views]
        w = at_length_one(self.prototypes)
        if epoch is not None and epoch < self.frozen_epochs:
            w = w.detach() + 0 * w  # a gradient of zero, since DDP wants one
        log_p = [F.log_softmax(view @ w.T / self.temperature, dim=1) for view in z]
        q = [self._assign(z[a].detach(), w.detach(), a, rows, epoch) for a in range(self.large)]
        pairs = [(a, v) for a, v in product(range(self.large), range(len(z))) if v != a]
        usage = rows.sum(q[0].sum(0)) / rows.total
        self.diagnostics = {
            "prototypes_used": torch.exp(-torch.special.xlogy(usage, usage).sum()) / len(usage),
            "assignment_entropy": rows.mean(-torch.special.xlogy(q[0], q[0]).sum(1)),
        }
        return torch.stack([rows.mean(-(q[a] * log_p[v]).sum(1)) for a, v in pairs]).mean()

    def _constrain_own(self) -> None:
        """Prototypes of length 1, so that their rate does not shrink as their norm grows."""
        self.prototypes.copy_(unit(self.prototypes))

    @torch.no_grad()
    def _assign(self, z: Tensor, w: Tensor, crop: int, rows: Rows, epoch: int | None) -> Tensor:
        """(n, K): the local rows of the assignment of the global batch, with the queue's embeddings before it."""
        everyone = rows.gather(z)
        if self.queues:
            queue = cast(Queue, self.queues[crop])
            if (epoch is None or epoch >= self.queue_from) and queue.filled() == 1:
                everyone = torch.cat([everyone, queue.items])
            queue.push(z, rows)
        q = sinkhorn(everyone @ w.T, self.epsilon, self.iterations)
        return q[rows.offset : rows.offset + rows.n]


def at_length_one(w: Tensor) -> Tensor:
    """Unit rows of w, with the gradient that w itself would have."""
    return w + (unit(w) - w).detach()


def sinkhorn(scores: Tensor, epsilon: float, iterations: int) -> Tensor:
    """(B, K): soft assignment whose rows sum to 1 and whose columns sum to about B/K.

    Starts from exp(scores / epsilon); each iteration scales the prototypes' columns to B/K, then the samples' rows
    to 1.
    """
    return log_sinkhorn(scores, epsilon, iterations).exp()


def log_sinkhorn(scores: Tensor, epsilon: float, iterations: int) -> Tensor:
    """The logarithm of `sinkhorn`: nothing overflows at any epsilon, and small shares keep their proportions."""
    log_q = scores / epsilon
    share = math.log(scores.shape[0] / scores.shape[1])
    for _ in range(iterations):
        log_q = log_q - log_q.logsumexp(0) + share
        log_q = log_q - log_q.logsumexp(1, keepdim=True)
    return log_q
