"""Embeddings that outlive their batch."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from manyviews.distributed import Rows
from manyviews.similarity import full_precision


class Queue(nn.Module):
    """The last `size` embeddings of all ranks, first in, first out; part of the checkpoint, the same on every rank.

    It starts full of random directions, as in MoCo.

    Args:
        size: embeddings held. Any size: a push wraps around.
        dim: D of an embedding.

    Attributes:
        items: (size, D) unit rows. pushed: how many embeddings ever went in.
    """

    items: Tensor
    pushed: Tensor

    def __init__(self, size: int, dim: int) -> None:
        super().__init__()
        self.register_buffer("items", F.normalize(torch.randn(size, dim), dim=1))
        self.register_buffer("pushed", torch.zeros((), dtype=torch.int64))

    def __len__(self) -> int:
        return len(self.items)

    @torch.no_grad()
    def push(self, z: Tensor, rows: Rows) -> Tensor:
        """Replaces the oldest entries by the unit rows `z` (m, D) of all ranks. Returns the places written to."""
        new = rows.gather(z)[-len(self) :].to(self.items.dtype)
        places = (self.pushed + torch.arange(len(new), device=new.device)) % len(self)
        self.items[places] = new
        self.pushed += len(new)
        return places

    def filled(self) -> Tensor:
        """Share of the entries that are embeddings, not the random start."""
        return (self.pushed / len(self)).clamp(max=1.0)


def recall(table: Tensor, index: Tensor) -> Tensor:
    """`table` (samples, ...) at `index` (n,).

    Raises:
        ValueError: if an index is outside the table.
    """
    # A GPU would have to be waited for: there the method looks at the size of the set before the first step.
    if index.device.type == "cpu" and int(index.max()) >= len(table):
        raise ValueError(
            f"sample index {int(index.max())}, but the objective was made for samples={len(table)}: set it to the "
            "size of the training set (viewshards inspect shows it)"
        )
    return table[index]


@torch.no_grad()
def remember(table: Tensor, index: Tensor, values: Tensor, rows: Rows) -> None:
    """Writes `values` (n, ...) of all ranks into `table` (samples, ...) at `index` (n,), on every rank alike."""
    table[rows.gather(index)] = rows.gather(values).to(table.dtype)


class ClusterMemory(nn.Module):
    """One unit embedding a sample, and clusterings of them; part of the checkpoint, the same on every rank.

    Args:
        samples: size of the data set. dim: D of an embedding.
        clusters: K of each clustering.
        slots: embeddings remembered of a sample (one a large crop); clustering h uses slot h modulo this.
        iterations: of k-means.

    Attributes:
        items: (slots, samples, D). centroids: (sum of K, D). assigned: (clusterings, samples), -1 where never seen.
    """

    items: Tensor
    centroids: Tensor
    assigned: Tensor
    epoch: Tensor

    def __init__(self, samples: int, dim: int, clusters: Sequence[int], slots: int = 1, iterations: int = 10) -> None:
        super().__init__()
        self.samples, self.clusters, self.slots, self.iterations = samples, list(clusters), slots, iterations
        self.register_buffer("items", torch.zeros(slots, samples, dim))
        self.register_buffer("centroids", F.normalize(torch.randn(sum(clusters), dim), dim=1))
        self.register_buffer("assigned", torch.full((len(self.clusters), samples), -1))
        self.register_buffer("epoch", torch.zeros((), dtype=torch.int64))

    def refresh(self, epoch: int | None) -> bool:
        """Clusters the memory once at the start of each epoch but the first. Returns whether it did now."""
        if epoch is None or epoch <= self.epoch:
            return False
        self.cluster()
        self.epoch.fill_(epoch)
        return True

    @torch.no_grad()
    def cluster(self) -> None:
        """Clusters what has been seen."""
        for h, centroids in enumerate(self.centroids.split(self.clusters)):
            items = full_precision(self.items[h % self.slots])
            seen = items.norm(dim=1) > 0
            if bool(seen.any()):
                generator = torch.Generator().manual_seed(h)
                self.assigned[h, seen] = spherical_kmeans(items[seen], centroids, self.iterations, generator)

    def of(self, index: Tensor) -> Tensor:
        """(n, clusterings): the clusters of samples, -1 where unknown."""
        return recall(self.assigned.T, index)


def spherical_kmeans(z: Tensor, centroids: Tensor, iterations: int, generator: torch.Generator) -> Tensor:
    """(n,) clusters of the unit rows `z` (n, D); `centroids` (K, D) are started on random rows and filled in place.

    An empty cluster takes a random row.
    """
    k = len(centroids)

    def some(count: int) -> Tensor:
        return torch.randint(len(z), (count,), generator=generator).to(z.device)

    start = torch.randperm(len(z), generator=generator)[:k].to(z.device)
    centroids.copy_(z[start if len(start) == k else some(k)])
    labels = nearest_row(z, centroids)
    for _ in range(iterations):
        sums, counts = sums_by(z, labels, k)
        empty = counts == 0
        sums[empty] = z[some(int(empty.sum()))]
        centroids.copy_(F.normalize(sums, dim=1))
        labels = nearest_row(z, centroids)
    return labels


CHUNK = 16_384
"""Rows whose similarities to all centroids are held at a time."""


def nearest_row(z: Tensor, centroids: Tensor) -> Tensor:
    """(n,): the centroid most similar to each row."""
    return torch.cat([(part @ centroids.to(part.dtype).T).argmax(1) for part in z.split(CHUNK)])


def sums_by(z: Tensor, labels: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """(k, D) sums of the rows of each label, and (k,) their counts.

    By products with one-hot rows: scattered additions come in another order each time on a GPU, and ranks would drift.
    """
    sums = z.new_zeros(k, z.shape[1])
    for part, label in zip(z.split(CHUNK), labels.split(CHUNK), strict=True):
        sums += F.one_hot(label, k).to(part.dtype).T @ part
    return sums, labels.bincount(minlength=k)
