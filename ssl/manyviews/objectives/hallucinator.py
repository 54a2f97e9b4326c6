"""Hallucinator-style extra positives (after Wu et al., ICCV 2023; abstract only, the rest is our reading)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from manyviews.distributed import Rows
from manyviews.objectives.objective import Objective, exactly_two, paired
from manyviews.similarity import unit


class Hallucinator(Objective):
    r"""A host objective, once more with hallucinated positives that lie beyond the true ones.

    .. math:: e = \bar k + \lambda (\bar k - \mathrm{sg}\, \bar q), \quad h = e + \mathrm{MLP}(e), \quad
              L = L_{host}(q, k) + w\, L_{host}(q, h), \quad \lambda \sim U(0, \lambda_{max})

    Moving away from the query makes the pair less similar; the MLP, trained with the loss, makes the step non-linear.
    Its last layer starts at 0. It never sees q itself, or it would learn to copy it. Hosts: NT-Xent and others over
    two views (each view in turn is the query), InfoNCE, BYOL and SimSiam.

    Args:
        host: the objective.
        dim: D of the embeddings.
        extrapolation: largest lambda.
        weight: w; 0 is the host alone.
    """

    fewest = 1

    def __init__(self, host: Objective, dim: int = 128, extrapolation: float = 0.5, weight: float = 1.0) -> None:
        super().__init__()
        self.host, self.extrapolation, self.weight = host, extrapolation, weight
        self.dim, last = dim, nn.Linear(dim, dim)
        nn.init.zeros_(last.weight)
        nn.init.zeros_(last.bias)
        self.mlp = nn.Sequential(nn.Linear(dim, dim), nn.ReLU(), last)

    @property
    def temperature(self) -> Any:
        """That of the host, for monitoring."""
        return getattr(self.host, "temperature", None)

    def loss(
        self,
        views: list[Tensor],
        rows: Rows,
        targets: Sequence[Tensor] | None = None,
        strength: Tensor | None = None,
        **context: Any,
    ) -> Tensor:
        """`strength` (n,): each image's share of the largest lambda, otherwise drawn. The rest is the host's."""
        if targets is None:
            a, b = exactly_two(self, views)
            loss = self.host.loss([a, b], rows, **context)
            ours = [[a, self.hallucinate(a, b, strength)], [self.hallucinate(b, a, strength), b]]
            extra = torch.stack([self.host.loss(pair, rows, **context) for pair in ours]).mean()
        else:
            # First, since the host's own call lets the keys into its queue: the negatives shall be the same.
            positives = [self.hallucinate(q, k.detach(), strength) for q, k in paired(self, views, targets)]
            extra = self.host.loss(views, rows, targets=positives, hallucinated=True, **context)
            loss = self.host.loss(views, rows, targets=targets, **context)
        self.diagnostics = {**self.host.diagnostics, "hallucinated_loss": extra.detach()}
        return loss + self.weight * extra

    def takes(self) -> set[str]:  # noqa: D102
        return super().takes() | self.host.takes()

    def hallucinate(self, q: Tensor, k: Tensor, strength: Tensor | None = None) -> Tensor:
        """(n, D): h for each query and its positive."""
        q, k = unit(q).detach(), unit(k)
        lam = torch.rand(len(k), device=k.device, dtype=k.dtype) if strength is None else strength.to(k.dtype)
        e = k + self.extrapolation * lam[:, None] * (k - q)
        beyond: Tensor = e + self.mlp(e)
        return beyond
