"""NNCLR (Dwibedi et al., ICCV 2021): the positive is a neighbour from a support set of past embeddings."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from manyviews.distributed import Rows
from manyviews.memory import Queue
from manyviews.objectives.ntxent import softplus
from manyviews.objectives.objective import Objective, paired, positive
from manyviews.similarity import hardest, image_ids, logsumexp, unit


class NNCLR(Objective):
    r"""The nearest neighbour, in the support set, of a view's projection picks the prediction of the other view.

    .. math:: L_i = -\log \frac{e^{s(\mathrm{NN}(z_i), p_i)/t}}{\sum_j e^{s(\mathrm{NN}(z_i), p_j)/t}}

    averaged over images and both directions: rows are neighbours, columns predictions. The support set is asked
    before the batch enters it, or each would find itself.

    Args:
        temperature: t > 0. Paper: 0.1.
        support: M, embeddings in the support set. Paper: 98304.
        dim: D of the embeddings.
        decoupled: leave the positive out of the denominator (the NNCLR of the DCL paper). A batch without any negative
            gives 0, as in `DCL`.
    """

    fewest = 1
    labels: Tensor

    def __init__(self, temperature: float = 0.1, support: int = 65536, dim: int = 256, decoupled: bool = False) -> None:
        super().__init__()
        self.temperature, self.decoupled = positive("temperature", temperature), decoupled
        self.support = Queue(support, dim)
        self.register_buffer("labels", torch.full((support,), -1))

    def loss(
        self,
        views: list[Tensor],
        rows: Rows,
        targets: Sequence[Tensor] | None = None,
        group: Tensor | None = None,
        label: Tensor | None = None,
    ) -> Tensor:
        """`views`: predictions p; `targets`: projections z of the other views. `label` is only read, for purity."""
        ids = image_ids(rows, group, views[0].device)
        support = self.support.items.to(views[0].dtype)
        pairs = [(unit(p), unit(z.detach())) for p, z in paired(self, views, targets)]
        losses = []
        for p, z in pairs:
            place = hardest(z, support, 1)[:, 0]
            neighbour = support[place] / self.temperature
            negatives = logsumexp(neighbour, p, ids, ids, rows, 1 / self.temperature)
            logits = negatives - (neighbour * p).sum(1)
            each = torch.where(negatives > -math.inf, logits, 0) if self.decoupled else softplus(logits)
            losses.append(rows.mean(each))
            self._read(z, place, label, rows)
        self._push(pairs[-1][1], label, rows)  # the last pair's target is the first view
        return torch.stack(losses).mean()

    def _read(self, z: Tensor, place: Tensor, label: Tensor | None, rows: Rows) -> None:
        self.diagnostics["neighbour_similarity"] = rows.mean((z * self.support.items[place]).sum(1)).detach()
        self.diagnostics["support_filled"] = self.support.filled()
        if label is not None:
            both = (label >= 0) & (self.labels[place] >= 0)
            self.diagnostics["neighbour_purity"] = rows.mean((label == self.labels[place]).to(z), weight=both.to(z))

    def _push(self, z: Tensor, label: Tensor | None, rows: Rows) -> None:
        places = self.support.push(z, rows)
        label = torch.full((len(z),), -1, device=z.device) if label is None else label
        self.labels[places] = rows.gather(label)[-len(places) :]
