"""What a loss knows of the other ranks.

An objective never touches `torch.distributed`. It is handed a `Gather`, asks it once per call for the `Rows` of this
batch, and from then on speaks of rows of the *global* batch. Three kinds exist: `Gather` (one process, does nothing),
`ProcessGather` (a process group) and `simulate` (ranks as threads of one process, for tests in float64).

The contract of exactness: under DDP, which averages parameter gradients over ranks, the gradient of `Rows.mean(...)`
is that of the same mean on one process holding the concatenated batch. So inside a rank the gradient of a local
feature is W times its share of the global gradient; nothing else needs to know about W.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor
from typing_extensions import override

T = TypeVar("T")


class Gather:
    """One process: a rank's batch is the global batch."""

    world = 1
    rank = 0

    def __call__(self, n: int) -> Rows:
        """The rows of the global batch when this rank holds `n` images. Ranks may hold different numbers."""
        return Rows(self, self.sizes(n))

    def sizes(self, n: int) -> list[int]:
        """How many images each rank holds, in rank order."""
        return [n]

    def concatenate(self, x: Tensor, sizes: list[int]) -> Tensor:
        """`x` of all ranks along dim 0 in rank order; `sizes[r]` is rank r's length. No gradient."""
        return x

    def sum(self, x: Tensor) -> Tensor:
        """Elementwise sum of `x` over ranks. No gradient."""
        return x

    def shift(self, x: Tensor, length: int) -> Tensor:
        """The `x` of the rank before this one, which has `length` rows; this one's goes to the rank after it."""
        return x


class Rows:
    """The rows of one global batch, seen from one rank that holds a run of them.

    Attributes:
        offset: index of this rank's first image in the global batch.
        n: images on this rank. total: images on all ranks.
    """

    def __init__(self, gather: Gather, sizes: list[int]) -> None:
        self.sizes = sizes
        self.world, self.rank = gather.world, gather.rank
        self.n, self.total = sizes[gather.rank], sum(sizes)
        self.offset = sum(sizes[: gather.rank])
        self._gather = gather

    def times(self, k: int) -> Rows:
        """The rows of a batch that has `k` items in the place of every image."""
        return Rows(self._gather, [k * size for size in self.sizes])

    def index(self, device: torch.device | None = None) -> Tensor:
        """(n,) int64: the global batch index of each local image."""
        return torch.arange(self.offset, self.offset + self.n, device=device)

    def gather(self, x: Tensor) -> Tensor:
        """All ranks' `x` in rank order, without gradient. dim 0 is n, or k * n for k views stacked view-major.

        The result is rank-major: with k views, rank 0's k * n_0 rows come first. Rows are told apart by their ids
        (`index`), never by their place.
        """
        return self._gather.concatenate(x.detach(), self._lengths(x))

    def gather_with_gradient(self, x: Tensor) -> Tensor:
        """As `gather`; the backward sums the gradient over ranks and hands each rank its own slice."""
        return x if self.world == 1 else _GatherWithGradient.apply(x, self, self._lengths(x))

    def mean(self, x: Tensor, weight: Tensor | None = None) -> Tensor:
        """Mean of `x` over all rows of all ranks: the same value on every rank, the gradient exact under DDP.

        Args:
            x: dim 0 is n or a multiple; with `weight`, any shape.
            weight: of the shape of x, constant. The mean is then weighted, and 0 where all weights are 0.
        """
        if weight is None:
            share = x.sum() * (self.world / sum(self._lengths(x)))
        else:
            whole = self.sum(weight.sum())
            share = (x * weight.detach()).sum() * self.world / torch.where(whole > 0, whole, 1)
        return share + (self.sum(share.detach()) / self.world - share.detach())

    def sum(self, x: Tensor) -> Tensor:
        """Elementwise sum over ranks, without gradient."""
        return self._gather.sum(x.detach())

    def sum_with_gradient(self, x: Tensor) -> Tensor:
        """As `sum`, for a statistic from which every rank computes the same loss (a mean, a covariance)."""
        return x if self.world == 1 else _SumWithGradient.apply(x, self)

    def ring(self, blocks: list[Tensor], home: bool = False) -> Iterator[list[Tensor]]:
        """Sends `blocks` once round the ranks and yields them at every stop, this rank's own first. No gradient.

        Args:
            blocks: tensors with k n rows; the list is changed in place. What a rank writes into a tensor travels on.
            home: with a last hop that brings them back.
        """
        factors = [len(block) // self.n for block in blocks]
        for hop in range(self.world):
            yield blocks
            if self.world > 1 and (home or hop < self.world - 1):
                size = self.sizes[(self.rank - hop - 1) % self.world]
                blocks[:] = [self._gather.shift(b, k * size) for b, k in zip(blocks, factors, strict=True)]

    def _lengths(self, x: Tensor) -> list[int]:
        views, rest = divmod(x.shape[0], self.n)
        if rest:
            raise ValueError(f"gather: dim 0 is {x.shape[0]}, expected a multiple of the {self.n} images of this rank")
        return [views * size for size in self.sizes]


class _GatherWithGradient(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, rows: Rows, lengths: list[int]) -> Tensor:
        ctx.rows, ctx.lengths = rows, lengths
        return rows.gather(x)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None, None]:
        start = sum(ctx.lengths[: ctx.rows.rank])
        return ctx.rows.sum(grads[0].contiguous())[start : start + ctx.lengths[ctx.rows.rank]], None, None


class _SumWithGradient(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, rows: Rows) -> Tensor:
        ctx.rows = rows
        return rows.sum(x)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None]:
        return ctx.rows.sum(grads[0].contiguous()), None


class ProcessGather(Gather):
    """The ranks of a `torch.distributed` process group (default: all of them)."""

    def __init__(self, group: dist.ProcessGroup | None = None) -> None:
        self.group = group
        self.world, self.rank = dist.get_world_size(group), dist.get_rank(group)

    @override
    def sizes(self, n: int) -> list[int]:
        device = "cuda" if dist.get_backend(self.group) == "nccl" else "cpu"
        out = torch.empty(self.world, dtype=torch.int64, device=device)
        dist.all_gather_into_tensor(out, torch.tensor([n], device=device), group=self.group)
        return [int(size) for size in out.tolist()]

    @override
    def concatenate(self, x: Tensor, sizes: list[int]) -> Tensor:
        home, x, longest = x.device, self._movable(x), max(sizes)
        if x.shape[0] < longest:  # collectives want equal shapes: pad, then cut the padding out again
            x = torch.cat([x, x.new_zeros(longest - x.shape[0], *x.shape[1:])])
        out = x.new_empty(self.world * longest, *x.shape[1:])
        dist.all_gather_into_tensor(out, x, group=self.group)
        if min(sizes) < longest:
            out = torch.cat([part[:size] for part, size in zip(out.split(longest), sizes, strict=True)])
        return out.to(home)

    @override
    def sum(self, x: Tensor) -> Tensor:
        home, x = x.device, self._movable(x).clone()
        dist.all_reduce(x, group=self.group)
        return x.to(home)

    @override
    def shift(self, x: Tensor, length: int) -> Tensor:
        home, x = x.device, self._movable(x)
        out = x.new_empty(length, *x.shape[1:])
        after, before = ((self.rank + step) % self.world for step in (1, -1))
        if self.group is not None:
            after, before = (dist.get_global_rank(self.group, rank) for rank in (after, before))
        if dist.get_backend(self.group) == "nccl":  # which needs both hops in one launch
            hops = [dist.P2POp(dist.isend, x, after, self.group), dist.P2POp(dist.irecv, out, before, self.group)]
            for work in dist.batch_isend_irecv(hops):
                work.wait()
        else:
            sent = dist.isend(x, after, self.group)
            dist.recv(out, before, self.group)
            if sent is not None:
                sent.wait()
        return out.to(home)

    def _movable(self, x: Tensor) -> Tensor:
        """`x` where the backend can reach it: NCCL moves nothing that lies on the CPU (cached features do)."""
        return x.contiguous().cuda() if dist.get_backend(self.group) == "nccl" else x.contiguous()


LOCAL = Gather()


def current() -> Gather:
    """The gather of this process: the default process group where one runs, else the local one."""
    return ProcessGather() if dist.is_available() and dist.is_initialized() else LOCAL


class _ThreadGather(Gather):
    def __init__(self, world: int, rank: int, slots: list[Any], barrier: threading.Barrier) -> None:
        self.world, self.rank, self._slots, self._barrier = world, rank, slots, barrier

    def _exchange(self, x: Any) -> list[Any]:
        self._slots[self.rank] = x
        self._barrier.wait()
        everyone = list(self._slots)
        self._barrier.wait()
        return everyone

    def sizes(self, n: int) -> list[int]:
        return self._exchange(n)

    def concatenate(self, x: Tensor, sizes: list[int]) -> Tensor:
        parts = self._exchange(x)
        if [len(part) for part in parts] != sizes:
            raise ValueError(f"ranks disagree: announced {sizes} rows, got {[len(part) for part in parts]}")
        return torch.cat(parts)

    def sum(self, x: Tensor) -> Tensor:
        return torch.stack(self._exchange(x)).sum(0)

    def shift(self, x: Tensor, length: int) -> Tensor:
        received: Tensor = self._exchange(x)[self.rank - 1]
        return received


def simulate(world: int, work: Callable[[Gather], T]) -> list[T]:
    """Runs `work(gather)` once per rank, each rank a thread, collectives included (forward and backward).

    Returns the results in rank order; the first rank's error is raised again. Made for tests of exactness: float64
    on the CPU, no process group.
    """
    slots: list[Any] = [None] * world
    results: list[Any] = [None] * world
    errors: list[BaseException] = []
    barrier = threading.Barrier(world)

    def run(rank: int) -> None:
        try:
            results[rank] = work(_ThreadGather(world, rank, slots, barrier))
        except BaseException as error:
            if not isinstance(error, threading.BrokenBarrierError):
                errors.append(error)
            barrier.abort()

    threads = [threading.Thread(target=run, args=(rank,)) for rank in range(world)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    if errors:
        raise errors[0]
    return results
