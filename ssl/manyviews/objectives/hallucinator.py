"""Hallucinator (Wu et al., "Hallucination Improves the Performance of ... Representation Learning", ICCV 2023).

After the authors' code, `jingwu6/Hallucination-improves-the-performance-of-unsupervised-visual-representation-learning`
at c50c6dd; of the paper the abstract was read.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from typing_extensions import override

from manyviews.distributed import Rows
from manyviews.objectives.byol import BYOL
from manyviews.objectives.infonce import InfoNCE
from manyviews.objectives.ntxent import NTXent
from manyviews.objectives.objective import Objective, exactly_two, paired
from manyviews.similarity import unit


class Hallucinator(Objective):
    r"""A host's loss on the queries, and on as many hallucinated ones that are matched to the same keys.

    .. math:: e = q + r (q - k), \quad h = \mathrm{MLP}([q, e]), \quad r \sim U(0, r_{max}), \quad
              L = \frac{1}{2} L_{host}(q, k) + \frac{1}{2} L_{host}(h, k)

    e lies beyond the query, away from its key: the pair (e, k) is less similar. The MLP, of three linear layers with
    ReLUs between, sees the query too and is trained with the loss. q is not normalised, so its length sets how far
    the step goes; r is one number a call, for the whole batch of a rank. Nothing is detached but the keys of MoCo:

    - InfoNCE (MoCo): k is the key, normalised, without a gradient. Keys enter the queue once.
    - NTXent (SimCLR): q and k are the projections of the first and the second view, both with a gradient; only the
      first view hallucinates. One NT-Xent over the 4N rows [q; h] and [k; k], in which the rows of an image are not
      each other's negatives: each anchor has the 4N - 4 rows of other images.
    - SimSiam: q is the prediction of a view, k that of the other view, both with a gradient, and both directions
      hallucinate, each with its r; h is matched to its query's target.

    Args:
        host: NTXent, InfoNCE, SimSiam or BYOL, or a subclass of one.
        dim: D of the embeddings.
        ratio: r_max >= 0. Authors: 0.1.
        as_released: as the authors' code has it: every key enters the queue twice, and NT-Xent takes an image's
            h and second copy of k for negatives of its q and k, which puts the least loss at log 3, not 0.

    Raises:
        ValueError: for another host, a negative ratio, or embeddings that are not `dim` wide.
    """

    fewest = 1

    def __init__(self, host: Objective, dim: int = 128, ratio: float = 0.1, as_released: bool = False) -> None:
        super().__init__()
        if not isinstance(host, NTXent | InfoNCE | BYOL):
            raise ValueError(
                f"Hallucinator stands on NTXent (SimCLR), InfoNCE (MoCo), SimSiam or BYOL, got {type(host).__name__}"
            )
        if not ratio >= 0:
            raise ValueError(f"ratio must be >= 0, got {ratio}")
        self.host, self.dim, self.ratio, self.as_released = host, dim, ratio, as_released
        wide = 2 * dim
        self.mlp = nn.Sequential(
            nn.Linear(wide, wide), nn.ReLU(), nn.Linear(wide, wide), nn.ReLU(), nn.Linear(wide, dim)
        )

    @property
    def temperature(self) -> Any:
        """That of the host, for monitoring."""
        return getattr(self.host, "temperature", None)

    def loss(self, views: list[Tensor], rows: Rows, strength: Tensor | None = None, **context: Any) -> Tensor:
        """`strength`: r as a share of the largest, one number for each view that hallucinates, otherwise drawn.

        The rest is the host's. `as_released` copies are left out of an image's negatives if its `group` is known.
        """
        targets: Sequence[Tensor] | None = context.get("targets")
        if isinstance(self.host, InfoNCE):
            pairs = [(q, unit(k.detach())) for q, k in paired(self, views, targets)]
        else:
            a, b = exactly_two(self, views)
            pairs = [(a, b)] if isinstance(self.host, NTXent) else [(a, b), (b, a)]
        if strength is None:
            strength = torch.rand(len(pairs), device=views[0].device, dtype=views[0].dtype)
        made = [self.hallucinate(q, k, self.ratio * r) for (q, k), r in zip(pairs, strength, strict=True)]
        if isinstance(self.host, NTXent):
            (q, k), (h,) = pairs[0], made
            group = context.get("group") if self.as_released else self._ids(rows, context.get("group"), q.device)
            loss = self.host.loss([twice(q, h), twice(k, k)], rows.times(2), group=twice_ids(group))
        elif self.as_released:
            if "group" in context:
                context["group"] = twice_ids(context["group"])
            if targets is not None:
                context["targets"] = [twice(k, k) for k in targets]
            both = [twice(q, h) for q, h in zip(views, made, strict=True)]
            loss = self.host.loss(both, rows.times(2), **context)
        else:
            queued: dict[str, Any] = {"enqueue": False} if isinstance(self.host, InfoNCE) else {}
            # First, since the host's own call lets the keys into its queue: the negatives shall be the same.
            extra = self.host.loss(made, rows, **context, **queued)
            loss = (self.host.loss(views, rows, **context) + extra) / 2
        self.diagnostics = {
            **self.host.diagnostics,
            "hallucinated_to_query": self._cosine(made, [q for q, _ in pairs], rows),
            "hallucinated_to_key": self._cosine(made, [k for _, k in pairs], rows),
        }
        return loss

    @override
    def takes(self) -> set[str]:
        return super().takes() | self.host.takes() - {"enqueue"}

    def hallucinate(self, q: Tensor, k: Tensor, r: Tensor | float) -> Tensor:
        """(n, D): h of queries and keys (n, D)."""
        if q.shape[1] != self.dim:
            raise ValueError(f"Hallucinator was made for dim={self.dim}, got embeddings of width {q.shape[1]}: set dim")
        made: Tensor = self.mlp(torch.cat([q, q + r * (q - k)], 1))
        return made

    @staticmethod
    def _ids(rows: Rows, group: Tensor | None, device: torch.device) -> Tensor:
        # Every image is a group, so that its own copies are no negatives; known groups get numbers of their own.
        index = rows.index(device)
        return index if group is None else torch.where(group >= 0, rows.total + group, index)

    @staticmethod
    def _cosine(made: list[Tensor], others: list[Tensor], rows: Rows) -> Tensor:
        cosines = [F.cosine_similarity(h.detach(), x.detach()) for h, x in zip(made, others, strict=True)]
        return rows.mean(torch.stack(cosines).mean(0))


def twice(x: Tensor, y: Tensor) -> Tensor:
    """(2n, D): the rows of both in turn, image by image, so that any cut into ranks has the same order."""
    return torch.stack([x, y], 1).flatten(0, 1)


def twice_ids(ids: Tensor | None) -> Tensor | None:
    """(2n,): each id two times in a row."""
    return None if ids is None else ids.repeat_interleave(2)
