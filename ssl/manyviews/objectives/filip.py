"""FILIP (Yao et al., ICLR 2022): words and patches meet; and CG-VLM (Liu et al., 2023): their means do."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from manyviews.distributed import Rows
from manyviews.heads import LogitScale
from manyviews.objectives.clip import POSITIVES, Positives, pick_own
from manyviews.objectives.objective import Objective, choice
from manyviews.similarity import full_precision, unit
from manyviews.tokens import late_interaction


class FILIP(Objective):
    r"""Each token looks for its best partner in the other modality; a pair's score is the mean of what they find.

    .. math:: s^I_{ij} = \mathrm{mean}_k \max_r v_{ik} \cdot t_{jr}, \quad
              s^T_{ij} = \mathrm{mean}_r \max_k v_{ik} \cdot t_{jr}, \quad
              L = \frac12 \big( CE(s\, s^I) + CE(s\, s^{T\top}) \big)

    over valid unit tokens. The two scores are different matrices.

    Args:
        scale: s; default 1/0.07, learned, in [1, 100].
        keep: share of its tokens by which an item is seen by the others, those most similar to its own pair's; 1: all.
            The paper gathers 25 %, chosen by the batch of the worker, which would depend on the number of ranks.
        positives: as in `manyviews.objectives.CLIP`.
    """

    def __init__(self, scale: LogitScale | None = None, keep: float = 1.0, positives: Positives = "own") -> None:
        super().__init__()
        self.positives = choice("positives", positives, POSITIVES)
        if not 0 < keep <= 1:
            raise ValueError(f"keep must be in (0, 1], got {keep}")
        self.scale, self.keep = scale or LogitScale(), keep

    def loss(
        self,
        views: list[Tensor],
        rows: Rows,
        tokens: Sequence[Tensor] | None = None,
        masks: Sequence[Tensor] | None = None,
        group: Tensor | None = None,
    ) -> Tensor:
        """`tokens`: (n, T, d) of images and (n, L, d) of texts; `masks` alike, True for valid. `views` take no part."""
        (v, t), (mask_v, mask_t) = pair_of_tokens(self, tokens, masks)
        s = self.scale()
        seen_v, seen_t = self._seen(v, t, mask_v, mask_t), self._seen(t, v, mask_t, mask_v)
        losses = []
        for (a, mask), (b, mask_b) in (((v, mask_v), seen_t), ((t, mask_t), seen_v)):
            everyone, there = rows.gather_with_gradient(b), rows.gather(mask_b.byte()).bool()
            losses.append(pick_own(s * late_interaction(a, everyone, mask, there), rows, group, self.positives))
        self.diagnostics = {"logit_scale": s.detach(), "patch_entropy": _argmax_entropy(v, t, mask_v, mask_t, rows)}
        return torch.stack(losses).mean()

    def _seen(self, a: Tensor, b: Tensor, mask_a: Tensor, mask_b: Tensor) -> tuple[Tensor, Tensor]:
        """The tokens of `a` that others see, and their mask."""
        if self.keep == 1:
            return a, mask_a
        best = torch.einsum("nkd,nrd->nkr", a, b).masked_fill(~mask_b[:, None], -torch.inf).amax(2)
        best = best.masked_fill(~mask_a, -torch.inf)
        kept = best.topk(max(1, round(self.keep * a.shape[1])), dim=1).indices
        return a.gather(1, kept[..., None].expand(-1, -1, a.shape[2])), mask_a.gather(1, kept)


def pair_of_tokens(
    objective: Objective, tokens: Sequence[Tensor] | None, masks: Sequence[Tensor] | None
) -> tuple[list[Tensor], list[Tensor]]:
    """Unit tokens and masks of images and texts, or an error that says what is missing."""
    name = type(objective).__name__
    if tokens is None or len(tokens) != 2:
        raise ValueError(f"{name} needs tokens=[images (n, T, d), texts (n, L, d)]")
    tokens = [full_precision(x) for x in tokens]
    if masks is None:
        masks = [torch.ones(x.shape[:2], dtype=torch.bool, device=x.device) for x in tokens]
    for x, mask in zip(tokens, masks, strict=True):
        if x.ndim != 3 or mask.shape != x.shape[:2]:
            raise ValueError(
                f"{name}: tokens are (n, T, d) and masks (n, T), got {tuple(x.shape)}, {tuple(mask.shape)}"
            )
    return [unit(x) for x in tokens], list(masks)


@torch.no_grad()
def _argmax_entropy(v: Tensor, t: Tensor, mask_v: Tensor, mask_t: Tensor, rows: Rows) -> Tensor:
    """Entropy of which patch the words choose in their own image, as a share of its maximum: 0: all the same one."""
    s = torch.einsum("nkd,nrd->nkr", v, t).masked_fill(~mask_v[..., None], -torch.inf)
    chosen = torch.nn.functional.one_hot(s.argmax(1), v.shape[1]) * mask_t[..., None]
    share = rows.sum(chosen.sum((0, 1)).to(v.dtype))
    share = share / share.sum().clamp(min=1)
    entropy: Tensor = -torch.special.xlogy(share, share).sum() / math.log(max(2, len(share)))
    return entropy
