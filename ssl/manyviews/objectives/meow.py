"""MEOW and AdaMEOW (Yu et al., 2022): negatives weighted by how often clusterings put them together, or by a net."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from manyviews.distributed import Rows
from manyviews.memory import ClusterMemory, remember, sums_by
from manyviews.objectives.objective import Objective, exactly_two, known, positive
from manyviews.similarity import full_precision, unit


class MEOW(Objective):
    r"""Decoupled InfoNCE whose negatives count less the more often they share the anchor's cluster.

    .. math:: L_i = -s_{ii}/t + \log \sum_j w_{ij}\, e^{s_{ij}/t}, \quad
              w_{ij} = R - \#\{\text{clusterings in which i and j are together}\}

    anchors in view 0, keys in view 1; w_ii = 0. To it comes ProtoNCE against the centroids c of the R clusterings, of
    K clusters each, constants whose concentration phi takes the place of the temperature:

    .. math:: L^{proto}_i = \mathrm{mean}_r \Big[ -z_i \cdot c_{r(i)} / \phi_{r(i)}
              + \log \frac{N}{K_r} \sum_k e^{z_i \cdot c_k / \phi_k} \Big]

    .. math:: \phi_k = t\, d_k / \mathrm{mean}(d), \quad
              d_k = \mathrm{mean}_{i \in k} \sqrt{z_i \cdot m_k} / \log (n_k + 5)

    where z is the unit embedding of view 0, m a cluster's mean before it is brought to length 1, n its size; d of
    clusters of fewer than two is the largest, and all are clipped to their quantiles of 0.1 and 0.9. As in the code of
    the authors similarities, not distances, stand under the root, so that tight clusters have the larger phi. The R
    clusterings are those of last epoch's embeddings, where the authors cluster view 1 anew in every step; a sample that
    was not seen yet shares no cluster, and takes no part in ProtoNCE.

    Args:
        samples: size of the data set. dim: D of the embeddings.
        clusters: K of each clustering.
        temperature: t > 0. Paper: 0.4 to 0.9.
        prototypes: weight of ProtoNCE; authors 1, on one of their data sets 0.1.
    """

    concentration: Tensor

    def __init__(
        self,
        samples: int,
        dim: int = 128,
        clusters: Sequence[int] = (100, 300),
        temperature: float = 0.5,
        prototypes: float = 1.0,
    ) -> None:
        super().__init__()
        if prototypes < 0:
            raise ValueError(f"prototypes is a weight >= 0, got {prototypes}")
        self.temperature, self.prototypes = positive("temperature", temperature), prototypes
        self.memory = ClusterMemory(samples, dim, clusters)
        self.register_buffer("concentration", torch.full((sum(clusters),), float(temperature)))

    def loss(self, views: list[Tensor], rows: Rows, index: Tensor | None = None, epoch: int | None = None) -> Tensor:
        """`index` (n,): the sample in the data set. `epoch`: of the run, which says when to cluster."""
        a, b = map(unit, exactly_two(self, views))
        (index,) = known(self, index=index)
        if self.memory.refresh(epoch):
            self.concentrate()
        mine = self.memory.of(index)
        everyone = rows.gather(mine)
        together = (mine[:, None] == everyone) & (mine[:, None] >= 0)
        weight = mine.shape[1] - together.sum(2).to(a)
        own = rows.gather(index)[None] == index[:, None]
        remember(self.memory.items[0], index, F.normalize(a + b, dim=1), rows)
        pull = self.proto_nce(a, mine, rows)
        self.diagnostics |= {"mean_weight": rows.mean(weight.mean(1)), "proto_nce": pull.detach()}
        return weighted(a, b, weight.masked_fill(own, 0).log(), self.temperature, rows) + self.prototypes * pull

    def proto_nce(self, z: Tensor, mine: Tensor, rows: Rows) -> Tensor:
        """The mean over samples and clusterings of L^proto, for unit rows z (n, D) in clusters `mine` (n, R)."""
        sizes, terms = self.memory.clusters, []
        for h, (c, phi) in enumerate(
            zip(self.memory.centroids.split(sizes), self.concentration.split(sizes), strict=True)
        ):
            s = z @ c.to(z).T / phi.to(z)
            own = s.gather(1, mine[:, h].clamp(min=0)[:, None])[:, 0]
            terms.append(s.logsumexp(1) + math.log(rows.total / len(c)) - own)
        return rows.mean(torch.stack(terms, 1), weight=(mine >= 0).to(z))

    @torch.no_grad()
    def concentrate(self) -> None:
        """phi of every cluster, from the memory as it was clustered."""
        z = full_precision(self.memory.items[0])
        parts = self.concentration.split(self.memory.clusters)
        for labels, part in zip(self.memory.assigned, parts, strict=True):
            seen = labels >= 0
            if bool(seen.any()):
                part.copy_(concentrations(z[seen], labels[seen], len(part), self.temperature))


def concentrations(z: Tensor, labels: Tensor, k: int, temperature: float) -> Tensor:
    """(k,): phi of clusters of unit rows z (n, D), see `MEOW`."""
    sums, sizes = sums_by(z, labels, k)
    counts = sizes.to(z)
    means = sums / counts.clamp(min=1)[:, None]
    roots = (z * means[labels]).sum(1).clamp(min=0).sqrt()
    mean_root = sums_by(roots[:, None], labels, k)[0][:, 0] / counts.clamp(min=1)
    d = torch.where(counts > 1, mean_root / (counts + 5).log(), 0)
    d = torch.where(counts > 1, d, d.max())
    low, high = torch.quantile(d, torch.tensor([0.1, 0.9], dtype=d.dtype, device=d.device))
    d = d.clamp(low, high)
    return torch.where(d.mean() > 0, temperature * d / d.mean(), temperature)


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
