"""Joint image-volume learning with intra-inter clustering (Nguyen et al., AAAI 2023)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import cast

import torch
from torch import Tensor, nn

from manyviews.distributed import Rows
from manyviews.objectives.objective import Objective, exactly_two, known
from manyviews.objectives.swav import SwAV
from manyviews.similarity import full_precision


class ImageVolume(Objective):
    r"""Slices are clustered among slices, volumes among volumes, and hidden slices are predicted from the others.

    .. math:: L = L_{intra} + L_{inter} + L_{mask}

    L_intra is SwAV on the slices of two augmentations, L_inter SwAV on the volumes made of them, averaged over several
    sets of few prototypes; L_mask the squared error of predicted slice features. A batch holds few volumes: their
    assignment needs the queue.

    Args:
        slices: S of a volume. dim: D of a slice's and of a volume's embedding.
        prototypes: of slices. volume_prototypes: of each set for volumes. Paper: (4, 4, 4).
        temperature: t of both. epsilon: of Sinkhorn.
        queue_size: past volumes; 0: none. queue_from: first epoch in which they count. frozen_epochs: as in SwAV.
    """

    def __init__(
        self,
        slices: int,
        dim: int = 128,
        prototypes: int = 3000,
        volume_prototypes: Sequence[int] = (4, 4, 4),
        temperature: float = 0.1,
        epsilon: float = 0.05,
        queue_size: int = 0,
        queue_from: int = 15,
        frozen_epochs: int = 1,
    ) -> None:
        super().__init__()
        self.slices, self.temperature = slices, temperature
        self.intra = SwAV(dim, prototypes, temperature, epsilon, frozen_epochs=frozen_epochs)
        self.inter = nn.ModuleList(
            SwAV(
                dim, k, temperature, epsilon, queue_size=queue_size, queue_from=queue_from, frozen_epochs=frozen_epochs
            )
            for k in volume_prototypes
        )

    def loss(
        self,
        views: list[Tensor],
        rows: Rows,
        volumes: list[Tensor] | None = None,
        predicted: Tensor | None = None,
        hidden: Tensor | None = None,
        features: Tensor | None = None,
        epoch: int | None = None,
    ) -> Tensor:
        """`views`: the slices' embeddings side by side, (n, S D), of two augmentations; `volumes`: (n, D) of each.

        `predicted` and `features` (n, S, d): slice features, the latter constant; `hidden` (n, S) bool: which were
        hidden from the prediction. Without them there is no third term.
        """
        slices = [view.reshape(len(view) * self.slices, -1) for view in exactly_two(self, views)]
        if volumes is None:
            raise ValueError("ImageVolume needs volumes=[...], the embedding of each volume in two augmentations")
        intra = self.intra.loss(slices, rows.times(self.slices), epoch=epoch)
        parts = [cast(SwAV, head).loss([full_precision(v) for v in volumes], rows, epoch=epoch) for head in self.inter]
        inter = torch.stack(parts).mean()
        self.diagnostics = {**self.intra.diagnostics, "intra": intra.detach(), "inter": inter.detach()}
        if hidden is None:
            return intra + inter
        predicted, features = known(self, predicted=predicted, features=features)
        error = (full_precision(predicted) - full_precision(features.detach())).square().mean(2)
        masked = rows.mean(error, weight=hidden.to(error))
        self.diagnostics["masked"] = masked.detach()
        return intra + inter + masked
