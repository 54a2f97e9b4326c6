"""DINO (Caron et al., "Emerging Properties in Self-Supervised Vision Transformers", ICCV 2021): no negatives."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from manyviews.distributed import Rows
from manyviews.objectives.objective import Objective, positive


class DINO(Objective):
    r"""The student's distribution over prototypes, of any crop, is to be the teacher's of another, large crop.

    .. math:: L = \mathrm{mean}_{g, v \ne g}\, \mathrm{mean}_i -\sum_k q^g_{ik} \log p^v_{ik}, \quad
        q^g = \mathrm{softmax}((t^g - c) / \tau_t), \quad p^v = \mathrm{softmax}(s^v / \tau_s)

    over the G crops of the teacher and the V of the student, of which the first G are the same. The centre c, the
    running mean of all teacher logits over ranks, keeps one prototype from winning; the sharp temperature of the
    teacher keeps all from being equal. q takes no gradient, and sees the centre of the steps before.

    Args:
        prototypes: K, the width of what is compared. Paper: 65536.
        temperature: of the student, > 0.
        teacher_temperature: of the teacher, > 0; paper 0.04, with a warm-up 0.07.
        warmup_epochs: in which the teacher's temperature rises, along a line; 0: it is the same from the start.
            Paper: 30 (code: 0). warmup_temperature: that of the first of them; default 0.04.
        centre_momentum: share of itself that the centre keeps in a step.

    `diagnostics`: `teacher_entropy`, from 0 (one prototype) to log K (all alike): at either end nothing is learnt;
    `divergence`, the loss without that entropy; `prototypes_used`, the share of K that the mean of q is spread over;
    `centre_norm`.
    """

    centre: Tensor

    def __init__(
        self,
        prototypes: int = 65536,
        temperature: float = 0.1,
        teacher_temperature: float = 0.04,
        warmup_temperature: float | None = None,
        warmup_epochs: int = 0,
        centre_momentum: float = 0.9,
    ) -> None:
        super().__init__()
        self.temperature = positive("temperature", temperature)
        self.teacher_temperature = positive("teacher_temperature", teacher_temperature)
        if warmup_epochs < 0 or (warmup_temperature is not None and not warmup_epochs):
            raise ValueError(f"warmup_temperature {warmup_temperature} is of warmup_epochs, got {warmup_epochs}")
        first = 0.04 if warmup_temperature is None else warmup_temperature
        self.warmup_temperature, self.warmup_epochs = positive("warmup_temperature", first), warmup_epochs
        if not 0 <= centre_momentum <= 1:
            raise ValueError(f"centre_momentum must be in [0, 1], got {centre_momentum}")
        self.centre_momentum = centre_momentum
        self.register_buffer("centre", torch.zeros(prototypes))

    def loss(
        self, views: list[Tensor], rows: Rows, targets: Sequence[Tensor] | None = None, epoch: int | None = None
    ) -> Tensor:
        """`views`: the student's logits; `targets`: the teacher's of the first of them; `epoch`: None: no warm-up."""
        if not targets or len(targets) > len(views) or any(t.shape != views[0].shape for t in targets):
            raise ValueError(
                "DINO needs targets=[...]: the teacher's logits (n, K) of the first views, the large crops"
            )
        logits = torch.stack(list(targets)).detach()
        q = F.softmax((logits - self.centre) / self._sharpness(epoch), dim=2)
        log_p = [F.log_softmax(view / self.temperature, dim=1) for view in views]
        pairs = [(g, v) for g in range(len(q)) for v in range(len(views)) if v != g]
        loss = torch.stack([rows.mean(-(q[g] * log_p[v]).sum(1)) for g, v in pairs]).mean()
        self._read(q, loss.detach(), rows)
        mean = rows.sum(logits.sum((0, 1))) / (len(logits) * rows.total)
        self.centre.lerp_(mean, 1 - self.centre_momentum)
        return loss

    def _sharpness(self, epoch: int | None) -> float:
        """The teacher's temperature."""
        if epoch is None or epoch >= self.warmup_epochs:
            return self.teacher_temperature
        share = epoch / max(1, self.warmup_epochs - 1)
        return self.warmup_temperature + share * (self.teacher_temperature - self.warmup_temperature)

    @torch.no_grad()
    def _read(self, q: Tensor, loss: Tensor, rows: Rows) -> None:
        entropy = torch.stack([rows.mean(-torch.special.xlogy(each, each).sum(1)) for each in q]).mean()
        usage = rows.sum(q.sum((0, 1))) / (len(q) * rows.total)
        self.diagnostics = {
            "teacher_entropy": entropy,
            "divergence": loss - entropy,
            "prototypes_used": torch.exp(-torch.special.xlogy(usage, usage).sum() - math.log(len(usage))),
            "centre_norm": self.centre.norm(),
        }
