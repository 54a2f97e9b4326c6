"""MoCHi, hard negative mixing (Kalantidis et al., NeurIPS 2020)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from manyviews.distributed import Rows
from manyviews.objectives.infonce import InfoNCE
from manyviews.similarity import hardest


class Mixing(NamedTuple):
    """What is drawn for each of n queries: places among its hardest negatives, and shares."""

    first: Tensor
    """(n, s), of type 1. """
    second: Tensor
    """(n, s)."""
    share: Tensor
    """(n, s), of the first, in (0, 1)."""
    with_query: Tensor
    """(n, s'), of type 2."""
    query_share: Tensor
    """(n, s'), in (0, 0.5)."""


class MoCHi(InfoNCE):
    r"""MoCo with synthetic negatives, mixed for each query from the hardest entries H of the queue.

    .. math:: h = \frac{a\, n_i + (1 - a)\, n_j}{|\cdot|}, \quad h' = \frac{b\, q + (1 - b)\, n_i}{|\cdot|},
              \quad n_i, n_j \in H,\ a \sim U(0, 1),\ b \sim U(0, 0.5)

    They stand beside the queue in the denominator, and are constants, the query inside h' included.

    Args:
        temperature, queue_size, dim: as in InfoNCE.
        hard: N, how many of the queue's entries nearest to the query are mixed. Paper: 1024.
        mixed: s, synthetic negatives of two entries. Paper: up to 1024.
        mixed_with_query: s', those of an entry and the query. Paper: up to 128.
        from_epoch: first epoch with synthetic negatives: not while the queue is still random. Paper: after 10 to 15.
    """

    def __init__(
        self,
        temperature: float = 0.2,
        queue_size: int = 65536,
        dim: int = 128,
        hard: int = 1024,
        mixed: int = 1024,
        mixed_with_query: int = 128,
        from_epoch: int = 10,
    ) -> None:
        super().__init__(temperature, queue_size, dim)
        if not 1 <= hard <= queue_size:
            raise ValueError(f"hard={hard} must lie between 1 and queue_size={queue_size}")
        self.hard, self.mixed, self.mixed_with_query, self.from_epoch = hard, mixed, mixed_with_query, from_epoch

    def loss(
        self,
        views: list[Tensor],
        rows: Rows,
        targets: Sequence[Tensor] | None = None,
        group: Tensor | None = None,
        enqueue: bool = True,
        epoch: int | None = None,
        draws: Mixing | None = None,
    ) -> Tensor:
        """`epoch`: None: synthetic negatives at once. `draws`: otherwise drawn. The rest as in InfoNCE."""
        self._mixes, self._draws = epoch is None or epoch >= self.from_epoch, draws
        return super().loss(views, rows, targets, group, enqueue)

    def negatives(self, q: Tensor, k: Tensor, ids: Tensor, rows: Rows) -> Tensor:
        """The queue's, and the synthetic ones."""
        entries = super().negatives(q, k, ids, rows)
        if not self._mixes or not self.mixed + self.mixed_with_query:
            return entries
        h = self.synthesise(q.detach(), self._draws or self._draw(len(q), q))
        synthetic = torch.einsum("nd,nsd->ns", q, h) / self.temperature
        self.diagnostics["hardest_synthetic"] = rows.mean(synthetic.detach().amax(1)) * self.temperature
        return torch.logaddexp(entries, synthetic.logsumexp(1))

    @torch.no_grad()
    def synthesise(self, q: Tensor, draws: Mixing) -> Tensor:
        """(n, s + s', D): unit mixtures for each unit query."""
        assert self.queue is not None
        items = self.queue.items.to(q.dtype)
        near = hardest(q, items, self.hard)

        def pick(places: Tensor) -> Tensor:
            return items[near.gather(1, places)]

        a, b = draws.share[..., None], draws.query_share[..., None]
        of_two = a * pick(draws.first) + (1 - a) * pick(draws.second)
        of_query = b * q[:, None] + (1 - b) * pick(draws.with_query)
        return F.normalize(torch.cat([of_two, of_query], 1), dim=2)

    def _draw(self, n: int, like: Tensor) -> Mixing:
        def places(count: int) -> Tensor:
            return torch.randint(self.hard, (n, count), device=like.device)

        def shares(count: int) -> Tensor:
            return torch.rand(n, count, device=like.device, dtype=like.dtype)

        s, with_query = self.mixed, self.mixed_with_query
        return Mixing(places(s), places(s), shares(s), places(with_query), shares(with_query) / 2)
