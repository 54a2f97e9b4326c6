"""BaCon's soft contrast (Bai et al., NeurIPS 2023): pseudo-labels of one branch are soft positives of the other."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from manyviews.distributed import Rows
from manyviews.objectives.ntxent import NTXent
from manyviews.objectives.objective import Objective, exactly_two, known, positive
from manyviews.similarity import full_precision, log_sum, unit


class BaCon(Objective):
    r"""NT-Xent on all images, SupCon on the labelled ones, and SoftCon: positives weighted by agreement of classes.

    .. math:: L = (1-w) L_{NTXent} + \tfrac{w}{2} L_{SupCon} + \tfrac{w}{2} L_{soft}, \quad
              L_{soft} = \mathrm{mean}_r \frac{-\sum_j M_{rj} \log P_{rj}}{\sum_j M_{rj}}, \quad M_{ij} = p_i \cdot p_j

    with M_ii = 1 and constant, P the softmax over all other rows of both views. One-hot p make SoftCon SupCon. To
    these the pseudo-label branch adds w times cross-entropy on labelled images, and (1 - w) times the sum of
    self-distillation (each view predicts the sharpened, constant guess of the other) and log C - H(mean p), by which
    no class is forgotten.

    The authors train the two branches apart, each with its own copy of the backbone's last block and its own
    optimiser, and their guesses are sharpened by a temperature that falls from 0.07 to 0.04 in 30 epochs. Left out: the
    estimate of the class distribution by k-means, and with it the adjusted logits, the balanced sample
    of SoftCon's images, and the weights in the mean p.

    Args:
        temperature: of SupCon and SoftCon. unsupervised_temperature: of NT-Xent (1.0 in the code).
        supervised: w. prediction_temperature: of the classifier's softmax;
            the guesses that are learnt from take half of it. balance: weight of log C - H.
        soft_from: first epoch with SoftCon; before, SupCon has its share.
    """

    def __init__(
        self,
        temperature: float = 0.07,
        unsupervised_temperature: float = 1.0,
        supervised: float = 0.35,
        prediction_temperature: float = 0.1,
        balance: float = 1.0,
        soft_from: int = 0,
    ) -> None:
        super().__init__()
        self.temperature = positive("temperature", temperature)
        self.ntxent = NTXent(unsupervised_temperature)
        self.supervised, self.prediction_temperature, self.balance = supervised, prediction_temperature, balance
        self.soft_from = soft_from

    def loss(
        self,
        views: list[Tensor],
        rows: Rows,
        label: Tensor | None = None,
        logits: list[Tensor] | None = None,
        epoch: int | None = None,
    ) -> Tensor:
        """`label` (n,): -1 unlabelled. `logits`: (n, C) of each view, by the pseudo-label branch."""
        views = list(exactly_two(self, views))
        (label,) = known(self, label=label)
        if logits is None:
            raise ValueError("BaCon needs logits=[...], the classifier's output for each view")
        log_p = torch.stack([torch.log_softmax(full_precision(x) / self.prediction_temperature, 1) for x in logits])
        p = log_p.exp().mean(0)
        z, labelled = [unit(view) for view in views], label >= 0
        w, everyone = self.supervised, self.ntxent.loss(views, rows)
        supervised = self.supervised_contrast(z, label, rows)
        soft = self.soft_contrast(z, p.detach(), rows) if epoch is None or epoch >= self.soft_from else supervised
        right = log_p.gather(2, label.clamp(min=0).expand(2, -1)[..., None])[..., 0]
        classified = rows.mean(-right.mean(0), weight=labelled.to(right))
        mean = rows.sum_with_gradient(p.sum(0)) / rows.total
        unbalanced = math.log(len(mean)) + (mean * mean.clamp_min(1e-12).log()).sum()  # xlogy has no gradient at 0
        distilled = self.distil(logits, log_p, rows)
        self.diagnostics = {
            "distillation": distilled.detach(),
            "soft_contrast": soft.detach(), "classification": classified.detach(), "imbalance": unbalanced.detach()
        }  # fmt: skip
        contrast = (1 - w) * everyone + w / 2 * supervised + w / 2 * soft
        loss: Tensor = contrast + w * classified + (1 - w) * (distilled + self.balance * unbalanced)
        return loss

    def distil(self, logits: list[Tensor], log_p: Tensor, rows: Rows) -> Tensor:
        """Cross-entropy of each view's prediction with the other's sharpened guess."""
        sharp = [(full_precision(x.detach()) / (self.prediction_temperature / 2)).softmax(1) for x in logits]
        return rows.mean(-(sharp[0] * log_p[1] + sharp[1] * log_p[0]).sum(1) / 2)

    def supervised_contrast(self, z: list[Tensor], label: Tensor, rows: Rows) -> Tensor:
        """SupCon among the labelled images of all ranks; 0 if there is none."""
        labelled = (label >= 0).repeat(2)
        classes = label.repeat(2)
        same = classes[:, None] == rows.gather(classes)
        return self._weighted(z, (same & labelled[:, None]).to(z[0]), rows, labelled)

    def soft_contrast(self, z: list[Tensor], p: Tensor, rows: Rows) -> Tensor:
        """L_soft of unit views and class probabilities (n, C)."""
        both = p.repeat(2, 1)
        index = rows.index(p.device).repeat(2)
        weights = both @ rows.gather(both).T
        weights = torch.where(index[:, None] == rows.gather(index), 1.0, weights)
        return self._weighted(z, weights, rows, torch.ones(len(both), dtype=torch.bool, device=p.device))

    def _weighted(self, z: list[Tensor], weights: Tensor, rows: Rows, anchors: Tensor) -> Tensor:
        """Mean over anchors of the weighted mean of -log P; anchors and candidates are those with any weight."""
        rows_z, index = torch.cat(z), rows.index(z[0].device)
        ids = torch.cat([index, index + rows.total])
        own = ids[:, None] == rows.gather(ids)
        candidates = rows.gather(anchors)
        s = rows_z @ rows.gather_with_gradient(rows_z).T / self.temperature
        log_p = s - log_sum(s.masked_fill(own | ~candidates, -math.inf), 1)[:, None]
        weights = weights.masked_fill(own | ~candidates | ~anchors[:, None], 0)
        each = -torch.where(weights > 0, weights * log_p, 0).sum(1) / weights.sum(1).clamp_min(1e-12)
        return rows.mean(each, weight=anchors.to(each))
