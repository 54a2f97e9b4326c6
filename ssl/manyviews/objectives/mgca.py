"""MGCA (Wang et al., NeurIPS 2022): image and report aligned as wholes, word by patch, and by prototypes."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from manyviews.distributed import Rows
from manyviews.objectives.clip import POSITIVES, Positives, contrast
from manyviews.objectives.filip import pair_of_tokens
from manyviews.objectives.objective import Objective, choice, exactly_two, positive
from manyviews.objectives.swav import at_length_one, sinkhorn
from manyviews.similarity import full_precision, unit


class MGCA(Objective):
    r"""Instances, tokens and prototypes.

    .. math:: L = \lambda_1 L_{ITA} + \lambda_2 (L_{word} + L_{patch}) + \lambda_3 L_{CPA}

    ITA: both directions of InfoNCE with t = 0.07, summed. Word side of CTA: a word attends to the patches of its image
    (t = 0.1) and should be told from the report's other words by what it saw, and the reverse; weights of words sum to
    1. Patch side likewise. CPA: the balanced prototype assignment of one modality is predicted from the other (t 0.2).
    Here padding takes no part, attended tokens are brought to length 1 again, and instances are
    contrasted over all ranks.

    Args:
        dim: D of the embeddings. prototypes: how many.
        weights: lambda 1 to 3.
        temperature: of ITA. local_temperature: of CTA. prototype_temperature: of CPA. epsilon: of its Sinkhorn.
        frozen_epochs: epochs at the start in which prototypes stay as they are.
        positives: as in `manyviews.objectives.CLIP`.
    """

    def __init__(
        self,
        dim: int = 128,
        prototypes: int = 500,
        weights: tuple[float, float, float] = (1.0, 1.0, 1.0),
        temperature: float = 0.07,
        local_temperature: float = 0.1,
        prototype_temperature: float = 0.2,
        epsilon: float = 0.05,
        frozen_epochs: int = 1,
        positives: Positives = "own",
    ) -> None:
        super().__init__()
        self.positives = choice("positives", positives, POSITIVES)
        self.weights, self.epsilon, self.frozen_epochs = weights, epsilon, frozen_epochs
        self.temperature = positive("temperature", temperature)
        self.local_temperature = positive("local_temperature", local_temperature)
        self.prototype_temperature = positive("prototype_temperature", prototype_temperature)
        self.prototypes = nn.Parameter(F.normalize(torch.randn(prototypes, dim), dim=1))

    def loss(
        self,
        views: list[Tensor],
        rows: Rows,
        tokens: Sequence[Tensor] | None = None,
        masks: Sequence[Tensor] | None = None,
        importance: Sequence[Tensor] | None = None,
        group: Tensor | None = None,
        epoch: int | None = None,
    ) -> Tensor:
        """`views`: global image and report; `tokens`, `masks`: patches and words of the same D.

        `importance`: (n, T) and (n, L) weights of patches and words, such as the class token's attention; default even.
        As in the code of the authors those of a sample that are not 0 are clipped to their quantiles of 0.1 and 0.9.
        """
        v, t = (unit(view) for view in exactly_two(self, views))
        (p, w), (mask_p, mask_w) = pair_of_tokens(self, tokens, masks)
        if importance is None:
            importance = [mask_p.to(p.dtype), mask_w.to(w.dtype)]
        bound = 1 / self.temperature
        instance = 2 * contrast(v * bound, t, rows, group, bound, self.positives)
        of_patches, of_words = (clipped(x, mask) for x, mask in zip(importance, (mask_p, mask_w), strict=True))
        word = rows.mean(self.local(w, p, mask_w, mask_p, of_words))
        patch = rows.mean(self.local(p, w, mask_p, mask_w, of_patches))
        prototype = self._swapped(v, t, rows, epoch)
        self.diagnostics = {
            "instance": instance.detach(), "local": (word + patch).detach(), "prototype": prototype.detach(),
        }  # fmt: skip
        return self.weights[0] * instance + self.weights[1] * (word + patch) + self.weights[2] * prototype

    def local(self, a: Tensor, b: Tensor, mask_a: Tensor, mask_b: Tensor, importance: Tensor) -> Tensor:
        """(n,): tokens a (n, T, D) against what each of them sees in b (n, L, D) of the same sample."""
        t = self.local_temperature
        attention = (a @ b.mT / t).masked_fill(~mask_b[:, None], -math.inf)
        seen = unit(attention.softmax(2).nan_to_num() @ b)
        m = (a @ seen.mT / t).masked_fill(~(mask_a[:, :, None] & mask_a[:, None]), -1e9)
        share = importance.detach() * mask_a
        share = share / share.sum(1, keepdim=True).clamp(min=1e-12)
        own = m.diagonal(dim1=1, dim2=2)
        return 0.5 * (share * (m.logsumexp(2) + m.logsumexp(1) - 2 * own)).sum(1)

    def _constrain_own(self) -> None:
        """Prototypes of length 1."""
        self.prototypes.copy_(unit(self.prototypes))

    def _swapped(self, v: Tensor, t: Tensor, rows: Rows, epoch: int | None) -> Tensor:
        q = at_length_one(self.prototypes)
        if epoch is not None and epoch < self.frozen_epochs:
            q = q.detach() + 0 * q  # a gradient of zero, since DDP wants one
        scores = [v @ q.T, t @ q.T]
        here = slice(rows.offset, rows.offset + rows.n)
        codes = [sinkhorn(rows.gather(s), self.epsilon, 3)[here] for s in scores]
        log_p = [F.log_softmax(s / self.prototype_temperature, 1) for s in scores]
        terms = [rows.mean(-(code * other).sum(1)) for code, other in zip(codes, log_p[::-1], strict=True)]
        return torch.stack(terms).mean()


@torch.no_grad()
def clipped(importance: Tensor, mask: Tensor) -> Tensor:
    """(n, T): weights of valid tokens, those of a sample that are not 0 between their quantiles of 0.1 and 0.9."""
    weights = full_precision(importance) * mask
    there = weights > 0
    bounds = torch.tensor([0.1, 0.9], dtype=weights.dtype, device=weights.device)
    low, high = weights.masked_fill(~there, math.nan).nanquantile(bounds, 1, keepdim=True).nan_to_num()
    return torch.where(there, weights.clamp(low, high), 0)
