"""SupReMix-style contrastive regression (after Wu et al., 2023).

Our reading of the abstract: the repository that the paper links, `yilei-wu/SupReMix`, holds no code.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from manyviews.distributed import Rows
from manyviews.objectives.objective import Objective, known, positive
from manyviews.similarity import full_precision, log_sum, unit


class SupReMix(Objective):
    r"""Real-valued targets: mixtures with a negative are hard negatives, mixtures of two negatives hard positives.

    .. math:: L_i = -\mathrm{mean}_{p} \log \frac{e^{s_{ip}/t}}{\sum_p e^{s_{ip}/t} + \sum_n \omega_{in} e^{s_{in}/t}}

    Positives p: the other rows whose target differs by at most `delta`, and for one drawn pair of targets
    y_j < y_i < y_k the mixture n(w z_j + (1-w) z_k), w = (y_k - y_i)/(y_k - y_j), whose own target is y_i exactly.
    Negatives n: the rows further away, and each of them mixed with the anchor, n(a z_i + (1-a) z_n), a up to
    `anchor_share`. omega follows the distance of the targets, of mean 1 over an anchor's negatives.

    Args:
        temperature: t > 0. delta: see above.
        mixtures: False: neither kind, and with `weighted` False this is SupCon on thresholded targets.
        weighted: False: omega is 1. anchor_share: largest a, at most 0.5.
    """

    fewest = 1

    def __init__(
        self,
        temperature: float = 0.1,
        delta: float = 0.0,
        mixtures: bool = True,
        weighted: bool = True,
        anchor_share: float = 0.5,
    ) -> None:
        super().__init__()
        self.temperature, self.delta = positive("temperature", temperature), delta
        self.mixtures, self.weighted, self.anchor_share = mixtures, weighted, anchor_share

    def loss(
        self,
        views: list[Tensor],
        rows: Rows,
        target: Tensor | None = None,
        label: Tensor | None = None,
        draws: tuple[Tensor, Tensor, Tensor] | None = None,
    ) -> Tensor:
        """`target` (n,): real values; without, the label's number. `draws`: per row the anchor's share and two picks
        in [0, 1) among the rows below and above, otherwise drawn."""
        (target,) = known(self, target=label if target is None else target)
        v, z = len(views), torch.cat([unit(view) for view in views])
        y, index = full_precision(target).repeat(v), rows.index(z.device)
        ids = torch.cat([index * v + k for k in range(v)])
        keys, y_keys, key_ids = rows.gather_with_gradient(z), rows.gather(y), rows.gather(ids)
        order = key_ids.argsort()  # rank-major to one order on every rank, for the picks
        keys, y_keys, key_ids = keys[order], y_keys[order], key_ids[order]
        gap = (y_keys - y[:, None]).abs()
        same, far = (gap <= self.delta) & (key_ids != ids[:, None]), gap > self.delta
        s = z @ keys.T / self.temperature
        share, below, above = draws if draws is not None else torch.rand(3, len(z), dtype=z.dtype, device=z.device)
        logits, weights, positives = [s], [gap], [same]
        if self.mixtures:
            a = self.anchor_share * share[:, None]
            # cos(z_i, a z_i + (1-a) z_n) needs the similarity only.
            cosine = s * self.temperature
            length = (a**2 + (1 - a) ** 2 + 2 * a * (1 - a) * cosine).clamp_min(1e-12).sqrt()
            logits.append((a + (1 - a) * cosine) / length / self.temperature)
            weights.append((1 - a) * gap)
            positives.append(torch.zeros_like(same))
            mixture, there = self.between(y, keys, y_keys, below, above)
            logits.append(((z * mixture).sum(1) / self.temperature)[:, None])
            weights.append(torch.zeros_like(there)[:, None].to(gap))
            positives.append(there[:, None])
        logit, is_positive = torch.cat(logits, 1), torch.cat(positives, 1)
        negative = torch.cat([far, far, torch.zeros_like(far[:, :1])], 1) if self.mixtures else far
        omega = torch.cat(weights, 1) * negative if self.weighted else negative.to(z)
        omega = omega / (omega.sum(1, keepdim=True) / negative.sum(1, keepdim=True).clamp(min=1)).clamp_min(1e-12)
        log_omega = torch.where(is_positive, 0.0, omega.log())
        log_p = logit - log_sum(logit + log_omega, 1)[:, None]
        count = is_positive.sum(1)
        each = -torch.where(is_positive, log_p, 0.0).sum(1) / count.clamp(min=1)
        self.diagnostics["positives"] = rows.mean(count.to(z))
        return rows.mean(each, weight=(count > 0).to(each))

    @staticmethod
    def between(y: Tensor, keys: Tensor, y_keys: Tensor, below: Tensor, above: Tensor) -> tuple[Tensor, Tensor]:
        """(m, D) the hard positive of each row and (m,) whether it has one: none at the ends of the targets' range."""
        y_sorted, order = y_keys.sort(stable=True)
        low = torch.searchsorted(y_sorted, y)  # so many lie strictly below
        high = torch.searchsorted(y_sorted, y, right=True)
        there = (low > 0) & (high < len(y_sorted))
        j = order[(below * low).long().clamp(max=len(y_sorted) - 1)]
        k = order[(high + above * (len(y_sorted) - high)).long().clamp(max=len(y_sorted) - 1)]
        w = (y_keys[k] - y) / torch.where(there, y_keys[k] - y_keys[j], 1)
        mixed = w[:, None] * keys[j] + (1 - w[:, None]) * keys[k]
        return F.normalize(torch.where(there[:, None], mixed, 1.0), dim=1), there
