"""CLIP (Radford et al., ICML 2021), and what ALIGN, NegCLIP and neural decoding change in it."""

from __future__ import annotations

from itertools import combinations
from typing import Literal

import torch
from torch import Tensor

from manyviews.distributed import Rows
from manyviews.heads import LogitScale
from manyviews.objectives.ntxent import softplus
from manyviews.objectives.objective import Objective, choice, exactly_two
from manyviews.similarity import image_ids, logsumexp, logsumexp_both, unit

Positives = Literal["own", "group"]
POSITIVES = ("own", "group")
"""What pairs of equal `group` are to each other: no negatives (`own`), or further right answers in equal shares."""


class CLIP(Objective):
    r"""Which text belongs to an image, and which image to a text, among all of the global batch.

    .. math:: L = \frac12 \Big( \mathrm{mean}_i \big[ \log \sum_j e^{s\, u_i \cdot w_j} - s\, u_i \cdot w_i \big] +
              \mathrm{mean}_j \big[ \log \sum_i e^{s\, u_i \cdot w_j} - s\, u_j \cdot w_j \big] \Big)

    with unit u (view 0, images) and w (view 1, texts) and a learned s. Never holds N x N; exact across ranks: value and
    gradient, of s too, are those of one process with the whole batch.

    Args:
        scale: s; default 1/0.07, learned, in [1, 100].
        smoothing: label smoothing over the columns. ALIGN and the improved recipe: 0.1.
        positives: `own`: pairs of equal `group` are no negatives; `group`: they are further right answers, in equal
            shares.
        directions: `both`, or `first`: view 0 picks in view 1 only.
        normalise: False: view 0 keeps its length, which then is its own inverse temperature (Defossez et al., 2023).
    """

    def __init__(
        self,
        scale: LogitScale | None = None,
        smoothing: float = 0.0,
        positives: Positives = "own",
        directions: Literal["both", "first"] = "both",
        normalise: bool = True,
    ) -> None:
        super().__init__()
        if not 0 <= smoothing < 1:
            raise ValueError(f"smoothing must be in [0, 1), got {smoothing}")
        self.scale = scale or LogitScale()
        self.smoothing, self.positives = smoothing, choice("positives", positives, POSITIVES)
        self.directions, self.normalise = choice("directions", directions, ("both", "first")), normalise

    def loss(
        self,
        views: list[Tensor],
        rows: Rows,
        group: Tensor | None = None,
        extra: Tensor | None = None,
        extra_present: Tensor | None = None,
    ) -> Tensor:
        """`group` (n,): see `positives`; -1: unknown, no such twin.

        `extra` (n, k, D): further columns for view 0, right answers to nobody: hard captions (NegCLIP);
        `extra_present` (n, k) bool: which of them there are.
        """
        a, b = exactly_two(self, views)
        s = self.scale()
        a, b = (unit(a) if self.normalise else a) * s, unit(b)
        bound = float(s.detach()) if self.normalise else None
        own = rows.index(a.device)
        same = image_ids(rows, group, a.device)
        ids = same if self.positives == "own" else own
        both = logsumexp_both if self.directions == "both" else _rows_only
        negatives_a, negatives_b = both(a, b, ids, ids, rows, bound)
        if extra is not None:
            none = own.new_full((len(a),), -1)  # no column's id but of those that are not there
            more = unit(extra.flatten(0, 1))
            columns = torch.full((len(more),), -2, dtype=torch.int64, device=a.device)
            if extra_present is not None:
                columns[~extra_present.flatten()] = -1
            negatives_a = torch.logaddexp(negatives_a, logsumexp(a, more, none, columns, rows, bound))
        losses = [self._direction(a, b, negatives_a, ids, same, rows)]
        if self.directions == "both":
            losses.append(self._direction(b, a, negatives_b, ids, same, rows))
        self.diagnostics["logit_scale"] = s.detach()
        return torch.stack(losses).mean()

    def _direction(self, a: Tensor, b: Tensor, negatives: Tensor, ids: Tensor, same: Tensor, rows: Rows) -> Tensor:
        """The mean over rows a of logsumexp - target . logits; s is in a or in b."""
        positive = (a * b).sum(1)
        plain = softplus(negatives - positive)
        if self.smoothing == 0 and self.positives == "own":
            return rows.mean(plain)
        # Every further term is linear in the columns: sums of them, and no second walk over the matrix.
        everyone = rows.gather_with_gradient(b)
        twins, number = sums_of_equal(everyone, rows.gather(same), same)
        right = (a * twins).sum(1) / number if self.positives == "group" else positive
        if self.positives == "group":  # all columns stand in the sum
            spread, columns = (a * everyone.sum(0)).sum(1), torch.full_like(number, rows.total)
        else:  # the twins do not
            spread, columns = (a * (everyone.sum(0) - twins)).sum(1) + positive, rows.total - number + 1
        target = (1 - self.smoothing) * right + self.smoothing * spread / columns
        return rows.mean(plain + positive - target)


class PairwiseCLIP(Objective):
    """The mean of CLIP over pairs of more than two views or modalities, one scale for all.

    Args:
        scale: s; default 1/0.07, learned, in [1, 100].
        anchor: only pairs with this view (ImageBind: the image); None: all pairs.
        positives: as in CLIP.
    """

    def __init__(
        self, scale: LogitScale | None = None, anchor: int | None = None, positives: Positives = "own"
    ) -> None:
        super().__init__()
        self.clip, self.anchor = CLIP(scale, positives=positives), anchor

    def loss(
        self, views: list[Tensor], rows: Rows, group: Tensor | None = None, present: Tensor | None = None
    ) -> Tensor:
        """`group` (n,): as in `CLIP`. `present` (n, V): must all be there."""
        if present is not None and not bool(present.all()):
            raise ValueError("PairwiseCLIP takes no missing views: use MVInfoNCE or MVDHEL")
        pairs = [(a, b) for a, b in combinations(range(len(views)), 2) if self.anchor is None or self.anchor in (a, b)]
        losses = [self.clip.loss([views[a], views[b]], rows, group) for a, b in pairs]
        self.diagnostics = {f"pair_{a}{b}": x.detach() for (a, b), x in zip(pairs, losses, strict=True)}
        return torch.stack(losses).mean()


def contrast(
    a: Tensor,
    b: Tensor,
    rows: Rows,
    group: Tensor | None = None,
    bound: float | None = None,
    positives: str = "own",
) -> Tensor:
    """The symmetric loss of rows a and b (n, D) as they are, any scale in them; `positives` as in `CLIP`."""
    same, positive = image_ids(rows, group, a.device), (a * b).sum(1)
    ids = same if positives == "own" else rows.index(a.device)
    losses = []
    for x, y, negatives in zip((a, b), (b, a), logsumexp_both(a, b, ids, ids, rows, bound), strict=True):
        loss = softplus(negatives - positive)
        if positives == "group":
            twins, number = sums_of_equal(rows.gather_with_gradient(y), rows.gather(same), same)
            loss = loss + positive - (x * twins).sum(1) / number
        losses.append(rows.mean(loss))
    return torch.stack(losses).mean()


def pick_own(logits: Tensor, rows: Rows, group: Tensor | None = None, positives: str = "own") -> Tensor:
    """Mean over local rows of the cross-entropy of `logits` (n, N), whose columns are the pairs of all ranks.

    For similarities that are no product of two vectors. `positives` as in `CLIP`.
    """
    ids, own = image_ids(rows, group, logits.device), rows.index(logits.device)
    same = ids[:, None] == rows.gather(ids)
    if positives == "group":
        return rows.mean(logits.logsumexp(1) - (logits * same).sum(1) / same.sum(1))
    twin = same & (own[:, None] != torch.arange(rows.total, device=logits.device))
    logits = logits.masked_fill(twin, -torch.inf)
    return rows.mean(logits.logsumexp(1) - logits.gather(1, own[:, None])[:, 0])


def _rows_only(
    a: Tensor, b: Tensor, ids_a: Tensor, ids_b: Tensor, rows: Rows, bound: float | None
) -> tuple[Tensor, Tensor]:
    return logsumexp(a, b, ids_a, ids_b, rows, bound), a.new_zeros(0)


def sums_of_equal(everyone: Tensor, ids: Tensor, wanted: Tensor) -> tuple[Tensor, Tensor]:
    """For each wanted id the sum (n, D) of the rows that carry it, and their number (n,)."""
    found, place = ids.unique(return_inverse=True)
    sums = everyone.new_zeros(len(found), everyone.shape[1]).index_add(0, place, everyone)
    where = torch.searchsorted(found, wanted)
    return sums[where], place.bincount(minlength=len(found))[where].to(everyone.dtype)
