"""CPL, contrastive pseudo learning (Sun et al., ICCV 2023), simplified: partners and confident pseudo-labels."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from manyviews.distributed import Rows
from manyviews.objectives.objective import Objective, exactly_two, known
from manyviews.similarity import full_precision, unit


class CPL(Objective):
    r"""Open-world classes: an image and its partner in the batch shall get one class, and confident guesses teach.

    .. math:: L = L_{CE} + a\,\mathrm{mean}_i -\log (p_i \cdot p_{\pi(i)})
              + b\,\mathrm{mean}_i\, c_i\, CE(p'_i, \hat y_i)
              - \lambda H(\mathrm{mean}\, p)

    :math:`\pi(i)`: for a labelled image another one of its class, else the nearest by features, revised by votes of
    parts where there are some: an image that is nearest for more parts than the global nearest wins.
    :math:`\hat y`: drawn by Gumbel-softmax from the weak view's p, counted by its confidence c where that exceeds
    `accept`; p' is the strong view's. Without the entropy H all images fall into one class.

    Args:
        pair: a. pseudo: b. entropy: lambda. accept: least confidence. gumbel: temperature of the draw.
    """

    def __init__(
        self, pair: float = 0.5, pseudo: float = 0.5, entropy: float = 1.0, accept: float = 0.5, gumbel: float = 1.0
    ) -> None:
        super().__init__()
        self.pair, self.pseudo, self.entropy, self.accept, self.gumbel = pair, pseudo, entropy, accept, gumbel

    def loss(
        self,
        views: list[Tensor],
        rows: Rows,
        features: Tensor | None = None,
        label: Tensor | None = None,
        parts: Tensor | None = None,
        noise: Tensor | None = None,
    ) -> Tensor:
        """`views`: the classifier's logits (n, C) for the weak and the strong view; `features` (n, D) of the weak one.

        `label` (n,): -1 unlabelled. `parts` (n, P, D): features of parts. `noise` (n, C): Gumbel, otherwise drawn.
        """
        weak, strong = exactly_two(self, views)
        features, label = known(self, features=features, label=label)
        log_p = [torch.log_softmax(x, 1) for x in (weak, strong)]
        p = log_p[0].exp()
        partners = self.partners(full_precision(features.detach()), label, parts, rows)
        pair = rows.mean(-(p * rows.gather_with_gradient(p)[partners]).sum(1).clamp_min(1e-8).log())
        labelled = label >= 0
        classified = rows.mean(F.nll_loss(log_p[0], label.clamp(min=0), reduction="none"), weight=labelled.to(p))
        pseudo = rows.mean(self._pseudo(p.detach(), log_p[1], labelled, noise))
        mean = rows.sum_with_gradient(p.sum(0)) / rows.total
        entropy = -(mean * mean.clamp_min(1e-12).log()).sum()  # xlogy has no gradient at 0
        self.diagnostics = {
            "pair": pair.detach(), "pseudo": pseudo.detach(), "class_entropy": entropy.detach() / math.log(len(mean))
        }  # fmt: skip
        loss: Tensor = classified + self.pair * pair + self.pseudo * pseudo - self.entropy * entropy
        return loss

    @torch.no_grad()
    def partners(self, z: Tensor, label: Tensor, parts: Tensor | None, rows: Rows) -> Tensor:
        """(n,): each image's partner among the images of all ranks."""
        index, labels = rows.index(z.device), rows.gather(label)
        allowed = index[:, None] != torch.arange(rows.total, device=z.device)
        own = (label[:, None] == labels) & (label >= 0)[:, None] & allowed
        allowed = torch.where(own.any(1, keepdim=True), own, allowed)
        s = unit(z) @ rows.gather(unit(z)).T
        nearest = s.masked_fill(~allowed, -math.inf).argmax(1)
        if parts is None:
            return nearest
        u = unit(parts)
        votes = torch.zeros_like(s)
        for part, keys in zip(u.unbind(1), rows.gather(u).unbind(1), strict=True):
            best = (part @ keys.T).masked_fill(~allowed, -math.inf).argmax(1)
            votes.scatter_add_(1, best[:, None], torch.ones_like(best, dtype=votes.dtype)[:, None])
        elected = votes.argmax(1)
        more = votes.gather(1, elected[:, None]) > votes.gather(1, nearest[:, None])
        return torch.where(more[:, 0], elected, nearest)

    def _pseudo(self, p: Tensor, log_strong: Tensor, labelled: Tensor, noise: Tensor | None) -> Tensor:
        if noise is None:
            noise = -torch.empty_like(p).exponential_().log()
        drawn = ((p.clamp_min(1e-12).log() + noise) / self.gumbel).softmax(1)
        confidence = p.gather(1, drawn.argmax(1)[:, None])[:, 0]
        counted = confidence * (confidence > self.accept) * ~labelled
        return -counted * (drawn * log_strong).sum(1)
