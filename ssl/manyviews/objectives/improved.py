"""Improved baselines for vision-language pretraining (Fini et al., TMLR 2023): the recipe's loss and its companions.

A sample has a weak view and A strong views of image and of text. Lists of views are ordered
[image weak, text weak, image strong 1 .. A, text strong 1 .. A].
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import product
from typing import ClassVar, Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from manyviews.distributed import Rows
from manyviews.heads import LogitScale
from manyviews.objectives.clip import CLIP, Positives
from manyviews.objectives.objective import Objective, choice, paired
from manyviews.objectives.swav import sinkhorn
from manyviews.similarity import unit


class ImprovedCLIP(Objective):
    r"""CLIP between the weak views, and smoothed CLIP between all strong views of image and text.

    .. math:: L = \frac{1}{1 + A} \Big( \mathrm{CLIP}(z_I, z_T) + \frac{1}{A} \sum_{a, b}
              \mathrm{CLIP}_\epsilon(h_{I a}, h_{T b}) \Big)

    Args:
        scale: of the weak views' cosines; default 1/0.07. strong_scale: of the strong ones'; default 10.
        smoothing: epsilon, on strong views only.
        reduction: `mean` over the two directions, or `sum`, twice that: the authors' setting but on CC3M, with each of
            the companions below too, which then weigh half as much beside it.
        positives: as in `manyviews.objectives.CLIP`.
    """

    def __init__(
        self,
        scale: LogitScale | None = None,
        strong_scale: LogitScale | None = None,
        smoothing: float = 0.1,
        reduction: Literal["mean", "sum"] = "mean",
        positives: Positives = "own",
    ) -> None:
        super().__init__()
        self.weak = CLIP(scale, positives=positives)
        self.strong = CLIP(strong_scale or LogitScale(10.0), smoothing, positives)
        self.reduction = choice("reduction", reduction, ("mean", "sum"))

    def loss(self, views: list[Tensor], rows: Rows, group: Tensor | None = None) -> Tensor:
        """`views`: 2 + 2 A tensors, ordered as the module says. `group`: as in `CLIP`."""
        total = self.weak.loss(views[:2], rows, group)
        images, texts = strong_views(self, views)
        if images:
            local = [self.strong.loss([a, b], rows, group) for a, b in product(images, texts)]
            total = (total + len(images) * torch.stack(local).mean()) / (1 + len(images))
        self.diagnostics = {"logit_scale": self.weak.scale().detach(), "strong_scale": self.strong.scale().detach()}
        return total * (2 if self.reduction == "sum" else 1)


class SiamLIP(Objective):
    r"""Image predicts text and text predicts image: 2 - 2 cos of prediction and constant projection, over all pairs.

    The pairs are those of the weak views, both ways, and of all strong ones, both ways: 2 + 2 A^2, averaged. With
    targets of a momentum encoder this is BYOLIP.
    """

    batch_coupled: ClassVar[bool] = False

    def loss(self, views: list[Tensor], rows: Rows, targets: Sequence[Tensor] | None = None) -> Tensor:
        """`views`: predictions, `targets`: projections, both 2 + 2 A, ordered as the module says."""
        both = paired(self, views, targets)
        p, v = [unit(prediction) for prediction, _ in both], [unit(target.detach()) for _, target in both]
        terms = [2 - 2 * rows.mean((p[i] * v[j]).sum(1)) for i, j in across(len(views))]
        return torch.stack(terms).mean()


class BarLIP(Objective):
    r"""The cross-correlation of image and text shall be the identity.

    .. math:: L = 0.025\, \mathrm{mean}_{pairs} \Big[ \sum_l (C_{ll} - 1)^2 + \lambda \sum_{l \ne m} C_{lm}^2 \Big],
              \quad C = V_I^\top V_T / N

    over the weak pair and all strong ones. Columns are as the projector's last BatchNorm leaves them.

    Args:
        redundancy: lambda. weight: the 0.025.
    """

    def __init__(self, redundancy: float = 5e-3, weight: float = 0.025) -> None:
        super().__init__()
        self.redundancy, self.weight = redundancy, weight

    def loss(self, views: list[Tensor], rows: Rows) -> Tensor:
        """`views`: 2 + 2 A raw projections, ordered as the module says."""
        losses = []
        for i, j in across(len(views))[::2]:  # each pair once
            c = rows.sum_with_gradient(views[i].T @ views[j]) / rows.total
            eye = torch.eye(len(c), dtype=c.dtype, device=c.device)
            weights = torch.where(eye.bool(), torch.ones_like(c), torch.full_like(c, self.redundancy))
            losses.append((weights * (c - eye).square()).sum())
        return self.weight * torch.stack(losses).mean()


class SwALIP(Objective):
    r"""The batch as prototypes: the balanced assignment of the other views is the target of these.

    .. math:: L = \mathrm{mean}_{a, b} \frac12 \big[ H(Q_{a'b'}, \mathrm{softmax}(s h_{Ia} h_{Tb}^\top)) + ... \big]

    for strong views a, b in {1, 2} and a' = 3 - a, b' = 3 - b; Q is Sinkhorn of the other views' cosines, without
    gradient; both directions.

    Args:
        scale: s; share that of the strong views (`ImprovedCLIP.strong.scale`), as the authors do.
        epsilon, iterations: of Sinkhorn.
    """

    def __init__(self, scale: LogitScale | None = None, epsilon: float = 0.05, iterations: int = 3) -> None:
        super().__init__()
        self.scale, self.epsilon, self.iterations = scale or LogitScale(10.0), epsilon, iterations

    def loss(self, views: list[Tensor], rows: Rows) -> Tensor:
        """`views`: with two strong views of each, 6, ordered as the module says; the weak ones take no part."""
        images, texts = ([unit(x) for x in part] for part in strong_views(self, views))
        if len(images) != 2:
            raise ValueError(f"SwALIP needs two strong views of image and text, got {len(images)}")
        everyone = [[rows.gather_with_gradient(x) for x in part] for part in (images, texts)]
        s, here = self.scale(), slice(rows.offset, rows.offset + rows.n)
        losses = []
        for a, b in product(range(2), repeat=2):
            for mine, other, k in ((images[a], everyone[1][b], 0), (texts[b], everyone[0][a], 1)):
                scores = everyone[0][1 - a].detach() @ everyone[1][1 - b].detach().T
                q = sinkhorn(scores if k == 0 else scores.T, self.epsilon, self.iterations)[here]
                losses.append(rows.mean(-(q * F.log_softmax(s * mine @ other.T, 1)).sum(1)))
        return torch.stack(losses).mean()


def strong_views(objective: Objective, views: list[Tensor]) -> tuple[list[Tensor], list[Tensor]]:
    """The strong image views and the strong text views."""
    if len(views) % 2:
        raise ValueError(f"{type(objective).__name__} needs as many image as text views, got {len(views)} in all")
    half = 1 + len(views) // 2
    return views[2:half], views[half:]


def across(count: int) -> list[tuple[int, int]]:
    """Places (i, j) of the pairs of image and text among `count` views: weak, then all strong, each both ways."""
    strong = count // 2 - 1
    pairs = [(0, 1), *((2 + a, 2 + strong + b) for a, b in product(range(strong), repeat=2))]
    return [way for i, j in pairs for way in ((i, j), (j, i))]
