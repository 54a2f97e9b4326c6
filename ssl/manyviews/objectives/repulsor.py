"""Repulsor-style regulariser (2025; abstract only, the form is that of dispersive losses): repulsion from a bank."""

from __future__ import annotations

import math
from typing import Literal

import torch
from torch import Tensor, nn

from manyviews.distributed import Rows
from manyviews.memory import Queue
from manyviews.objectives.objective import Objective, choice, positive
from manyviews.similarity import image_ids, logsumexp_bank, logsumexp_self, unit


class Repulsor(Objective):
    r"""Features, projected to few dimensions, are pushed from each other and from past ones. No positives.

    .. math:: L = w \log \mathrm{mean}_{i,\, q}\, e^{-|z_i - q|^2/t}, \quad z = \overline{W h}

    over the other rows q of the batch and the bank. Beside a generative loss it spreads what a network holds inside;
    the head is dropped afterwards. All views given are rows.

    Args:
        width: of h. dim: of z; 0: h itself is compared.
        bank_size: past features; 0: the batch only.
        temperature: t > 0. weight: w.
        distance: `euclidean` or `cosine`, exp(cos / t).
    """

    fewest = 1

    def __init__(
        self,
        width: int,
        dim: int = 64,
        bank_size: int = 4096,
        temperature: float = 0.5,
        weight: float = 0.5,
        distance: Literal["euclidean", "cosine"] = "euclidean",
    ) -> None:
        super().__init__()
        self.head = nn.Linear(width, dim, bias=False) if dim else nn.Identity()
        self.bank = Queue(bank_size, dim or width) if bank_size else None
        self.temperature, self.weight = positive("temperature", temperature), weight
        self.distance = choice("distance", distance, ("euclidean", "cosine"))

    def loss(self, views: list[Tensor], rows: Rows) -> Tensor:
        """Un-normalised features h (n, width)."""
        z = unit(self.head(torch.cat(views)))
        v = len(views)
        factor = (2 if self.distance == "euclidean" else 1) / self.temperature
        ids = torch.cat([image_ids(rows, None, z.device) * v + k for k in range(v)])
        lse = logsumexp_self(z * factor**0.5, ids, rows, bound=factor)
        count = v * rows.total - 1
        if self.bank is not None:
            lse = torch.logaddexp(lse, logsumexp_bank(z * factor, self.bank.items, bound=factor))
            count += len(self.bank)
            self.bank.push(torch.stack(z.detach().chunk(v), 1).flatten(0, 1), rows)
        everyone = rows.gather_with_gradient(lse)
        shift = factor if self.distance == "euclidean" else 0.0
        return self.weight * (everyone.logsumexp(0) - math.log(len(everyone) * count) - shift)
