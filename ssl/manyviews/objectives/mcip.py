"""MCIP (Schall et al., SISAP 2024): images by class and by several pseudo-captions, for retrieval."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from manyviews.distributed import Rows
from manyviews.objectives.ntxent import softplus
from manyviews.objectives.objective import Objective, known, positive
from manyviews.similarity import image_ids, logsumexp, unit


class MCIP(Objective):
    r"""ArcMargin on the class plus multi-caption ArcMargin on the image's own captions.

    .. math:: L_{MC} = -\frac{1}{NM} \sum_{i, m} \log \frac{e^{s \cos(\theta_{i, im} + \mu)}}
              {e^{s \cos(\theta_{i, im} + \mu)} + \sum_{j \ne i, m'} e^{s \cos \theta_{i, jm'}}}

    An image's other captions are no negatives of it, nor are those of its class. The formula of the second part is
    our derivation: the paper's is not public. Stage 1 of the two-stage recipe is `caption_weight=0`.

    Args:
        dim: D of the embeddings. classes: how many.
        scale: s. margin: m on the class, in radians. caption_margin: mu. caption_weight: of the second part.
    """

    fewest = 1

    def __init__(
        self,
        dim: int,
        classes: int,
        scale: float = 30.0,
        margin: float = 0.3,
        caption_margin: float = 0.3,
        caption_weight: float = 1.0,
    ) -> None:
        super().__init__()
        self.scale, self.margin = positive("scale", scale), margin
        self.caption_margin, self.caption_weight = caption_margin, caption_weight
        self.classes = nn.Parameter(torch.randn(classes, dim) * 0.01)

    def loss(
        self,
        views: list[Tensor],
        rows: Rows,
        label: Tensor | None = None,
        captions: Tensor | None = None,
        present: Tensor | None = None,
    ) -> Tensor:
        """`views`: one, images. `label` (n,), -1 unknown. `captions` (n, M, D), constants; `present` (n, M) bool."""
        u, (label,) = unit(views[0]), known(self, label=label)
        total = self._classes(u, label, rows)
        if self.caption_weight:
            (captions,) = known(self, captions=captions)
            total = total + self.caption_weight * self._captions(u, captions, present, label, rows)
        return total

    def _classes(self, u: Tensor, label: Tensor, rows: Rows) -> Tensor:
        cosines = u @ unit(self.classes).T
        there = label.clamp(min=0)[:, None]
        own = with_margin(cosines.gather(1, there), self.margin)
        logits = self.scale * cosines.scatter(1, there, own)
        return rows.mean(F.cross_entropy(logits, there[:, 0], reduction="none"), (label >= 0).to(u.dtype))

    def _captions(self, u: Tensor, captions: Tensor, present: Tensor | None, label: Tensor, rows: Rows) -> Tensor:
        n, m = captions.shape[:2]
        if present is None:
            present = torch.ones(n, m, dtype=torch.bool, device=u.device)
        w = unit(captions)
        ids = image_ids(rows, label, u.device)
        # An absent caption is a column that no row sees: a further coordinate puts it at -1e4.
        seen = torch.cat([w, torch.where(present, 0.0, -1e4)[..., None].to(w.dtype)], 2).flatten(0, 1)
        asking = torch.cat([u * self.scale, torch.ones_like(u[:, :1])], 1)
        negatives = logsumexp(asking, seen, ids, ids.repeat_interleave(m), rows, self.scale)
        own = self.scale * with_margin(torch.einsum("nd,nmd->nm", u, w), self.caption_margin)
        return rows.mean(softplus(negatives[:, None] - own), present.to(u.dtype))


def with_margin(cosine: Tensor, margin: float) -> Tensor:
    """cos(theta + margin), by the sum formula: no arc cosine, whose gradient is infinite at 1.

    Beyond theta = pi - margin, where cos(theta + margin) would rise again, it goes on linearly: cos - margin sin.
    """
    margin_cos, margin_sin = math.cos(margin), math.sin(margin)
    sine = (1 - cosine.square()).clamp(min=1e-12).sqrt()
    turned = cosine * margin_cos - sine * margin_sin
    return torch.where(cosine > -margin_cos, turned, cosine - margin * margin_sin)
