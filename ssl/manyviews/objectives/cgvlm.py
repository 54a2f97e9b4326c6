"""CG-VLM's contrastive part (Liu et al., 2023): the mean similarity of patches and words."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from manyviews.distributed import Rows
from manyviews.heads import LogitScale
from manyviews.objectives.clip import POSITIVES, Positives, contrast
from manyviews.objectives.filip import pair_of_tokens
from manyviews.objectives.objective import Objective, choice
from manyviews.tokens import masked_mean


class CGVLM(Objective):
    r"""The mean similarity of all patches with all words of a sentence, contrasted like CLIP.

    .. math:: S_{ij} = \mathrm{mean}_{k, r}\, v_{ik} \cdot e_{jr} = \bar v_i \cdot \bar e_j

    over unit tokens; the means are not brought to length 1 again, so long captions score lower. Blind to word order.

    Args:
        scale: s; default 1/0.07, learned, in [1, 100].
        positives: as in `manyviews.objectives.CLIP`.
    """

    def __init__(self, scale: LogitScale | None = None, positives: Positives = "own") -> None:
        super().__init__()
        self.scale, self.positives = scale or LogitScale(), choice("positives", positives, POSITIVES)

    def loss(
        self,
        views: list[Tensor],
        rows: Rows,
        tokens: Sequence[Tensor] | None = None,
        masks: Sequence[Tensor] | None = None,
        group: Tensor | None = None,
    ) -> Tensor:
        """`tokens`, `masks`: as in `FILIP`."""
        (v, e), (mask_v, mask_e) = pair_of_tokens(self, tokens, masks)
        s = self.scale()
        self.diagnostics = {"logit_scale": s.detach()}
        a, b = s * masked_mean(v, mask_v), masked_mean(e, mask_e)
        return contrast(a, b, rows, group, float(s.detach()), self.positives)
