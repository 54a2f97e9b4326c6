"""Hydra, now SimLAP (Wu et al., "Rethinking Positive Pairs in Contrastive Learning", 2024): arbitrary class pairs."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor, nn

from manyviews.distributed import Rows
from manyviews.objectives.infonce import InfoNCE
from manyviews.objectives.ntxent import softplus
from manyviews.objectives.objective import Objective, choice, exactly_two, known, paired, positive
from manyviews.similarity import log_sum, unit


class Gate(nn.Module):
    """The gate of a class pair: sigmoid(MLP(mean of the two class embeddings)), the same for both orders.

    Args:
        classes: how many. dim: D of the embeddings that are gated. width, hidden: of the class embedding and the MLP.
    """

    def __init__(self, classes: int, dim: int, width: int = 512, hidden: int = 1024) -> None:
        super().__init__()
        self.classes = nn.Embedding(classes, width)
        self.mlp = nn.Sequential(
            nn.ReLU(), nn.BatchNorm1d(width), nn.Linear(width, hidden),
            nn.ReLU(), nn.BatchNorm1d(hidden), nn.Linear(hidden, dim),
        )  # fmt: skip

    def forward(self, label: Tensor, partner: Tensor) -> Tensor:
        """(n,) and (n,) int64 to (n, D) in (0, 1)."""
        return torch.sigmoid(self.mlp((self.classes(label) + self.classes(partner)) / 2))


class Hydra(Objective):
    r"""Any two classes may be a positive pair, in the subspace that a gate opens for that pair. It needs labels.

    Each anchor i has a class y_i, a second class y'_i and the gate g_i of the two. In gated space every key of class
    y'_i competes, alone, with the keys of neither class:

    .. math:: L = \frac{1}{|P|} \sum_{(i,j): y_j = y'_i} \Big[ \log \big( e^{l_{ij}} + \sum_{n: y_n \notin
              \{y_i, y'_i\}} e^{l_{in}} \big) - l_{ij} \Big], \quad l_{ij} = s \cos(q_i \odot g_i,\, k_j \odot g_i)

    The anchor's gate is on all keys, and both sides are normalised after it (form A). Averaged over both directions of
    two views, or over views and `targets`.

    Args:
        classes: number of classes. dim: D of the embeddings.
        pairing: `arbitrary`: y' is a permutation of the batch's classes; `identical`: y' = y, so that the gate is of
            a class; `distinct`: any other class.
        renormalise: False: form B, rows normalised before the gate and not after.
        gated: False: every gate is open, the control.
        scale: s at the start; learnt as exp(log s), at most 100.
        per_anchor: average over each anchor's positives first (later code), not over all pairs.
        gate_epochs: epochs at the start in which only the gate learns.
    """

    fewest = 1

    def __init__(
        self,
        classes: int,
        dim: int = 256,
        pairing: Literal["arbitrary", "identical", "distinct"] = "arbitrary",
        renormalise: bool = True,
        gated: bool = True,
        scale: float = 20.0,
        per_anchor: bool = False,
        gate_epochs: int = 0,
    ) -> None:
        super().__init__()
        self.classes, self.dim, self.renormalise, self.per_anchor = classes, dim, renormalise, per_anchor
        self.pairing = choice("pairing", pairing, ("arbitrary", "identical", "distinct"))
        self.gate_epochs = gate_epochs
        self.gate = Gate(classes, dim) if gated else None
        self.log_scale = nn.Parameter(torch.tensor([math.log(positive("scale", scale))]))

    def loss(
        self,
        views: list[Tensor],
        rows: Rows,
        label: Tensor | None = None,
        targets: Sequence[Tensor] | None = None,
        partner: Tensor | None = None,
        gate: Tensor | None = None,
        epoch: int | None = None,
    ) -> Tensor:
        """`label` (n,): -1 (unknown) takes no part. `partner` (n,): y', otherwise drawn; `gate` (n, D), ditto."""
        (label,) = known(self, label=label)
        partner = self.pair(label) if partner is None else partner
        if gate is None:
            gate = self._open(label, partner, views[0])
        if epoch is not None and epoch < self.gate_epochs:
            views = [view.detach() + 0 * view for view in views]
        if targets is None:
            a, b = exactly_two(self, views)
            pairs = [(a, b), (b, a)]
        else:
            pairs = paired(self, views, targets)
        losses = [self.compare(q, k, gate, label, partner, rows) for q, k in pairs]
        g = gate.detach().clamp(1e-6, 1 - 1e-6)
        self.diagnostics["gate_open"] = rows.mean(g.mean(1))
        self.diagnostics["gate_entropy"] = rows.mean(-(g * g.log() + (1 - g) * (1 - g).log()).mean(1))
        self.diagnostics["scale"] = self.log_scale.detach().exp()[0]
        return torch.stack(losses).mean()

    @torch.no_grad()
    def pair(self, label: Tensor) -> Tensor:
        """(n,): the second class of each image; -1 where its own is unknown."""
        if self.pairing == "identical":
            return label
        if self.pairing == "distinct":
            other = (label + torch.randint(1, self.classes, label.shape, device=label.device)) % self.classes
            return torch.where(label >= 0, other, -1)
        partner = label.clone()
        there = (label >= 0).nonzero()[:, 0]
        partner[there] = label[there[torch.randperm(len(there), device=label.device)]]
        return partner

    def _open(self, label: Tensor, partner: Tensor, like: Tensor) -> Tensor:
        if self.gate is None:
            return torch.ones_like(like)
        gate: Tensor = self.gate(label.clamp(min=0), partner.clamp(min=0))
        return gate

    def compare(self, q: Tensor, k: Tensor, g: Tensor, label: Tensor, partner: Tensor, rows: Rows) -> Tensor:
        """The equation for queries (n, D), keys (n, D) and the queries' gates (n, D)."""
        if not self.renormalise:
            q, k = unit(q), unit(k)
        k, key_label = rows.gather_with_gradient(k), rows.gather(label)
        squared = g * g
        logits = (q * squared) @ k.T  # (q g) . (k g) of all pairs, without a tensor of three dimensions
        if self.renormalise:
            of_keys = (squared @ (k * k).T).clamp_min(1e-24).sqrt()
            logits = logits / ((q * g).norm(dim=1, keepdim=True).clamp_min(1e-12) * of_keys)
        logits = logits * self.log_scale.clamp(max=math.log(100)).exp()
        known_pair = (label >= 0)[:, None] & (key_label >= 0)
        first, second = key_label == label[:, None], key_label == partner[:, None]
        negatives = logits.masked_fill(first | second | ~known_pair, -math.inf)
        each = softplus(log_sum(negatives, 1)[:, None] - logits)
        positives = (second & known_pair).to(each)
        if self.per_anchor:
            mine = positives.sum(1)
            each = (each * positives).sum(1) / mine.clamp(min=1)
            return rows.mean(each, weight=(mine > 0).to(each))
        return rows.mean(each, weight=positives)


class HydraMoCo(Objective):
    r"""Instance discrimination as in MoCo v3 beside Hydra's loss on arbitrary pairs, and on identical ones.

    .. math:: L = (L_{inst} + \beta L_{disp} + \alpha L_{class}) / (1 + \alpha + \beta)

    Args:
        hydra: the loss on class pairs.
        temperature: of the instance loss. alpha: weight of the loss on pairs of equal class. beta: of Hydra's.
    """

    fewest = 1

    def __init__(self, hydra: Hydra, temperature: float = 1.0, alpha: float = 0.0, beta: float = 1.0) -> None:
        super().__init__()
        self.hydra, self.instance = hydra, InfoNCE(temperature)
        self.temperature, self.alpha, self.beta = temperature, alpha, beta

    def loss(
        self,
        views: list[Tensor],
        rows: Rows,
        label: Tensor | None = None,
        targets: Sequence[Tensor] | None = None,
        group: Tensor | None = None,
        partner: Tensor | None = None,
        gate: Tensor | None = None,
        epoch: int | None = None,
    ) -> Tensor:
        """`views`: predictions; `targets`: the momentum encoder's projections of the other views.

        `group` (n,): of the instance loss; the others as in `Hydra`.
        """
        instance = self.instance.loss(views, rows, targets=targets, group=group)
        arbitrary = self.hydra.loss(views, rows, label, targets, partner, gate, epoch)
        self.diagnostics = {
            **self.hydra.diagnostics, "instance_loss": instance.detach(), "pair_loss": arbitrary.detach()
        }  # fmt: skip
        loss = instance + self.beta * arbitrary
        if self.alpha:
            loss = loss + self.alpha * self.hydra.loss(views, rows, label, targets, label, None, epoch)
        return loss / (1 + self.alpha + self.beta)
