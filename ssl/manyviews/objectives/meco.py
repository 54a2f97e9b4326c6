"""MECO: unnormalised models by compositional optimisation (Jiang et al., ICML 2023; derived from the abstract)."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from manyviews.distributed import Rows
from manyviews.objectives.objective import Objective, known
from manyviews.similarity import full_precision


class MECO(Objective):
    r"""The likelihood of an energy model p(x) = e^{f(x)} / Z, its normaliser estimated over many batches of noise.

    .. math:: u \leftarrow (1 - \gamma) u + \gamma\, \mathrm{mean}_b\, e^{f(x_b)}/q(x_b), \quad
              L = -\mathrm{mean}\, f(x) + \mathrm{mean}_b\, \mathrm{sg}\!\left[ \tfrac{e^{f(x_b)}}{q(x_b)\, u} \right]
              f(x_b)

    u is one number, kept as a logarithm; `nll` among the diagnostics is -mean f + log u. gamma = 1 is the gradient of
    self-normalised importance sampling.

    Args:
        gamma: weight of the new estimate, in (0, 1].
    """

    fewest = 1
    log_u: Tensor

    def __init__(self, gamma: float = 0.1) -> None:
        super().__init__()
        if not 0 < gamma <= 1:
            raise ValueError(f"gamma must be in (0, 1], got {gamma}")
        self.gamma = gamma
        self.register_buffer("log_u", torch.tensor(-math.inf))

    def loss(self, views: list[Tensor], rows: Rows, noise: Tensor | None = None, log_q: Tensor | None = None) -> Tensor:
        """`views`: [f(x)], (n, 1); `noise` (n,): f of noise samples, `log_q` (n,): their log-density."""
        noise, log_q = (full_precision(x) for x in known(self, noise=noise, log_q=log_q))
        log_ratio = noise.detach() - log_q
        now = rows.gather(log_ratio).logsumexp(0) - math.log(rows.total)
        old = self.log_u.to(now)
        keep = math.log(1 - self.gamma) if self.gamma < 1 else -math.inf
        mixed = torch.logaddexp(old + keep, now + math.log(self.gamma))
        log_u = torch.where(old == -math.inf, now, mixed)
        self.log_u.copy_(log_u)
        self.diagnostics["log_z"] = log_u
        self.diagnostics["nll"] = log_u - rows.mean(views[0][:, 0]).detach()
        return rows.mean((log_ratio - log_u).exp() * noise - views[0][:, 0])
