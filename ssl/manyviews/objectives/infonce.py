"""InfoNCE with a queue (MoCo v1 and v2, He et al., CVPR 2020) or within the batch (MoCo v3, Chen et al., ICCV 2021)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor

from manyviews.distributed import Rows
from manyviews.memory import Queue
from manyviews.objectives.ntxent import softplus
from manyviews.objectives.objective import Objective, choice, paired, positive
from manyviews.similarity import image_ids, logsumexp, logsumexp_bank, unit


class InfoNCE(Objective):
    r"""A query picks its key, made by a momentum encoder of another view, among stored keys or the batch's.

    .. math:: L_i = -\log \frac{e^{s(q_i, k_i)/t}}{e^{s(q_i, k_i)/t} + \sum_{n} e^{s(q_i, n)/t}}

    With a queue the negatives n are its entries (MoCo v1, v2); without, the keys of the batch's other images, those of
    the anchor's own view left out (MoCo v3). Averaged over images, and over the pairs given: one pair is v1 and v2,
    both directions make it symmetric. Keys are constants, and enter the queue after the loss.

    Args:
        temperature: t > 0. Paper: 0.07 (v1), 0.2 (v2 and ViT v3), 1.0 (ResNet v3).
        queue_size: K; 0: negatives from the batch. Paper: 65536.
        dim: D of the embeddings, needed with a queue.
        scale: `mean`, or `official`: 2t times the sum over the pairs, as in the code of MoCo v3, whose learning rates
            for AdamW go with it.
    """

    fewest = 1

    def __init__(
        self, temperature: float = 0.2, queue_size: int = 0, dim: int = 128, scale: Literal["mean", "official"] = "mean"
    ) -> None:
        super().__init__()
        self.temperature = positive("temperature", temperature)
        self.queue = Queue(queue_size, dim) if queue_size else None
        self.scale = choice("scale", scale, ("mean", "official"))

    def loss(
        self,
        views: list[Tensor],
        rows: Rows,
        targets: Sequence[Tensor] | None = None,
        group: Tensor | None = None,
        enqueue: bool = True,
    ) -> Tensor:
        """`targets`: the keys. `group` (n,): keys of equal group >= 0 are not negatives (not known of a queue's).

        `enqueue`: False: the keys do not enter the queue, since another call brings them (see Hallucinator).
        """
        pairs = [(unit(q), unit(k.detach())) for q, k in paired(self, views, targets)]
        ids = image_ids(rows, group, views[0].device)
        losses = torch.stack([self.pick(q, k, ids, rows) for q, k in pairs])
        if self.queue is not None and enqueue:
            pushed = torch.stack([k for _, k in pairs], 1).flatten(0, 1)  # image-major: any cut into ranks is the same
            self.queue.push(pushed, rows)
            self.diagnostics["queue_filled"] = self.queue.filled()
            self.diagnostics["queue_age"] = torch.tensor(len(self.queue) / (rows.total * len(pairs)))
        return 2 * self.temperature * losses.sum() if self.scale == "official" else losses.mean()

    def pick(self, q: Tensor, k: Tensor, ids: Tensor, rows: Rows) -> Tensor:
        """The loss of unit queries (n, D) with their unit keys (n, D)."""
        negatives = self.negatives(q, k, ids, rows)
        return rows.mean(softplus(negatives - (q * k).sum(1) / self.temperature))

    def negatives(self, q: Tensor, k: Tensor, ids: Tensor, rows: Rows) -> Tensor:
        """(n,): log-sum-exp of each query's negatives."""
        bound = 1 / self.temperature
        if self.queue is None:
            return logsumexp(q * bound, k, ids, ids, rows, bound)
        return logsumexp_bank(q * bound, self.queue.items, bound)
