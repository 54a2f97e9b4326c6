"""SogCLR (Yuan et al., ICML 2022) and iSogCLR (Qiu et al., ICML 2023): the denominator over the whole data set."""

from __future__ import annotations

import logging
import math

import torch
from torch import Tensor
from typing_extensions import override

from manyviews.distributed import Rows
from manyviews.memory import recall, remember
from manyviews.objectives.objective import Objective, exactly_two, known, positive
from manyviews.similarity import image_ids, logsumexp, unit

logger = logging.getLogger(__name__)


class SogCLR(Objective):
    r"""A running estimate u of each sample's denominator corrects the bias of a small batch.

    .. math:: g_i = \mathrm{mean}_{n} e^{s(i, n)/t}, \quad u_i \leftarrow (1 - \gamma) u_i + \gamma g_i, \quad
              L_i = -s(i, i^+) + \mathrm{mean}_{n}\, \mathrm{sg}[ e^{s(i, n)/t} / u_i ]\, s(i, n)

    over the 2(N-1) views n of other images; mean over images, sum over the two views as anchors. Both views start from
    the same stored u, and the mean of their two is stored; the first visit takes u = g. The gradient is t times that
    of the DCL loss (summed over views) where u = g; the value itself is not an objective: read `objective_value`.
    u is kept as a logarithm, is part of the checkpoint, and is the same on every rank.

    Args:
        samples: size of the data set; `index` must be smaller.
        temperature: t > 0. Paper: 0.1.
        gamma: weight of the new estimate, in (0, 1]. Paper: 0.9.
    """

    log_u: Tensor

    def __init__(self, samples: int, temperature: float = 0.1, gamma: float = 0.9) -> None:
        super().__init__()
        if not 0 < gamma <= 1:
            raise ValueError(f"gamma must be in (0, 1], got {gamma}")
        self.samples, self.temperature, self.gamma = samples, positive("temperature", temperature), gamma
        self.register_buffer("log_u", torch.full((samples,), -math.inf))

    def loss(self, views: list[Tensor], rows: Rows, index: Tensor | None = None, group: Tensor | None = None) -> Tensor:
        """`index` (n,): the sample in the data set. `group` (n,): equal and >= 0 are no negatives of each other."""
        a, b = map(unit, exactly_two(self, views))
        (index,) = known(self, index=index)
        z, t = torch.cat([a, b]), self.temperatures(index, a).repeat(2)
        ids = image_ids(rows, group, z.device)
        own, lse, mean_s, count = _negatives(z, t, ids.repeat(2), rows)
        log_g = lse.detach() - count.log()
        log_u = self.estimate(recall(self.log_u, index).to(z.dtype).repeat(2), log_g)
        stored = torch.logaddexp(*log_u.chunk(2)) - math.log(2)
        remember(self.log_u, index, stored, rows)
        ratio = (log_g - log_u).exp()
        self.observe(index, t, log_u, ratio * mean_s, rows)
        s = (a * b).sum(1).repeat(2)
        anchored = t * ratio * lse - s
        value = ratio * t * mean_s - s.detach()
        self.diagnostics["objective_value"] = rows.mean(log_u - s.detach() / t)
        self.diagnostics["log_u"] = rows.mean(log_u)
        return 2 * rows.mean(anchored + (value - anchored).detach()) if own else 0 * z.sum()

    def estimate(self, log_u: Tensor, log_g: Tensor) -> Tensor:
        """log of (1 - gamma) u + gamma g; log g where there is no u yet."""
        mixed = torch.logaddexp(log_u + _log(1 - self.gamma), log_g + _log(self.gamma))
        return torch.where(log_u == -math.inf, log_g, mixed)

    def temperatures(self, index: Tensor, like: Tensor) -> Tensor:
        """(n,): the temperature of each sample."""
        return torch.full_like(like[:, 0], self.temperature)

    def observe(self, index: Tensor, t: Tensor, log_u: Tensor, mean_s: Tensor, rows: Rows) -> None:
        """What a subclass learns of the batch; mean_s (2n,): mean over negatives of weight times s/t."""


class ISogCLR(SogCLR):
    r"""SogCLR with a temperature for every sample, found by distributionally robust optimisation.

    .. math:: \nabla_{\tau_i} = \log s_i + \rho - \mathrm{mean}_n\, w_{in}\, s(i, n)/\tau_i, \quad
              m_i \leftarrow (1 - \beta) m_i + \beta \nabla_{\tau_i}, \quad
              \tau_i \leftarrow [\tau_i - \eta\, m_i]_{\tau_{min}}^{\tau_{max}}

    with the gradient averaged over the two views and clipped to +-3; where the estimate s is exact it is
    :math:`\rho` minus the KL divergence of the softmax over the negatives from uniform. So frequent semantics get a
    large temperature, rare ones a small one. The loss of a step uses the old temperatures.

    Args:
        samples: size of the data set.
        temperature: of every sample at the start.
        gamma: weight of the new estimate of the denominator. Paper, CIFAR: 0.8.
        rho: radius of the KL ball; must be below log(2N - 2), or every temperature falls to the floor.
        low, high: range of the temperatures.
        rate: eta, their learning rate. momentum: beta, weight of the new gradient.
    """

    tau: Tensor
    tau_momentum: Tensor

    def __init__(
        self,
        samples: int,
        temperature: float = 0.1,
        gamma: float = 0.8,
        rho: float = 0.4,
        low: float = 0.05,
        high: float = 1.0,
        rate: float = 0.03,
        momentum: float = 0.5,
    ) -> None:
        super().__init__(samples, temperature, gamma)
        if not 0 < low <= temperature <= high:
            raise ValueError(f"temperature {temperature} must lie between low={low} > 0 and high={high}")
        self.rho, self.low, self.high, self.rate, self.momentum = rho, low, high, rate, momentum
        self.register_buffer("tau", torch.full((samples,), temperature))
        self.register_buffer("tau_momentum", torch.zeros(samples))
        self._warned = False

    @override
    def temperatures(self, index: Tensor, like: Tensor) -> Tensor:
        return recall(self.tau, index).to(like.dtype)

    def observe(self, index: Tensor, t: Tensor, log_u: Tensor, mean_s: Tensor, rows: Rows) -> None:
        """Moves the temperatures of the batch's samples."""
        negatives = 2 * rows.total - 2
        if self.rho >= math.log(max(negatives, 1)) and not self._warned:
            self._warned = True
            logger.warning(
                "iSogCLR: rho=%g is not below log(%d negatives) = %.2f: every temperature will fall to %g",
                self.rho, negatives, math.log(max(negatives, 1)), self.low,
            )  # fmt: skip
        gradient = (log_u + self.rho - mean_s).view(2, -1).mean(0).clamp(-3, 3)
        momentum = (1 - self.momentum) * self.tau_momentum[index].to(t.dtype) + self.momentum * gradient
        tau = (t[: len(index)] - self.rate * momentum).clamp(self.low, self.high)
        remember(self.tau_momentum, index, momentum, rows)
        remember(self.tau, index, tau, rows)
        for name, value in (("tau_mean", tau.mean()), ("tau_min", tau.min()), ("tau_max", tau.max())):
            self.diagnostics[name] = value


def _negatives(z: Tensor, t: Tensor, ids: Tensor, rows: Rows) -> tuple[bool, Tensor, Tensor, Tensor]:
    """Whether there are any; per row the log-sum-exp of s/t, its softmax-weighted mean of s/t, and their count."""
    lse = logsumexp(z / t[:, None], z, ids, ids, rows)
    with torch.enable_grad():
        anchors = (z / t[:, None]).detach().requires_grad_()
        again = logsumexp(anchors, z.detach(), ids, ids, rows)
        (pull,) = torch.autograd.grad(again.sum(), anchors)
    everyone = rows.gather(ids)
    unique, counts = torch.unique(everyone, return_counts=True)
    mine = torch.searchsorted(unique, ids)
    count = (len(everyone) - counts[mine]).to(z)
    return bool(count.any()), lse, (anchors * pull).sum(1).detach(), count


def _log(x: float) -> float:
    return math.log(x) if x > 0 else -math.inf
