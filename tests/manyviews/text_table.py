"""The rows of the objectives table for images with texts, each with its dense reference beside it."""

import math

import torch
import torch.nn.functional as F

from manyviews import objectives as o
from manyviews.heads import LogitScale
from tests.manyviews.objectives_table import Case, draw
from tests.manyviews.references import rows_of, same


def cross_entropy(logits, target):
    """Mean over rows of -sum_j target_ij log softmax(logits_i)_j."""
    return -(target * torch.where(target > 0, torch.log_softmax(logits, 1), 0)).sum(1).mean()


def clip(views, objective, group=None, extra=None, **_):
    s, eps, n = objective.scale.log_scale.exp(), objective.smoothing, len(views[0])
    a, b = rows_of(views)
    if not objective.normalise:
        a = views[0]
    logits = s * a @ b.T
    twin = torch.tensor([[i != j and same(group, i, j) for j in range(n)] for i in range(n)])

    def direction(logits):
        if objective.positives == "own":
            logits, open_ = logits.masked_fill(F.pad(twin, (0, logits.shape[1] - n)), -math.inf), (~twin).double()
            own = torch.eye(n, dtype=torch.float64)
        else:
            open_ = torch.ones(n, n, dtype=torch.float64)
            own = torch.eye(n, dtype=torch.float64) + twin.double()
        target = (1 - eps) * own / own.sum(1, keepdim=True) + eps * open_ / open_.sum(1, keepdim=True)
        return cross_entropy(logits, F.pad(target, (0, logits.shape[1] - n)))

    first = logits if extra is None else torch.cat([logits, s * a @ rows_of([extra.flatten(0, 1)])[0].T], 1)
    if objective.directions == "first":
        return direction(first)
    return (direction(first) + direction(logits.T)) / 2


def siglip(views, objective, group=None, **_):
    s, beta, n = objective.scale.log_scale.exp(), objective.scale.bias, len(views[0])
    a, b = rows_of(views)
    total = 0.0
    for i in range(n):
        for j in range(n):
            sign = 1 if same(group, i, j) else -1
            total = total - F.logsigmoid(sign * (s * a[i] @ b[j] + beta))
    return total / n


def hard(n, d):
    return {"extra": draw(n, 2, d)}


CASES = [
    Case("CLIP", lambda d: o.CLIP(LogitScale(3.0)), clip),
    Case("CLIP-free", lambda d: o.CLIP(LogitScale(60.0)), clip),
    Case("CLIP-extra", lambda d: o.CLIP(LogitScale(3.0)), clip, context=hard, keeps="scale shuffle"),
    Case("CLIP-positives", lambda d: o.CLIP(LogitScale(3.0), positives="group"), clip),
    Case("ALIGN", lambda d: o.CLIP(LogitScale(3.0), smoothing=0.1), clip),
    Case("ALIGN-positives", lambda d: o.CLIP(LogitScale(3.0), smoothing=0.1, positives="group"), clip),
    Case(
        "CLIP-first",
        lambda d: o.CLIP(LogitScale(1.0), directions="first", normalise=False),
        clip,
        keeps="rotation shuffle",
    ),
    Case("SigLIP", lambda d: o.SigLIP(LogitScale(3.0, None, -2.0)), siglip),
]
