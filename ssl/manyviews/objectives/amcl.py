"""AMCL, adaptive multi-head contrastive learning (Wang et al., ECCV 2024): a temperature for every pair and head."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import ClassVar, Literal

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from manyviews.distributed import Rows
from manyviews.memory import Queue
from manyviews.objectives.barlow import cross_correlation
from manyviews.objectives.objective import Objective, choice, exactly_two, paired, positive
from manyviews.similarity import image_ids, log_sum, unit

BLOCK_NUMBERS = 2**23
"""Hidden numbers of the temperature net that a block of pairs may hold: 32 MB."""


class TemperatureNet(nn.Module):
    r"""The temperature of an ordered pair: low + (high - low) sigmoid(phi([a, b])), phi = Linear - ReLU - Linear.

    The first layer of a concatenation is a sum of two, W_a a + W_b b, so all pairs of m and k rows cost m + k products.

    Args:
        dim: of a and of b. hidden: width. low, high: range.
    """

    def __init__(self, dim: int, hidden: int = 128, low: float = 0.05, high: float = 2.0) -> None:
        super().__init__()
        if not 0 < low < high:
            raise ValueError(f"temperatures need 0 < low < high, got low={low}, high={high}")
        self.first, self.second = nn.Linear(dim, hidden), nn.Linear(dim, hidden, bias=False)
        self.last = nn.Linear(hidden, 1)
        self.low, self.high = low, high

    def forward(self, a: Tensor, b: Tensor) -> Tensor:
        """(..., dim) and (..., dim), broadcast against each other, to (...)."""
        hidden = (self.first(a) + self.second(b)).relu()
        return self.low + (self.high - self.low) * torch.sigmoid(self.last(hidden)[..., 0])


class AMCL(Objective):
    r"""The contrastive loss in C heads, each pair with its own temperature, over SimCLR's or MoCo's negatives.

    .. math:: E_{ij} = s_{ij}/\tau_{ij} - \beta\, \Omega(\tau_{ij}), \quad
              \Omega(\tau) = \tfrac{d}{2} \log \tau + 1/\tau, \quad
              L_i = \sum_c \big[ -E^c_{ii^+} + \mathrm{agg}_{n} E^c_{in} \big]

    averaged over anchors. `agg` is the term of the most similar negative (`max`, the paper's table), the log-sum-exp
    that it bounds (`lse`), or that with the positive among them (`lse+pos`, our default). At a constant temperature
    these are DCL with its hardest negative, DCL, and NT-Xent.

    Watch the temperatures: with beta below a positive's similarity the optimum is at `low`, and `max` and `lse` are
    not bounded below, so the loss value says nothing. With the paper's low = 1e-5 the gradients explode.

    Args:
        heads: C. The embeddings are the C heads' outputs side by side.
        dim: d of one head.
        negatives: `max`, `lse` or `lse+pos`.
        beta: weight of Omega; 0.1 in the paper, 1 is the likelihood of a Gaussian of variance tau.
        low, high: range of the temperatures. Paper: 1e-5 and 2.
        share_temperature_net: one net for all heads (the paper's text) or one each (its code).
        adaptive: False: every temperature is the constant `temperature`: the multi-head control.
        temperature: of the control.
        queue_size: K, for a MoCo host; 0: negatives from the batch.
    """

    fewest = 1

    def __init__(
        self,
        heads: int = 3,
        dim: int = 128,
        negatives: Literal["max", "lse", "lse+pos"] = "lse+pos",
        beta: float = 0.1,
        low: float = 0.05,
        high: float = 2.0,
        share_temperature_net: bool = True,
        adaptive: bool = True,
        temperature: float = 0.2,
        queue_size: int = 0,
    ) -> None:
        super().__init__()
        self.heads, self.dim, self.beta = heads, dim, beta
        self.aggregate = choice("negatives", negatives, ("max", "lse", "lse+pos"))
        self.nets = temperature_nets(heads, dim, low, high, share_temperature_net) if adaptive else None
        self.constant = positive("temperature", temperature)
        self.queue = Queue(queue_size, heads * dim) if queue_size else None

    def loss(
        self,
        views: list[Tensor],
        rows: Rows,
        targets: Sequence[Tensor] | None = None,
        group: Tensor | None = None,
    ) -> Tensor:
        """Two views (SimCLR), or queries as `views` and keys as `targets` (MoCo). `group` as in NT-Xent."""
        ids = image_ids(rows, group, views[0].device)
        if targets is None:
            a, b = (by_head(view, self.heads) for view in exactly_two(self, views))
            anchors, positives, ids = torch.cat([a, b], 1), torch.cat([b, a], 1), ids.repeat(2)
            return self._compare(anchors, positives, anchors, ids, rows)
        pairs = [(by_head(q, self.heads), by_head(k.detach(), self.heads)) for q, k in paired(self, views, targets)]
        loss = torch.stack([self._compare(q, k, k, ids, rows) for q, k in pairs]).mean()
        if self.queue is not None:
            keys = torch.stack([k.movedim(0, 1).flatten(1) for _, k in pairs], 1)
            self.queue.push(keys.flatten(0, 1), rows)
        return loss

    def _compare(self, anchors: Tensor, positives: Tensor, candidates: Tensor, ids: Tensor, rows: Rows) -> Tensor:
        """Sum over heads of the loss of anchors and positives (C, m, d) against candidates (C, k, d) of all ranks."""
        if self.queue is None:
            candidates = rows.gather_with_gradient(candidates.movedim(0, 1)).movedim(0, 1)
            candidate_ids = rows.gather(ids)
        else:
            candidates = by_head(self.queue.items.to(anchors.dtype), self.heads)
            candidate_ids = torch.full((candidates.shape[1],), torch.iinfo(torch.int64).min, device=ids.device)
        total, block = anchors.new_zeros(()), max(1, BLOCK_NUMBERS // (128 * candidates.shape[1]))
        for c, (a, p, k) in enumerate(zip(anchors, positives, candidates, strict=True)):
            pull = self.energy((a * p).sum(1), self.tau(c, a, p))
            parts = [
                checkpoint(self._against, c, rows_a, k, ids_a, candidate_ids, use_reentrant=False)
                for rows_a, ids_a in zip(a.split(block), ids.split(block), strict=True)
            ]
            push = torch.cat(parts)
            if self.aggregate == "lse+pos":
                push = torch.logaddexp(push, pull)
            total = total + rows.mean(torch.where(push > -math.inf, push - pull, 0))
        self._read(anchors, positives, rows)
        return total

    def _against(self, c: int, a: Tensor, k: Tensor, ids_a: Tensor, ids_k: Tensor) -> Tensor:
        """(m,): the aggregate of each anchor's energies with its negatives, in head c."""
        s, same = a @ k.T, ids_a[:, None] == ids_k
        if self.aggregate == "max":
            hardest = s.detach().masked_fill(same, -math.inf).argmax(1)
            return self.energy(s.gather(1, hardest[:, None])[:, 0], self.tau(c, a, k[hardest]))
        energies = self.energy(s, self.tau(c, a[:, None], k[None]))
        return log_sum(energies.masked_fill(same, -math.inf), 1)

    def tau(self, c: int, a: Tensor, b: Tensor) -> Tensor:
        """Temperatures in head c of rows a and b, broadcast against each other."""
        if self.nets is None:
            return a.new_tensor(self.constant)
        tau: Tensor = self.nets[c % len(self.nets)](a, b)
        return tau

    def energy(self, s: Tensor, tau: Tensor) -> Tensor:
        """s / tau - beta Omega(tau)."""
        return s / tau - self.beta * omega(tau, self.dim)

    @torch.no_grad()
    def _read(self, anchors: Tensor, positives: Tensor, rows: Rows) -> None:
        others = positives.roll(1, dims=1)
        for name, partners in (("positive", positives), ("negative", others)):
            logs = [self.tau(c, a, b).log().mean() for c, (a, b) in enumerate(zip(anchors, partners, strict=True))]
            self.diagnostics[f"log_temperature_{name}"] = rows.sum(torch.stack(logs).mean()) / rows.world
        pairs = [(a * b).sum(1).abs().mean() for i, a in enumerate(anchors) for b in anchors[:i]]
        if pairs:
            self.diagnostics["head_similarity"] = rows.sum(torch.stack(pairs).mean()) / rows.world


class AMCLSimSiam(Objective):
    r"""AMCL on SimSiam: each direction's cosine in each head over its own temperature.

    .. math:: L = \sum_c \big[ -\tfrac{1}{2} \sum_v s(p^c_v, \mathrm{sg}\, z^c_v)/\tau^c_v
              + \beta \sum_v \Omega(\tau^c_v) \big]

    Args:
        heads, dim, beta, low, high, share_temperature_net: as in AMCL.
    """

    batch_coupled: ClassVar[bool] = False
    fewest = 1

    def __init__(
        self,
        heads: int = 3,
        dim: int = 128,
        beta: float = 0.1,
        low: float = 0.05,
        high: float = 2.0,
        share_temperature_net: bool = True,
    ) -> None:
        super().__init__()
        self.heads, self.dim, self.beta = heads, dim, beta
        self.nets = temperature_nets(heads, dim, low, high, share_temperature_net)

    def loss(self, views: list[Tensor], rows: Rows, targets: Sequence[Tensor] | None = None) -> Tensor:
        """`views`: predictions, `targets`: projections of the other view, heads side by side."""
        total, taus = views[0].new_zeros(()), []
        for p, z in paired(self, views, targets):
            for c, (a, b) in enumerate(zip(by_head(p, self.heads), by_head(z.detach(), self.heads), strict=True)):
                tau = self.nets[c % len(self.nets)](a, b)
                total = total + rows.mean(self.beta * omega(tau, self.dim) - (a * b).sum(1) / (2 * tau))
                taus.append(rows.mean(tau.detach().log()))
        self.diagnostics["log_temperature_positive"] = torch.stack(taus).mean()
        return total


class AMCLBarlow(Objective):
    r"""AMCL on Barlow Twins: each entry of the cross-correlation matrix over its own temperature.

    .. math:: L = \sum_c \Big[ \sum_l \big(1 - C_{ll}/\tau_{ll}\big)^2 + \lambda \sum_{l \ne m} C_{lm}^2/\tau_{lm}
              + \beta \sum_l \Omega(\tau_{ll}) - \beta \sum_{l \ne m} \Omega(\tau_{lm}) \Big]

    The paper does not say what the temperature net sees of a pair of dimensions. Ours sees (C_lm, C_ml), which, unlike
    the two columns, does not depend on the batch size.

    Args:
        heads, dim, beta, low, high, share_temperature_net: as in AMCL. redundancy: lambda. eps: of the variance.
    """

    def __init__(
        self,
        heads: int = 3,
        dim: int = 128,
        redundancy: float = 0.005,
        beta: float = 0.1,
        low: float = 0.05,
        high: float = 2.0,
        share_temperature_net: bool = True,
        eps: float = 1e-5,
    ) -> None:
        super().__init__()
        self.heads, self.dim, self.redundancy, self.beta, self.eps = heads, dim, redundancy, beta, eps
        self.nets = temperature_nets(heads, 1, low, high, share_temperature_net)

    def loss(self, views: list[Tensor], rows: Rows) -> Tensor:
        """Two raw views (n, C d), heads side by side."""
        a, b = exactly_two(self, views)
        parts = zip(a.chunk(self.heads, 1), b.chunk(self.heads, 1), strict=True)
        total, taus = a.new_zeros(()), []
        for c, (a_c, b_c) in enumerate(parts):
            correlation = cross_correlation(a_c, b_c, rows, self.eps)
            tau = self.nets[c % len(self.nets)](correlation[..., None], correlation.T[..., None])
            total = total + self.matrix_loss(correlation, tau)
            taus.append(tau.detach().log())
        self.diagnostics["log_temperature_positive"] = torch.stack([tau.diagonal().mean() for tau in taus]).mean()
        self.diagnostics["log_temperature"] = torch.stack(taus).mean()
        return total

    def matrix_loss(self, c: Tensor, tau: Tensor) -> Tensor:
        """The equation for one head's matrix C and its temperatures, both (d, d)."""
        on, entries = torch.eye(len(c), dtype=torch.bool, device=c.device), omega(tau, self.dim)
        diagonal = (1 - c / tau).square() + self.beta * entries
        rest = self.redundancy * c.square() / tau - self.beta * entries
        return torch.where(on, diagonal, rest).sum()


def temperature_nets(heads: int, dim: int, low: float, high: float, share: bool) -> nn.ModuleList:
    """One net for all heads, or one each."""
    return nn.ModuleList(TemperatureNet(dim, low=low, high=high) for _ in range(1 if share else heads))


def by_head(z: Tensor, heads: int) -> Tensor:
    """(n, C d) to unit rows (C, n, d)."""
    if z.shape[1] % heads:
        raise ValueError(f"embeddings of width {z.shape[1]} do not divide into {heads} heads")
    return unit(torch.stack(z.chunk(heads, 1)))


def omega(tau: Tensor, dim: int) -> Tensor:
    """(d/2) log tau + 1/tau: smallest at tau = 2/d."""
    return dim / 2 * tau.log() + 1 / tau
