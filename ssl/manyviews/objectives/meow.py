"""MEOW and AdaMEOW (Yu et al., 2022): negatives weighted by how often clusterings put them together, or by a net."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from manyviews.distributed import Rows
from manyviews.memory import ClusterMemory, remember
from manyviews.objectives.objective import Objective, exactly_two, known, positive
from manyviews.similarity import unit


class MEOW(Objective):
    r"""Decoupled InfoNCE whose negatives count less the more often they share the anchor's cluster.

    .. math:: L_i = -s_{ii}/t + \log \sum_j w_{ij}\, e^{s_{ij}/t}, \quad
              w_{ij} = R - \#\{\text{clusterings in which i and j are together}\}

    anchors in view 0, keys in view 1; w_ii = 0. The R clusterings are those of last epoch's embeddings; a sample that
    was not seen yet shares no cluster.

    Args:
        samples: size of the data set. dim: D of the embeddings.
        clusters: K of each clustering.
        temperature: t > 0. Paper: 0.4 to 0.9.
    """

    def __init__(
        self, samples: int, dim: int = 128, clusters: Sequence[int] = (100, 300), temperature: float = 0.5
    ) -> None:
        super().__init__()
        self.temperature = positive("temperature", temperature)
        self.memory = ClusterMemory(samples, dim, clusters)

    def loss(self, views: list[Tensor], rows: Rows, index: Tensor | None = None, epoch: int | None = None) -> Tensor:
        """`index` (n,): the sample in the data set. `epoch`: of the run, which says when to cluster."""
        a, b = map(unit, exactly_two(self, views))
        (index,) = known(self, index=index)
        self.memory.refresh(epoch)
        mine = self.memory.of(index)
        everyone = rows.gather(mine)
        together = (mine[:, None] == everyone) & (mine[:, None] >= 0)
        weight = mine.shape[1] - together.sum(2).to(a)
        own = rows.gather(index)[None] == index[:, None]
        remember(self.memory.items[0], index, F.normalize(a + b, dim=1), rows)
        self.diagnostics["mean_weight"] = rows.mean(weight.mean(1))
        return weighted(a, b, weight.masked_fill(own, 0).log(), self.temperature, rows)


class AdaMEOW(Objective):
    r"""As MEOW, with weights from a net: :math:`w_{ij} = \sigma(\mathrm{MLP}(h_i + h_j))`, of mean 1 in each row.

    The mean is ours: without it the net would drive every weight to 0, and the loss with them. As in the paper the
    diagonal is weighted like every other pair.

    Args:
        dim: D of the embeddings. hidden: width of the net. temperature: t > 0.
    """

    def __init__(self, dim: int = 128, hidden: int = 128, temperature: float = 0.5) -> None:
        super().__init__()
        self.temperature = positive("temperature", temperature)
        self.first, self.last = nn.Linear(dim, hidden), nn.Linear(hidden, 1)

    def loss(self, views: list[Tensor], rows: Rows) -> Tensor:
        """Two views (n, D)."""
        a, b = map(unit, exactly_two(self, views))
        keys = rows.gather_with_gradient(b)
        # The first layer of a sum is a sum, so n + N products serve all pairs.
        hidden = self.first(a)[:, None] + F.linear(keys, self.first.weight)[None]
        log_weight = F.logsigmoid(self.last(hidden.relu())[..., 0])
        log_weight = log_weight - (log_weight.logsumexp(1, keepdim=True) - math.log(len(keys)))
        self.diagnostics["own_weight"] = rows.mean(log_weight.detach().exp()[:, rows.offset :].diagonal())
        return weighted(a, b, log_weight, self.temperature, rows)


def weighted(a: Tensor, b: Tensor, log_weight: Tensor, temperature: float, rows: Rows) -> Tensor:
    """The equation for unit views and log w (n, N)."""
    s = a @ rows.gather_with_gradient(b).T / temperature
    some = log_weight.amax(1) > -math.inf  # a row that weighs nothing has nothing to be told from
    push = (torch.where(some[:, None], log_weight, 0) + s).logsumexp(1)
    return rows.mean(push - (a * b).sum(1) / temperature, weight=some.to(s))
