"""SLIP (Mu et al., ECCV 2022): CLIP on a pair, SimCLR on two more views of the image."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from manyviews.distributed import Rows
from manyviews.heads import LogitScale
from manyviews.objectives.clip import CLIP, Positives
from manyviews.objectives.ntxent import NTXent
from manyviews.objectives.objective import Objective
from manyviews.similarity import full_precision


class SLIP(Objective):
    r"""The sum of CLIP and NT-Xent.

    .. math:: L = \mathrm{CLIP}(u, w) + \lambda\, \mathrm{NTXent}(h_1, h_2)

    Args:
        scale, positives: of CLIP. weight: lambda, paper 1. temperature: of NT-Xent, paper 0.1.
    """

    def __init__(
        self,
        scale: LogitScale | None = None,
        weight: float = 1.0,
        temperature: float = 0.1,
        positives: Positives = "own",
    ) -> None:
        super().__init__()
        self.clip, self.ntxent, self.weight = CLIP(scale, positives=positives), NTXent(temperature), weight

    def loss(
        self,
        views: list[Tensor],
        rows: Rows,
        strong: Sequence[Tensor] | None = None,
        group: Tensor | None = None,
    ) -> Tensor:
        """`views`: image and text. `strong`: two (n, D') projections of further image views."""
        if strong is None or len(strong) != 2:
            raise ValueError("SLIP needs strong=[...], two projections of further image views")
        pair = self.clip.loss(views, rows, group)
        images = self.ntxent.loss([full_precision(view) for view in strong], rows, group)
        self.diagnostics = {**self.clip.diagnostics, "clip": pair.detach(), "ntxent": images.detach()}
        return pair + self.weight * images
