"""DeepCluster-v2 (Caron et al., NeurIPS 2020, with SwAV): k-means of last epoch's embeddings gives the labels."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import product
from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor

from manyviews.distributed import Rows
from manyviews.memory import ClusterMemory, remember
from manyviews.objectives.objective import Objective, known, positive
from manyviews.similarity import unit


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
        large: how many of the views, the first ones, are remembered.
    """

    batch_coupled: ClassVar[bool] = False

    def __init__(
        self,
        samples: int,
        dim: int = 128,
        prototypes: Sequence[int] = (3000, 3000, 3000),
        temperature: float = 0.1,
        large: int = 2,
    ) -> None:
        super().__init__()
        self.temperature, self.large = positive("temperature", temperature), large
        self.memory = ClusterMemory(samples, dim, prototypes, slots=large)

    def loss(self, views: list[Tensor], rows: Rows, index: Tensor | None = None, epoch: int | None = None) -> Tensor:
        """`index` (n,): the sample in the data set. `epoch`: of the run, which says when to cluster."""
        (index,) = known(self, index=index)
        self.memory.refresh(epoch)
        z, labels = [unit(view) for view in views], self.memory.of(index).T
        for crop in range(self.large):
            remember(self.memory.items[crop], index, z[crop], rows)
        losses = []
        clusterings = self.memory.centroids.to(z[0].dtype).split(self.memory.clusters)
        for (centroids, label), view in product(zip(clusterings, labels, strict=True), z):
            each = F.cross_entropy(view @ centroids.T / self.temperature, label.clamp(min=0), reduction="none")
            losses.append(rows.mean(each, weight=(label >= 0).to(each)))
        self.diagnostics["labelled"] = rows.mean((labels[0] >= 0).to(z[0]))
        return torch.stack(losses).mean()
