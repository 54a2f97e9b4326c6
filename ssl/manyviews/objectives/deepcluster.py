"""DeepCluster-v2 (Caron et al., NeurIPS 2020, with SwAV): k-means of last epoch's embeddings gives the labels."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import product
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from manyviews.distributed import Rows
from manyviews.memory import recall, remember
from manyviews.objectives.objective import Objective, known, positive
from manyviews.similarity import full_precision, unit


class DeepCluster(Objective):
    r"""Every view predicts the cluster that its image had in the last epoch, in several clusterings at once.

    .. math:: L = \mathrm{mean}_{h, v}\, \mathrm{mean}_i -\log \mathrm{softmax}(z^v_i C_h^T / t)_{c_h(i)}

    At the first batch of an epoch the memory (one unit embedding a sample and large crop) is clustered by spherical
    k-means, once for each clustering h; its centroids C are constants. In the first epoch, and for samples never seen,
    there are no labels: the loss is 0 while the memory fills.

    Args:
        samples: size of the data set; `index` must be smaller.
        dim: D of the embeddings.
        prototypes: clusters of each clustering. Paper: (3000, 3000, 3000).
        temperature: t > 0.
        large: how many of the views, the first ones, are remembered; the clustering h uses crop h modulo this.
        iterations: of k-means.
    """

    batch_coupled = False
    memory: Tensor
    centroids: Tensor
    clusters: Tensor
    clustered: Tensor

    def __init__(
        self,
        samples: int,
        dim: int = 128,
        prototypes: Sequence[int] = (3000, 3000, 3000),
        temperature: float = 0.1,
        large: int = 2,
        iterations: int = 10,
    ) -> None:
        super().__init__()
        self.temperature = positive("temperature", temperature)
        self.prototypes, self.large, self.iterations = list(prototypes), large, iterations
        self.register_buffer("memory", torch.zeros(large, samples, dim))
        self.register_buffer("centroids", F.normalize(torch.randn(sum(prototypes), dim), dim=1))
        self.register_buffer("clusters", torch.full((len(self.prototypes), samples), -1))
        self.register_buffer("clustered", torch.zeros((), dtype=torch.int64))

    def loss(
        self, views: list[Tensor], rows: Rows, index: Tensor | None = None, epoch: int | None = None, **_: Any
    ) -> Tensor:
        """`index` (n,): the sample in the data set. `epoch`: of the run, which says when to cluster."""
        (index,) = known(self, index=index)
        if epoch is not None and epoch > self.clustered:
            self.cluster()
            self.clustered.fill_(epoch)
        z, mine = [unit(view) for view in views], recall(self.clusters.T, index)
        for crop in range(self.large):
            remember(self.memory[crop], index, z[crop], rows)
        losses = []
        parts = self.centroids.to(z[0].dtype).split(self.prototypes)
        for (centroids, labels), view in product(zip(parts, mine.T, strict=True), z):
            each = F.cross_entropy(view @ centroids.T / self.temperature, labels.clamp(min=0), reduction="none")
            losses.append(rows.mean(each, weight=(labels >= 0).to(each)))
        self.diagnostics["labelled"] = rows.mean((mine[:, 0] >= 0).to(z[0]))
        return torch.stack(losses).mean()

    @torch.no_grad()
    def cluster(self) -> None:
        """Clusters what is in the memory; the same on every rank, since the memory is."""
        for h, centroids in enumerate(self.centroids.split(self.prototypes)):
            memory = full_precision(self.memory[h % self.large])
            seen = memory.norm(dim=1) > 0
            generator = torch.Generator().manual_seed(h)
            labels = spherical_kmeans(memory[seen], centroids, self.iterations, generator)
            self.clusters[h, seen] = labels


def spherical_kmeans(z: Tensor, centroids: Tensor, iterations: int, generator: torch.Generator) -> Tensor:
    """(n,) clusters of the unit rows `z` (n, D); `centroids` (K, D) are started on random rows and filled in place.

    An empty cluster takes a random row.
    """
    k = len(centroids)

    def some(count: int) -> Tensor:
        return torch.randint(len(z), (count,), generator=generator).to(z.device)

    start = torch.randperm(len(z), generator=generator)[:k].to(z.device)
    centroids.copy_(z[start if len(start) == k else some(k)])
    labels = (z @ centroids.to(z.dtype).T).argmax(1)
    for _ in range(iterations):
        sums = torch.zeros_like(centroids, dtype=z.dtype).index_add_(0, labels, z)
        empty = labels.bincount(minlength=k) == 0
        sums[empty] = z[some(int(empty.sum()))]
        centroids.copy_(F.normalize(sums, dim=1))
        labels = (z @ centroids.to(z.dtype).T).argmax(1)
    return labels
