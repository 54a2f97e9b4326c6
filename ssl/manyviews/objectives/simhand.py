"""SiMHand's similarity-weighted pairs (ICLR 2025): how much a pair counts follows the distance of its poses."""

from __future__ import annotations

import math
from typing import Literal

import torch
from torch import Tensor

from manyviews.distributed import Rows
from manyviews.objectives.objective import Objective, choice, exactly_two, known, positive
from manyviews.similarity import full_precision, log_sum, unit


class SiMHand(Objective):
    r"""NT-Xent with the similarities of all pairs scaled by weights that fall with the distance d of their joints.

    .. math:: L = \mathrm{mean}_r \Big[ \log \sum_{j \ne r} e^{w^-_{rj} s_{rj}/t} - w^+_r s_{r r^+}/t \Big], \quad
              w = \frac{d_{max} - d}{d_{max} - d_{min}}

    The extremes are those of the positive pairs for w+, and of all pairs of rows for w-; the positive stands in the sum
    with w-. A small weight pulls a similarity towards 0; it does not take the pair out. With all weights 1 this is
    NT-Xent.

    Args:
        temperature: t > 0.
        weights: `linear` as above, or `sigmoid`: 1 / (1 + exp(slope (d - mean d))).
        slope: of the sigmoid.
    """

    def __init__(
        self, temperature: float = 0.5, weights: Literal["linear", "sigmoid"] = "linear", slope: float = 1.0
    ) -> None:
        super().__init__()
        self.temperature = positive("temperature", temperature)
        self.weights, self.slope = choice("weights", weights, ("linear", "sigmoid")), slope

    def loss(self, views: list[Tensor], rows: Rows, joints: Tensor | None = None) -> Tensor:
        """`joints` (n, 2, J, 2): 2-D joints of an anchor and of the partner mined for it, the images of the views."""
        a, b = map(unit, exactly_two(self, views))
        (joints,) = known(self, joints=joints)
        z, poses = torch.cat([a, b]), full_precision(joints).transpose(0, 1).flatten(0, 1).flatten(1)
        index = rows.index(z.device)
        ids, keys = torch.cat([index, index + rows.total]), rows.gather_with_gradient(z)
        key_ids, points = rows.gather(ids), joints.shape[2]
        distance = self._distance(poses, rows.gather(poses), points)
        pairs = self._distance(poses[: len(a)], poses[len(a) :], points, paired=True)
        positive_weight = self.weigh(pairs, rows, pairs).repeat(2)
        negative_weight = self.weigh(distance, rows, distance.amin(1), distance.amax(1), distance.mean(1))
        logits = negative_weight * (z @ keys.T) / self.temperature
        push = log_sum(logits.masked_fill(ids[:, None] == key_ids, -math.inf), 1)
        pull = positive_weight * (z * torch.cat([b, a])).sum(1) / self.temperature
        self.diagnostics["positive_weight"] = rows.mean(positive_weight)
        return rows.mean(push - pull)

    @staticmethod
    def _distance(a: Tensor, b: Tensor, points: int, paired: bool = False) -> Tensor:
        """Mean distance over the joints, in the coordinates' unit."""
        a, b = a.view(len(a), points, -1), b.view(len(b), points, -1)
        total = torch.zeros((), dtype=a.dtype, device=a.device)
        for p, q in zip(a.unbind(1), b.unbind(1), strict=True):  # one joint at a time: (m, k) is held, not (m, k, J, 2)
            total = total + (p - q if paired else p[:, None] - q).square().sum(-1).sqrt()
        return total / points

    def weigh(
        self, distance: Tensor, rows: Rows, low: Tensor, high: Tensor | None = None, mean: Tensor | None = None
    ) -> Tensor:
        """Weights in [0, 1]; 1 where all distances are equal. `low`, `high`, `mean`: of each row, default `low`."""
        smallest, largest = rows.gather(low).min(), rows.gather(low if high is None else high).max()
        if self.weights == "sigmoid":
            return torch.sigmoid(-self.slope * (distance - rows.gather(low if mean is None else mean).mean()))
        return torch.where(largest > smallest, (largest - distance) / (largest - smallest).clamp_min(1e-12), 1.0)
