"""cMIM, the contrastive mutual information machine (Livne, 2025): a generative code that can be told apart by angle."""

from __future__ import annotations

import math

from torch import Tensor

from manyviews.distributed import Rows
from manyviews.objectives.ntxent import softplus
from manyviews.objectives.objective import Objective, known, positive
from manyviews.similarity import full_precision, image_ids, logsumexp_self, unit


class CMIM(Objective):
    r"""One view: reconstruct it from its sampled code z, and tell its code from the mean of the others.

    .. math:: L = \mathrm{mean}_i \Big[ -w \log p(x_i | z_i) - \log p(k{=}1 | z_i)
              - \tfrac12 \big( \log q(z_i | x_i) + \log P(z_i) \big) \Big], \quad
              p(k{=}1 | z_i) = \frac{e^{1/t}}{e^{1/t} + \mathrm{mean}_{j \ne i} e^{s(z_i, z_j)/t}}

    q is a diagonal normal, P the standard one, densities summed over the D latent dimensions. Negatives enter as a
    mean, so the loss does not grow with the batch. Unlike in a VAE, log q is maximised: scales shrink. The others are
    those of all ranks (the one implementation we know, for molecules, takes each rank's own).

    Args:
        temperature: t > 0. contrast: weight of the contrastive term; 0 is A-MIM. reconstruction: w.
    """

    fewest = 1

    def __init__(self, temperature: float = 0.1, contrast: float = 1.0, reconstruction: float = 1.0) -> None:
        super().__init__()
        self.temperature = positive("temperature", temperature)
        self.contrast, self.reconstruction = contrast, reconstruction

    def loss(
        self,
        views: list[Tensor],
        rows: Rows,
        mean: Tensor | None = None,
        log_scale: Tensor | None = None,
        log_likelihood: Tensor | None = None,
        group: Tensor | None = None,
    ) -> Tensor:
        """`views`: [z], the sampled codes (n, D), drawn from `mean` and `log_scale` (n, D); log p(x|z) (n,)."""
        z = views[0]
        mean, log_scale = map(full_precision, known(self, mean=mean, log_scale=log_scale))
        u = unit(z) * self.temperature**-0.5
        negatives = logsumexp_self(u, image_ids(rows, group, z.device), rows, bound=1 / self.temperature)
        told_apart = softplus(negatives - math.log(max(rows.total - 1, 1)) - 1 / self.temperature)
        log_q = (-0.5 * ((z - mean) / log_scale.exp()).square() - log_scale - 0.5 * math.log(2 * math.pi)).sum(1)
        log_prior = (-0.5 * z.square() - 0.5 * math.log(2 * math.pi)).sum(1)
        loss = self.contrast * told_apart - 0.5 * (log_q + log_prior)
        self.diagnostics = {
            "contrastive": rows.mean(told_apart).detach(),
            "log_scale": rows.mean(log_scale.mean(1)).detach(),
            "log_prior": rows.mean(log_prior).detach(),
        }
        if log_likelihood is not None:
            loss = loss - self.reconstruction * full_precision(log_likelihood)
            self.diagnostics["log_likelihood"] = rows.mean(full_precision(log_likelihood)).detach()
        return rows.mean(loss)
