"""MECO (Jiang et al., ICML 2023): an unnormalised model of images by compositional optimisation."""

from __future__ import annotations

import math
from functools import partial

import torch
from torch import nn

from manyviews import distributed, objectives
from manyviews.backbones import Encoding, views_of, width_of
from manyviews.internals import BatchNorm
from manyviews.methods.method import Batch, Count, Method, Step
from manyviews.optim import Schedule, Training


class MECO(Method):
    """log p(x) = f(x) + log q(x) - log Z: f a network, q independent normal pixels of the batch's scale.

    The network corrects the noise density, so that the importance weights are e^f and the first ones are near 1.

    Args:
        backbone: images to an Encoding, with an attribute `width`.
        gamma: weight of the new estimate of Z.
        noise: deviation of the noise pixels, in units of the normalised images.
        training: ours: Adam 1e-4.
    """

    takes_chunks = False
    takes_views: Count = (1, 1)

    def __init__(
        self,
        backbone: nn.Module,
        gamma: float = 0.1,
        noise: float = 1.0,
        training: Training = Training(partial(torch.optim.Adam, lr=1e-4), Schedule(scaling="none")),
    ) -> None:
        norms = [name for name, module in backbone.named_modules() if isinstance(module, BatchNorm)]
        if norms:
            raise ValueError(
                f"an energy must not depend on the batch an image is in, but the backbone has BatchNorm ({norms[0]}): "
                "use one with GroupNorm or LayerNorm (ConvNet with norm: group)"
            )
        head = nn.Linear(width_of(backbone), 1)
        super().__init__(backbone, head, objectives.MECO(gamma), training)
        self.noise = noise

    def step(self, batch: Batch) -> Step:
        """Energies of the images against those of as many noise images."""
        views = views_of(batch)
        h = self.encode(self.backbone, views)
        f = self.project(h)[0]
        sample = torch.randn_like(views[0]) * self.noise
        energy = self.projector(Encoding.of(self.backbone(sample)).pooled)[:, 0]
        # p = e^f q / Z: the density of the noise stands on both sides and falls out of the weights.
        loss = self.objective([f], noise=energy, log_q=torch.zeros_like(energy), gather=distributed.current())
        pooled = h[0].pooled  # energies have one dimension: nothing to look at
        return Step(loss, h, [pooled, pooled], {"bits_over_noise": self.objective.diagnostics["nll"] / math.log(2)})
