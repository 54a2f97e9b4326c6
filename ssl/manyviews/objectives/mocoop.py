"""MoCoOp (Du, Niu, Zhao, "Mixture of Prompt Learning for Vision Language Models", 2024)."""

from __future__ import annotations

from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from manyviews.distributed import Rows
from manyviews.objectives.objective import Objective, known
from manyviews.similarity import unit


class MoCoOp(Objective):
    r"""Soft prompts in groups, of which a router mixes the two best for each image, as a classifier.

    .. math:: L = CE(s\, u \cdot t_c) + w_t\, \mathrm{mean}_{g,c} CE(s\, t_{gc} \cdot h_{g \cdot}; c) +
              w_r\, CE(\mathrm{gate}, \mathrm{softmax}(u \cdot h_{g y} + 10 [g \in \mathrm{top2}]))

    with t_c the mixture of the two chosen groups' class features, not brought to length 1 again, and h the constant
    features of hand-written templates. The authors' code leaves s out of the second term; the text intends it.

    Args:
        dim: D of the joint space. groups: G. scale: s of the frozen CLIP.
        text_weight: w_t, 5 to 25 in the paper. router_weight: w_r.
    """

    batch_coupled: ClassVar[bool] = False
    fewest = 1

    def __init__(
        self, dim: int, groups: int, scale: float = 100.0, text_weight: float = 5.0, router_weight: float = 1.0
    ) -> None:
        super().__init__()
        self.router = nn.Linear(dim, groups)
        self.scale, self.text_weight, self.router_weight = scale, text_weight, router_weight

    def loss(
        self,
        views: list[Tensor],
        rows: Rows,
        label: Tensor | None = None,
        prompts: Tensor | None = None,
        hand: Tensor | None = None,
    ) -> Tensor:
        """`views`: one, images. `label` (n,). `prompts`, `hand`: (G, C, D) unit features, the same on every rank."""
        u = unit(views[0])
        label, prompts, hand = known(self, label=label, prompts=prompts, hand=hand)
        gate, there = self.router(u), (label >= 0).to(u.dtype)
        own = label.clamp(min=0)
        logits = self.scale * self.scores(u, prompts)
        classify = rows.mean(F.cross_entropy(logits, own, reduction="none"), there)
        texts = self.scale * torch.einsum("gcd,ged->gce", prompts, hand.detach())
        target = torch.arange(texts.shape[1], device=u.device).expand(len(texts), -1)
        near = F.cross_entropy(texts.flatten(0, 1), target.flatten())
        with torch.no_grad():
            wanted = torch.einsum("nd,gnd->ng", u, hand[:, own])
            best = wanted.topk(min(2, wanted.shape[1]), dim=1).indices
            wanted = wanted.scatter_add(1, best, torch.full_like(best, 10, dtype=wanted.dtype)).softmax(1)
        route = rows.mean(-(wanted * gate.log_softmax(1)).sum(1), there)
        usage = rows.sum(F.one_hot(gate.argmax(1), gate.shape[1]).sum(0).to(u.dtype)) / rows.total
        self.diagnostics = {
            "router_usage": torch.exp(-torch.special.xlogy(usage, usage).sum()) / len(usage),
            "accuracy": rows.mean((logits.argmax(1) == own).to(u.dtype), there).detach(),
        }
        return classify + self.text_weight * near + self.router_weight * route

    def scores(self, u: Tensor, prompts: Tensor) -> Tensor:
        """(n, C): unit images (n, D) against the mixture of their two best groups."""
        gate, best = self.router(u).topk(min(2, len(prompts)), dim=1)
        mixed = torch.einsum("nk,nkcd->ncd", gate.softmax(1), prompts[best])
        return torch.einsum("nd,ncd->nc", u, mixed)
