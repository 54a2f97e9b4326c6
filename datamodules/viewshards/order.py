"""The order of samples: a pure function of (seed, epoch), so that a position in it is one number.

Shards are cut into pieces, the pieces are permuted and laid in one line, the line is cut by sample into `lanes` of
equal length, and inside a lane the samples of every `window` pieces are permuted together. A step takes
`global_batch / lanes` samples of every lane, and rank r of W owns lanes [r * lanes / W, (r + 1) * lanes / W). So

- all ranks have the same number of batches by construction, whatever the sizes of the shards;
- a rank reads its own pieces, a few at a time; nothing longer than a window is ever held;
- the global batch is the same set of samples for every world size that divides `lanes`;
- finding the middle of an epoch touches one window a lane.

A piece is a shard, or an even part of one where shards are few: there are at least as many pieces as places in all
windows. In a set of up to SMALL samples every sample is a piece: it is shuffled as a whole.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
from numpy.typing import NDArray
from torch.utils.data import Sampler

SMALL = 16_384


def generator(*key: int) -> np.random.Generator:
    """The random numbers of one place in the seed tree, such as (seed, epoch, sample)."""
    return np.random.Generator(np.random.Philox(np.random.SeedSequence(key)))


class EpochOrder:
    """The order of one epoch.

    Args:
        counts: samples of each shard.
        seed, epoch: what the order depends on.
        lanes: number of lanes.
        window: pieces whose samples are permuted together.
    """

    def __init__(self, counts: Sequence[int], seed: int, epoch: int, lanes: int, window: int) -> None:
        self.seed, self.epoch, self.window = seed, epoch, window
        first, length = _pieces(np.asarray(counts, np.int64), lanes * window)
        order = generator(seed, epoch, 0).permutation(len(length))
        self.first, self.length = first[order], length[order]
        self.starts = np.concatenate([[0], np.cumsum(self.length)])
        self.lane_length = int(self.starts[-1]) // lanes

    def lane(self, lane: int, position: int = 0) -> Iterator[int]:
        """The sample ids of a lane from a position on."""
        low, high = lane * self.lane_length, (lane + 1) * self.lane_length
        piece = int(np.searchsorted(self.starts, low, "right")) - 1
        number = done = 0
        while low < high:
            after = min(piece + self.window, len(self.length))
            end = min(int(self.starts[after]), high)
            if position < done + end - low:
                ids = self._ids(piece, after, low, end)
                ids = ids[generator(self.seed, self.epoch, 1, lane, number).permutation(len(ids))]
                yield from ids[max(0, position - done) :].tolist()
            done, low, piece, number = done + end - low, end, after, number + 1

    def _ids(self, piece: int, after: int, low: int, high: int) -> NDArray[np.int64]:
        """The ids on the stretch [low, high) of the line, which lies in the pieces [piece, after)."""
        parts = []
        for p in range(piece, after):
            start = int(self.starts[p])
            a, b = max(low, start), min(high, start + int(self.length[p]))
            parts.append(np.arange(a - start, b - start) + int(self.first[p]))
        return np.concatenate(parts)


def _pieces(counts: NDArray[np.int64], wanted: int) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """First sample id and length of each piece: shards cut evenly until there are about `wanted` of them."""
    total = int(counts.sum())
    longest = 1 if total <= SMALL else max(1, total // wanted)
    parts = -(-counts // longest)
    shard = np.repeat(np.arange(len(counts)), parts)
    part = np.arange(len(shard)) - np.repeat(np.cumsum(parts) - parts, parts)
    low, high = part * counts[shard] // parts[shard], (part + 1) * counts[shard] // parts[shard]
    first_of_shard = np.cumsum(counts) - counts
    return first_of_shard[shard] + low, high - low


class TrainBatches(Sampler[list[tuple[int, int]]]):
    """The (epoch, sample id) lists that one rank trains on: a batch sampler.

    Args:
        counts: samples of each shard.
        global_batch_size: samples a step over all ranks, a multiple of `lanes`.
        lanes: a multiple of `world`.
        window, seed: see `EpochOrder`.
        world, rank: of the process group.

    Attributes:
        epoch: the epoch the next iteration is of.
        consumed: samples of that epoch, over all ranks, that were used already.
    """

    def __init__(
        self, counts: Sequence[int], global_batch_size: int, lanes: int, window: int, seed: int, world: int, rank: int
    ) -> None:
        self.counts, self.global_batch_size, self.lanes, self.window, self.seed = (
            counts,
            global_batch_size,
            lanes,
            window,
            seed,
        )
        self.mine = range(rank * lanes // world, (rank + 1) * lanes // world)
        self.epoch = self.consumed = 0
        # Lightning calls set_epoch on `loader.sampler` and `loader.batch_sampler.sampler`, never on the batch sampler.
        self.sampler = self

    def set_epoch(self, epoch: int) -> None:
        """Called before each epoch; another epoch than the current one begins at its start."""
        if epoch != self.epoch:
            self.epoch, self.consumed = epoch, 0

    def __len__(self) -> int:
        """Batches of a whole epoch: Lightning counts from the epoch's start, also when it resumes inside."""
        return sum(self.counts) // self.lanes // (self.global_batch_size // self.lanes)

    def __iter__(self) -> Iterator[list[tuple[int, int]]]:
        epoch, each = self.epoch, self.global_batch_size // self.lanes
        order = EpochOrder(self.counts, self.seed, epoch, self.lanes, self.window)
        position = self.consumed // self.lanes
        lanes = [order.lane(lane, position) for lane in self.mine]
        for _ in range((order.lane_length - position) // each):
            yield [(epoch, next(lane)) for lane in lanes for _ in range(each)]


class ClusterBatches(TrainBatches):
    """As TrainBatches, but every global batch is of one cluster: what a sample is told from is like it.

    Each epoch shuffles each cluster, cuts it into global batches, and visits the clusters in turn. What does not fill
    a batch is left out, other samples each epoch; a cluster smaller than a batch is left out altogether. Samples are
    read in random order over all shards, which wants local or cached ones.

    Args:
        clusters: (samples,) the cluster of each sample; negative: never trained on.
        counts, global_batch_size, lanes, window, seed, world, rank: as in TrainBatches.
    """

    def __init__(
        self,
        clusters: NDArray[np.int64],
        counts: Sequence[int],
        global_batch_size: int,
        lanes: int,
        window: int,
        seed: int,
        world: int,
        rank: int,
    ) -> None:
        super().__init__(counts, global_batch_size, lanes, window, seed, world, rank)
        if clusters.ndim != 1 or len(clusters) != sum(counts):
            raise ValueError(f"clusters of {len(clusters)} samples, but the split has {sum(counts)}")
        self.members = [np.flatnonzero(clusters == c) for c in np.unique(clusters[clusters >= 0])]
        if not len(self):
            raise ValueError(f"no cluster has the {global_batch_size} samples of a global batch: make it smaller")

    def __len__(self) -> int:
        return sum(len(members) // self.global_batch_size for members in self.members)

    def __iter__(self) -> Iterator[list[tuple[int, int]]]:
        epoch, size = self.epoch, self.global_batch_size
        share = slice(self.mine.start * size // self.lanes, self.mine.stop * size // self.lanes)
        shuffled = [
            members[generator(self.seed, epoch, 3, number).permutation(len(members))]
            for number, members in enumerate(self.members)
        ]
        rounds = max(len(members) // size for members in shuffled)
        turns = [m[k * size : (k + 1) * size] for k in range(rounds) for m in shuffled if (k + 1) * size <= len(m)]
        for ids in turns[self.consumed // size :]:
            yield [(epoch, i) for i in ids[share].tolist()]


class CellBatches(TrainBatches):
    """As TrainBatches, but batches are made of cells: samples that are hard to tell apart, and so have to meet.

    Each epoch visits the cells in another order and takes of each its first sample and `take - 1` others, drawn anew
    (NegCLIP: an image and one of its nearest neighbours; SaHa: a query and all that belong to it). A sample may stand
    in several cells. Cells that do not fill a global batch are left out, others each epoch.

    Args:
        cells: (C, S) sample ids; negative: no sample, after the others of its row.
        take: samples of a cell, 1 to S; cells with fewer are never used.
        counts, global_batch_size, lanes, window, seed, world, rank: as in TrainBatches; `take` divides the batch.
    """

    def __init__(
        self,
        cells: NDArray[np.int64],
        take: int,
        counts: Sequence[int],
        global_batch_size: int,
        lanes: int,
        window: int,
        seed: int,
        world: int,
        rank: int,
    ) -> None:
        super().__init__(counts, global_batch_size, lanes, window, seed, world, rank)
        if cells.ndim != 2 or not 1 <= take <= cells.shape[1] or global_batch_size % take:
            raise ValueError(
                f"cells must be (C, S) with S >= cell_samples ({take}), which divides the global batch "
                f"({global_batch_size}); got {cells.shape}"
            )
        if cells.max() >= sum(counts):
            raise ValueError(f"a cell names sample {cells.max()}, but the split has {sum(counts)}")
        self.cells, self.take = cells[(cells >= 0).sum(1) >= take], take
        if not len(self):
            raise ValueError(f"{len(self.cells)} cells of {take} samples do not fill a batch of {global_batch_size}")

    def __len__(self) -> int:
        return len(self.cells) * self.take // self.global_batch_size

    def __iter__(self) -> Iterator[list[tuple[int, int]]]:
        epoch, size = self.epoch, self.global_batch_size
        share = slice(self.mine.start * size // self.lanes, self.mine.stop * size // self.lanes)
        rng = generator(self.seed, epoch, 4)
        cells = self.cells[rng.permutation(len(self.cells))]
        keys = np.where(cells >= 0, rng.random(cells.shape), 2.0)  # what is no sample comes last
        keys[:, 0] = -1.0
        ids = np.take_along_axis(cells, keys.argsort(1)[:, : self.take], 1).reshape(-1)
        for batch in range(self.consumed // size, len(self)):
            yield [(epoch, i) for i in ids[batch * size : (batch + 1) * size][share].tolist()]


class EvalBatches(Sampler[list[tuple[int, int]]]):
    """Every sample once, in natural order, over all ranks; the last batches are filled up with id -1, never repeated.

    Args:
        samples: size of the set.
        batch_size: per rank.
        world, rank: of the process group.
    """

    def __init__(self, samples: int, batch_size: int, world: int = 1, rank: int = 0) -> None:
        self.samples, self.batch_size, self.world, self.rank = samples, batch_size, world, rank

    def __len__(self) -> int:
        return -(-self.samples // (self.batch_size * self.world))

    def __iter__(self) -> Iterator[list[tuple[int, int]]]:
        for step in range(len(self)):
            first = (step * self.world + self.rank) * self.batch_size
            yield [(0, i if i < self.samples else -1) for i in range(first, first + self.batch_size)]


def default_lanes(global_batch_size: int) -> int:
    """The largest divisor of the global batch that is at most 64: a function of the batch alone, not of the ranks."""
    return max(d for d in range(1, min(64, global_batch_size) + 1) if global_batch_size % d == 0)
